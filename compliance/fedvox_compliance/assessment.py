"""What a clinic says, what it shows for it, and who looked at it.

Three parties write into an assessment, and their words are kept apart:

    the clinic          answer, reason, maturity, evidence, author, date
    a second person     of the same clinic: "I read this answer and its evidence" (`SecondPerson`)
    the assessor        of the study: "I checked it", or "it is not so" (`Verification`)

A confirmation names the SHA-256 of the very claim that was read (`claim_sha256`). Change the answer or a
document, and the confirmation no longer counts; nobody can confirm one thing and have it credited for
another.

All models are frozen: a change is a new object, made by `fedvox_compliance.workspace` and recorded in the
history.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fedvox_compliance.canonical import sha256_of

SCHEMA = "fedvox.assessment/1"
REVIEW_AFTER_DAYS = 365
"""An answer is to be looked at again after a year (45 CFR 164.308(a)(8), ISO/IEC 27001 clause 9.3)."""
DOCUMENT_VALID_DAYS = 3 * 365
"""How long a document without an expiry date speaks for the present: one ISO certification cycle."""

# No control characters, no bidirectional overrides: what a reader sees is what is stored.
_NO_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff"
Line = Annotated[str, StringConstraints(pattern=rf"^[^\t\n{_NO_CONTROLS}]*$", max_length=200)]
Name = Annotated[
    str,
    StringConstraints(
        pattern=rf"^[^\t\n{_NO_CONTROLS}]+$", min_length=1, max_length=120, strip_whitespace=True
    ),
]
Prose = Annotated[str, StringConstraints(pattern=rf"^[^{_NO_CONTROLS}]*$", max_length=4000)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ControlId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}$")]
RelativePath = Annotated[
    str,
    StringConstraints(
        pattern=rf"^[^/\\:\t\n{_NO_CONTROLS}][^\\:\t\n{_NO_CONTROLS}]*$", min_length=1, max_length=400
    ),
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Answer(StrEnum):
    """What can be answered; `Control.na_allowed` and `alternative_allowed` restrict two of these."""

    YES = "yes"
    ALTERNATIVE = "alternative"
    PARTLY = "partly"
    PLANNED = "planned"
    NO = "no"
    NOT_APPLICABLE = "not_applicable"


class Verdict(StrEnum):
    """What an assessor found."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"


class Evidence(_Model):
    """A document that speaks for an answer. The file stays in the clinic; its hash travels.

    Attributes:
        path: relative to the assessment's folder, with forward slashes, never leaving it.
        effective: the day from which the document holds, not the day of upload.
        expires: the last day on which it holds; without one, `DOCUMENT_VALID_DAYS` after `effective`.
        shared_from: the control from which it was taken over through the cross-walk, by a person's decision.
    """

    path: RelativePath
    sha256: Sha256
    title: Line = ""
    effective: dt.date
    expires: dt.date | None = None
    shared_from: ControlId | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if ".." in self.path.split("/"):
            raise ValueError(f"the evidence path {self.path!r} leaves the assessment's folder")
        if self.expires is not None and self.expires < self.effective:
            raise ValueError(f"the evidence {self.path!r} expires before it takes effect")
        return self

    @property
    def last_day(self) -> dt.date:
        """The last day on which the document counts in full."""
        return self.expires or _days_after(self.effective, DOCUMENT_VALID_DAYS)

    def days_over(self, on: dt.date) -> int:
        """How many days `on` lies after the last day; not positive while the document counts in full."""
        if self.expires is not None:
            return (on - self.expires).days
        return (on - self.effective).days - DOCUMENT_VALID_DAYS


class SecondPerson(_Model):
    """A colleague's confirmation of one claim."""

    name: Name
    date: dt.date
    claim: Sha256


class Verification(_Model):
    """An assessor's finding on one claim."""

    assessor: Name
    date: dt.date
    claim: Sha256
    result: Verdict = Verdict.CONFIRMED
    note: Prose = ""


