"""Masks out of NIfTI files, on the case's own grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedvox.curation.store import Case, LabelStore, NewVersion, Source
from fedvox.data.nifti import read_nifti
from fedvox.errors import DataError

Array = np.ndarray[Any, Any]

_ENDINGS = (".nii.gz", ".nii")
_LARGEST_DISTANCE_MM = 0.1


def read_mask_file(path: Path, case: Case) -> Array:
    """A mask from a NIfTI file in any orientation, as (D, H, W) in RAS+.

    Args:
        path: of the file.
        case: whose grid it must have.

    Raises:
        DataError: it is no NIfTI file, or lies elsewhere: other_geometry.
    """
    volume = read_nifti(str(path))
    if len(volume.data) != 1:
        raise DataError(f"{path}: holds {len(volume.data)} volumes", "Give one label map.", code="not_a_mask")
    if volume.geometry.shape != case.shape:
        raise DataError(
            f"{path}: has {volume.geometry.shape} voxels, case {case.case_id!r} has {case.shape}",
            "Export it on the image's own grid.",
            code="other_geometry",
        )
    if case.affine:
        difference = np.abs(np.asarray(volume.geometry.array_affine) - np.asarray(case.affine))
        farthest = float((difference @ np.array([*(n - 1 for n in case.shape), 1.0])).max())
        if farthest > _LARGEST_DISTANCE_MM:
            raise DataError(
                f"{path}: lies up to {farthest:.2f} mm beside case {case.case_id!r}",
                "Export it on the image's own grid, not resampled or moved.",
                code="other_geometry",
            )
    mask: Array = volume.data[0]
    if mask.dtype.kind == "f" and np.array_equal(mask, np.rint(mask)):
        mask = mask.astype(np.int64)  # some tools write label maps as floats
    return mask


def import_folder(
    store: LabelStore, folder: Path, name: str, *, on_case: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Adds CASE.nii.gz files as proposals of the current round.

    Args:
        store: of the cases.
        folder: of the files.
        name: of the tool that made them.
        on_case: told how many files of how many are done.

    Returns:
        How many were added, and the files that are of no case.

    Raises:
        DataError: the folder has no mask of any case, or one does not fit its case.
    """
    files = (
        sorted(path for path in folder.glob("*") if path.name.endswith(_ENDINGS)) if folder.is_dir() else []
    )
    cases = {case.case_id: case for case in store.cases(gold=False)}
    known = [(path, _case_of(path)) for path in files if _case_of(path) in cases]
    if not known:
        raise DataError(
            f"{folder}: holds no CASE.nii.gz of any case",
            "Name the folder of the masks.",
            code="empty_folder",
        )
    new = []
    for done, (path, case_id) in enumerate(known, start=1):
        digest = store.write_mask(case_id, read_mask_file(path, cases[case_id]))
        source = Source("import", name)
        new.append(NewVersion(case_id, digest, source, round=store.rounds.current, reason=path.name))
        if on_case is not None:
            on_case(done, len(known))
    store.record_versions(new, actor=name)
    return {"added": len(new), "of_no_case": [path.name for path in files if _case_of(path) not in cases]}


def _case_of(path: Path) -> str:
    return next(path.name.removesuffix(ending) for ending in _ENDINGS if path.name.endswith(ending))
