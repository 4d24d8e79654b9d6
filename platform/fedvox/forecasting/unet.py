"""The small 3D U-Net with a time embedding that carries context images to the target.

    entrance   cubes of patch³ voxels become channels, one convolution
    encoder    per level: residual blocks modulated by the time embedding (FiLM); a strided convolution between levels
    decoder    per level: nearest upsampling, the encoder's features concatenated, one residual block
    exit       one convolution that starts at zero, channels become voxels again

Group normalisation: no statistic is shared between patients, so that the company in a batch changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedvox.models.voxel_shuffle import to_channels, to_voxels


class TimedBlock(nn.Module):
    """Residual block `(B, C, D, H, W)` to `(B, width, D, H, W)`, scaled and shifted by the embedding (FiLM)."""

    def __init__(self, channels: int, width: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups(channels), channels)
        self.conv_in = nn.Conv3d(channels, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        self.norm_out = nn.GroupNorm(groups(width), width)
        self.conv_out = nn.Conv3d(width, width, 3, padding=1)
        self.shortcut = nn.Conv3d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block; `embedding` is `(B, E)`."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = modulate(self.norm_out(h), self.film(embedding))
        out: Tensor = self.shortcut(x) + self.conv_out(F.silu(h))
        return out


class TimedUNet(nn.Module):
    """From `(B, inputs, D, H, W)` and an embedding `(B, E)` to `(B, outputs, D, H, W)`, all zero at first.

    Args:
        inputs: channels.
        outputs: channels.
        widths: channels per level.
        blocks: residual blocks per encoder level.
        patch: edge of the cubes at the entrance.
        embedding: E.
        recompute: keep no activations of blocks for the backward pass.
    """

    def __init__(
        self, inputs: int, outputs: int, *, widths: Sequence[int], blocks: int, patch: int, embedding: int,
        recompute: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.recompute = patch, recompute
        self.entrance = nn.Conv3d(inputs * patch**3, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.ModuleList(TimedBlock(width, width, embedding) for _ in range(blocks)) for width in widths
        )
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv3d(fine, coarse, 3, 2, padding=1) for fine, coarse in pairs)
        self.ups = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(TimedBlock(2 * fine, fine, embedding) for fine, _ in pairs)
        self.norm = nn.GroupNorm(groups(widths[0]), widths[0])
        self.exit = zeroed(nn.Conv3d(widths[0], outputs * patch**3, 3, padding=1))

    @property
    def divisor(self) -> int:
        """What each edge of a volume must be a multiple of."""
        return self.patch << len(self.downs)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The output, `(B, outputs, D, H, W)`."""
        h = self.entrance(to_channels(x, self.patch))
        kept: list[Tensor] = []
        for level, blocks in enumerate(self.encoder):
            if level:
                h = self.downs[level - 1](h)
            for block in cast(nn.ModuleList, blocks):
                h = self._run(block, h, embedding)
            kept.append(h)
        for level in reversed(range(len(self.ups))):
            h = F.interpolate(self.ups[level](h), size=kept[level].shape[2:], mode="nearest")
            h = self._run(self.decoder[level], torch.cat([h, kept[level]], dim=1), embedding)
        return to_voxels(self.exit(F.silu(self.norm(h))), self.patch)

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, x, embedding, use_reentrant=False))
        return cast(Tensor, block(x, embedding))


def modulate(x: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Feature-wise linear modulation of `(B, C, D, H, W)` by `(B, 2C)`: `x (1 + scale) + shift`."""
    scale, shift = scale_and_shift[:, :, None, None, None].chunk(2, dim=1)
    return x * (1 + scale) + shift


def zeroed(layer: nn.Conv3d) -> nn.Conv3d:
    """The layer with all parameters zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def groups(channels: int) -> int:
    """The largest number of groups up to 8 that divides the channels."""
    return next(n for n in (8, 6, 5, 4, 3, 2, 1) if channels % n == 0)
