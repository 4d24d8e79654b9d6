"""A round as an nnU-Net raw folder, with the provenance of every label beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedvox.curation.store import LabelStore
from fedvox.data.geometry import Geometry
from fedvox.errors import DataError
from fedvox.inference.nifti_out import source_header, write_image, write_labels
from fedvox.storage import locate, write_atomic


def export_round(
    store: LabelStore, folder: Path, round: int | None, *, on_case: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Writes `imagesTr`, `labelsTr`, `dataset.json` and `provenance.json`; all of it or nothing.

    Cases without a label are left out. Voxels that nobody judged become nnU-Net's `ignore` label.

    Args:
        store: to export.
        folder: that must not exist.
        round: labels as they were at its end; None for those of now.
        on_case: told how many cases of how many are done.

    Returns:
        How many cases were written.

    Raises:
        DataError: the folder exists, or there is nothing to export.
        StorageError: full, or forbidden.
    """
    heads = store.heads(at_round=round)
    if folder.exists() or not heads:
        raise DataError(
            f"{folder} exists already" if heads else f"{store.location.uri}: no case has a label",
            "Name a new folder." if heads else "Import labels first.",
            code="exists" if heads else "no_labels",
        )
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        provenance, ignored = {}, False
        for done, (case_id, number) in enumerate(sorted(heads.items()), start=1):
            version = store.version(case_id, number)
            ignored |= _write_case(store, draft, case_id, store.read_mask(version))
            provenance[case_id] = asdict(version)
            if on_case is not None:
                on_case(done, len(heads))
        _write_json(draft / "dataset.json", _description(store, len(heads), ignored))
        _write_json(draft / "provenance.json", {"round": round, "cases": provenance})
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return {"cases": len(heads), "folder": str(folder), "round": "now" if round is None else round}


def _write_case(store: LabelStore, draft: Path, case_id: str, mask: np.ndarray) -> bool:
    """Writes image and label; returns whether some voxel was not judged."""
    case = store.case(case_id)
    z, y, x = case.spacing_mm
    affine = np.diag([x, y, z, 1.0])
    if case.affine:
        affine = np.asarray(case.affine, float)[:, [2, 1, 0, 3]]  # columns in NIfTI's order (x, y, z)
    geometry = Geometry.of_file(case.shape[::-1], affine)
    header = source_header(".", geometry)
    for channel, volume in enumerate(store.images.read(case_id)):
        write_image(volume, geometry, header, locate(draft / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz"))
    unjudged = mask >= len(store.structures)
    label = np.where(unjudged, len(store.structures), mask).astype(
        np.uint16 if len(store.structures) > 254 else np.uint8
    )
    write_labels(label, geometry, header, locate(draft / "labelsTr" / f"{case_id}.nii.gz"))
    return bool(unjudged.any())


def _description(store: LabelStore, cases: int, ignored: bool) -> dict[str, Any]:
    labels = {name: index for index, name in enumerate(store.structures)}
    if ignored:
        labels["ignore"] = len(store.structures)
    channels = {str(number): name for number, name in enumerate(store.images.store.meta.channel_names)}
    return {
        "channel_names": channels,
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "name": store.name,
    }


def _write_json(path: Path, content: Any) -> None:
    write_atomic(locate(path), (json.dumps(content, indent=1) + "\n").encode())
