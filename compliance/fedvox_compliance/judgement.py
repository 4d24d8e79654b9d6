"""What one entry is worth on one day: the part of the score that looks at a single question.

    value = answer x assurance x currency                                     each in [0, 1]

    answer      yes 1, alternative 0.9, partly 0.5, planned 0.1, no 0; never more than the clinic's own
    maturity allows assurance   claim 0.25, current document 0.6, second person 0.8, verified by a trusted
    assessor 1 currency    1 until the answer's last day, then linearly to 0 within 180 days; the same for
    each document

The assurance factors are what makes an undocumented liar (0.25) weaker than an honest, mediocre, documented
clinic (about 0.43): with 0.5 / 0.7 / 0.85 / 1 they would come out equal.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import IntEnum, StrEnum
from typing import NamedTuple

from fedvox_compliance.assessment import (
    DOCUMENT_VALID_DAYS,
    REVIEW_AFTER_DAYS,
    Answer,
    Entry,
    Evidence,
    Verdict,
    claim_sha256,
    same_person,
)
from fedvox_compliance.catalogue import Control

ANSWER_VALUE = {
    Answer.YES: 1.0,
    Answer.ALTERNATIVE: 0.9,
    Answer.PARTLY: 0.5,
    Answer.PLANNED: 0.1,
    Answer.NO: 0.0,
}
DECAY_DAYS = 180
"""How many days after its last day an answer or a document takes to lose all worth."""


class Assurance(IntEnum):
    """How well an answer is shown, from nothing to an assessor's own check."""

    NONE = 0
    CLAIM = 1
    DOCUMENT = 2
    SECOND_PERSON = 3
    VERIFIED = 4

    @property
    def label(self) -> str:
        """The name as it stands in JSON and in message catalogues."""
        return self.name.lower()


ASSURANCE_FACTOR = (0.0, 0.25, 0.6, 0.8, 1.0)
"""By `Assurance`."""
MATURITY_CEILING = (0.0, 0.5, 1.0, 1.0, 1.0, 1.0)
"""By maturity 0-5: what does not exist cannot be a yes, what is ad hoc is at most a partly. It never adds."""


class Status(StrEnum):
    """What became of a control in the score."""

    SCORED = "scored"
    OPEN = "open"
    NOT_APPLICABLE = "not_applicable"
    OUT_OF_SCOPE = "out_of_scope"


class Note(StrEnum):
    """Why a value is lower than the answer alone would give; the wording is in the message catalogues."""

    NO_EVIDENCE = "no_evidence"
    EVIDENCE_EXPIRED = "evidence_expired"
    EVIDENCE_NOT_YET = "evidence_not_yet"
    ANSWER_EXPIRED = "answer_expired"
    ANSWER_IN_FUTURE = "answer_in_future"
    MATURITY_CAPS = "maturity_caps"
    NA_REFUSED = "na_refused"
    NA_WITHOUT_REASON = "na_without_reason"
    ALTERNATIVE_REFUSED = "alternative_refused"
    ALTERNATIVE_WITHOUT_REASON = "alternative_without_reason"
    PLAN_WITHOUT_DATE = "plan_without_date"
    PLAN_OVERDUE = "plan_overdue"
    SECOND_PERSON_IS_AUTHOR = "second_person_is_author"
    SECOND_PERSON_STALE = "second_person_stale"
    SECOND_PERSON_WITHOUT_EVIDENCE = "second_person_without_evidence"
    ASSESSOR_NOT_TRUSTED = "assessor_not_trusted"
    ASSESSOR_NOT_INDEPENDENT = "assessor_not_independent"
    VERIFICATION_STALE = "verification_stale"
    REFUTED = "refuted"


class Judgement(NamedTuple):
    """The worth of one entry: `value == answer_value * factor`; assurance and currency are in `factor`."""

    status: Status
    value: float = 0.0
    answer_value: float = 0.0
    factor: float = 0.0
    assurance: Assurance = Assurance.NONE
    notes: tuple[Note, ...] = ()


OPEN = Judgement(Status.OPEN)


def judge(control: Control, entry: Entry | None, on: dt.date, trusted: AbstractSet[str]) -> Judgement:
    """Say what an entry is worth.

    Args:
        control: the question.
        entry: what was said; None when nothing was.
        on: the day of the score. What was said or issued later does not exist yet.
        trusted: the assessors whose confirmations count. A refutation counts whoever made it.
    """
    return OPEN if entry is None else judge_in_full(control, entry, on, trusted)


