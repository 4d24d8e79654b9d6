"""Comparing two states: every point of the difference is accounted for."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvox_compliance.assessment import Answer, Assessment, Entry
from fedvox_compliance.catalogue import Catalogue, load_catalogue
from fedvox_compliance.diff import Diff, Kind, compare, diff_to_dict, state_on
from fedvox_compliance.errors import AssessmentError, IntegrityError
from fedvox_compliance.workspace import Workspace

DAY = dt.date(2026, 11, 24)


def difference(before: Assessment, after: Assessment, catalogue: Catalogue, later: dt.date = DAY) -> Diff:
    return compare(before, after, catalogue, before_on=DAY, after_on=later)


def test_nothing_changed_gives_nothing(clinic: Path, catalogue: Catalogue, make: Any) -> None:
    assessment = Workspace.open(clinic).assessment
    diff = difference(assessment, assessment, catalogue)
    assert (diff.overall, diff.changes, diff.scope) == (0.0, (), ())


def test_one_changed_answer_is_the_whole_difference(clinic: Path, catalogue: Catalogue, make: Any) -> None:
    space = Workspace.open(clinic, clock=lambda: make.now)
    before = space.assessment
    space.answer("GDPR.17.1", Answer.NO, author="B. Braun")
    diff = difference(before, space.assessment, catalogue)
    (change,) = diff.changes
    assert (change.control, change.kind) == ("GDPR.17.1", Kind.CHANGED)
    assert set(change.fields) == {"answer", "author", "maturity"}
    weight = catalogue.controls["GDPR.17.1"].weight
    total = diff.before.frameworks["GDPR"].weight
    assert change.points == pytest.approx(-0.6 * weight / total)
    assert diff.framework("GDPR") == pytest.approx(change.points)


answers = st.sampled_from([None, Answer.YES, Answer.PARTLY, Answer.NO, Answer.NOT_APPLICABLE])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), days=st.integers(0, 900))
def test_the_changes_add_up_to_the_difference_of_each_framework(
    data: st.DataObject, days: int, catalogue: Catalogue, make: SimpleNamespace, documented_clinic: Path
) -> None:
    base = Workspace.open(documented_clinic).assessment

    def shuffled() -> Assessment:
        entries = dict(base.entries)
        for control in data.draw(st.lists(st.sampled_from(sorted(entries)), max_size=25, unique=True)):
            answer = data.draw(answers)
            if answer is None:
                entries.pop(control)
            else:
                entries[control] = Entry(answer=answer, reason="because", author="A", answered_on=DAY)
        return base.model_copy(update={"entries": entries})

    diff = difference(shuffled(), shuffled(), catalogue, DAY + dt.timedelta(days=days))
    for name in catalogue.frameworks:
        explained = sum(c.points for c in diff.changes if c.framework == name)
        assert explained == pytest.approx(diff.framework(name), abs=1e-9)


def test_ageing_alone_is_shown_as_ageing(clinic: Path, catalogue: Catalogue) -> None:
    assessment = Workspace.open(clinic).assessment
    diff = difference(assessment, assessment, catalogue, DAY + dt.timedelta(days=365 + 90))
    assert {c.kind for c in diff.changes} == {Kind.AGED}
    assert diff.overall == pytest.approx(0.6 * 0.5 - 0.6, abs=0.01) or diff.after.capped


def test_a_new_and_a_withdrawn_answer_are_told_apart(clinic: Path, catalogue: Catalogue, make: Any) -> None:
    space = Workspace.open(clinic, clock=lambda: make.now)
    full = space.assessment
    space.clear("GDPR.17.1", author="A")
    assert difference(full, space.assessment, catalogue).changes[0].kind is Kind.REMOVED
    assert difference(space.assessment, full, catalogue).changes[0].kind is Kind.ADDED


def test_a_changed_scope_statement_is_listed_with_what_it_moves(
    clinic: Path, catalogue: Catalogue, make: Any
) -> None:
    space = Workspace.open(clinic, clock=lambda: make.now)
    before = space.assessment
    space.state_scope("minors_online", False, author="A. Meyer")
    diff = difference(before, space.assessment, catalogue)
    assert [(s.question, s.before, s.after) for s in diff.scope] == [("minors_online", True, False)]
    assert any(c.before.status is not c.after.status for c in diff.changes)


def test_the_past_comes_from_the_history(tmp_path: Path, make: Any) -> None:
    moments = [make.now - 10 * make.day]
    space = Workspace.create(
        tmp_path / "c", clinic="C", author="A", profile="gdpr", clock=lambda: moments[-1]
    )
    space.answer("GDPR.6.1", Answer.NO, author="A")
    moments.append(make.now)
    space.answer("GDPR.6.1", Answer.YES, author="A")
    assert state_on(space.folder, DAY - dt.timedelta(days=1)).entries["GDPR.6.1"].answer is Answer.NO
    assert state_on(space.folder, DAY).entries["GDPR.6.1"].answer is Answer.YES
    with pytest.raises(AssessmentError, match="no assessment yet"):
        state_on(space.folder, DAY - dt.timedelta(days=11))
    (space.folder / "history.jsonl").write_bytes(
        (space.folder / "history.jsonl").read_bytes().replace(b"GDPR.6.1", b"GDPR.9.2")
    )
    with pytest.raises(IntegrityError):
        state_on(space.folder, DAY)


def test_answers_to_different_questions_are_not_compared(clinic: Path, tmp_path: Path, make: Any) -> None:
    other = Workspace.create(tmp_path / "c", clinic="C", author="A", profile="gdpr", clock=lambda: make.now)
    with pytest.raises(AssessmentError, match="different questions"):
        difference(Workspace.open(clinic).assessment, other.assessment, load_catalogue("gdpr"))


def test_the_json_form_is_versioned_and_complete(clinic: Path, catalogue: Catalogue, make: Any) -> None:
    space = Workspace.open(clinic, clock=lambda: make.now)
    before = space.assessment
    space.answer("GDPR.17.1", Answer.NO, author="B. Braun")
    document = json.loads(json.dumps(diff_to_dict(difference(before, space.assessment, catalogue))))
    assert document["schema"] == "fedvox.diff/1"
    assert document["changes"][0]["answer"] == ["yes", "no"]
    assert set(document["frameworks"]) == set(catalogue.frameworks)
