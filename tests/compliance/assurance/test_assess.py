"""The assessor's flow: what a clinic writes about its own verification, score or past is never believed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox_compliance import assess
from fedvox_compliance.assess import (
    Purpose,
    attest,
    extend,
    must_extend,
    recompute,
    record_finding,
    submitted,
)
from fedvox_compliance.assessment import Answer, Assessment, Verdict, Verification, claim_sha256
from fedvox_compliance.assessor_record import AssessorRecord, Finding, load_record, save_record
from fedvox_compliance.attestation import issue
from fedvox_compliance.catalogue import Catalogue, load_catalogue
from fedvox_compliance.errors import AssessmentError, IncompleteError, IntegrityError
from fedvox_compliance.files import load_assessment
from fedvox_compliance.judgement import Assurance
from fedvox_compliance.sampling import commitment_of, draw
from fedvox_compliance.scoring import score
from fedvox_compliance.workspace import Workspace

NONCE = "5a" * 32
ASSESSOR = "Dr. A. Prüfer"
ENCRYPTION = "HIPAA.164.312.a.2.iv"


@pytest.fixture
def begun(clinic: Path, catalogue: Catalogue, make: SimpleNamespace) -> AssessorRecord:
    return assess.start(clinic, catalogue, assessor=ASSESSOR, nonce=NONCE, on=make.now.date())


def look_at_all(record: AssessorRecord, folder: Path, make: Any, **others: Finding) -> AssessorRecord:
    """Confirm everything drawn, except what is named otherwise."""
    assessment = submitted(record, folder)
    for control in record.open_controls:
        result = others.get(control, Finding.CONFIRMED)
        record = record_finding(
            record, folder, assessment, control, result, on=make.now.date(), note="looked at it"
        )
    return record


def sign(record: AssessorRecord, folder: Path, catalogue: Catalogue, federation: Any, make: Any) -> bytes:
    purpose = Purpose(federation.study, federation.node)
    predicate, _ = attest(record, folder, catalogue, purpose, federation.assessor.public, now=make.now)
    return issue(predicate, federation.assessor)


def space(folder: Path, make: Any) -> Workspace:
    return Workspace.open(folder, clock=lambda: make.now)


def test_the_whole_way_from_answers_to_a_verified_attestation(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    record = look_at_all(begun, clinic, make)
    verified = federation.verify(sign(record, clinic, catalogue, federation, make))
    report = recompute(record, clinic, catalogue, on=make.now.date())
    assert verified.score == int(report.overall * 10_000) / 10_000
    assert (verified.tier, verified.eligible) == (report.tier, True)
    body = verified.statement.predicate
    assert body.answers.history_head == load_assessment(clinic).history.head
    assert body.checks.confirmed == len(record.controls) == body.checks.gates + body.checks.drawn
    # anybody who holds the answers can draw the sample again from the statement
    assert commitment_of(body.checks.nonce) == body.checks.commitment


def test_all_gates_and_a_tenth_of_the_rest_are_drawn(begun: AssessorRecord, catalogue: Catalogue) -> None:
    assert begun.gates == tuple(c.id for c in catalogue.gates)
    assert len(begun.drawn) == -(-begun.population // 10)
    others = [c.id for c in catalogue.scored if not c.gate]
    assert begun.sample == draw(begun.gates, others, seed=begun.seed, share=0.1)


def test_what_is_verified_scores_more_and_the_rest_stays_what_it_was(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    claimed = score(load_assessment(clinic), catalogue, on=make.now.date())
    found = recompute(look_at_all(begun, clinic, make), clinic, catalogue, on=make.now.date())
    assert claimed.overall == pytest.approx(0.6)
    assert 0.6 < found.overall < 0.8
    by_level = {c.control: c.assurance for c in found.controls}
    assert {c for c, a in by_level.items() if a is Assurance.VERIFIED} == set(begun.controls)


def test_a_verification_that_the_clinic_wrote_itself_is_worth_nothing(
    clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    cheat = space(clinic, make)
    lies = {
        control: entry.model_copy(
            update={
                "verification": Verification(
                    assessor=ASSESSOR, date=make.now.date(), claim=claim_sha256(control, entry)
                )
            }
        )
        for control, entry in cheat.assessment.entries.items()
    }
    cheat.apply(lies, action="import", author="A. Meyer")
    believed = score(cheat.assessment, catalogue, on=make.now.date(), trusted_assessors={ASSESSOR})
    assert believed.overall == 1.0  # what a program that trusts the file would say
    record = assess.start(clinic, catalogue, assessor=ASSESSOR, nonce=NONCE, on=make.now.date())
    found = recompute(record, clinic, catalogue, on=make.now.date())
    assert found.overall == pytest.approx(0.6)
    assert found.assurance is Assurance.DOCUMENT


def test_a_false_document_voids_the_whole_submission(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    record = look_at_all(begun, clinic, make, **{begun.drawn[0]: Finding.FALSE})
    with pytest.raises(IntegrityError, match=f"{begun.drawn[0]}: found to be false"):
        sign(record, clinic, catalogue, federation, make)


def test_nothing_is_signed_while_something_drawn_is_open(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    almost = look_at_all(begun, clinic, make)
    findings = dict(almost.findings)
    findings.pop(begun.gates[3])
    with pytest.raises(IncompleteError, match="1 of"):
        sign(almost.model_copy(update={"findings": findings}), clinic, catalogue, federation, make)


def test_too_much_that_is_not_shown_doubles_the_sample(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    missing = dict.fromkeys(begun.drawn[:4], Finding.NOT_SHOWN)  # 4 of 27
    record = look_at_all(begun, clinic, make, **missing)
    assert must_extend(record)
    with pytest.raises(IncompleteError, match="random part was not shown"):
        sign(record, clinic, catalogue, federation, make)
    wider = extend(record, submitted(record, clinic), catalogue)
    assert wider.drawn[: len(record.drawn)] == record.drawn
    assert len(wider.drawn) >= 2 * len(record.drawn)
    assert len(wider.open_controls) == len(wider.drawn) - len(record.drawn)
    done = look_at_all(wider, clinic, make)
    assert not must_extend(done)  # 4 of 54
    federation.verify(sign(done, clinic, catalogue, federation, make))


def test_a_whole_population_needs_no_extension(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue
) -> None:
    everything = begun
    while len(everything.drawn) < everything.population:
        everything = extend(everything, submitted(begun, clinic), catalogue)
    assert set(everything.controls) == {c.id for c in catalogue.scored}
    assert not must_extend(everything)


def test_what_is_not_shown_counts_nothing(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    record = look_at_all(begun, clinic, make, **{begun.drawn[0]: Finding.NOT_SHOWN})
    found = recompute(record, clinic, catalogue, on=make.now.date())
    assert found.judgements[begun.drawn[0]].value == 0


def test_a_gate_that_is_not_shown_makes_the_clinic_ineligible(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    record = look_at_all(begun, clinic, make, **{ENCRYPTION: Finding.NOT_SHOWN})
    verified = federation.verify(sign(record, clinic, catalogue, federation, make))
    assert not verified.eligible
    assert verified.score <= 0.40
    assert not verified.statement.predicate.result.gates_passed


def test_an_exclusion_that_is_not_justified_weighs_as_a_missing_control(
    clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    excluded = next(c.id for c in catalogue.controls.values() if c.na_allowed)
    space(clinic, make).answer(
        excluded, Answer.NOT_APPLICABLE, author="A. Meyer", reason="We have no such thing."
    )
    on = make.now.date()
    record = assess.start(clinic, catalogue, assessor=ASSESSOR, nonce=NONCE, on=on, share=1.0)
    before = recompute(record, clinic, catalogue, on=on)
    unjustified = record_finding(
        record, clinic, submitted(record, clinic), excluded, Finding.NOT_SHOWN, on=on, note="There is one."
    )
    after = recompute(unjustified, clinic, catalogue, on=on)
    assert after.frameworks["ISO27001:2022"].score < before.frameworks["ISO27001:2022"].score  # type: ignore[operator]
    justified = record_finding(record, clinic, submitted(record, clinic), excluded, Finding.CONFIRMED, on=on)
    assert recompute(justified, clinic, catalogue, on=on).overall == before.overall


def test_a_changed_document_cannot_be_confirmed_and_stops_counting(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    document = next((clinic / "evidence").iterdir())
    document.write_text("Rewritten after the fact.\n")
    with pytest.raises(AssessmentError, match="no document is there and unchanged"):
        record_finding(
            begun, clinic, submitted(begun, clinic), begun.gates[0], Finding.CONFIRMED, on=make.now.date()
        )
    assert recompute(begun, clinic, catalogue, on=make.now.date()).overall == pytest.approx(0.25)


def test_a_document_swapped_after_it_was_confirmed_takes_the_confirmation_with_it(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    record = look_at_all(begun, clinic, make)
    next((clinic / "evidence").iterdir()).unlink()
    found = recompute(record, clinic, catalogue, on=make.now.date())
    assert all(found.judgements[control].value == 0 for control in record.controls)
    assert not found.eligible


def test_answers_that_change_under_the_assessors_hands_are_noticed(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    space(clinic, make).answer("GDPR.6.1", Answer.PARTLY, author="A. Meyer")
    with pytest.raises(IntegrityError, match="changed since the sample was drawn"):
        recompute(begun, clinic, catalogue, on=make.now.date())


def test_a_state_file_edited_by_hand_is_not_assessed(
    clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    path = clinic / "assessment.json"
    path.write_text(path.read_text().replace('"maturity": 3', '"maturity": 5', 1))
    with pytest.raises(IntegrityError, match="outside the program"):
        assess.start(clinic, catalogue, assessor=ASSESSOR, nonce=NONCE, on=make.now.date())


def test_an_assessor_who_answered_cannot_confirm(
    clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    record = assess.start(clinic, catalogue, assessor="a. MEYER", nonce=NONCE, on=make.now.date())
    with pytest.raises(AssessmentError, match="took part in this answer"):
        record_finding(
            record, clinic, submitted(record, clinic), record.gates[0], Finding.CONFIRMED, on=make.now.date()
        )


def test_only_what_was_drawn_is_recorded_and_refusals_need_a_reason(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    assessment, day = submitted(begun, clinic), make.now.date()
    undrawn = next(c for c in catalogue.controls if c not in begun.controls)
    with pytest.raises(AssessmentError, match="not in the sample"):
        record_finding(begun, clinic, assessment, undrawn, Finding.CONFIRMED, on=day)
    with pytest.raises(AssessmentError, match="needs a note"):
        record_finding(begun, clinic, assessment, begun.gates[0], Finding.NOT_SHOWN, on=day, note=" ")


def test_answers_to_another_catalogue_are_not_assessed(clinic: Path, make: SimpleNamespace) -> None:
    with pytest.raises(AssessmentError, match="answers catalogue"):
        assess.start(clinic, load_catalogue("gdpr"), assessor=ASSESSOR, nonce=NONCE, on=make.now.date())


def test_open_questions_are_not_drawn_but_count_nothing(
    tmp_path: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    folder = tmp_path / "new"
    Workspace.create(folder, clinic="New", author="A", clock=lambda: make.now)
    record = assess.start(folder, catalogue, assessor=ASSESSOR, nonce=NONCE, on=make.now.date())
    assert record.controls == ()
    found = recompute(record, folder, catalogue, on=make.now.date())
    assert (found.overall, found.eligible, found.complete) == (0.0, False, False)


def test_a_history_that_goes_on_from_the_countersigned_head_is_accepted(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    signed = sign(look_at_all(begun, clinic, make), clinic, catalogue, federation, make)
    answers = federation.verify(signed).statement.predicate.answers
    assess.require_continuity(clinic, answers)
    space(clinic, make).answer("GDPR.6.1", Answer.PARTLY, author="A. Meyer")
    assess.require_continuity(clinic, answers)


def test_a_rewritten_history_contradicts_the_countersigned_head(
    begun: AssessorRecord,
    clinic: Path,
    catalogue: Catalogue,
    federation: Any,
    make: SimpleNamespace,
    tmp_path: Path,
) -> None:
    signed = sign(look_at_all(begun, clinic, make), clinic, catalogue, federation, make)
    answers = federation.verify(signed).statement.predicate.answers
    forged = tmp_path / "forged"
    again = Workspace.create(forged, clinic="Klinikum Nordstadt", author="A. Meyer", clock=lambda: make.now)
    make.fill(again, author="A. Meyer")
    with pytest.raises(IntegrityError, match="as it was countersigned"):
        assess.require_continuity(forged, answers)
    lines = (clinic / "history.jsonl").read_bytes().splitlines(keepends=True)
    (clinic / "history.jsonl").write_bytes(b"".join(lines[:2]))
    with pytest.raises(IntegrityError, match="as it was countersigned"):
        assess.require_continuity(clinic, answers)


def test_a_second_assessor_countersigns_only_what_follows_from_the_answers(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, federation: Any, make: SimpleNamespace
) -> None:
    record = look_at_all(begun, clinic, make)
    statement = federation.verify(sign(record, clinic, catalogue, federation, make)).statement
    assess.require_agreement(statement, record, clinic, catalogue)
    kinder = statement.model_copy(
        update={
            "predicate": statement.predicate.model_copy(
                update={"result": statement.predicate.result.model_copy(update={"score": "0.7999"})}
            )
        }
    )
    with pytest.raises(IntegrityError, match="does not follow"):
        assess.require_agreement(kinder, record, clinic, catalogue)
    stricter = look_at_all(begun, clinic, make, **{begun.drawn[0]: Finding.NOT_SHOWN})
    with pytest.raises(IntegrityError, match="does not follow"):
        assess.require_agreement(statement, stricter, clinic, catalogue)


def test_the_working_paper_survives_its_file_and_betrays_edits(begun: AssessorRecord, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save_record(begun, path)
    assert load_record(path) == begun
    assert path.stat().st_mode & 0o077 == 0
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"nonce": "0" * 64}))
    with pytest.raises(IntegrityError, match="does not match the published commitment"):
        load_record(path)
    path.write_text(
        json.dumps(document | {"findings": {"GDPR.99": {"result": "confirmed", "on": "2026-11-24"}}})
    )
    with pytest.raises(AssessmentError, match="not drawn"):
        load_record(path)
    path.write_text("{")
    with pytest.raises(AssessmentError):
        load_record(path)


def test_the_clinics_file_is_left_as_it_was(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: Any
) -> None:
    before = {p: p.read_bytes() for p in clinic.rglob("*") if p.is_file()}
    recompute(look_at_all(begun, clinic, make), clinic, catalogue, on=make.now.date())
    assert {p: p.read_bytes() for p in clinic.rglob("*") if p.is_file()} == before


def test_a_refuted_verdict_never_raises_a_score(
    begun: AssessorRecord, clinic: Path, catalogue: Catalogue, make: SimpleNamespace
) -> None:
    assessment: Assessment = submitted(begun, clinic)
    assert all(e.verification is None for e in assessment.entries.values())
    control = begun.drawn[0]
    worse = record_finding(
        begun, clinic, assessment, control, Finding.NOT_SHOWN, on=make.now.date(), note="no"
    )
    entry = assess._as_found(control, assessment.entries[control], worse, clinic)
    assert entry.verification is not None
    assert entry.verification.result is Verdict.REFUTED


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=80).map(lambda t: json.dumps({"schema": t}).encode()))
def test_arbitrary_working_papers_are_refused_without_a_traceback(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "paper.json"
    path.write_bytes(data)
    with pytest.raises(AssessmentError):
        load_record(path)
