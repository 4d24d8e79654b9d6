"""Area of the surface that passes through a 2×2×2 neighbourhood of voxel centres (a *surfel*).

Between eight neighbouring voxel centres, inside or outside of a structure, marching cubes (Lorensen and Cline
1987) draws a few triangles through the middles of the edges whose ends differ. Which ones depends on the 256
possible *codes* of the neighbourhood alone, so their area vectors are worked out here once, from geometry:

1. every face of the cube joins the middles of its cut edges. A face whose corners alternate is ambiguous:
   each inside corner is cut off alone, and where more than four corners are inside the roles of inside and
   outside are exchanged, so that a mask and its complement have the same surface;
2. the joints close to loops of 3 to 6 points;
3. a loop that is not flat can be folded in several ways; of these the one with the largest area is taken (the
   fold of the classical table). Folds of equal area on a unit grid have equal area on every grid.

A voxel spacing scales the components of an area vector by the products of the other two spacings. These areas
are what the `…/surfel` metrics weigh by; they equal those of google-deepmind/surface-distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

Corner = tuple[int, int, int]
Edge = tuple[Corner, Corner]
Triangle = tuple[int, int, int]
FloatArray = npt.NDArray[np.float64]

CORNERS: tuple[Corner, ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))
"""Corners of the neighbourhood in the order of their bits: bit 0 is (0, 0, 0), bit 7 is (1, 1, 1)."""

_EDGES: tuple[Edge, ...] = tuple(
    (a, b) for a, b in combinations(CORNERS, 2) if sum(i != j for i, j in zip(a, b, strict=True)) == 1
)
_FACES = tuple(tuple(c for c in CORNERS if c[axis] == side) for axis in range(3) for side in (0, 1))
_MOST_TRIANGLES = 4


def surfel_areas(spacing_mm: tuple[float, float, float]) -> FloatArray:
    """Surface area per neighbourhood code.

    Args:
        spacing_mm: voxel spacing along (D, H, W), in mm.

    Returns:
        `(256,)` areas in mm². Bit i of the code says whether `CORNERS[i]` is inside; 0 and 255 have no
        surface.
    """
    d, h, w = spacing_mm
    scale = np.array([h * w, d * w, d * h])
    areas: FloatArray = np.linalg.norm(_area_vectors() * scale, axis=-1).sum(axis=-1)
    return areas


@lru_cache(maxsize=1)
def _area_vectors() -> FloatArray:
    """Area vectors of the triangles of every code on a unit grid, `(256, 4, 3)`; unused rows are zero."""
    vectors = np.zeros((256, _MOST_TRIANGLES, 3))
    for code in range(1, 255):
        inside = frozenset(c for bit, c in enumerate(CORNERS) if code >> bit & 1)
        minority = inside if len(inside) <= 4 else frozenset(CORNERS) - inside
        rows = np.concatenate([_folded(loop) for loop in _loops(minority)])
        vectors[code, : len(rows)] = rows
    return vectors


def _joints(inside: frozenset[Corner]) -> Iterator[tuple[Edge, Edge]]:
    """The pairs of cut edges that a face of the cube joins."""
    for face in _FACES:
        cut = [e for e in _EDGES if e[0] in face and e[1] in face and (e[0] in inside) != (e[1] in inside)]
        if len(cut) == 2:
            yield cut[0], cut[1]
        elif len(cut) == 4:
            for corner in inside.intersection(face):
                first, second = (e for e in cut if corner in e)
                yield first, second


def _loops(inside: frozenset[Corner]) -> list[FloatArray]:
    """Closed loops of edge middles `(n, 3)` around the inside corners, which are at most four."""
    neighbours: dict[Edge, list[Edge]] = {}
    for a, b in _joints(inside):
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    loops = []
    while neighbours:
        loop = [min(neighbours)]
        while step := [e for e in neighbours.pop(loop[-1]) if e in neighbours]:
            loop.append(step[0])
        loops.append(np.array(loop, dtype=np.float64).mean(axis=1))
    return loops


def _folded(loop: FloatArray) -> FloatArray:
    """Area vectors `(n - 2, 3)` of the triangulation of a loop `(n, 3)` that has the largest area."""
    folds = [
        np.array([np.cross(loop[j] - loop[i], loop[k] - loop[i]) / 2 for i, j, k in triangles])
        for triangles in _triangulations(0, len(loop) - 1)
    ]
    return max(folds, key=lambda rows: round(float(np.linalg.norm(rows, axis=1).sum()), 9))


def _triangulations(first: int, last: int) -> list[list[Triangle]]:
    """Every way to cut the polygon of points `first..last` into triangles."""
    if last - first < 2:
        return [[]]
    return [
        [*left, *right, (first, middle, last)]
        for middle in range(first + 1, last)
        for left in _triangulations(first, middle)
        for right in _triangulations(middle, last)
    ]