def judge_all(
    controls: Mapping[str, Control], entries: Mapping[str, Entry], on: dt.date, trusted: AbstractSet[str]
) -> dict[str, Judgement]:
    """Say what each control's entry is worth, in the order of the controls.

    The same as `judge` on each, and a test compares the two; but a coordinator scores thousands of assessments, so the
    common cases are not worked out anew (0.3 against 1.0 ms for 283 answers).
    """
    common_case = _CommonCases(on).judge
    found: dict[str, Judgement] = {}
    for control_id, control in controls.items():
        entry = entries.get(control_id)
        if entry is None:
            found[control_id] = OPEN
        else:
            found[control_id] = common_case(control_id, entry) or judge_in_full(control, entry, on, trusted)
    return found


def _ready_made(answer: Answer) -> tuple[Judgement, Judgement, Judgement]:
    """The judgements of a current answer: claimed, documented, and read by a second person."""
    value, factor = ANSWER_VALUE[answer], ASSURANCE_FACTOR
    levels = ((Assurance.CLAIM, (Note.NO_EVIDENCE,)), (Assurance.DOCUMENT, ()), (Assurance.SECOND_PERSON, ()))
    claimed, documented, read = (
        Judgement(Status.SCORED, value * factor[level], value, factor[level], level, notes)
        for level, notes in levels
    )
    return claimed, documented, read


_YES, _PARTLY, _NO = Answer.YES, Answer.PARTLY, Answer.NO
_READY_YES, _READY_PARTLY, _READY_NO = _ready_made(_YES), _ready_made(_PARTLY), _ready_made(_NO)


class _CommonCases:
    """A plain yes, partly or no, current, with at most one document, read by a second person or not."""

    __slots__ = ("answers_since", "documents_since", "on")

    def __init__(self, on: dt.date) -> None:
        self.on = on
        self.answers_since = dt.date.fromordinal(max(1, on.toordinal() - REVIEW_AFTER_DAYS))
        self.documents_since = dt.date.fromordinal(max(1, on.toordinal() - DOCUMENT_VALID_DAYS))

    def judge(self, control_id: str, entry: Entry) -> Judgement | None:
        """The ready-made judgement, or None where the entry is not one of the common cases."""
        fields = entry.__dict__  # a look-up of a model's attribute costs twice as much, and this makes seven
        said = fields["answered_on"]
        if said is None or not self.answers_since <= said <= self.on or fields["maturity"] is not None:
            return None
        if fields["review_on"] is not None or fields["verification"] is not None:
            return None
        answer = fields["answer"]
        if answer is _YES:
            claimed, documented, read = _READY_YES
        elif answer is _PARTLY:
            claimed, documented, read = _READY_PARTLY
        elif answer is _NO:
            claimed, documented, read = _READY_NO
        else:
            return None
        second, documents = fields["second_person"], fields["evidence"]
        if not documents:
            return claimed if second is None else None
        if len(documents) > 1 or not self._counts_in_full(documents[0]):
            return None
        if second is None:
            return documented
        confirmed = second.date <= self.on and second.claim == claim_sha256(control_id, entry)
        return read if confirmed and not same_person(second.name, entry.author) else None

    def _counts_in_full(self, document: Evidence) -> bool:
        if document.expires is not None:
            return document.effective <= self.on <= document.expires
        return self.documents_since <= document.effective <= self.on


def judge_in_full(control: Control, entry: Entry, on: dt.date, trusted: AbstractSet[str]) -> Judgement:
    """Say what an entry is worth, step by step; see `judge`."""
    if entry.answer is None or entry.answered_on is None:
        return OPEN
    if entry.answered_on > on:
        return Judgement(Status.OPEN, notes=(Note.ANSWER_IN_FUTURE,))
    notes: list[Note] = []
    if entry.answer is Answer.NOT_APPLICABLE:
        if control.na_allowed and entry.reason.strip():
            return Judgement(Status.NOT_APPLICABLE)
        notes.append(Note.NA_WITHOUT_REASON if control.na_allowed else Note.NA_REFUSED)
        return Judgement(Status.SCORED, notes=tuple(notes))
    answer_value = _answer_value(control, entry, on, notes)
    assurance, factor = _assurance(control, entry, on, trusted, notes)
    if entry.verification is not None and entry.verification.result is Verdict.REFUTED:
        notes.append(Note.REFUTED)
        answer_value = 0.0
    return Judgement(Status.SCORED, answer_value * factor, answer_value, factor, assurance, tuple(notes))


