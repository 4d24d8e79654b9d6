"""Soft-edged shapes on voxel grids of many subjects at many times."""

from __future__ import annotations

import torch
from torch import Tensor


def grid(size: int) -> Tensor:
    """Voxel coordinates around the centre, `(size, size, size, 3)`, in voxels."""
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def inside(points: Tensor, centre: Tensor, axes: Tensor, edge: float = 0.6) -> Tensor:
    """How far inside an ellipsoid each voxel is: 1 inside, 0 outside, a logistic edge of `edge` voxels.

    Args:
        points: `(D, H, W, 3)` voxel coordinates.
        centre: `(…, 3)`.
        axes: `(…, 3)` semi-axes in voxels.
        edge: width.

    Returns:
        `(…, D, H, W)`.
    """
    offset = (points - centre[..., None, None, None, :]) / axes[..., None, None, None, :]
    radius = offset.square().sum(dim=-1).clamp(min=1e-12).sqrt()
    mean = axes.prod(dim=-1).pow(1 / 3)[..., None, None, None]
    return torch.sigmoid((1 - radius) * mean / edge)


def texture(points: Tensor, phase: Tensor, waves: Tensor) -> Tensor:
    """A smooth pattern between -1 and 1 that tells subjects apart, `(…, D, H, W)`.

    Args:
        points: `(D, H, W, 3)`.
        phase: `(…, 3)`.
        waves: `(…, 3)` radians per voxel.
    """
    angle = points * waves[..., None, None, None, :] + phase[..., None, None, None, :]
    return angle.sin().mean(dim=-1)
