"""An edited mask, checked and put back on the grid of its case.

It must lie where the image lies: a mask that was saved on another grid is refused with what differs, never resampled
in silence. The exception is 3D Slicer's own file, which holds the smallest box around its segments: a box on the
case's grid is put back where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvox.curation.exchange.segmentation_nrrd import Segmentation, read_segmentation
from fedvox.curation.exchange.task import case_geometry
from fedvox.curation.store import Case
from fedvox.data.checks import AFFINE_TOLERANCE_VOXELS, check_label, check_same_grid, whole_numbers
from fedvox.data.geometry import Volume
from fedvox.data.ignore import ignore_value, label_dtype
from fedvox.data.label_space import SourceLabels
from fedvox.data.readers import NIFTI_ENDINGS, read_volume
from fedvox.errors import DataError

ENDINGS = (*NIFTI_ENDINGS, ".nrrd")
_REMEDIES = {
    "shape_mismatch": "Save it on the image's own grid (3D Slicer: export with the image as reference volume).",
    "affine_mismatch": "Save it with the image's origin, spacing and axes (3D Slicer: export with the image as "
    "reference volume; ITK-SNAP: open the exported image as main image).",
    "unknown_label_value": "Draw with the structures of the exported color table only.",
}


def read_edited(
    path: Path, case: Case, structures: Sequence[str], *, allow_empty: bool = False
) -> npt.NDArray[np.integer]:
    """Reads an edited mask.

    Args:
        path: a NIfTI label map, or a .seg.nrrd.
        case: whose mask it is.
        structures: canonical names, background first.
        allow_empty: take a mask without any structure.

    Returns:
        Canonical structure indices, (D, H, W), in the type of the store.

    Raises:
        DataError: unsupported_type, shape_mismatch, affine_mismatch, unknown_label_value, non_integer_label,
            empty_mask, or what the reader says (see `fedvox.data.checks`).
    """
    dtype = label_dtype(len(structures))
    volume = _read(path, case, structures)
    named = tuple((name, (value,)) for value, name in enumerate(structures) if value)
    labels = SourceLabels(named, ignore=ignore_value(dtype))
    errors = [*check_same_grid(_grid_of(case), volume), *check_label(volume, labels)]
    if errors:
        first = errors[0]
        raise DataError(
            first.message, _REMEDIES.get(first.code, first.remedy), code=first.code, file=str(path)
        )
    mask = np.ascontiguousarray(whole_numbers(volume.data[0]).astype(dtype))
    if not allow_empty and not mask.any():
        raise DataError(
            f"{path} marks no voxel at all",
            "Check what was exported; if the case really shows nothing, pass --allow-empty.",
            code="empty_mask",
            file=str(path),
        )
    return mask


def _read(path: Path, case: Case, structures: Sequence[str]) -> Volume:
    name = path.name.lower()
    if name.endswith(".nrrd"):
        found = read_segmentation(path)
        return _boxed_back(_renamed(found, structures), case)
    if name.endswith(NIFTI_ENDINGS):
        return read_volume(str(path))
    raise DataError(
        f"{path} is neither NIfTI nor NRRD",
        f"Save the mask with one of the endings {', '.join(ENDINGS)}.",
        code="unsupported_type",
        file=str(path),
    )


def _grid_of(case: Case) -> Volume:
    """The case's image, as far as geometry goes."""
    blank = np.broadcast_to(np.uint8(0), (1, *case.shape))
    return Volume(blank, case_geometry(case), f"the image of case {case.case_id!r}")


def _renamed(found: Segmentation, structures: Sequence[str]) -> Volume:
    """A segmentation in canonical values: an editor may have numbered the segments anew, so names decide."""
    volume = found.volume
    if not found.names:
        return volume
    unknown = [name for name in found.names.values() if name not in structures]
    if unknown:
        raise DataError(
            f"{volume.path} has the segment {unknown[0]!r}, which is no structure of this collection",
            f"Rename or remove it; known are {', '.join(structures[1:])}.",
            code="unknown_label_value",
            file=volume.path,
        )
    present = {int(value) for value in np.unique(volume.data) if value}
    unnamed = sorted(present - set(found.names))
    if unnamed:
        raise DataError(
            f"{volume.path} holds the value {unnamed[0]}, which belongs to no segment",
            "Save the segmentation again from 3D Slicer.",
            code="unknown_label_value",
            file=volume.path,
        )
    renamed = np.zeros(volume.data.shape, dtype=label_dtype(len(structures)))
    for value, name in found.names.items():
        renamed[volume.data == value] = structures.index(name)
    return Volume(renamed, volume.geometry, volume.path)


def _boxed_back(volume: Volume, case: Case) -> Volume:
    """A box that lies on the case's grid, as a whole volume; anything else as it is, for the checks to refuse."""
    geometry = case_geometry(case)
    offset = _offset(volume, case)
    if offset is None:
        return volume
    ends = [start + size for start, size in zip(offset, volume.geometry.shape, strict=True)]
    if min(offset) < 0 or any(end > size for end, size in zip(ends, case.shape, strict=True)):
        return volume
    whole = np.zeros((1, *case.shape), dtype=volume.data.dtype)
    box = tuple(slice(start, end) for start, end in zip(offset, ends, strict=True))
    whole[(slice(None), *box)] = volume.data
    return Volume(whole, geometry, volume.path)


def _offset(volume: Volume, case: Case) -> tuple[int, int, int] | None:
    """Where a box begins on the case's grid, (z, y, x); None where its voxels are not those of the case."""
    to_case = np.linalg.inv(np.asarray(case_geometry(case).affine)) @ np.asarray(volume.geometry.affine)
    reach = max(volume.geometry.shape)
    shift = np.rint(to_case[:3, 3])
    off_axis = np.abs(to_case[:3, :3] - np.eye(3)).max() * reach
    if off_axis > AFFINE_TOLERANCE_VOXELS or np.abs(to_case[:3, 3] - shift).max() > AFFINE_TOLERANCE_VOXELS:
        return None
    x, y, z = (int(n) for n in shift)
    return z, y, x
