"""What is measured of a lesion: volume, diameters in the axial plane, middle, brightness.

Diameters are those of a reader's calipers, on the slice where the lesion is longest: the longest diameter, and the
longest one perpendicular to it on the same slice. Both are taken of the convex outline through the middles of the
outer voxel edges, so that a row of n voxels is n voxels long. Where one slice has several parts of the lesion, each is
measured by itself, and the longest counts.

A slice is a plane of the array's first axis, which in RAS+ order runs from feet to head: the axial plane, exactly for
scans along the body, and within the obliquity of the scan otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull

from fedvox.data.geometry import Geometry
from fedvox.errors import DataError

BoolVolume = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Diameters:
    """Two diameters on one axial slice.

    Args:
        long_mm: the longest diameter.
        short_mm: the longest one perpendicular to it.
        slice_index: first axis of the array.
        ends: of the long diameter, (H, W) voxel coordinates.
    """

    long_mm: float
    short_mm: float
    slice_index: int
    ends: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class LesionMeasures:
    """One lesion in one scan.

    Args:
        volume_mm3: voxels times their size.
        diameters: in the axial plane.
        centroid_ras_mm: (x, y, z) in the patient.
        mean_intensity: of the image within the lesion; None without an image.
    """

    volume_mm3: float
    diameters: Diameters
    centroid_ras_mm: tuple[float, float, float]
    mean_intensity: float | None = None


def measure_lesion(
    mask: BoolVolume, geometry: Geometry, image: npt.NDArray[np.generic] | None = None
) -> LesionMeasures:
    """Measures one lesion.

    Args:
        mask: bool (D, H, W), not empty.
        geometry: of the mask.
        image: (D, H, W), for the mean intensity.

    Raises:
        DataError: the mask is empty (an absent lesion has no measures).
    """
    if not mask.any():
        raise DataError("an empty mask has no measures", "Count the lesion as absent.", code="empty_prompt")
    spacing = geometry.spacing_mm
    middle = np.array([*np.argwhere(mask).mean(0), 1.0])
    x, y, z = (np.asarray(geometry.array_affine) @ middle)[:3]
    return LesionMeasures(
        volume_mm3=float(np.count_nonzero(mask) * np.prod(spacing)),
        diameters=axial_diameters(mask, spacing),
        centroid_ras_mm=(float(x), float(y), float(z)),
        mean_intensity=None if image is None else float(image[mask].mean()),
    )


def axial_diameters(mask: BoolVolume, spacing_mm: tuple[float, float, float]) -> Diameters:
    """Longest diameter over all axial slices, and its perpendicular.

    Args:
        mask: bool (D, H, W), not empty.
        spacing_mm: (D, H, W).
    """
    best: Diameters | None = None
    for index in np.flatnonzero(mask.any(axis=(1, 2))):
        parts = cc3d.connected_components(np.ascontiguousarray(mask[index]), connectivity=8)
        for part in range(1, int(parts.max()) + 1):
            long_mm, short_mm, ends = plane_diameters(parts == part, spacing_mm[1:])
            if best is None or long_mm > best.long_mm + 1e-9:
                best = Diameters(long_mm, short_mm, int(index), ends)
    assert best is not None  # the mask is not empty
    return best


def plane_diameters(
    mask: npt.NDArray[np.bool_], spacing_mm: tuple[float, float]
) -> tuple[float, float, tuple[tuple[float, float], tuple[float, float]]]:
    """Longest diameter in a plane, the longest one perpendicular to it, and the ends of the first.

    Args:
        mask: bool (H, W), not empty.
        spacing_mm: (H, W).
    """
    outline = _outline(mask, np.asarray(spacing_mm))
    apart = np.linalg.norm(outline[:, None] - outline[None], axis=-1)
    a, b = np.unravel_index(int(apart.argmax()), apart.shape)
    along = (outline[b] - outline[a]) / apart[a, b]
    short = _longest_chord(outline @ along, outline @ np.array([-along[1], along[0]]))
    h1, w1 = (outline[a] / spacing_mm).tolist()
    h2, w2 = (outline[b] / spacing_mm).tolist()
    return float(apart[a, b]), short, ((h1, w1), (h2, w2))


def _outline(mask: npt.NDArray[np.bool_], spacing: FloatArray) -> FloatArray:
    """Corners of the convex hull of the middles of all voxel edges, in order around it: (n, 2) mm."""
    voxels = np.argwhere(mask).astype(np.float64)
    offsets = np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
    points = (voxels[:, None] + offsets).reshape(-1, 2) * spacing
    hull: FloatArray = points[ConvexHull(points).vertices]
    return hull


def _longest_chord(u: FloatArray, v: FloatArray) -> float:
    """Longest chord of a convex polygon along v: its length over u is concave, so a corner has the maximum."""
    left, right = int(u.argmin()), int(u.argmax())
    order = np.arange(len(u))
    one = np.roll(order, -left)[: (right - left) % len(u) + 1]
    other = np.roll(order, -right)[: (left - right) % len(u) + 1][::-1]
    upper, lower = (np.interp(u, u[side], v[side]) for side in (one, other))
    return float(np.abs(upper - lower).max())
