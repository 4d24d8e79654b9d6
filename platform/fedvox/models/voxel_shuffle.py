"""Blocks of voxels as channels, and back: what a small network gains in speed it loses in no detail."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def to_channels(x: Tensor, edge: int) -> Tensor:
    """Blocks of voxels as channels: `(B, C, *spatial)` to `(B, C edge^d, *spatial / edge)`."""
    if edge == 1:
        return x
    if x.ndim == 4:
        return F.pixel_unshuffle(x, edge)
    b, c, d, h, w = x.shape
    cut = x.reshape(b, c, d // edge, edge, h // edge, edge, w // edge, edge)
    return cut.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * edge**3, d // edge, h // edge, w // edge)


def to_voxels(x: Tensor, edge: int) -> Tensor:
    """The inverse of `to_channels`."""
    if edge == 1:
        return x
    if x.ndim == 4:
        return F.pixel_shuffle(x, edge)
    b, c, d, h, w = x.shape
    cut = x.reshape(b, c // edge**3, edge, edge, edge, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cut.reshape(b, c // edge**3, d * edge, h * edge, w * edge)
