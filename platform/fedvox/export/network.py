"""The released network as an export wants it: checked against its patch, in evaluation mode, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedvox.errors import ConfigError
from fedvox.inference.ensemble import release_folder
from fedvox.models.backbone import Backbone
from fedvox.training.release import ModelInfo, load_release

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Exported:
    """What is to be exported.

    Attributes:
        network: in evaluation mode, on the CPU.
        info: its release.
        patch_size: (D, H, W) of the exported network's input.
    """

    network: Backbone
    info: ModelInfo
    patch_size: Size3

    def example(self, batch: int, seed: int = 0) -> Tensor:
        """An input (batch, C, D, H, W) of normal noise, which is what normalised images are on average."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, len(self.info.channel_names), *self.patch_size, generator=generator)


def read_network(uri: str, patch_size: Size3 | None = None) -> Exported:
    """Loads a released model for export.

    Args:
        uri: run directory, or its `final` folder.
        patch_size: (D, H, W); None for that of training.

    Raises:
        CheckpointError: there is no release, or it is damaged.
        ConfigError: the patch does not fit the network.
    """
    network, info = load_release(release_folder(uri))
    assert isinstance(network, Backbone)  # build_model gives nothing else
    size = patch_size or info.patch_size
    fixed = getattr(network.config, "patch", None)
    if fixed is not None and tuple(fixed) != tuple(size):
        raise ConfigError(
            f"{info.name} takes patches of {tuple(fixed)} alone, not {tuple(size)}",
            "Leave --patch-size out, or fine-tune with the other patch first: positions are resized then.",
        )
    divisor = network.divisor
    if any(edge % step for edge, step in zip(size, divisor, strict=True)):
        fitting = [max(step, round(edge / step) * step) for edge, step in zip(size, divisor, strict=True)]
        raise ConfigError(
            f"patch_size {tuple(size)} is not divisible by {divisor}, as {info.name} needs",
            f"Nearest size that fits: --patch-size {','.join(map(str, fitting))}",
        )
    return Exported(network, info, size)
