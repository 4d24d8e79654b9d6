"""What a person does with a case: accept, choose, reject, edit, undo; and in a conflict, what changed meanwhile."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedvox.curation.exchange.difference import changes
from fedvox.curation.review.sessions import Session, Undoable
from fedvox.curation.review.slices import Slices
from fedvox.curation.review.views import Reading, read_case
from fedvox.curation.store import Case, LabelStore, Person, Review, Verdict
from fedvox.curation.store.records import PURPOSES_ALONE
from fedvox.errors import DataError, LabelConflict

MOST_SECONDS = 4 * 3600.0
"""A single case takes no longer; more is a clock gone wrong."""


class DecisionForm(BaseModel):
    """What the page sends.

    Args:
        action: accept a version, reject all of them, or make the uploaded mask the label.
        version: that is accepted.
        revision: of the case, as the page showed it.
        item: of the queue, that is answered.
        seconds: that the case was in front of the person's eyes.
        reason: in the person's words; a rejection needs one.
        request_id: the same request sent twice is written once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["accept", "reject", "edit"]
    version: int | None = None
    revision: int
    item: int | None = None
    seconds: float = Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)
    reason: str = Field(default="", max_length=4000)
    request_id: str = Field(min_length=8, max_length=100)


def decide(store: LabelStore, session: Session, person: Person, case_id: str, form: DecisionForm) -> Review:
    """Writes a decision, and remembers how to take it back.

    Raises:
        LabelConflict: somebody decided meanwhile; nothing was written.
        DataError: unknown_version, no_reason, nothing_uploaded, or what the store says.
    """
    reading = read_case(store, person, case_id)
    verdict = Verdict(
        case_id=case_id,
        expected_revision=form.revision,
        reviewer=person.name,
        seconds=form.seconds,
        reason=form.reason.strip(),
        item=form.item,
        request_id=f"{person.name}/{form.request_id}"[-100:],
    )
    review = _write(store, session, reading, verdict, form)
    moved = review.purpose not in PURPOSES_ALONE and review.seen is not None
    session.undoable = Undoable(case_id, review.seen or 0, form.revision + 1) if moved else None
    return review


def _write(
    store: LabelStore, session: Session, reading: Reading, verdict: Verdict, form: DecisionForm
) -> Review:
    if form.action == "accept":
        if form.version is None:
            raise DataError("no version was chosen", "Choose one of the versions.", code="unknown_version")
        reading.version(form.version)
        return store.accept(verdict, form.version)
    if form.action == "reject":
        if not verdict.reason:
            raise DataError(
                "a rejection needs a reason", "Say in a few words what is wrong.", code="no_reason"
            )
        return store.reject(verdict)
    uploaded = session.uploaded
    if uploaded is None or uploaded.case_id != verdict.case_id:
        raise DataError(
            f"no edited mask of case {verdict.case_id!r} was uploaded",
            "Upload it first.",
            code="nothing_uploaded",
        )
    mask = store.masks.read(uploaded.mask_sha256)
    review = store.edit(verdict, mask, parent=uploaded.parent, tool=uploaded.tool)
    session.uploaded = None
    return review


def undo(store: LabelStore, session: Session, person: Person) -> Case:
    """Takes the session's last decision back: what was the label before is the label again.

    Raises:
        LabelConflict: somebody decided after it.
        DataError: nothing_to_undo.
    """
    last = session.undoable
    if last is None:
        raise DataError(
            "there is no decision of this session to take back",
            "A second opinion changes no label; for older decisions ask a lead (fedvox curate rollback).",
            code="nothing_to_undo",
        )
    case = store.roll_back(
        last.case_id,
        last.seen,
        expected_revision=last.revision,
        actor=person.name,
        reason="undone on the review page",
    )
    session.undoable = None
    return case


def what_changed(
    store: LabelStore, slices: Slices, person: Person, case_id: str, error: LabelConflict, base: int | None
) -> dict[str, Any]:
    """A conflict as the page tells it: who did what meanwhile, and how the label differs from the one that was shown.

    Args:
        store: of the case.
        slices: reads its masks.
        person: who was late.
        case_id: the case.
        error: that the store raised.
        base: number of the version that the page showed as the label.
    """
    told: dict[str, Any] = {"error": error.message, "remedy": error.remedy, "code": "conflict"}
    reading = read_case(store, person, case_id)
    told["revision"] = reading.case.revision
    if reading.blind:
        return told
    reviews = store.reviews(case_id=case_id)
    if reviews:
        last = reviews[-1]
        told["last"] = {
            key: asdict(last)[key] for key in ("reviewer", "decision", "reason", "created", "result")
        }
    head = reading.case.head
    if base is not None and head is not None and base != head:
        masks = [slices.mask(reading.version(number)) for number in (base, head)]
        found = changes(masks[0], masks[1], store.structures, reading.case.spacing_mm)
        told["changes"] = [asdict(change) for change in found if change.changed]
    return told
