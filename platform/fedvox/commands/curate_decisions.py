"""`fedvox curate next | accept | edit | reject | rollback`: what people say of a case."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.commands.curate_output import show
from fedvox.commands.pretrain import AsJson
from fedvox.errors import DataError

if TYPE_CHECKING:
    from fedvox.curation.store import LabelStore, Review

_Store = Annotated[str, typer.Argument(help="Folder of the label store.")]
_CaseId = Annotated[str, typer.Argument(help="Name of the case.")]
_Reviewer = Annotated[str, typer.Option("--reviewer", "-r", help="Who decides.")]
_Seconds = Annotated[float, typer.Option(min=0, help="Time spent, for the calibration of the queue.")]
_Reason = Annotated[str, typer.Option(help="Why, for the log.")]
_Revision = Annotated[
    int | None,
    typer.Option(help="Revision that was looked at (curate next shows it); default: the newest."),
]
_Item = Annotated[
    int | None, typer.Option(help="Item of the queue that this answers (curate next shows it).")
]


def next_(
    store: _Store,
    reviewer: _Reviewer,
    case: Annotated[str | None, typer.Option("--case", "-c", help="Only an item of this case.")] = None,
    as_json: AsJson = False,
) -> None:
    """Gives the next case to look at, and keeps it for this reviewer for half an hour.

    Examples:
        fedvox curate next curation --reviewer "Dr. Okafor"
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    item = opened.queue.next(reviewer, case_id=case)
    if item is None:
        show({"item": None, "message": "the queue has nothing for you"}, as_json)
        return
    found = opened.case(item.case_id)
    told = [
        f"{one.structure}: {one.rule} ({one.severity:.2f})"
        for one in opened.findings.of(round=item.round, case_id=item.case_id)
    ]
    blind = item.purpose in ("double", "blind")
    show(
        {
            "item": item.id,
            "case": item.case_id,
            "show_version": opened.shown_version(item),
            "revision": found.revision,
            "expected_minutes": round(item.minutes, 1),
            "findings": [] if blind else told,
        },
        as_json,
    )


def accept(
    store: _Store,
    case: _CaseId,
    reviewer: _Reviewer,
    version: Annotated[
        int | None, typer.Option(help="Version that is right; default: the label of now.")
    ] = None,
    item: _Item = None,
    revision: _Revision = None,
    seconds: _Seconds = 0.0,
    reason: _Reason = "",
    as_json: AsJson = False,
) -> None:
    """Says that the label is right, or that another version is.

    Examples:
        fedvox curate accept curation case_007 --reviewer "Dr. Okafor" --item 12 --revision 1

        fedvox curate accept curation case_007 --reviewer "Dr. Okafor" --version 4
    """
    opened, verdict = _verdict(store, case, reviewer, item, revision, seconds, reason)
    chosen = opened.case(case).head if version is None else version
    if chosen is None:
        raise DataError(f"case {case!r} has no label yet", "Name a version: --version N.", code="no_label")
    _tell(opened.accept(verdict, chosen), as_json)


def edit(
    store: _Store,
    case: _CaseId,
    reviewer: _Reviewer,
    mask: Annotated[Path, typer.Option("--mask", "-m", help="NIfTI label map on the image's own grid.")],
    item: _Item = None,
    revision: _Revision = None,
    seconds: _Seconds = 0.0,
    reason: _Reason = "",
    as_json: AsJson = False,
) -> None:
    """Makes a mask from a file the label; `import-edit` takes masks back from other programs' tasks.

    Examples:
        fedvox curate edit curation case_007 --reviewer "Dr. Okafor" --mask case_007.nii.gz
    """
    from fedvox.curation.cycle.mask_files import read_mask_file

    opened, verdict = _verdict(store, case, reviewer, item, revision, seconds, reason)
    found = opened.case(case)
    _tell(opened.edit(verdict, read_mask_file(mask, found), parent=found.head or 1, tool="file"), as_json)


def reject(
    store: _Store,
    case: _CaseId,
    reviewer: _Reviewer,
    item: _Item = None,
    revision: _Revision = None,
    seconds: _Seconds = 0.0,
    reason: _Reason = "",
    as_json: AsJson = False,
) -> None:
    """Says that no version is right and somebody has to edit; the case comes back in the next round.

    Examples:
        fedvox curate reject curation case_007 --reviewer "Dr. Okafor" --reason "wrong patient"
    """
    opened, verdict = _verdict(store, case, reviewer, item, revision, seconds, reason)
    _tell(opened.reject(verdict), as_json)


def rollback(
    store: _Store,
    case: _CaseId,
    version: Annotated[int, typer.Option(help="Version that becomes the label again.")],
    actor: Annotated[str, typer.Option("--by", help="Who does it, for the log.")],
    reason: _Reason = "",
    revision: _Revision = None,
    as_json: AsJson = False,
) -> None:
    """Makes an earlier version the label again; nothing of the history is lost.

    Examples:
        fedvox curate rollback curation case_007 --version 1 --by "Dr. Meyer" --reason "the edit was wrong"
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    seen = opened.case(case).revision if revision is None else revision
    found = opened.roll_back(case, version, expected_revision=seen, actor=actor, reason=reason)
    show({"case": case, "head": found.head, "revision": found.revision}, as_json)


DECISIONS = (next_, accept, edit, reject, rollback)


def _verdict(
    store: str, case: str, reviewer: str, item: int | None, revision: int | None, seconds: float, reason: str
) -> tuple[LabelStore, Any]:
    from fedvox.curation.store import LabelStore, Verdict

    opened = LabelStore.open(store)
    seen = opened.case(case).revision if revision is None else revision
    return opened, Verdict(case, seen, reviewer, seconds, reason, item)


def _tell(review: Review, as_json: bool) -> None:
    show(asdict(review), as_json)
