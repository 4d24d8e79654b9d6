"""Exact distances from the points of one surface to the nearest point of another, on an anisotropic lattice.

The surfaces of a reference and a prediction lie mostly within a few voxels of each other, and a surface has
far fewer points than the box around it has voxels. So no distance transform of the box is computed. Instead:

1. *columns*: along one axis, every voxel of the box learns the number of steps to the nearest target of its
   own column, in two sweeps over planes of small integers, which NumPy vectorises;
2. *near search*: a point looks at its own column, then at other columns in the order of their distance. A
   column at distance c whose nearest target is g steps away offers c² + (g·spacing)². A point is done when
   the next column alone is farther than its best offer, mostly after a handful of columns;
3. *far search*: the points left, usually few, go on with wider and wider rings of columns;
4. *k-d tree or transform*: points that are still left when that has cost as much as building a k-d tree of the
   targets are answered by one; where they are many, by SciPy's distance transform of the box.

Every step is exact: the distances equal those read from a Euclidean distance transform of the other surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

FloatArray = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Points = npt.NDArray[np.int32]
Columns = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Spacing = tuple[float, float, float]

_NEAR_STEPS = 6
_BLOCK = 16384
"""Offers evaluated at once: enough to hide NumPy's overhead, few enough for the cache."""
_FAR_OFFERS_PER_TARGET = 8
"""Offers of the far search that cost as much as a target's place in a k-d tree (25 against 200 ns, measured)."""
_TREE_QUERIES_PER_VOXEL = 0.01
"""Queries of far points that cost as much as a voxel of a distance transform (15 µs against 150 ns, measured)."""


def surface_distances(a: Points, b: Points, spacing_mm: Spacing) -> tuple[FloatArray, FloatArray]:
    """Distance of every point of each surface to the nearest point of the other.

    Args:
        a: lattice coordinates `(3, n)`, n > 0.
        b: lattice coordinates `(3, m)`, m > 0.
        spacing_mm: lattice spacing along (D, H, W).

    Returns:
        Distances in mm, `(n,)` from a to b and `(m,)` from b to a.
    """
    box = _Box.around(a, b, spacing_mm)
    return box.distances(a, b), box.distances(b, a)


@dataclass(frozen=True)
class _Rings:
    """The columns around a point.

    Attributes:
        steps: `(2, n)` steps along the two search axes, nearest column first; the first is the own one.
        squared: `(n,)` squared distances of the columns, in mm².
        reach: every column whose squared distance is below this is listed.
    """

    steps: Index
    squared: FloatArray
    reach: float


