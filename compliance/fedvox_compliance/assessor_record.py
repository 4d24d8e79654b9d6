"""An assessor's working paper for one submission: what was drawn, what was found, and by whom.

It is the assessor's own file, kept at the assessor's. Nothing in it comes from the clinic but identifiers
and digests, and nothing that the clinic wrote about being verified is ever read.
"""

from __future__ import annotations

import datetime as dt
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedvox_compliance.assessment import ControlId, HistoryRef, Name, Prose, Sha256
from fedvox_compliance.errors import AssessmentError, UsageError
from fedvox_compliance.files import describe_problems, parse_json, read_limited, write_atomic
from fedvox_compliance.sampling import Sample, check_commitment, seed_of
from fedvox_compliance.statement import Uuid

RECORD_SCHEMA = "fedvox.assessor-record/1"


class Finding(StrEnum):
    """What an assessor can find."""

    CONFIRMED = "confirmed"
    """The evidence shows what the answer claims."""
    NOT_SHOWN = "not_shown"
    """The evidence does not show it. The answer counts nothing."""
    FALSE = "false"
    """The evidence or the answer is untrue. Nothing of this submission can be attested."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RecordedFinding(_Model):
    """One look at one control."""

    result: Finding
    on: dt.date
    note: Prose = ""
    evidence: tuple[Sha256, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.result is not Finding.CONFIRMED and not self.note.strip():
            raise ValueError(f"the finding {self.result.value!r} needs a note that says why")
        return self


class AssessorRecord(_Model):
    """The working paper.

    Attributes:
        submission: SHA-256 of the answers as submitted.
        history: where the submission's history stood.
        extended: how often the sample was enlarged because too much was not shown.
    """

    schema_: Annotated[Literal["fedvox.assessor-record/1"], Field(alias="schema")] = (
        "fedvox.assessor-record/1"
    )
    assessor: Name
    clinic: Name
    assessment_id: Uuid
    submission: Sha256
    history: HistoryRef
    catalogue: Sha256
    commitment: Sha256
    nonce: Sha256
    share: Annotated[float, Field(gt=0, le=1)]
    gates: tuple[ControlId, ...]
    drawn: tuple[ControlId, ...]
    population: Annotated[int, Field(ge=0)]
    extended: Annotated[int, Field(ge=0)] = 0
    started: dt.date
    findings: dict[ControlId, RecordedFinding] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        strangers = set(self.findings) - set(self.controls)
        if strangers:
            raise ValueError(f"findings on controls that were not drawn: {', '.join(sorted(strangers)[:5])}")
        return self

    @property
    def controls(self) -> tuple[str, ...]:
        """Everything to be looked at."""
        return self.gates + self.drawn

    @property
    def seed(self) -> str:
        """The seed of the draw."""
        return seed_of(self.nonce, self.submission)

    @property
    def open_controls(self) -> tuple[str, ...]:
        """What is still to be looked at."""
        return tuple(c for c in self.controls if c not in self.findings)

    @property
    def sample(self) -> Sample:
        """The sample as drawn."""
        return Sample(self.seed, self.share, self.gates, self.drawn, self.population)

    def found(self, result: Finding) -> tuple[str, ...]:
        """The controls with a finding of this kind, in the order of the sample."""
        return tuple(c for c in self.controls if c in self.findings and self.findings[c].result is result)


def load_record(path: Path) -> AssessorRecord:
    """Read a working paper and check that its nonce is the one that was promised.

    Raises:
        AssessmentError: not a working paper.
        IntegrityError: the nonce does not match the commitment.
    """
    data = read_limited(path)
    parse_json(data, source=str(path))
    try:
        record = AssessorRecord.model_validate_json(data)
    except ValidationError as wrong:
        raise AssessmentError(
            describe_problems(wrong, str(path)), "Name the file that `assess start` wrote."
        ) from None
    check_commitment(record.nonce, record.commitment)
    return record


def save_record(record: AssessorRecord, path: Path) -> None:
    """Write a working paper atomically, readable by its owner only.

    Raises:
        UsageError: it cannot be written.
    """
    text = json.dumps(record.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    write_atomic(path, text.encode("utf-8") + b"\n")


def load_nonce(path: Path) -> str:
    """Read the nonce that `assess commit` wrote.

    Raises:
        UsageError: missing or not a nonce.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: not a readable nonce", "Name the file that `assess commit` wrote."
        ) from error
    return text
