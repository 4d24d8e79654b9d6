"""Each finding appears where it should, goes away when mended, and nowhere else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvox_compliance.assessment import Answer
from fedvox_compliance.checks import Finding, Level, Topic, check
from fedvox_compliance.cli_score import exit_code_of
from fedvox_compliance.errors import EvidenceError
from fedvox_compliance.evidence import EvidenceState, inventory, safe_name, state_of
from fedvox_compliance.sharing import suggest_documents
from fedvox_compliance.workspace import Workspace

NewSpace = Callable[..., Workspace]
TODAY = dt.date(2026, 11, 24)
DAY = dt.timedelta(days=1)


def findings(space: Workspace, on: dt.date = TODAY, *, files: bool = True) -> set[tuple[str, str]]:
    found = check(space.assessment, space.catalogue, on=on, folder=space.folder if files else None)
    return {(f.code, f.where) for f in found}


def test_nothing_is_found_where_nothing_was_said(new_space: NewSpace) -> None:
    assert check(new_space().assessment, new_space("b").catalogue, on=TODAY) == ()


def test_gate_without_a_document_is_a_warning_and_other_answers_a_hint(
    new_space: NewSpace, document: Path
) -> None:
    space = new_space()
    space.answer("GDPR.6.1", Answer.YES, author="A")
    space.answer("GDPR.31", Answer.PARTLY, author="A")
    space.answer("GDPR.38", Answer.NO, author="A")
    assert findings(space) == {("gate_without_evidence", "GDPR.6.1"), ("no_evidence", "GDPR.31")}
    space.add_evidence("GDPR.6.1", document, author="A", effective=TODAY)
    assert findings(space) == {("no_evidence", "GDPR.31")}


@pytest.mark.parametrize(
    ("days", "expected"),
    [(304, set()), (305, {"answer_expires_soon"}), (365, {"answer_expires_soon"}), (366, {"answer_expired"})],
)
def test_answers_are_announced_sixty_days_ahead_and_then_expired(
    new_space: NewSpace, days: int, expected: set[str]
) -> None:
    space = new_space()
    space.answer("GDPR.38", Answer.NO, author="A")
    assert {code for code, _ in findings(space, TODAY + days * DAY)} == expected


def test_documents_expire_apart_from_answers(new_space: NewSpace, document: Path) -> None:
    space = new_space()
    space.answer("GDPR.31", Answer.YES, author="A")
    space.add_evidence("GDPR.31", document, author="A", effective=TODAY, expires=TODAY + 90 * DAY)
    assert findings(space, TODAY + 20 * DAY) == set()
    assert findings(space, TODAY + 40 * DAY) == {("evidence_expires_soon", "GDPR.31")}
    assert findings(space, TODAY + 91 * DAY) == {("evidence_expired", "GDPR.31")}


def test_document_that_takes_effect_later_is_pointed_out(new_space: NewSpace, document: Path) -> None:
    space = new_space()
    space.answer("GDPR.31", Answer.YES, author="A")
    space.add_evidence("GDPR.31", document, author="A", effective=TODAY + DAY)
    assert findings(space) == {("evidence_not_yet", "GDPR.31")}


def test_overdue_plan_is_pointed_out(new_space: NewSpace) -> None:
    space = new_space()
    space.answer("GDPR.31", Answer.PLANNED, author="A", due=TODAY + 10 * DAY)
    assert findings(space, TODAY + 10 * DAY) == set()
    assert findings(space, TODAY + 11 * DAY) == {("plan_overdue", "GDPR.31")}


def test_missing_and_changed_documents_are_errors(new_space: NewSpace, document: Path) -> None:
    space = new_space()
    space.answer("GDPR.31", Answer.YES, author="A")
    attached = space.add_evidence("GDPR.31", document, author="A", effective=TODAY)
    (space.folder / attached.path).write_bytes(b"another")
    changed = check(space.assessment, space.catalogue, on=TODAY, folder=space.folder)
    assert [(f.level, f.topic, f.code) for f in changed] == [
        (Level.ERROR, Topic.INTEGRITY, "evidence_changed")
    ]
    assert exit_code_of(changed, strict=False) == 6
    (space.folder / attached.path).unlink()
    missing = check(space.assessment, space.catalogue, on=TODAY, folder=space.folder)
    assert [f.code for f in missing] == ["evidence_missing"]
    assert exit_code_of(missing, strict=False) == 2


def test_document_replaced_by_a_link_out_of_the_folder_counts_as_missing(
    new_space: NewSpace, document: Path
) -> None:
    space = new_space()
    space.answer("GDPR.31", Answer.YES, author="A")
    attached = space.add_evidence("GDPR.31", document, author="A", effective=TODAY)
    (space.folder / attached.path).unlink()
    (space.folder / attached.path).symlink_to(document)  # the very same bytes, but not kept in the folder
    assert state_of(attached, space.folder) is EvidenceState.MISSING


def test_altered_history_is_an_integrity_error(new_space: NewSpace) -> None:
    space = new_space()
    space.answer("GDPR.38", Answer.NO, author="A")
    path = space.folder / "assessment.json"
    path.write_text(path.read_text("utf-8").replace('"no"', '"yes"'), "utf-8")
    found = check(space.assessment, space.catalogue, on=TODAY, folder=space.folder)
    assert [(f.topic, f.code) for f in found] == [(Topic.INTEGRITY, "history")]


# --------------------------------------------------------------------------------------------- contradictions


def test_yes_that_rests_on_a_no_is_a_contradiction_until_one_is_changed(new_space: NewSpace) -> None:
    space = new_space()
    space.answer("GDPR.35.7", Answer.YES, author="A")
    space.answer("GDPR.35.1", Answer.NO, author="A")
    assert ("implies", "GDPR.35.7") in findings(space)
    space.answer("GDPR.35.1", Answer.PARTLY, author="A")
    assert ("implies", "GDPR.35.7") not in findings(space)


def test_same_fact_answered_differently_in_two_laws_is_a_contradiction(new_space: NewSpace) -> None:
    space = new_space(profile="combined")
    space.answer("GDPR.32.1.a", Answer.YES, author="A")
    space.answer("HIPAA.164.312.a.2.iv", Answer.NO, author="A")
    assert ("same_fact", "GDPR.32.1.a") in findings(space)
    space.answer("HIPAA.164.312.a.2.iv", Answer.YES, author="A")
    assert ("same_fact", "GDPR.32.1.a") not in findings(space)


PERMISSIONS = (
    "basis_operations", "basis_authorization", "basis_waiver", "basis_limited_data_set", "basis_deidentified",
)  # fmt: skip
INSTRUMENTS = ("transfer_adequacy", "transfer_safeguards", "transfer_bcr", "transfer_derogation")
HOLES = {
    "scope_no_permission": ("hipaa", dict.fromkeys(PERMISSIONS, False), "HIPAA.164.502.a"),
    "scope_no_method": (
        "hipaa",
        {"basis_deidentified": True, "deid_expert": False, "deid_safe_harbor": False},
        None,
    ),
    "scope_no_instrument": ("gdpr", {"third_country": True, **dict.fromkeys(INSTRUMENTS, False)}, None),
    "scope_cloud_without_processor": ("combined", {"cloud_services": True, "uses_processors": False}, None),
    "scope_cloud_without_associate": (
        "combined",
        {"cloud_services": True, "uses_business_associates": False},
        None,
    ),
    "scope_deidentified_and_limited": (
        "combined",
        {"cannot_identify": True, "basis_limited_data_set": True},
        None,
    ),
}


@pytest.mark.parametrize("code", HOLES)
def test_statements_that_leave_a_hole_are_pointed_out_and_any_other_statement_closes_it(
    new_space: NewSpace, code: str
) -> None:
    profile, statements, answer = HOLES[code]
    space = new_space(profile=profile)
    if answer:
        space.answer(answer, Answer.YES, author="A")
    for name, value in statements.items():
        assert code not in {c for c, _ in findings(space)}
        space.state_scope(name, value, author="A")
    assert code in {c for c, _ in findings(space)}
    last = list(statements)[-1]
    space.state_scope(last, not statements[last], author="A")
    assert code not in {c for c, _ in findings(space)}


def test_one_document_for_everything_and_all_yes_are_worth_a_look(
    new_space: NewSpace, document: Path
) -> None:
    space = new_space()
    document_of = None
    for control in list(space.catalogue.controls)[:25]:
        space.answer(control, Answer.YES, author="A")
        if document_of is None:
            document_of = space.add_evidence(control, document, author="A", effective=TODAY)
        else:
            space.attach_evidence(control, document_of, author="A")
    assert {c for c, _ in findings(space)} == {"document_shared_widely", "all_yes"}


def test_controls_out_of_scope_are_not_complained_about(new_space: NewSpace) -> None:
    space = new_space()
    space.answer("GDPR.28.3", Answer.YES, author="A")
    assert ("gate_without_evidence", "GDPR.28.3") in findings(space)
    space.state_scope("uses_processors", False, author="A")
    assert findings(space) == set()


def test_errors_come_first_and_then_the_order_of_the_catalogue(new_space: NewSpace, document: Path) -> None:
    space = new_space()
    for control in ("GDPR.38", "GDPR.6.1", "GDPR.31"):
        space.answer(control, Answer.YES, author="A")
    attached = space.add_evidence("GDPR.38", document, author="A", effective=TODAY)
    (space.folder / attached.path).unlink()
    found = check(space.assessment, space.catalogue, on=TODAY, folder=space.folder)
    assert [(f.level.value, f.where) for f in found] == [
        ("error", "GDPR.38"), ("warning", "GDPR.6.1"), ("hint", "GDPR.31"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "strict", "code"),
    [
        ([], False, 0),
        ([(Level.HINT, Topic.EXPIRY)], True, 0),
        ([(Level.WARNING, Topic.CONTRADICTION)], False, 0),
        ([(Level.WARNING, Topic.CONTRADICTION)], True, 2),
        ([(Level.WARNING, Topic.EXPIRY)], False, 7),
        ([(Level.WARNING, Topic.EXPIRY), (Level.ERROR, Topic.RULE)], False, 2),
        ([(Level.ERROR, Topic.RULE), (Level.ERROR, Topic.INTEGRITY)], False, 6),
    ],
)
def test_exit_code_is_the_worst_of_what_was_found(
    found: list[tuple[Level, Topic]], strict: bool, code: int
) -> None:
    assert (
        exit_code_of(tuple(Finding(level, topic, "x", "") for level, topic in found), strict=strict) == code
    )


# -------------------------------------------------------------------------------------------------- evidence


def test_same_document_is_kept_once_and_different_ones_of_one_name_apart(
    new_space: NewSpace, tmp_path: Path
) -> None:
    space = new_space()
    for control in ("GDPR.6.1", "GDPR.9.2"):
        space.answer(control, Answer.YES, author="A")
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "1" / "policy.pdf").write_text("one")
    (tmp_path / "2" / "policy.pdf").write_text("two")
    for control in ("GDPR.6.1", "GDPR.9.2"):
        space.add_evidence(control, tmp_path / "1" / "policy.pdf", author="A", effective=TODAY)
    space.add_evidence("GDPR.9.2", tmp_path / "2" / "policy.pdf", author="A", effective=TODAY)
    assert len(list((space.folder / "evidence").iterdir())) == 2
    uses = {d.controls: d.state.value for d in inventory(space.assessment, space.folder)}
    assert uses == {("GDPR.6.1", "GDPR.9.2"): "unchanged", ("GDPR.9.2",): "unchanged"}


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Impact assessment (v2).pdf", "Impact-assessment-v2.pdf"),
        ("../../etc/passwd", "etc-passwd"),
        ("=cmd.csv", "cmd.csv"),
        ("Größe.pdf", "Gr-e.pdf"),
        ("…", "document"),
        (".hidden", "hidden"),
        ("a" * 300 + ".pdf", "a" * 60 + ".pdf"),
        ("x.p<d>f", "x.pdf"),
        ("-rf.txt", "rf.txt"),
    ],
)
def test_names_on_disk_are_harmless(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_what_is_no_document_is_refused(new_space: NewSpace, tmp_path: Path) -> None:
    space = new_space()
    (tmp_path / "empty.pdf").touch()
    for wrong in (tmp_path / "nowhere.pdf", tmp_path, tmp_path / "empty.pdf", tmp_path / ("x" * 300)):
        with pytest.raises(EvidenceError):
            space.add_evidence("GDPR.6.1", wrong, author="A", effective=TODAY)
    assert not space.reload().entries


# ------------------------------------------------------------------------------------------- shared evidence


def test_documents_of_related_controls_are_suggested_and_earn_nothing_until_taken_over(
    new_space: NewSpace, document: Path
) -> None:
    from fedvox_compliance.scoring import score

    space = new_space(profile="combined")
    space.answer("HIPAA.164.312.a.2.iv", Answer.YES, author="A")
    space.answer("GDPR.32.1.a", Answer.YES, author="A")
    attached = space.add_evidence("HIPAA.164.312.a.2.iv", document, author="A", effective=TODAY)
    (suggestion,) = suggest_documents(space.assessment, space.catalogue, "GDPR.32.1.a", on=TODAY)
    assert (suggestion.document, suggestion.source) == (attached, "HIPAA.164.312.a.2.iv")
    before = score(space.assessment, space.catalogue, on=TODAY)
    assert before.judgements["GDPR.32.1.a"].value == 0.25
    space.attach_evidence("GDPR.32.1.a", suggestion.taken_over(), author="A")
    assert score(space.assessment, space.catalogue, on=TODAY).judgements["GDPR.32.1.a"].value == 0.6
    assert space.entry("GDPR.32.1.a").evidence[0].shared_from == "HIPAA.164.312.a.2.iv"
    assert suggest_documents(space.assessment, space.catalogue, "GDPR.32.1.a", on=TODAY) == ()


def test_pairs_that_nist_links_are_suggested_first_and_expired_documents_never(
    new_space: NewSpace, tmp_path: Path
) -> None:
    space = new_space(profile="combined")
    target = "ISO27001.A.8.13"
    linked = [
        s for s in space.catalogue.control(target).maps_to if (target, s) in space.catalogue.crosswalk_by_nist
    ]
    others = [s for s in space.catalogue.control(target).maps_to if s not in linked]
    assert linked
    assert others
    for number, source in enumerate([others[0], linked[0]]):
        file = tmp_path / f"{number}.txt"
        file.write_text(str(number))
        space.answer(source, Answer.YES, author="A")
        space.add_evidence(source, file, author="A", effective=TODAY, expires=TODAY + 10 * DAY)
    found = suggest_documents(space.assessment, space.catalogue, target, on=TODAY)
    assert [(s.source, s.by_nist) for s in found] == [(linked[0], True), (others[0], False)]
    assert suggest_documents(space.assessment, space.catalogue, target, on=TODAY + 11 * DAY) == ()


def test_every_finding_has_words(new_space: NewSpace) -> None:
    from fedvox_compliance.finding_text import describe_finding, describe_findings, findings_to_dict
    from fedvox_compliance.interface import load_interface

    for language in ("en", "de"):
        say: Any = load_interface(language)
        space = new_space(f"words-{language}")
        space.answer("GDPR.6.1", Answer.YES, author="A", maturity=1)
        found = check(space.assessment, space.catalogue, on=TODAY + 400 * DAY, folder=space.folder)
        assert len({describe_finding(f, say) for f in found}) == len(found) >= 3
        assert all("GDPR.6.1" in describe_finding(f, say) for f in found)
        assert len(findings_to_dict(found, TODAY)["findings"]) == len(found)
        assert describe_findings((), say) == say("finding.none")
