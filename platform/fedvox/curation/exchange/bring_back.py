"""From a task's folder back into the label store: find the edited mask, check it, tell what it changed, record it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvox.curation.exchange.difference import StructureChange, changes, difference_picture
from fedvox.curation.exchange.edited import read_edited
from fedvox.curation.exchange.task import Task, TaskCase
from fedvox.curation.store import Case, LabelStore, Review, Verdict
from fedvox.errors import DataError, LabelConflict
from fedvox.storage import locate, write_atomic


@dataclass(frozen=True)
class Edit:
    """An edited mask that passed the checks.

    Args:
        case: as it is now.
        parent: number of the version that was edited.
        revision: of the case when it was exported.
        path: of the file.
        mask: canonical structure indices, (D, H, W).
        before: the mask of `parent`, the same shape.
        changes: of each structure.
    """

    case: Case
    parent: int
    revision: int
    path: Path
    mask: npt.NDArray[np.integer]
    before: npt.NDArray[np.integer]
    changes: tuple[StructureChange, ...]

    @property
    def is_stale(self) -> bool:
        """Whether somebody decided on the case since the export."""
        return self.case.revision != self.revision

    def to_json(self) -> dict[str, Any]:
        """For reports: what was read and what it changes."""
        return {
            "case_id": self.case.case_id,
            "file": str(self.path),
            "parent": self.parent,
            "stale": self.is_stale,
            "changes": [asdict(change) for change in self.changes if change.changed],
        }


def find_edited(folder: Path, case: TaskCase) -> Path:
    """The file of a task that somebody edited.

    Raises:
        DataError: nothing_edited, or ambiguous_edit where there are several.
    """
    name = f"{case.case_id}.nii.gz"
    candidates = [f"labels/final/{name}", f"slicer/{case.case_id}.seg.nrrd", f"labels/original/{name}"]
    edited = [
        folder / one
        for one in candidates
        if (folder / one).is_file() and _sha256(folder / one) != case.sha256.get(one)
    ]
    if len(edited) == 1:
        return edited[0]
    if edited:
        found = ", ".join(str(path.relative_to(folder)) for path in edited)
        raise DataError(
            f"{folder}: case {case.case_id!r} was edited more than once ({found})",
            "Name the one that counts with --mask.",
            code="ambiguous_edit",
        )
    raise DataError(
        f"{folder}: no file of case {case.case_id!r} was edited",
        f"Save the edited mask as labels/final/{name}, or name it with --mask.",
        code="nothing_edited",
    )


def read_edit(store: LabelStore, task: Task, case_id: str, path: Path, *, allow_empty: bool = False) -> Edit:
    """Reads and checks an edited mask; writes nothing.

    Raises:
        DataError: not_in_task, other_structures, unknown_case, case_deleted, or see `read_edited`.
    """
    exported = task.case(case_id)
    if task.structures != store.structures:
        raise DataError(
            f"the task was exported from a collection of other structures ({', '.join(task.structures)})",
            "Name the label store that it came from.",
            code="other_structures",
        )
    case = store.case(case_id)
    if case.deleted:
        raise DataError(
            f"case {case_id!r} was taken out of the collection since the export",
            "Nothing is left to do; the edited file stays where it is.",
            code="case_deleted",
        )
    before = store.read_mask(store.version(case_id, exported.version))
    mask = read_edited(path, case, store.structures, allow_empty=allow_empty)
    told = changes(before, mask, store.structures, case.spacing_mm)
    return Edit(case, exported.version, exported.revision, path, mask, before, told)


def record_edit(
    store: LabelStore, edit: Edit, *, reviewer: str, seconds: float, reason: str, on_top: bool = False
) -> Review:
    """Makes an edited mask the label. Called again for the same edit, it returns what was written the first time.

    Args:
        store: of the case.
        edit: see `read_edit`.
        reviewer: who edited.
        seconds: spent.
        reason: in the person's words.
        on_top: also where somebody decided since the export; their version stays in the history.

    Raises:
        LabelConflict: somebody decided since the export; nothing was written.
        DataError: unchanged, or see `LabelStore.edit`.
    """
    case_id = edit.case.case_id
    if np.array_equal(edit.mask, edit.before):
        raise DataError(
            f"{edit.path} is the same mask as version {edit.parent} of case {case_id!r}",
            "If it is right as it is, accept it: fedvox curate accept.",
            code="unchanged",
        )
    before = _recorded_before(store, edit, reviewer)
    if before is not None:
        return before
    if edit.is_stale and not on_top:
        raise LabelConflict(
            f"case {case_id!r}: {_what_happened(store, edit)} since version {edit.parent} was exported",
            "Export it again and edit that; or, to make this edit the label all the same, pass --on-top. "
            "Nothing was written.",
        )
    held = [i for i in store.queue.items(state="leased") if i.case_id == case_id and i.reviewer == reviewer]
    verdict = Verdict(
        case_id=case_id,
        expected_revision=edit.case.revision if on_top else edit.revision,
        reviewer=reviewer,
        seconds=seconds,
        reason=reason,
        item=held[0].id if held else None,
    )
    return store.edit(verdict, edit.mask, parent=edit.parent, tool=edit.path.name)


def write_picture(store: LabelStore, edit: Edit, path: Path) -> None:
    """Writes what changed as a PNG; see `difference_picture`."""
    image = store.images.read(edit.case.case_id)[0]
    write_atomic(locate(path), difference_picture(image, edit.before, edit.mask, edit.case.spacing_mm))


def _recorded_before(store: LabelStore, edit: Edit, reviewer: str) -> Review | None:
    """The review that this very edit has led to already, as when an import is repeated after it was killed."""
    if not edit.is_stale:
        return None
    reviews = {review.result: review for review in store.reviews(case_id=edit.case.case_id)}
    for version in reversed(store.versions(edit.case.case_id)):
        mine = (
            version.source.kind == "person" and version.reviewer == reviewer and version.parent == edit.parent
        )
        if mine and version.number in reviews and np.array_equal(store.read_mask(version), edit.mask):
            return reviews[version.number]
    return None


def _what_happened(store: LabelStore, edit: Edit) -> str:
    reviews = store.reviews(case_id=edit.case.case_id)
    if not reviews:
        return f"its label became version {edit.case.head}"
    last = reviews[-1]
    return f"{last.reviewer} decided ({last.decision}, label now version {edit.case.head}) at {last.created}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
