"""The assessor's side: draw, look, recompute, and only then sign.

    start       check the history, fix the submission's digest, draw the sample
    record      one finding after another, each with the documents that were looked at
    recompute   strip what the clinic says about verification, drop documents that are not there, apply the
                findings, and score with the same engine as everybody
    attest      refuse while anything is open, false or changed; otherwise the statement to sign

The number in the clinic's own report is not an input to any of this.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedvox_compliance import __version__
from fedvox_compliance.assessment import (
    Answer,
    Assessment,
    Entry,
    Verdict,
    Verification,
    claim_sha256,
    same_person,
    to_jsonable,
)
from fedvox_compliance.assessor_record import AssessorRecord, Finding, RecordedFinding
from fedvox_compliance.attestation import new_serial
from fedvox_compliance.canonical import sha256_of
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.errors import AssessmentError, IncompleteError, IntegrityError
from fedvox_compliance.evidence import EvidenceState, state_of
from fedvox_compliance.history import read_lines, verify_history
from fedvox_compliance.keys import PublicKey, node_key_fingerprint
from fedvox_compliance.sampling import DEFAULT_SHARE, commitment_of, draw, seed_of
from fedvox_compliance.scope import out_of_scope
from fedvox_compliance.score_report import ScoreReport
from fedvox_compliance.scoring import require_same_catalogue, score, tier_of
from fedvox_compliance.statement import (
    AnswersRef,
    Assessor,
    CatalogueVersion,
    Checks,
    Engine,
    Predicate,
    Result,
    Statement,
    score_text,
)

NOT_SHOWN_TOLERANCE = 0.10
"""When more of the random part than this is not shown, the sample must be doubled before signing."""
DEFAULT_VALID_DAYS = 180

_CLAIMS = frozenset({Answer.YES, Answer.ALTERNATIVE, Answer.PARTLY, Answer.NOT_APPLICABLE})


@dataclass(frozen=True)
class Purpose:
    """What an attestation is for.

    Args:
        study: the study's name, as the federation's server knows it.
        node_key: the public key of the clinic's node, in any form that `node_key_fingerprint` takes.
        valid_days: how long it shall be valid.
    """

    study: str
    node_key: bytes | str
    valid_days: int = DEFAULT_VALID_DAYS


def submission_sha256(assessment: Assessment) -> str:
    """Digest of what a clinic submits: everything but findings, which are not the clinic's to make."""
    return sha256_of(to_jsonable(without_findings(assessment)))


def without_findings(assessment: Assessment) -> Assessment:
    """The assessment without any verification that its file may carry."""
    entries = {i: e.model_copy(update={"verification": None}) for i, e in assessment.entries.items()}
    return assessment.model_copy(update={"entries": entries})


def start(
    folder: Path,
    catalogue: Catalogue,
    *,
    assessor: str,
    nonce: str,
    on: dt.date,
    share: float = DEFAULT_SHARE,
) -> AssessorRecord:
    """Begin an assessment of a submitted folder.

    Args:
        folder: the clinic's folder, or a copy of it.
        catalogue: the questions that the study accepts.
        assessor: the assessor's name.
        nonce: whose commitment was published before the submission.
        on: today.
        share: of the answers beside gates.

    Returns:
        The working paper with an empty list of findings.

    Raises:
        IntegrityError: the history does not lead to these answers.
        AssessmentError: the answers are to another catalogue.
    """
    assessment = without_findings(verify_history(folder))
    require_same_catalogue(assessment, catalogue)
    submission = submission_sha256(assessment)
    gates, others = _population(assessment, catalogue)
    sample = draw(gates, others, seed=seed_of(nonce, submission), share=share)
    return AssessorRecord(
        assessor=assessor,
        clinic=assessment.clinic,
        assessment_id=assessment.id,
        submission=submission,
        history=assessment.history,
        catalogue=catalogue.sha256,
        commitment=commitment_of(nonce),
        nonce=nonce,
        share=share,
        gates=sample.gates,
        drawn=sample.drawn,
        population=sample.population,
        started=on,
    )


def extend(record: AssessorRecord, assessment: Assessment, catalogue: Catalogue) -> AssessorRecord:
    """Double the random part. What was found so far stays, since larger samples contain smaller ones."""
    gates, others = _population(assessment, catalogue)
    share = min(1.0, 2 * max(record.share, len(record.drawn) / max(1, record.population)))
    sample = draw(gates, others, seed=record.seed, share=share)
    return record.model_copy(update={"share": share, "drawn": sample.drawn, "extended": record.extended + 1})


