"""A task: cases as a folder that 3D Slicer, ITK-SNAP and MONAI Label open, and that says what it was made from.

    TASK/
        task.json                       which version of which case; written last, so a folder with it is complete
        datastore_v2.json               MONAI Label's data store: point its server's --studies here
        CASE.nii.gz                     the image
        labels/original/CASE.nii.gz     the labels, to be edited
        labels/consensus/CASE.nii.gz    what the models agree on, where there is a consensus
        slicer/CASE.seg.nrrd            the labels as a segmentation with names and colors, for 3D Slicer
        slicer/structures.ctbl          a color table for 3D Slicer
        itksnap/structures.txt          label descriptions for ITK-SNAP

An edited mask comes back as labels/final/CASE.nii.gz (what MONAI Label writes), as the changed .seg.nrrd, or as the
changed file in labels/original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fedvox.curation.exchange.color_tables import itksnap_labels, slicer_color_table
from fedvox.curation.exchange.segmentation_nrrd import segmentation_bytes
from fedvox.curation.store import Case, Finding, LabelStore, Version
from fedvox.curation.store.audit_log import now
from fedvox.data.geometry import Geometry
from fedvox.errors import DataError
from fedvox.inference.nifti_out import source_header, write_image, write_labels
from fedvox.storage import locate, write_atomic

TASK_FILE = "task.json"
DATASTORE_FILE = "datastore_v2.json"
_NIFTI = ".nii.gz"


class TaskCase(BaseModel):
    """A case of a task.

    Args:
        case_id: as the label store has it.
        version: number of the version that was exported.
        revision: of the case at that time.
        shape: voxels (x, y, z) of the image and of the labels.
        affine: 4 × 4, voxel index (x, y, z) -> RAS+ mm.
        findings: what the checks found, for people.
        sha256: file within the task -> of its content, when it was exported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    version: int
    revision: int
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    findings: tuple[dict[str, Any], ...] = ()
    sha256: dict[str, str]


class Task(BaseModel):
    """What `task.json` holds.

    Args:
        schema_version: of this file.
        collection: name of the label store.
        structures: canonical names, background first; the value of a structure is its index.
        created: ISO 8601, UTC.
        cases: see `TaskCase`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    collection: str
    structures: tuple[str, ...]
    created: str
    cases: tuple[TaskCase, ...]

    def case(self, case_id: str) -> TaskCase:
        """One of its cases.

        Raises:
            DataError: not_in_task.
        """
        for case in self.cases:
            if case.case_id == case_id:
                return case
        known = ", ".join(case.case_id for case in self.cases)
        raise DataError(f"the task has no case {case_id!r}", f"It has {known}.", code="not_in_task")


@dataclass(frozen=True)
class Wanted:
    """A case to export.

    Args:
        case_id: which.
        version: number of the version whose labels are edited; None for the label of now.
    """

    case_id: str
    version: int | None = None


def case_geometry(case: Case) -> Geometry:
    """Where a case's arrays lie in the patient."""
    if case.affine:
        affine = np.asarray(case.affine, dtype=float)[:, [2, 1, 0, 3]]
    else:
        affine = np.diag([*case.spacing_mm[::-1], 1.0])
    return Geometry.of_file(case.shape[::-1], affine)