class Entry(_Model):
    """Everything about one control.

    Attributes:
        answer: None while only an owner has been assigned.
        reason: obligatory for `alternative` and `not_applicable`; welcome everywhere.
        maturity: 0 none, 1 ad hoc, 2 repeatable, 3 defined, 4 measured, 5 improving; the clinic's own rating.
        due: for `planned`, the day by which it shall be in place.
        author: who answered. Obligatory with an answer, as is `answered_on`.
        review_on: when to look again; never later than `REVIEW_AFTER_DAYS` after `answered_on` in effect.
        owner: who in the clinic is to answer (used to hand out parts of the questionnaire).
    """

    answer: Answer | None = None
    reason: Prose = ""
    maturity: Annotated[int, Field(ge=0, le=5)] | None = None
    due: dt.date | None = None
    evidence: Annotated[tuple[Evidence, ...], Field(max_length=50)] = ()
    author: Name | None = None
    answered_on: dt.date | None = None
    review_on: dt.date | None = None
    second_person: SecondPerson | None = None
    verification: Verification | None = None
    owner: Name | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.answer is not None and (self.author is None or self.answered_on is None):
            raise ValueError("an answer needs its author and the day it was given (author, answered_on)")
        return self

    @property
    def last_day(self) -> dt.date | None:
        """The last day on which the answer counts in full; None while there is no answer."""
        if self.answered_on is None:
            return None
        latest = _days_after(self.answered_on, REVIEW_AFTER_DAYS)
        return latest if self.review_on is None else min(self.review_on, latest)

    def days_over(self, on: dt.date) -> int:
        """How many days `on` lies after the answer's last day; not positive while it counts in full, or is open."""
        if self.answered_on is None:
            return 0
        over = (on - self.answered_on).days - REVIEW_AFTER_DAYS
        return over if self.review_on is None else max(over, (on - self.review_on).days)


class ScopeAnswer(_Model):
    """The clinic's statement on one scope question."""

    applies: bool
    author: Name
    answered_on: dt.date
    reason: Prose = ""


class CatalogueRef(_Model):
    """Which questions were asked."""

    version: Line
    sha256: Sha256


class HistoryRef(_Model):
    """How far the history goes that led to this state. `head` is the last line's hash, or 64 zeros."""

    length: Annotated[int, Field(ge=0)] = 0
    head: Sha256 = "0" * 64


class Assessment(_Model):
    """One clinic's answers to one catalogue."""

    schema_: Annotated[Literal["fedvox.assessment/1"], Field(alias="schema")] = "fedvox.assessment/1"
    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    clinic: Name
    profile: Line
    overlays: tuple[Line, ...] = ()
    catalogue: CatalogueRef
    created: AwareDatetime
    scope: dict[ControlId, ScopeAnswer] = Field(default_factory=dict, max_length=200)
    entries: dict[ControlId, Entry] = Field(default_factory=dict, max_length=2000)
    history: HistoryRef = HistoryRef()

    @property
    def stated_scope(self) -> Mapping[str, bool]:
        """The scope statements, as `fedvox_compliance.scope` wants them."""
        return {name: said.applies for name, said in self.scope.items()}

    def scope_stated_by(self, on: dt.date) -> dict[str, bool]:
        """The scope statements that had been made by a day."""
        return {name: said.applies for name, said in self.scope.items() if said.answered_on <= on}

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole assessment in canonical form; its history's head is part of it."""
        return sha256_of(to_jsonable(self))


def claim_sha256(control_id: str, entry: Entry) -> str:
    """SHA-256 of what a confirmation confirms: the control, the answer, its reason, dates, author and documents.

    Fields are joined by a control character, which no field can hold, in a fixed order and number (four a document),
    so different claims give different texts.
    """
    fields = [
        control_id,
        entry.answer or "",
        entry.reason,
        "" if entry.maturity is None else str(entry.maturity),
        _day(entry.due),
        entry.author or "",
        _day(entry.answered_on),
    ]
    for document in entry.evidence:
        fields += (document.sha256, document.path, _day(document.effective), _day(document.expires))
    return hashlib.sha256("\x1f".join(fields).encode("utf-8")).hexdigest()


def same_person(a: str | None, b: str | None) -> bool:
    """Whether two names are the same person's, as far as spelling tells (case and spaces do not matter)."""
    return a is not None and b is not None and normal_name(a) == normal_name(b)


@lru_cache(maxsize=4096)
def normal_name(name: str) -> str:
    """A name without differences of case and spaces."""
    return " ".join(name.split()).casefold()


def to_jsonable(model: BaseModel) -> dict[str, Any]:
    """A model as JSON values, without the fields that were left at their defaults."""
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True) | (
        {"schema": SCHEMA} if isinstance(model, Assessment) else {}
    )


@lru_cache(maxsize=4096)
def _day(day: dt.date | None) -> str:
    return "" if day is None else day.isoformat()


def _days_after(day: dt.date, days: int) -> dt.date:
    """`day` plus some days, staying within what a calendar date can hold."""
    return dt.date.fromordinal(min(day.toordinal() + days, dt.date.max.toordinal()))