def record_finding(
    record: AssessorRecord,
    folder: Path,
    assessment: Assessment,
    control_id: str,
    result: Finding,
    *,
    on: dt.date,
    note: str = "",
) -> AssessorRecord:
    """Write one finding down.

    Args:
        record: the working paper.
        folder: where the documents lie.
        assessment: the submission.
        control_id: one of the sample.
        result: what was found.
        on: today.
        note: why; obligatory unless confirmed.

    Raises:
        AssessmentError: not in the sample, the assessor is involved, or there is no unchanged document to
            confirm.
    """
    if control_id not in record.controls:
        raise AssessmentError(f"{control_id} is not in the sample", "Only what was drawn is looked at.")
    entry = assessment.entries[control_id]
    present = present_documents(entry, folder)
    if result is Finding.CONFIRMED:
        _require_confirmable(control_id, entry, present, record.assessor)
    if result is not Finding.CONFIRMED and not note.strip():
        raise AssessmentError(
            f"{control_id}: the finding {result.value!r} needs a note", "Say why in one sentence."
        )
    finding = RecordedFinding(result=result, on=on, note=note, evidence=present)
    return record.model_copy(update={"findings": dict(record.findings) | {control_id: finding}})


def present_documents(entry: Entry, folder: Path) -> tuple[str, ...]:
    """Digests of an entry's documents that are there and unchanged."""
    return tuple(e.sha256 for e in entry.evidence if state_of(e, folder) is EvidenceState.UNCHANGED)


def recompute(record: AssessorRecord, folder: Path, catalogue: Catalogue, *, on: dt.date) -> ScoreReport:
    """Score the submission as the assessor found it.

    Raises:
        IntegrityError: the folder no longer holds what was submitted.
    """
    assessment = submitted(record, folder)
    require_same_catalogue(assessment, catalogue)
    entries = {i: _as_found(i, e, record, folder) for i, e in assessment.entries.items()}
    found = assessment.model_copy(update={"entries": entries})
    return score(found, catalogue, on=on, trusted_assessors=frozenset({record.assessor}))


def submitted(record: AssessorRecord, folder: Path) -> Assessment:
    """The submission that a working paper is about.

    Raises:
        IntegrityError: the history is broken, or the answers changed since the sample was drawn.
    """
    assessment = without_findings(verify_history(folder))
    if submission_sha256(assessment) != record.submission:
        raise IntegrityError(
            f"{folder}: the answers changed since the sample was drawn",
            "Start again with a new commitment: a sample is only good for the answers it was drawn for.",
        )
    return assessment


def require_signable(record: AssessorRecord) -> None:
    """Refuse a working paper that does not support an attestation.

    Raises:
        IncompleteError: something drawn was not looked at, or the sample must be extended.
        IntegrityError: something was found to be false.
    """
    false = record.found(Finding.FALSE)
    if false:
        raise IntegrityError(
            f"{', '.join(false)}: found to be false, so nothing of this submission can be attested",
            "Withdraw earlier attestations of this clinic with `revoke`, and ask for a new submission.",
        )
    if record.open_controls:
        raise IncompleteError(
            f"{len(record.open_controls)} of {len(record.controls)} drawn answers have not been looked at",
            "Go on with `assess check`.",
        )
    if must_extend(record):
        raise IncompleteError(
            f"{_share_not_shown(record):.0%} of the random part was not shown; more than {NOT_SHOWN_TOLERANCE:.0%}",
            "Double the sample with `assess extend`, and look at the rest.",
        )


def must_extend(record: AssessorRecord) -> bool:
    """Whether so much was not shown that the sample must grow: what was not looked at is likely no better."""
    return len(record.drawn) < record.population and _share_not_shown(record) > NOT_SHOWN_TOLERANCE


def attest(
    record: AssessorRecord,
    folder: Path,
    catalogue: Catalogue,
    purpose: Purpose,
    key: PublicKey,
    *,
    now: dt.datetime,
) -> tuple[Predicate, ScoreReport]:
    """What the assessor may sign.

    Args:
        record: the complete working paper.
        folder: the clinic's folder, unchanged since the sample was drawn.
        catalogue: the questions.
        purpose: study, node and validity.
        key: the assessor's public key.
        now: the moment of issue, with time zone.

    Returns:
        The statement's body for `attestation.issue`, and the score behind it.

    Raises:
        IncompleteError, IntegrityError: see `require_signable` and `recompute`.
    """
    require_signable(record)
    report = recompute(record, folder, catalogue, on=now.date())
    predicate = Predicate(
        serial=new_serial(),
        clinic=record.clinic,
        study=purpose.study,
        node_key=node_key_fingerprint(purpose.node_key),
        answers=AnswersRef(
            id=record.assessment_id,
            sha256=record.submission,
            history_head=record.history.head,
            history_length=record.history.length,
        ),
        catalogue=CatalogueVersion.of(catalogue),
        engine=Engine(name="fedvox-compliance", version=__version__),
        result=_result(report),
        checks=_checks(record),
        assessor=Assessor(name=record.assessor, key_id=key.key_id),
        issued_at=now,
        not_before=now,
        expires_at=now + dt.timedelta(days=purpose.valid_days),
    )
    return predicate, report


