"""How often each axis is halved, and which kernels see it: from spacing and patch alone.

An axis is halved while it keeps at least 4 voxels and is no coarser than twice the finest axis that can still be
halved. A kernel spans 3 voxels along an axis once that axis is within a factor 2 of the finest, and 1 before, so that
thick slices are first treated as images of their own.

Source: Isensee et al. 2021, nnU-Net, supplementary note 4 ("network topology").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_EDGE = 4
"""Smallest edge of a feature map, in voxels."""
_SIMILAR = 2.0  # spacings within this factor are treated alike


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of an encoder; both have one entry a stage, each with one number an axis.

    Attributes:
        strides: of the first convolution of each stage; the first stage keeps the resolution.
        kernels: of the convolutions of each stage.
        patch_size: the patch, padded to what the strides divide.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]

    @property
    def num_stages(self) -> int:
        """Resolutions, the finest included."""
        return len(self.strides)

    @property
    def divisor(self) -> tuple[int, ...]:
        """What each edge of a patch must be a multiple of."""
        return tuple(
            math.prod(stride[axis] for stride in self.strides) for axis in range(len(self.patch_size))
        )


def topology_for(
    spacing: Sequence[float], size: Sequence[float], *, max_stages: int | None = None
) -> Topology:
    """The topology for patches of a spacing and size.

    Args:
        spacing: mm, one number an axis.
        size: voxels an axis; need not be whole, as medians of an even number of cases are not.
        max_stages: for architectures with a fixed number of resolutions; None leaves it to the patch.
    """
    current, edges = [float(s) for s in spacing], [float(n) for n in size]
    axes = range(len(current))
    kernel = [1] * len(current)
    strides, kernels = [tuple(kernel)], []
    while max_stages is None or len(strides) < max_stages:
        halved = _axes_to_halve(current, edges)
        if not halved:
            break
        kernel = [3 if k == 3 or current[a] / min(current) < _SIMILAR else 1 for a, k in enumerate(kernel)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            current[axis] *= 2
            edges[axis] = math.ceil(edges[axis] / 2)
    kernels.append((3,) * len(current))  # the coarsest stage sees all axes
    divisor = [math.prod(stride[axis] for stride in strides) for axis in axes]
    padded = tuple(math.ceil(n / d) * d for n, d in zip(size, divisor, strict=True))
    return Topology(tuple(strides), tuple(kernels), padded)


def _axes_to_halve(spacing: Sequence[float], edges: Sequence[float]) -> list[int]:
    long_enough = [axis for axis, edge in enumerate(edges) if edge >= 2 * MIN_EDGE]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    similar = [axis for axis in long_enough if spacing[axis] / finest < _SIMILAR]
    if len(similar) == 1 and edges[similar[0]] < 3 * MIN_EDGE:
        return []  # a single short axis is not worth a stage of its own
    return similar