def export_task(store: LabelStore, wanted: Iterable[Wanted], folder: Path) -> Task:
    """Writes a task.

    Args:
        store: has the cases.
        wanted: which of them.
        folder: new or empty.

    Raises:
        DataError: unknown_case, case_deleted, no_label, or task_exists.
        StorageError: no space, or forbidden.
    """
    if (folder / TASK_FILE).exists():
        raise DataError(
            f"{folder} holds a task already",
            "Export into another folder; edits may lie in this one.",
            code="task_exists",
        )
    cases = tuple(_export_case(store, one, folder) for one in wanted)
    task = Task(collection=store.name, structures=store.structures, created=now(), cases=cases)
    texts = {
        "slicer/structures.ctbl": slicer_color_table(store.structures),
        "itksnap/structures.txt": itksnap_labels(store.structures),
        DATASTORE_FILE: _datastore(task),
        TASK_FILE: task.model_dump_json(indent=1),
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(locate(folder / name), text.encode())
    return task


def read_task(folder: Path) -> Task:
    """Reads `task.json`.

    Raises:
        DataError: no_task, where it is missing or damaged.
    """
    file = folder / TASK_FILE
    try:
        return Task.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}",
            "Name the folder that export-task wrote.",
            code="no_task",
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{file}: {where}: {first['msg']}", "Export the task again.", code="no_task"
        ) from None


def _export_case(store: LabelStore, wanted: Wanted, folder: Path) -> TaskCase:
    case = store.case(wanted.case_id)
    if case.deleted:
        raise DataError(
            f"case {case.case_id!r} was taken out of the collection", "Leave it out.", code="case_deleted"
        )
    number = case.head if wanted.version is None else wanted.version
    if number is None:
        raise DataError(
            f"case {case.case_id!r} has no label yet", "Propose one: fedvox curate propose.", code="no_label"
        )
    version = store.version(case.case_id, number)
    geometry = case_geometry(case)
    files = dict(_write_volumes(store, case, version, geometry, folder))
    return TaskCase(
        case_id=case.case_id,
        version=number,
        revision=case.revision,
        shape=geometry.file_shape,
        affine=geometry.file_affine,
        findings=tuple(_told(f) for f in store.findings.of(case_id=case.case_id) if f.version == number),
        sha256=files,
    )


def _write_volumes(
    store: LabelStore, case: Case, version: Version, geometry: Geometry, folder: Path
) -> Iterator[tuple[str, str]]:
    """Writes a case's files; yields each with the SHA-256 of its content."""
    header = source_header(case.case_id, geometry)
    image = store.images.read(case.case_id)[0]
    name = f"{case.case_id}{_NIFTI}"
    # Integers stay integers: a CT is half as large, and an editor's window is in whole numbers.
    write = write_labels if image.dtype.kind in "iu" and image.dtype.itemsize <= 2 else write_image
    write(image, geometry, header, locate(folder / name))
    yield name, _sha256(folder / name)
    labels = store.read_mask(version)
    original = f"labels/original/{name}"
    write_labels(labels, geometry, header, locate(folder / original))
    yield original, _sha256(folder / original)
    consensus = [v for v in store.versions(case.case_id) if v.source.kind == "consensus"]
    if consensus:
        agreed = f"labels/consensus/{name}"
        write_labels(store.read_mask(consensus[-1]), geometry, header, locate(folder / agreed))
        yield agreed, _sha256(folder / agreed)
    segmentation = f"slicer/{case.case_id}.seg.nrrd"
    (folder / segmentation).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(locate(folder / segmentation), segmentation_bytes(labels, geometry, store.structures))
    yield segmentation, _sha256(folder / segmentation)


def _datastore(task: Task) -> str:
    """MONAI Label's index of a local data store: an image and its labels by tag, for each case."""
    objects = {}
    for case in task.cases:
        name = f"{case.case_id}{_NIFTI}"
        tags = [file.split("/")[1] for file in case.sha256 if file.startswith("labels/")]
        objects[case.case_id] = {
            "image": {"ext": _NIFTI, "info": {"name": name}},
            "labels": {tag: {"ext": _NIFTI, "info": {"name": name}} for tag in tags},
        }
    fields = {
        "name": task.collection,
        "description": f"Exported for editing on {task.created}",
        "images_dir": ".",
        "labels_dir": "labels",
        "objects": objects,
    }
    return json.dumps(fields, indent=1)


def _told(finding: Finding) -> dict[str, Any]:
    fields = asdict(finding)
    return {key: fields[key] for key in ("structure", "rule", "severity", "evidence")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
