"""An anatomy with its lesions, and boxes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

FloatVolume = npt.NDArray[np.float32]
BoolVolume = npt.NDArray[np.bool_]
Box3 = tuple[slice, slice, slice]

_KNOT_MM = 12.0


@dataclass(frozen=True, eq=False)
class LesionScan:
    """An anatomy with its lesions, before a scanner sees it.

    Args:
        image: (D, H, W) float32, healthy tissue near 1 at its brightest.
        lesions: (D, H, W) uint16, 0 is healthy, otherwise the lesion's id.
        tissue: bool (D, H, W), where lesions may be.
        spacing_mm: (D, H, W).
        origin_mm: (x, y, z) of the first voxel's centre, RAS+.
    """

    image: FloatVolume
    lesions: npt.NDArray[np.uint16]
    tissue: BoolVolume
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def ids(self) -> list[int]:
        """Of the lesions that are present."""
        return [int(i) for i in np.unique(self.lesions) if i]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_mm))


def level_mm(mask: BoolVolume, spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Distance to the lesion's surface in mm: negative inside, half a voxel at most on either side of it."""
    outside = distance_transform_edt(~mask, sampling=spacing_mm)
    inside = distance_transform_edt(mask, sampling=spacing_mm)
    return np.asarray(outside - inside)


def field_knots(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """Of a smooth field that varies over a centimetre or so."""
    return tuple(max(3, round(n * s / _KNOT_MM)) for n, s in zip(shape, spacing_mm, strict=True))


def box_around(mask: BoolVolume, spacing_mm: tuple[float, float, float], reach_mm: float) -> Box3:
    """The box of a mask and what lies within reach of it."""
    found = []
    for axis, spacing in enumerate(spacing_mm):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        pad = int(np.ceil(reach_mm / spacing))
        found.append(slice(max(0, int(used[0]) - pad), min(mask.shape[axis], int(used[-1]) + 1 + pad)))
    return found[0], found[1], found[2]


def cut_out(scan: LesionScan, box: Box3) -> LesionScan:
    """A box of a scan, as a view."""
    return replace(scan, image=scan.image[box], lesions=scan.lesions[box], tissue=scan.tissue[box])


def pasted(scan: LesionScan, part: LesionScan, box: Box3) -> LesionScan:
    """The scan with a box of it changed."""
    image, lesions = scan.image.copy(), scan.lesions.copy()
    image[box], lesions[box] = part.image, part.lesions
    return replace(scan, image=image, lesions=lesions)