@lru_cache(maxsize=64)
def _rings(radius_mm: float, first_mm: float, second_mm: float) -> _Rings:
    reach = radius_mm**2 * (1 - 1e-12)
    i, j = (np.arange(-int(radius_mm / s), int(radius_mm / s) + 1) for s in (first_mm, second_mm))
    squared = np.add.outer((i * first_mm) ** 2, (j * second_mm) ** 2).reshape(-1)
    order = np.argsort(squared, kind="stable")[: np.count_nonzero(squared < reach)]
    return _Rings(np.stack([i[order // len(j)], j[order % len(j)]]), squared[order], reach)


@dataclass(frozen=True)
class _Box:
    """The smallest box around both surfaces, with room for the near search along its two search axes."""

    low: npt.NDArray[np.int64]
    shape: tuple[int, int, int]
    room: tuple[int, int, int]
    spacing: Spacing
    axis: int
    """The axis of the columns."""

    @classmethod
    def around(cls, a: Points, b: Points, spacing: Spacing) -> _Box:
        # Columns along the finer of the first two axes leave fewer columns within a given distance. Not along
        # the last one: planes across the contiguous axis could not be swept with vector instructions.
        axis = int(spacing[1] < spacing[0])
        radius = (_NEAR_STEPS + 1) * min(s for i, s in enumerate(spacing) if i != axis)
        room = np.array([0 if i == axis else int(radius / s) for i, s in enumerate(spacing)])
        low = np.minimum(a.min(axis=1), b.min(axis=1)).astype(np.int64) - room
        high = np.maximum(a.max(axis=1), b.max(axis=1)).astype(np.int64) + room
        d, h, w = (int(n) + 1 for n in high - low)
        return cls(low, (d, h, w), (int(room[0]), int(room[1]), int(room[2])), spacing, axis)

    @property
    def strides(self) -> Index:
        return np.array([self.shape[1] * self.shape[2], self.shape[2], 1], dtype=np.intp)

    @property
    def search_axes(self) -> list[int]:
        return [i for i in range(3) if i != self.axis]

    def rings(self, radius_mm: float) -> _Rings:
        first, second = self.search_axes
        return _rings(radius_mm, self.spacing[first], self.spacing[second])

    @property
    def near_radius(self) -> float:
        return (_NEAR_STEPS + 1) * min(self.spacing[i] for i in self.search_axes)

    def distances(self, source: Points, target: Points) -> FloatArray:
        """Distances `(n,)` in mm from every source to the nearest target."""
        origin = self.low[:, None].astype(np.intp)
        columns, far = self._columns(self.strides @ (target - origin))
        offers: FloatArray = (np.arange(far + 1.0) * self.spacing[self.axis]) ** 2
        offers[far] = np.inf  # no target in this column
        here = self.strides @ (source - origin)
        squared, left = self._near(columns, offers, here)
        if len(left):
            squared[left] = self._far(columns, offers, source[:, left] - origin, squared[left])
        return np.sqrt(squared, out=squared)

    def _columns(self, target: Index) -> tuple[Columns, int]:
        """Steps along `axis` to the nearest target `(D, H, W)`; `far` in a column without any."""
        length = self.shape[self.axis]
        far = 254 if length < 254 else 65534
        steps = cast("Columns", np.full(self.shape, far, np.uint8 if far == 254 else np.uint16))
        steps.reshape(-1)[target] = 0
        planes = np.moveaxis(steps, self.axis, 0)
        one_more = np.empty_like(planes[0])
        downward = zip(planes[1:], planes[:-1], strict=True)
        upward = zip(planes[-2::-1], planes[:0:-1], strict=True)
        for this, before in chain(downward, upward):
            np.add(before, 1, out=one_more)
            np.minimum(this, one_more, out=this)
        return steps, far

    def _near(self, columns: Columns, offers: FloatArray, here: Index) -> tuple[FloatArray, Index]:
        """Best squared distances within the near radius, and which points may still do better."""
        rings = self.rings(self.near_radius)
        jumps = self.strides[self.search_axes] @ rings.steps
        flat = columns.reshape(-1)
        best = offers.take(flat.take(here))
        left = np.flatnonzero(best > rings.squared[1])
        at, bound, k = here[left], best[left], 1
        while k < len(jumps) and len(left):
            stop = min(k + max(1, min(_BLOCK // len(left), 64)), len(jumps))
            offer = offers.take(flat.take(at + jumps[k:stop, None]))
            offer += rings.squared[k:stop, None]
            np.minimum(bound, offer.min(axis=0), out=bound)
            k = stop
            open_ = bound > (rings.squared[k] if k < len(jumps) else rings.reach)
            if k == len(jumps) or np.count_nonzero(open_) < 0.8 * len(left):
                best[left] = bound
                left, at, bound = left[open_], at[open_], bound[open_]
        return best, left

    def _far(self, columns: Columns, offers: FloatArray, at: Index, bound: FloatArray) -> FloatArray:
        """Squared distances of points `(3, n)` in the box that the near search left, given its bounds."""
        best, left = bound, np.arange(at.shape[1])
        radius, budget = self.near_radius, _FAR_OFFERS_PER_TARGET * np.count_nonzero(columns == 0)
        while len(left):
            inner, radius = self.rings(radius).reach, 2 * radius
            rings = self.rings(radius)
            k, count = int(np.searchsorted(rings.squared, inner)), len(rings.squared)
            while k < count and len(left):
                stop = min(k + max(1, _BLOCK // len(left)), count)
                budget -= len(left) * (stop - k)
                if budget < 0:
                    best[left] = self._elsewhere(columns, at[:, left])
                    return best
                offer = offers.take(
                    columns.reshape(-1).take(self._clipped(at[:, left], rings.steps[:, k:stop]))
                )
                offer += rings.squared[k:stop, None]
                best[left] = np.minimum(best[left], offer.min(axis=0))
                k = stop
                left = left[best[left] > (rings.squared[k] if k < count else rings.reach)]
        return best

    def _clipped(self, at: Index, steps: Index) -> Index:
        """Flat positions `(steps, points)` of points moved by steps, but not out of the box.

        A clipped position is nearer than its step says, so what it offers is too far and never taken wrongly.
        """
        flat: Index = at[self.axis] * self.strides[self.axis]
        for axis, step in zip(self.search_axes, steps, strict=True):
            flat = flat + np.clip(at[axis] + step[:, None], 0, self.shape[axis] - 1) * self.strides[axis]
        return flat

    def _elsewhere(self, columns: Columns, at: Index) -> FloatArray:
        """Squared distances of points `(3, n)` by a k-d tree or a distance transform, whichever is cheaper."""
        inner = tuple(slice(r, n - r) for r, n in zip(self.room, self.shape, strict=True))
        if at.shape[1] > _TREE_QUERIES_PER_VOXEL * columns[inner].size:
            distances = ndimage.distance_transform_edt(columns[inner] != 0, sampling=self.spacing)
            z, y, x = at - np.array(self.room)[:, None]
            found: FloatArray = distances[z, y, x] ** 2
            return found
        spacing = np.array(self.spacing)
        targets = np.argwhere(columns == 0)
        # A loosely balanced tree is built in half the time and, for points on a surface, queried faster.
        tree = cKDTree(targets * spacing, balanced_tree=False, compact_nodes=False)
        _, nearest = tree.query(at.T * spacing)
        squared: FloatArray = (((targets[nearest] - at.T) * spacing) ** 2).sum(axis=1)
        return squared
