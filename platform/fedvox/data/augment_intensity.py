"""Noise, blur, brightness, contrast, low resolution and gamma, in place on rows of volumes.

Each function takes rows `(N, D, H, W)` float32 with one parameter a row and changes them in place. On CPUs the rows
come one at a time, which keeps them in cache; on GPUs all rows of a batch come together. Nothing is read back to the
host, and reductions run over single rows: a row's outcome does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray[Any, Any]

_NOISE_BLOCK = 1 << 16  # voxels; noise is made in pieces that stay in cache. Part of the result on CPUs.
_EPSILON = 1e-7  # smallest range or standard deviation that is divided by


def add_noise(sample: Tensor, std: float, seed: int) -> None:
    """Adds Gaussian noise to all channels.

    Args:
        sample: (C, D, H, W), contiguous.
        std: standard deviation.
        seed: 64 bits; the same seed gives the same noise on the same kind of device.
    """
    generator = torch.Generator(sample.device).manual_seed(seed)
    flat = sample.view(-1)
    for piece in torch.split(flat, _NOISE_BLOCK if flat.device.type == "cpu" else flat.numel()):
        piece.add_(torch.empty_like(piece).normal_(generator=generator), alpha=std)


def blur(rows: Tensor, sigma: Array) -> None:
    """Gaussian blur with reflecting borders, axis by axis.

    Args:
        rows: `(N, D, H, W)`.
        sigma: `(N, 3)`, in voxels. The kernel has the odd number of taps next to 6σ + ½, as batchgeneratorsv2's has.
    """
    source, target = rows, torch.empty_like(rows)
    for axis in range(3):
        # No wider than the axis: a single plane has nothing to be blurred with.
        half = np.minimum(np.floor(3 * sigma[:, axis] + 0.25).astype(int), rows.shape[axis + 1] - 1)
        distance = np.arange(half.max() + 1)
        taps = np.exp(-0.5 * (distance / sigma[:, axis, None]) ** 2) * (distance <= half[:, None])
        taps /= 2 * taps.sum(1, keepdims=True) - taps[:, :1]
        _convolve(source, target, taps, axis + 1)
        source, target = target, source
    rows.copy_(source)


def scale_brightness(rows: Tensor, factor: Array) -> None:
    """Multiplies each row by its factor, `(N,)`."""
    rows.mul_(_per_row(factor, rows))


def scale_contrast(rows: Tensor, factor: Array) -> None:
    """Stretches each row about its mean by its factor, `(N,)`, within the row's own range."""
    mean = rows.mean((1, 2, 3), keepdim=True)
    low, high = rows.amin((1, 2, 3), keepdim=True), rows.amax((1, 2, 3), keepdim=True)
    by = _per_row(factor, rows)
    rows.mul_(by).add_(mean * (1 - by))
    torch.minimum(torch.maximum(rows, low, out=rows), high, out=rows)


def reduce_resolution(rows: Tensor, scale: Array) -> None:
    """Reduces each row's size by nearest neighbours, and enlarges it again linearly.

    Args:
        rows: `(N, D, H, W)`.
        scale: `(N, 3)`, of each axis.
    """
    depth, height, width = rows.shape[1:]
    for row, by in zip(rows, scale, strict=True):
        size = [max(1, round(n * float(s))) for n, s in zip(row.shape, by, strict=True)]
        small = F.interpolate(row[None, None], size, mode="nearest-exact")[0]
        planes = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0]
        # Along the first axis by hand: trilinear in one call is three times as slow on CPUs.
        at = ((torch.arange(depth, device=row.device) + 0.5) * (size[0] / depth) - 0.5).clamp(min=0)
        below = at.long()
        above = (below + 1).clamp(max=size[0] - 1)
        start = planes.index_select(0, below)
        difference = planes.index_select(0, above).sub_(start).mul_((at - below)[:, None, None])
        torch.add(start, difference, out=row)


def gamma_correct(rows: Tensor, gamma: Array, *, inverted: bool) -> None:
    """Raises each row, scaled to [0, 1], to a power, and restores its mean and standard deviation.

    Args:
        rows: `(N, D, H, W)`.
        gamma: `(N,)`, exponents.
        inverted: work on the negative image.
    """
    count = rows[0].numel()
    mean = rows.mean((1, 2, 3), keepdim=True)
    low, high = rows.amin((1, 2, 3), keepdim=True), rows.amax((1, 2, 3), keepdim=True)
    extent = high - low
    std = _norm(rows.sub_(mean)) / max(1, count - 1) ** 0.5
    # The image is now centred; its darkest (or, inverted, brightest) voxel becomes 0.
    if inverted:
        rows.sub_(high - mean).neg_()
    else:
        rows.sub_(low - mean)
    rows.div_(extent.clamp(min=_EPSILON)).clamp_(min=0)
    rows.log2_().mul_(_per_row(gamma, rows)).exp2_()  # 0 stays 0, by way of -inf; half the time of pow
    rows.sub_(rows.mean((1, 2, 3), keepdim=True))
    std_now = _norm(rows) / max(1, count - 1) ** 0.5
    by = std * extent / (std_now * extent).clamp(min=_EPSILON)
    rows.mul_(-by if inverted else by).add_(mean)


def _convolve(source: Tensor, target: Tensor, taps: Array, axis: int) -> None:
    """Symmetric convolution along one axis with reflecting borders; `taps` are `(N, 1 + half)`, the centre first."""
    size = source.shape[axis]
    weights = torch.as_tensor(taps, dtype=source.dtype, device=source.device)[..., None, None, None]
    torch.mul(source, weights[:, 0], out=target)
    for j in range(1, taps.shape[1]):
        weight = weights[:, j]
        target.narrow(axis, j, size - j).addcmul_(source.narrow(axis, 0, size - j), weight)
        target.narrow(axis, 0, size - j).addcmul_(source.narrow(axis, j, size - j), weight)
        target.narrow(axis, 0, j).addcmul_(source.narrow(axis, 1, j).flip(axis), weight)
        target.narrow(axis, size - j, j).addcmul_(source.narrow(axis, size - 1 - j, j).flip(axis), weight)


def _norm(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows, dim=(1, 2, 3), keepdim=True)
    return norm


def _per_row(values: Array, rows: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=rows.dtype, device=rows.device).view(-1, 1, 1, 1)
