"""Any network class of MONAI with a state dict, in our sliding window."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fedvox.benchmark.adapters.contract import Adapter, fill
from fedvox.config import Config
from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Size3 = tuple[int, int, int]


class ChannelStatistics(Config):
    """Intensities of the training data's foreground, for `normalization: ct`."""

    mean: float
    std: float = Field(gt=0)
    min: float = 0.0
    max: float = 0.0
    p005: float
    p995: float


class MonaiNetwork(Adapter):
    """A network of `monai.networks.nets`.

    Attributes:
        network: its class, such as SegResNet.
        arguments: of its constructor, as it was trained.
        weights: file with its state dict.
        classes: output channels, background included; the channel with the largest logit is the label.
        channels: input channels.
        patch_size: (D, H, W) voxels of a window.
        spacing_mm: (D, H, W) that it was trained at; None keeps each image's own.
        normalization: `zscore` of each image, or `ct` (clipped and standardised by `intensity`).
        intensity: for `ct`: statistics of the training data, one entry a channel.
        mirror: average over the flips of all axes.
        overlap: share of a window that neighbours have in common.
    """

    kind: Literal["monai"] = "monai"
    network: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Path
    classes: int = Field(ge=2)
    channels: int = Field(1, ge=1)
    patch_size: Size3
    spacing_mm: tuple[float, float, float] | None = None
    normalization: Literal["zscore", "ct"] = "zscore"
    intensity: tuple[ChannelStatistics, ...] = ()
    mirror: bool = True
    overlap: float = Field(0.5, ge=0, lt=1)

    def predict(self, images: Path, output: Path) -> None:
        """See `Adapter`."""
        from fedvox.benchmark.adapters.windows import predict_windows
        from fedvox.data.intensity import ChannelIntensity
        from fedvox.inference.ensemble import Ensemble, Member
        from fedvox.inference.recipe import Recipe

        network = fill(build_network(self.network, self.arguments), self.weights)
        intensity = tuple(ChannelIntensity(**c.model_dump()) for c in self.intensity)
        recipe = Recipe(self.spacing_mm, self.patch_size, self.normalization, intensity)
        ensemble = Ensemble(
            (Member(self.network, first_output(network), recipe),),
            structures=("background", *(str(i) for i in range(1, self.classes))),
            channel_names=tuple(f"channel {i}" for i in range(self.channels)),
        )
        predict_windows(
            ensemble, images, output, mirror=self.mirror, overlap=self.overlap,
            device=self.device, threads=self.threads,
        )  # fmt: skip


def build_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of MONAI by the name of its class.

    Raises:
        ConfigError: MONAI is not installed, or has no such class, or the class refuses the arguments.
    """
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ConfigError(
            f"MONAI cannot be imported: {error}", "pip install monai einops, or leave this submission out."
        ) from error
    found = getattr(nets, name, None)
    if not isinstance(found, type):
        classes = [n for n in dir(nets) if n[0].isupper()]
        near = difflib.get_close_matches(name, classes, n=3, cutoff=0.4)
        raise ConfigError(f"monai.networks.nets has no class {name!r}", f"Near: {', '.join(near) or 'none'}.")
    try:
        network: nn.Module = found(**arguments)
    except Exception as error:  # whatever a class of another package raises, its arguments are at fault
        raise ConfigError(
            f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())}): {error}",
            "Give the arguments that it was trained with.",
        ) from error
    return network


def first_output(network: nn.Module) -> nn.Module:
    """The network, with the first of several outputs alone: deep supervision and auxiliary heads."""
    from torch import Tensor
    from torch import nn as torch_nn

    class FirstOutput(torch_nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            found = self.network(image)
            tensor: Tensor = found if isinstance(found, Tensor) else found[0]
            return tensor

    return FirstOutput().eval()