def require_agreement(
    statement: Statement, record: AssessorRecord, folder: Path, catalogue: Catalogue
) -> None:
    """Before a countersignature: come to the same result from the same answers and findings.

    Raises:
        IntegrityError: another submission, other findings, or another result.
        IncompleteError: see `require_signable`.
    """
    require_signable(record)
    body = statement.predicate
    report = recompute(record, folder, catalogue, on=dt.date.fromisoformat(body.result.on))
    mine = (record.submission, _checks(record), _result(report))
    if mine != (body.answers.sha256, body.checks, body.result):
        raise IntegrityError(
            f"the attestation {body.serial} does not follow from these answers and findings",
            "Do not countersign; compare the working papers with the first assessor.",
        )


def require_continuity(folder: Path, previous: AnswersRef) -> None:
    """Make sure that a clinic's history goes on from where it was last countersigned.

    Raises:
        IntegrityError: the history before that point was rewritten or cut.
    """
    lines, _ = read_lines(folder)
    at_that_time = (
        lines[previous.history_length - 1].sha256 if 0 < previous.history_length <= len(lines) else None
    )
    if previous.history_length and at_that_time != previous.history_head:
        raise IntegrityError(
            f"{folder}: the history does not contain line {previous.history_length} as it was countersigned",
            "The clinic's history was rewritten. Do not sign; ask the clinic for its original folder.",
        )


def _population(assessment: Assessment, catalogue: Catalogue) -> tuple[list[str], list[str]]:
    """Gates, and everything else that claims credit or claims to be excused."""
    outside = out_of_scope(catalogue, assessment.stated_scope)
    claimed = [
        c
        for c in catalogue.controls.values()
        if c.id not in outside and c.id in assessment.entries and assessment.entries[c.id].answer in _CLAIMS
    ]
    return [c.id for c in claimed if c.gate], [c.id for c in claimed if not c.gate and not c.informative]


def _require_confirmable(control_id: str, entry: Entry, present: tuple[str, ...], assessor: str) -> None:
    involved = [entry.author, entry.second_person.name if entry.second_person else None]
    if any(same_person(assessor, name) for name in involved):
        raise AssessmentError(
            f"{control_id}: {assessor} took part in this answer", "Another assessor must look at it."
        )
    if entry.answer is not Answer.NOT_APPLICABLE and not present:
        raise AssessmentError(
            f"{control_id}: no document is there and unchanged, so there is nothing to confirm",
            "Record it as not_shown, or ask the clinic to submit again with the document.",
        )


def _as_found(control_id: str, entry: Entry, record: AssessorRecord, folder: Path) -> Entry:
    """An entry with only those documents that are there, and with this assessor's finding."""
    present = set(present_documents(entry, folder))
    seen = tuple(e for e in entry.evidence if e.sha256 in present)
    if seen != entry.evidence:
        entry = entry.model_copy(update={"evidence": seen})
    finding = record.findings.get(control_id)
    if finding is None:
        return entry
    if finding.result is not Finding.CONFIRMED and entry.answer is Answer.NOT_APPLICABLE:
        # An exclusion that was not justified is a missing control, and must weigh as one.
        return entry.model_copy(update={"answer": Answer.NO, "evidence": ()})
    confirmed = finding.result is Finding.CONFIRMED and set(finding.evidence) <= present
    verification = Verification(
        assessor=record.assessor,
        date=finding.on,
        claim=claim_sha256(control_id, entry),
        result=Verdict.CONFIRMED if confirmed else Verdict.REFUTED,
        note=finding.note,
    )
    return entry.model_copy(update={"verification": verification})


def _share_not_shown(record: AssessorRecord) -> float:
    missed = set(record.found(Finding.NOT_SHOWN)) & set(record.drawn)
    return len(missed) / len(record.drawn) if record.drawn else 0.0


def _result(report: ScoreReport) -> Result:
    written = score_text(report.overall)
    return Result(
        on=report.on.isoformat(),
        score=written,
        tier=tier_of(
            float(written)
        ),  # of what is written, so that cutting the score cannot contradict the tier
        eligible=report.eligible,
        gates_passed=not report.failed_gates,
        complete=report.complete,
        assurance=report.assurance.label,
    )


def _checks(record: AssessorRecord) -> Checks:
    counts: Mapping[Finding, int] = {kind: len(record.found(kind)) for kind in Finding}
    return Checks(
        commitment=record.commitment,
        nonce=record.nonce,
        share=f"{int(record.share * 100) / 100:.2f}",
        population=record.population,
        gates=len(record.gates),
        drawn=len(record.drawn),
        confirmed=counts[Finding.CONFIRMED],
        not_shown=counts[Finding.NOT_SHOWN],
    )