def currency(days_over: int) -> float:
    """1 until the last day, then linearly to 0 over `DECAY_DAYS`."""
    return 1.0 if days_over <= 0 else max(0.0, 1.0 - days_over / DECAY_DAYS)


def _answer_value(control: Control, entry: Entry, on: dt.date, notes: list[Note]) -> float:
    assert entry.answer is not None
    value = ANSWER_VALUE[entry.answer]
    if entry.answer is Answer.ALTERNATIVE:
        if not control.alternative_allowed:
            notes.append(Note.ALTERNATIVE_REFUSED)
            return 0.0
        if not entry.reason.strip():
            notes.append(Note.ALTERNATIVE_WITHOUT_REASON)
            return 0.0
    elif entry.answer is Answer.PLANNED and (entry.due is None or entry.due < on):
        notes.append(Note.PLAN_WITHOUT_DATE if entry.due is None else Note.PLAN_OVERDUE)
        return 0.0
    if entry.maturity is not None and MATURITY_CEILING[entry.maturity] < value:
        notes.append(Note.MATURITY_CAPS)
        return MATURITY_CEILING[entry.maturity]
    return value


def _assurance(
    control: Control, entry: Entry, on: dt.date, trusted: AbstractSet[str], notes: list[Note]
) -> tuple[Assurance, float]:
    """The level reached, and the factor: assurance times the currency of documents and answer."""
    of_answer = currency(entry.days_over(on))
    if of_answer < 1.0:
        notes.append(Note.ANSWER_EXPIRED)
    of_documents = _currency_of_documents(entry.evidence, on, notes)
    level = _level(control, entry, on, trusted, notes) if of_documents > 0 else Assurance.CLAIM
    if of_documents == 0 and entry.second_person is not None:
        notes.append(Note.SECOND_PERSON_WITHOUT_EVIDENCE)
    claim = ASSURANCE_FACTOR[Assurance.CLAIM]
    shown = ASSURANCE_FACTOR[level] * of_documents
    if shown <= claim:  # documents that faded below it leave a mere claim
        return Assurance.CLAIM, claim * of_answer
    return level, shown * of_answer


def _currency_of_documents(evidence: tuple[Evidence, ...], on: dt.date, notes: list[Note]) -> float:
    """The currency of the freshest document that is already in effect; 0 without one."""
    if not evidence:
        notes.append(Note.NO_EVIDENCE)
        return 0.0
    days_over = [e.days_over(on) for e in evidence if e.effective <= on]
    if not days_over:
        notes.append(Note.EVIDENCE_NOT_YET)
        return 0.0
    freshest = currency(min(days_over))
    if freshest < 1.0:
        notes.append(Note.EVIDENCE_EXPIRED)
    return freshest


def _level(
    control: Control, entry: Entry, on: dt.date, trusted: AbstractSet[str], notes: list[Note]
) -> Assurance:
    second, check = entry.second_person, entry.verification
    if second is None and check is None:
        return Assurance.DOCUMENT
    claim = claim_sha256(control.id, entry)
    if check is not None and check.result is Verdict.CONFIRMED and check.date <= on:
        wrong = _wrong_with_assessor(check.assessor, check.claim, claim, entry, trusted)
        if wrong is None:
            return Assurance.VERIFIED
        notes.append(wrong)
    if second is not None and second.date <= on:
        if same_person(second.name, entry.author):
            notes.append(Note.SECOND_PERSON_IS_AUTHOR)
        elif second.claim != claim:
            notes.append(Note.SECOND_PERSON_STALE)
        else:
            return Assurance.SECOND_PERSON
    return Assurance.DOCUMENT


def _wrong_with_assessor(
    assessor: str, confirmed: str, claim: str, entry: Entry, trusted: AbstractSet[str]
) -> Note | None:
    if assessor not in trusted:
        return Note.ASSESSOR_NOT_TRUSTED
    if same_person(assessor, entry.author) or (
        entry.second_person and same_person(assessor, entry.second_person.name)
    ):
        return Note.ASSESSOR_NOT_INDEPENDENT
    return None if confirmed == claim else Note.VERIFICATION_STALE
