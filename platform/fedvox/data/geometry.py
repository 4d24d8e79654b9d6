"""Where a volume lies in the patient, and the exact way back to the grid of the file that it came from.

Arrays are (D, H, W) = (z, y, x) in RAS+ order: x grows to the patient's Right, y to the Anterior, z to the
Superior. Affines follow NIfTI: they map voxel indices (x, y, z) to millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Affine = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume in RAS+ order, and that of its file.

    Args:
        shape: (D, H, W) of the RAS+ volume.
        affine: 4 × 4, (x, y, z) voxel index of the RAS+ volume -> mm.
        file_shape: (X, Y, Z) as the file stores it.
        file_affine: 4 × 4, voxel index of the file -> mm.
    """

    shape: tuple[int, int, int]
    affine: Affine
    file_shape: tuple[int, int, int]
    file_affine: Affine

    @classmethod
    def of_file(cls, file_shape: Sequence[int], file_affine: NDArray[np.floating]) -> Geometry:
        """The geometry of a file's volume once it is turned to RAS+.

        Args:
            file_shape: (X, Y, Z).
            file_affine: (4, 4), invertible.
        """
        x, y, z = (int(n) for n in file_shape)
        turn = nib.orientations.io_orientation(file_affine)
        affine = file_affine @ nib.orientations.inv_ornt_aff(turn, (x, y, z))
        ras_shape = [0, 0, 0]
        for axis, size in zip(turn[:, 0], (x, y, z), strict=True):
            ras_shape[int(axis)] = size
        width, height, depth = ras_shape
        return cls((depth, height, width), _freeze(affine), (x, y, z), _freeze(file_affine))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (D, H, W) in mm."""
        x, y, z = np.linalg.norm(np.asarray(self.affine)[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def array_affine(self) -> Affine:
        """4 × 4: voxel index (D, H, W, 1) of the array -> RAS+ mm."""
        return _freeze(np.asarray(self.affine)[:, [2, 1, 0, 3]])

    @property
    def file_orientation(self) -> str:
        """The file's axis codes, such as "LPS"."""
        return "".join(str(code) for code in nib.aff2axcodes(np.asarray(self.file_affine)))

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Geometry:
        """The geometry of a box of this volume.

        Args:
            start: first voxel (D, H, W) of the box.
            shape: its (D, H, W).
        """
        return self._regridded(np.asarray(start, dtype=float), np.ones(3), shape)

    def resampled(self, shape: Sequence[int]) -> Geometry:
        """The geometry after resampling to `shape`: the outer edges of the grid stay where they are."""
        scale = np.asarray(self.shape) / np.asarray(shape)
        return self._regridded((scale - 1) / 2, scale, shape)

    def _regridded(
        self, offset: NDArray[np.floating], scale: NDArray[np.floating], shape: Sequence[int]
    ) -> Geometry:
        step = np.diag([*scale[::-1], 1.0])
        step[:3, 3] = offset[::-1]
        depth, height, width = (int(n) for n in shape)
        affine = _freeze(np.asarray(self.affine) @ step)
        return Geometry((depth, height, width), affine, self.file_shape, self.file_affine)

    def to_ras(self, stored: np.ndarray) -> np.ndarray:
        """Turns a file's volume to RAS+: a view, nothing is copied.

        Shape: (..., Z, Y, X), the byte order of NIfTI read as C order -> (..., D, H, W).
        """
        order, flips = self._turn()
        lead = stored.ndim - 3
        turned = stored.transpose(*range(lead), *(lead + axis for axis in order))
        return turned[(..., *flips)]

    def to_file(self, volume: np.ndarray) -> np.ndarray:
        """Turns a RAS+ volume back to the file's axes, as nibabel wants it.

        Shape: (D, H, W) -> (X, Y, Z) of the file.

        Raises:
            ValueError: the volume is not on the file's grid (resample and pad it to `file_shape` first).
        """
        order, flips = self._turn()
        if tuple(volume.shape[axis] for axis in np.argsort(order)) != self.file_shape[::-1]:
            raise ValueError(f"volume {volume.shape} is not on the grid of the file, {self.file_shape}")
        return volume[flips].transpose(np.argsort(order)).transpose(2, 1, 0)

    def _turn(self) -> tuple[list[int], tuple[slice, slice, slice]]:
        """File (Z, Y, X) -> RAS+ (D, H, W): the source axis of each result axis, and the flips after that."""
        turn = nib.orientations.io_orientation(np.asarray(self.file_affine))
        order, flips = [0, 0, 0], [slice(None), slice(None), slice(None)]
        for file_axis in range(3):
            ras_axis, sign = int(turn[file_axis, 0]), int(turn[file_axis, 1])
            order[2 - ras_axis] = 2 - file_axis
            flips[2 - ras_axis] = slice(None, None, sign)
        return order, (flips[0], flips[1], flips[2])

    def corner_distance_mm(self, other: Geometry) -> float:
        """How far apart the two grids are: the largest distance between corresponding corners, in mm."""
        ends = [(0, n - 1) for n in self.shape[::-1]]
        corners = np.array([(x, y, z, 1) for x in ends[0] for y in ends[1] for z in ends[2]], dtype=float)
        moved = corners @ (np.asarray(self.affine) - np.asarray(other.affine)).T
        return float(np.linalg.norm(moved[:, :3], axis=1).max())


@dataclass(frozen=True)
class Volume:
    """An image or label map as read: RAS+, channels first.

    Args:
        data: (C, D, H, W); float32 or an integer type as stored in the file.
        geometry: grid of `data` and of the file.
        path: the file (or folder of a DICOM series), for messages.
        modality: "CT", "MR", ... where the file says so (DICOM), else None.
    """

    data: np.ndarray
    geometry: Geometry
    path: str
    modality: str | None = None


def shear_degrees(affine: NDArray[np.floating]) -> float:
    """By how much the grid's axes deviate from right angles (gantry tilt), in degrees."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, k=1)]
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _freeze(affine: NDArray[np.floating]) -> Affine:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
