"""What an adapter is: a description that is read from a manifest, and a function from a folder to a folder.

IMAGES/CASE_0000.nii.gz, CASE_0001.nii.gz …  ->  OUTPUT/CASE.nii.gz, integers on the first image's grid
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from fedvox.config import Config
from fedvox.errors import ConfigError


class Adapter(Config):
    """A trained model and how it is used. A field that is a path, or several, is what the process may read.

    Attributes:
        kind: which adapter.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`.
        threads: CPU threads of the process; None leaves torch's choice.
        relabel: label of the model -> label of the benchmark; labels that are not named stay as they are.
    """

    kind: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    relabel: dict[int, int] = Field(default_factory=dict)

    @abstractmethod
    def predict(self, images: Path, output: Path) -> None:
        """Segment every case of a folder.

        Args:
            images: holds CASE_0000.nii.gz …; not written to.
            output: takes CASE.nii.gz; other files there are ignored.

        Raises:
            FedvoxError: the model cannot be used, or cases failed; the label maps of the others are there.
        """

    def files(self) -> tuple[Path, ...]:
        """What the process must be able to read."""
        return tuple(path for _, value in self for path in _paths(value))

    def located(self, folder: Path) -> Self:
        """With paths relative to a folder made absolute."""

        def absolute(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(absolute(v) for v in value)
            return (folder / value.expanduser()).resolve() if isinstance(value, Path) else value

        return self.model_copy(update={name: absolute(value) for name, value in self})


def _paths(value: Any) -> Iterator[Path]:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, Path):
            yield item


def need_file(path: Path, what: str) -> Path:
    """The path, which must exist.

    Raises:
        ConfigError: it does not.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist", f"Give {what}.")
    return path


def load_state(path: Path) -> Mapping[str, Any]:
    """Weights from a file of torch, without running what else it may hold; `module.` of DDP is taken off.

    Args:
        path: a state dict, or a checkpoint with one under `state_dict`, `model` or `network_weights`.

    Raises:
        ConfigError: the file is missing or holds no state dict.
    """
    import torch

    try:
        loaded = torch.load(need_file(path, "a state dict"), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, ImportError, LookupError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Save it with torch.save.") from error
    except Exception as error:  # pickle's own error has no better base
        raise ConfigError(
            f"{path} holds more than weights: {str(error).splitlines()[0]}",
            "Save the state dict alone: torch.save(network.state_dict(), path).",
        ) from error
    for key in ("state_dict", "model", "network_weights"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(hasattr(v, "shape") for v in loaded.values()):
        raise ConfigError(f"{path} holds no state dict", "torch.save(network.state_dict(), path).")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def fill(network: Any, weights: Path) -> Any:
    """The network with its weights, ready to predict.

    Raises:
        ConfigError: the weights are of another network; what differs is named.
    """
    state = load_state(weights)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{weights} does not fit {type(network).__name__}: {reason[:400]}",
            "Give the arguments that it was trained with.",
        ) from error
    return network.eval()
