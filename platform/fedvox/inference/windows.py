"""Where the windows of a volume lie, and what each of them weighs.

Windows are spread evenly over each axis in steps of at most `(1 - overlap) · patch`, as in nnU-Net, so that they form
a regular grid. Their weight is a Gaussian (sigma = patch / 8), a product of one factor an axis. Hence the sum of the
weights of all windows at a voxel is such a product too, and each axis can be normalised by itself, beforehand: the
weights of a voxel's windows then sum to 1. No buffer of sums is kept, nothing is divided at the end, and the weights
in the corners (1e-11 of the centre's) cannot underflow in half precision, where nnU-Net has to lift them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Size3 = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Evenly spread positions along one axis that cover `length` in steps of at most `(1 - overlap) * patch`."""
    if length <= patch:
        return [0]
    steps = math.ceil((length - patch) / max(1.0, patch * (1 - overlap)))
    step = (length - patch) / steps
    return [round(step * i) for i in range(steps + 1)]


def axis_gaussian(patch: int) -> Tensor:
    """Gaussian (patch,) float64 around voxel `patch // 2`, sigma = patch / 8, maximum 1."""
    distance = torch.arange(patch, dtype=torch.float64) - patch // 2
    return torch.exp(-0.5 * (distance / (patch / 8)) ** 2)


def gaussian_weight(patch_size: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """The weight of a window that no other one overlaps, (D, H, W) float32: maximum 1."""
    z, y, x = (axis_gaussian(size) for size in patch_size)
    return (z[:, None, None] * y[None, :, None] * x[None, None, :]).float().to(device)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a volume.

    Attributes:
        size: (D, H, W) of the volume.
        patch_size: (D, H, W) of a window.
        starts: along each axis, in a volume that is centred in at least one patch.
        weights: along each axis, (windows, patch) float32; over the windows they sum to 1 at each voxel.
    """

    size: Size3
    patch_size: Size3
    starts: tuple[tuple[int, ...], ...]
    weights: tuple[Tensor, ...]

    @classmethod
    def of(cls, size: Sequence[int], patch_size: Sequence[int], overlap: float) -> WindowGrid:
        """The grid for a volume.

        Args:
            size: (D, H, W) of the volume.
            patch_size: (D, H, W) of a window.
            overlap: share of a window that neighbours have in common at least, per axis.
        """
        starts = [window_starts(n, p, overlap) for n, p in zip(size, patch_size, strict=True)]
        weights = [_normalized(s, p, max(n, p)) for s, p, n in zip(starts, patch_size, size, strict=True)]
        return cls(_size3(size), _size3(patch_size), tuple(map(tuple, starts)), tuple(weights))

    @property
    def padded_size(self) -> Size3:
        """Of the volume once each axis holds at least a patch."""
        return _size3([max(n, p) for n, p in zip(self.size, self.patch_size, strict=True)])

    @property
    def pad_before(self) -> Size3:
        """Voxels added in front of each axis; what is odd is added behind."""
        return _size3([(p - n) // 2 for p, n in zip(self.padded_size, self.size, strict=True)])

    @property
    def num_windows(self) -> int:
        """Windows in all."""
        return math.prod(len(starts) for starts in self.starts)

    def boxes(self, layer: int) -> Iterator[tuple[Box, Tensor]]:
        """Box and weight (d, h, w) of each window whose first axis starts at `starts[0][layer]`."""
        depth, height, width = self.patch_size
        z, rows, columns = self.starts[0][layer], self.starts[1], self.starts[2]
        for (j, y), (k, x) in itertools.product(enumerate(rows), enumerate(columns)):
            factors = self.weights[0][layer], self.weights[1][j], self.weights[2][k]
            weight = factors[0][:, None, None] * factors[1][None, :, None] * factors[2][None, None, :]
            yield (slice(z, z + depth), slice(y, y + height), slice(x, x + width)), weight


def _normalized(starts: Sequence[int], patch: int, length: int) -> Tensor:
    gaussian = axis_gaussian(patch)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + patch] += gaussian
    return torch.stack([gaussian / total[start : start + patch] for start in starts]).float()


def _size3(values: Sequence[int]) -> Size3:
    depth, height, width = (int(n) for n in values)
    return depth, height, width
