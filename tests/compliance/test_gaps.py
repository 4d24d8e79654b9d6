"""The plan keeps its promises; the weights do not decide in secret; answers survive new questions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvox_compliance.assessment import Answer, Assessment
from fedvox_compliance.catalogue import Catalogue, Gate
from fedvox_compliance.errors import CatalogueError
from fedvox_compliance.gaps import Action, plan
from fedvox_compliance.history import verify_history
from fedvox_compliance.scoring import score
from fedvox_compliance.sensitivity import sensitivity
from fedvox_compliance.upgrade import upgrade_folder
from fedvox_compliance.workspace import Workspace

NewSpace = Callable[..., Workspace]
TODAY = dt.date(2026, 11, 24)
DAY = dt.timedelta(days=1)


def mixed(bench: Any) -> tuple[Assessment, Catalogue]:
    catalogue = bench.two_laws()
    entries = {
        "L.1": bench.entry("L.1"),  # documented: confirm
        "L.2": bench.entry("L.2", Answer.PARTLY),  # complete
        "L.4": bench.entry("L.4", level="claim"),  # document
        "L.5": bench.entry("L.5", Answer.NO, level="claim"),  # implement, a gate
        "S.2": bench.entry("S.2", on=TODAY - 400 * DAY),  # renew
        "S.3": bench.entry("S.3", Answer.PLANNED, due=TODAY + DAY),  # implement
        "S.4": bench.entry("S.4", Answer.NOT_APPLICABLE, level="claim", reason="x"),
    }
    return bench.assessment(catalogue, entries, {"cloud": False}), catalogue


def test_each_shortfall_gets_the_next_thing_that_a_clinic_can_do_about_it(bench: Any) -> None:
    assessment, catalogue = mixed(bench)
    steps = plan(score(assessment, catalogue, on=TODAY), catalogue)
    assert {s.control: s.action for s in steps} == {
        "L.1": Action.CONFIRM,
        "L.2": Action.COMPLETE,
        "L.4": Action.DOCUMENT,
        "L.5": Action.IMPLEMENT,
        "S.1": Action.ANSWER,
        "S.2": Action.RENEW,
        "S.3": Action.IMPLEMENT,
    }


def test_gates_come_first_and_eligibility_before_all(bench: Any) -> None:
    assessment, catalogue = mixed(bench)
    steps = plan(score(assessment, catalogue, on=TODAY), catalogue)
    assert [(s.control, s.gate) for s in steps[:2]] == [("S.1", Gate.ELIGIBILITY), ("L.5", Gate.CAP)]
    assert all(s.gate is None for s in steps[2:])
    assert steps[0].score_after <= 0.4  # L.5 still holds it down


def carried_out(assessment: Assessment, bench: Any, step: Any) -> Assessment:
    """The assessment once the clinic has done what a step says."""
    level = "second_person" if step.action is Action.CONFIRM else "document"
    entry = bench.entry(step.control, level=level)
    return assessment.model_copy(update={"entries": {**assessment.entries, step.control: entry}})


def test_doing_what_the_plan_says_gives_the_scores_that_it_promised(bench: Any) -> None:
    assessment, catalogue = mixed(bench)
    steps = plan(score(assessment, catalogue, on=TODAY), catalogue)
    for step in steps:
        assessment = carried_out(assessment, bench, step)
        assert score(assessment, catalogue, on=TODAY).overall == pytest.approx(step.score_after), step
    assert score(assessment, catalogue, on=TODAY).eligible


def test_step_after_step_nothing_left_would_have_gained_more_for_a_day(bench: Any) -> None:
    assessment, catalogue = mixed(bench)
    steps = plan(score(assessment, catalogue, on=TODAY), catalogue)
    for number, step in enumerate(steps):
        before = score(assessment, catalogue, on=TODAY).uncapped
        for other in steps[number + 1 :]:
            if step.gate is None:
                tried = score(carried_out(assessment, bench, other), catalogue, on=TODAY).uncapped
                assert (tried - before) / other.effort_days <= step.gain_per_day + 1e-9
        assessment = carried_out(assessment, bench, step)


def test_limit_cuts_the_plan_and_changes_nothing_else(bench: Any) -> None:
    assessment, catalogue = mixed(bench)
    report = score(assessment, catalogue, on=TODAY)
    assert plan(report, catalogue, limit=3) == plan(report, catalogue)[:3]


def test_nothing_is_left_to_do_when_all_is_confirmed(bench: Any) -> None:
    catalogue = bench.two_laws()
    entries = {i: bench.entry(i, level="second_person") for i in catalogue.controls}
    assert plan(score(bench.assessment(catalogue, entries), catalogue, on=TODAY), catalogue) == ()


# ----------------------------------------------------------------------------------------------- sensitivity


def test_score_that_is_the_same_everywhere_does_not_depend_on_weights(bench: Any) -> None:
    catalogue = bench.two_laws()
    entries = {i: bench.entry(i) for i in catalogue.controls}
    found = sensitivity(bench.assessment(catalogue, entries), catalogue, on=TODAY, draws=50)
    assert found.least == pytest.approx(0.6)
    assert found.most == pytest.approx(0.6)
    assert found.tier_kept == 1.0
    assert found.overall == pytest.approx(0.6)


def test_dropping_a_severity_gives_the_score_of_the_rest(bench: Any) -> None:
    catalogue = bench.catalogue(bench.control("X.1", "F", 8), bench.control("X.2", "F", 2))
    entries = {"X.1": bench.entry("X.1"), "X.2": bench.entry("X.2", Answer.NO)}
    found = sensitivity(bench.assessment(catalogue, entries), catalogue, on=TODAY, draws=20)
    by_name = {v.name: v.overall for v in found.variants}
    assert by_name["critical_dropped"] == pytest.approx(0.0)
    assert by_name["medium_dropped"] == pytest.approx(0.6)
    assert by_name["equal"] == pytest.approx(0.3)
    assert by_name["critical_halved"] == pytest.approx(0.6 * 4 / 6)
    assert found.overall == pytest.approx(0.48)
    # X.1's share of the weight lies between 4/8 and 16/17 for a spread of 2
    assert 0.6 * 4 / 8 <= found.low <= found.high <= 0.6 * 16 / 17


def test_draws_are_named_by_their_seed(bench: Any) -> None:
    assessment, catalogue = mixed(bench)
    one = sensitivity(assessment, catalogue, on=TODAY, draws=40, seed=1)
    assert one == sensitivity(assessment, catalogue, on=TODAY, draws=40, seed=1)
    assert one != sensitivity(assessment, catalogue, on=TODAY, draws=40, seed=2)
    assert one.least <= one.low <= one.high <= one.most
    for wrong in ({"draws": 3}, {"spread": 1.0}, {"spread": float("inf")}):
        with pytest.raises(ValueError, match="draws must be"):
            sensitivity(assessment, catalogue, on=TODAY, **wrong)


# --------------------------------------------------------------------------------------------------- upgrade


def test_answers_follow_their_controls_to_another_profile_and_confirmations_end(
    new_space: NewSpace, document: Path
) -> None:
    space = new_space(profile="hipaa")
    space.answer("PLATFORM.FL.1", Answer.YES, author="A. Meyer")
    space.add_evidence("PLATFORM.FL.1", document, author="A. Meyer", effective=TODAY)
    space.confirm("PLATFORM.FL.1", name="B. Beck")
    space.answer("HIPAA.164.308.a.2", Answer.YES, author="A. Meyer")
    space.state_scope("clearinghouse", False, author="A. Meyer")
    done = upgrade_folder(space.folder, author="A. Meyer", profile="gdpr")
    assert (done.changed, done.kept, done.confirmations_ended) == (True, 1, 1)
    assert done.dropped == ("clearinghouse", "HIPAA.164.308.a.2")
    moved = Workspace.open(space.folder)
    assert moved.assessment.profile == "gdpr"
    assert set(moved.assessment.entries) == {"PLATFORM.FL.1"}
    entry = moved.entry("PLATFORM.FL.1")
    assert entry.answer is Answer.YES
    assert entry.evidence
    assert entry.second_person is None
    assert verify_history(space.folder) == moved.assessment
    assert not upgrade_folder(space.folder, author="A. Meyer").changed


def test_older_catalogue_is_named_and_upgrading_makes_the_folder_usable_again(new_space: NewSpace) -> None:
    space = new_space()
    space.answer("GDPR.31", Answer.YES, author="A. Meyer")
    older = space.assessment.model_copy(
        update={
            "catalogue": space.assessment.catalogue.model_copy(
                update={"version": "2020.1", "sha256": "0" * 64}
            )
        }
    )
    from fedvox_compliance.history import header_change

    space.record((header_change(older),), action="upgrade", author="A. Meyer")
    with pytest.raises(Exception, match=r"2020\.1") as told:
        Workspace.open(space.folder)
    assert "upgrade" in str(told.value)
    assert upgrade_folder(space.folder, author="A. Meyer").kept == 1
    assert Workspace.open(space.folder).entry("GDPR.31").answer is Answer.YES


def test_unknown_profile_changes_nothing(new_space: NewSpace) -> None:
    space = new_space()
    with pytest.raises(CatalogueError):
        upgrade_folder(space.folder, author="A", profile="moon")
    assert verify_history(space.folder) == space.assessment
