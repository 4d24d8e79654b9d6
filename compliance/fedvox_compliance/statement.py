"""What an attestation says: an in-toto statement about one clinic, study, node and set of answers.

The answers stay in the clinic, since they list its weaknesses. The statement carries their digest, the
result that the assessor *recomputed* from them, and everything that stops it from being used elsewhere or
later.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fedvox_compliance.assessment import Line, Name, Sha256
from fedvox_compliance.canonical import NotCanonical, canonical_json, parse_canonical
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.instant import Instant
from fedvox_compliance.scoring import GATE_CAP, tier_of
from fedvox_compliance.trust import MAX_VALIDITY_DAYS, Serial

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:fedvox:compliance-attestation:1"
NOTICE = (
    "Self-assessment recomputed by a study's assessor. Not legal advice, not an audit, not a certification, "
    "and no proof of conformity with HIPAA, GDPR or ISO/IEC 27001."
)
SCORE_DIGITS = 4
"""Decimals of the score; it is cut, never rounded up."""

ScoreText = Annotated[str, StringConstraints(pattern=r"^(0\.[0-9]{4}|1\.0000)$")]
NodeKeyPrint = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FrameworkRef(_Model):
    """One framework in the exact edition and wording that was asked."""

    id: Name
    edition: Line
    sha256: Sha256


class CatalogueVersion(_Model):
    """The questions: everything that can change a meaning or a score."""

    version: Line
    sha256: Sha256
    profile: Line
    overlays: tuple[Line, ...]
    law_as_of: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    frameworks: tuple[FrameworkRef, ...]

    @classmethod
    def of(cls, catalogue: Catalogue) -> Self:
        """The reference to a loaded catalogue."""
        frameworks = tuple(
            FrameworkRef(id=f.id, edition=str(f.edition), sha256=f.sha256)
            for f in catalogue.frameworks.values()
        )
        return cls(
            version=str(catalogue.version),
            sha256=catalogue.sha256,
            profile=catalogue.profile,
            overlays=catalogue.overlays,
            law_as_of=catalogue.law_as_of.isoformat(),
            frameworks=frameworks,
        )


class AnswersRef(_Model):
    """The answers, by digest, and the countersigned head of their history.

    Attributes:
        sha256: of the assessment as the clinic submitted it, without any assessor's findings.
        history_head: hash of the last line of the change history; a clinic cannot rewrite its history
            before this point without contradicting a signature that it does not hold the key for.
    """

    id: Uuid
    sha256: Sha256
    history_head: Sha256
    history_length: Annotated[int, Field(ge=0)]


class Result(_Model):
    """What the assessor recomputed."""

    on: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    score: ScoreText
    tier: Annotated[int, Field(ge=0, le=9)]
    eligible: bool
    gates_passed: bool
    complete: bool
    assurance: Line

    @model_validator(mode="after")
    def _check(self) -> Self:
        score = float(self.score)
        if self.tier != tier_of(score):
            raise ValueError(f"a score of {self.score} is tier {tier_of(score)}, not {self.tier}")
        if not self.gates_passed and score > GATE_CAP:
            raise ValueError(f"the score is {self.score} although a gate is not passed")
        return self


class Checks(_Model):
    """How the evidence was looked at. `nonce` lets anybody who has the answers draw the sample again."""

    commitment: Sha256
    nonce: Sha256
    share: Annotated[str, StringConstraints(pattern=r"^(0\.[0-9]{2}|1\.00)$")]
    population: Annotated[int, Field(ge=0)]
    gates: Annotated[int, Field(ge=0)]
    drawn: Annotated[int, Field(ge=0)]
    confirmed: Annotated[int, Field(ge=0)]
    not_shown: Annotated[int, Field(ge=0)]


class Assessor(_Model):
    """Who vouches."""

    name: Name
    key_id: Sha256


class Engine(_Model):
    """What computed the result."""

    name: Line
    version: Line


class Predicate(_Model):
    """The body of the statement."""

    serial: Serial
    clinic: Name
    study: Name
    node_key: NodeKeyPrint
    answers: AnswersRef
    catalogue: CatalogueVersion
    engine: Engine
    result: Result
    checks: Checks
    assessor: Assessor
    issued_at: Instant
    not_before: Instant
    expires_at: Instant
    notice: Literal[NOTICE] = NOTICE  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.not_before < self.expires_at:
            raise ValueError("the attestation expires before it begins")
        if self.expires_at - self.not_before > dt.timedelta(days=MAX_VALIDITY_DAYS):
            raise ValueError(f"the attestation is valid for more than {MAX_VALIDITY_DAYS} days")
        return self


class Digest(_Model):
    """A digest set of in-toto with the one algorithm used here."""

    sha256: Sha256


class Subject(_Model):
    """What the statement is about: the clinic, identified by the answers it gave."""

    name: Name
    digest: Digest


class Statement(_Model):
    """An in-toto statement (v1)."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=1)]
    predicate_type: Annotated[
        Literal["urn:fedvox:compliance-attestation:1"], Field(alias="predicateType")
    ] = PREDICATE_TYPE
    predicate: Predicate

    @model_validator(mode="after")
    def _check(self) -> Self:
        subject, body = self.subject[0], self.predicate
        if subject.name != body.clinic or subject.digest.sha256 != body.answers.sha256:
            raise ValueError("the subject is not the clinic and answers that the predicate speaks of")
        return self

    @classmethod
    def about(cls, predicate: Predicate) -> Self:
        """Wrap a predicate."""
        digest = Digest(sha256=predicate.answers.sha256)
        return cls(subject=(Subject(name=predicate.clinic, digest=digest),), predicate=predicate)

    def to_bytes(self) -> bytes:
        """The canonical payload."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """Read a payload.

        Raises:
            NotCanonical: not canonical JSON, or not this kind of statement; the message names the first
                field.
        """
        document = parse_canonical(payload)
        try:
            return cls.model_validate_json(canonical_json(document))
        except ValidationError as error:
            raise NotCanonical(_first_problem(error)) from error


def score_text(score: float) -> str:
    """A score in [0, 1] with four decimals, cut rather than rounded, so that no attestation overstates."""
    scaled = int(Decimal(repr(score)).scaleb(SCORE_DIGITS))
    return f"{scaled // 10**SCORE_DIGITS}.{scaled % 10**SCORE_DIGITS:0{SCORE_DIGITS}d}"


def _first_problem(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the statement"
    return f"{where}: {first['msg']}"
