"""Surface metrics as small pure functions of the distances between two surfaces.

The geometry is computed once per structure (`between`), everything else reads it. Two definitions of a
surface:

- `voxel`: every voxel of the structure that has a 6-neighbour outside is one point of weight 1 (MONAI,
  MedPy);
- `surfel`: every 2×2×2 neighbourhood that the surface crosses is one point at its middle, weighted by the
  area of the surface inside it (google-deepmind/surface-distance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvox.evaluation.boundaries import Boundaries, Surface, coordinates
from fedvox.evaluation.nearest import FloatArray, Spacing, surface_distances
from fedvox.evaluation.surfels import surfel_areas

_ROUNDING = 1e-9
"""Distances within this relative distance of a tolerance count as within it: 3 × 0.8 mm is 2.4 mm, whatever
floating point makes of it. The same holds for shares of the area at a percentile."""


@dataclass(frozen=True)
class Directed:
    """Distances from one surface to the other.

    Attributes:
        distances_mm: `(n,)`.
        weights: `(n,)` areas in mm²; None where every point counts the same.
    """

    distances_mm: FloatArray
    weights: FloatArray | None

    @property
    def size(self) -> float:
        """Area in mm², or number of points."""
        return float(len(self.distances_mm) if self.weights is None else self.weights.sum())

    def within(self, tolerance_mm: float) -> float:
        """Area in mm² (or number of points) that lies within a tolerance of the other surface."""
        near = self.distances_mm <= tolerance_mm * (1 + _ROUNDING)
        return float(np.count_nonzero(near) if self.weights is None else self.weights[near].sum())

    def total(self) -> float:
        """Sum of distances, weighted by area."""
        if self.weights is None:
            return float(self.distances_mm.sum())
        # Not a dot product: for vectors this short BLAS threads cost more than they bring (and spin when idle).
        return float((self.distances_mm * self.weights).sum())

    def percentile(self, percent: float) -> float:
        """Distance in mm below which a share of the surface lies.

        With areas: the first distance at which the share is reached. Without: interpolated between points, as
        `numpy.percentile` and therefore MONAI and MedPy do.
        """
        if self.weights is None:
            return float(np.percentile(self.distances_mm, percent))
        order = np.argsort(self.distances_mm)
        share = np.cumsum(self.weights[order])
        at = int(np.searchsorted(share, share[-1] * percent / 100 * (1 - _ROUNDING)))
        return float(self.distances_mm[order[min(at, len(order) - 1)]])


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of a reference and a prediction, neither of which is empty.

    Attributes:
        surface: definition of the surface.
        to_prediction: from the reference's surface.
        to_reference: from the prediction's surface.
    """

    surface: Surface
    to_prediction: Directed
    to_reference: Directed

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface distance: share of both surfaces within a tolerance (Nikolov et al. 2018)."""
        return (self.to_prediction.within(tolerance_mm) + self.to_reference.within(tolerance_mm)) / (
            self.to_prediction.size + self.to_reference.size
        )

    def hausdorff(self) -> float:
        """Largest distance in mm between a point of one surface and the other surface."""
        return float(max(self.to_prediction.distances_mm.max(), self.to_reference.distances_mm.max()))

    def hausdorff_percentile(self, percent: float) -> float:
        """Larger one of the two directed percentiles, in mm."""
        return max(self.to_prediction.percentile(percent), self.to_reference.percentile(percent))

    def masd(self) -> float:
        """Mean of the two directed average distances in mm (MedPy calls this assd)."""
        a, b = self.to_prediction, self.to_reference
        return (a.total() / a.size + b.total() / b.size) / 2

    def assd(self) -> float:
        """Average symmetric surface distance in mm, as in the tool that the surface definition is from.

        `surfel`: mean of the two directed averages (surface-distance). `voxel`: average over the points of
        both surfaces together (MONAI, Metrics Reloaded).
        """
        if self.surface == "surfel":
            return self.masd()
        a, b = self.to_prediction, self.to_reference
        return (a.total() + b.total()) / (a.size + b.size)


def between(boundaries: Boundaries, label: int, surface: Surface, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances between the two surfaces of a label that both volumes contain."""
    sides = boundaries.points[surface]
    a, b = (coordinates(points, label, boundaries.frame.shape) for points in sides)
    to_prediction, to_reference = surface_distances(a, b, spacing_mm)
    weights: list[npt.NDArray[np.float64] | None] = [None, None]
    if surface == "surfel":
        areas = surfel_areas(spacing_mm)
        weights = [areas[p.codes[p.owned_by(label)]] if p.codes is not None else None for p in sides]
    return SurfaceDistances(surface, Directed(to_prediction, weights[0]), Directed(to_reference, weights[1]))
