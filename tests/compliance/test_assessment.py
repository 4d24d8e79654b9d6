"""What a file may hold, and what it may not."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedvox_compliance.assessment import (
    Answer,
    Assessment,
    Entry,
    Evidence,
    SecondPerson,
    claim_sha256,
    same_person,
    to_jsonable,
)
from fedvox_compliance.errors import AssessmentError
from fedvox_compliance.files import load_assessment, parse_assessment, save_assessment
from fedvox_compliance.rules import Rule, allowed_answers, broken_rules

TODAY = dt.date(2026, 11, 24)
DAY = dt.timedelta(days=1)


def test_answer_needs_its_author_and_its_day() -> None:
    for missing in ("author", "answered_on"):
        fields: dict[str, Any] = {"answer": Answer.YES, "author": "A", "answered_on": TODAY}
        with pytest.raises(ValidationError, match="needs its author"):
            Entry(**(fields | {missing: None}))
    assert Entry(owner="IT").answer is None  # an owner alone is fine


@pytest.mark.parametrize(
    "path",
    [
        "../secret.pdf",
        "evidence/../../secret.pdf",
        "/etc/passwd",
        "C:\\x.pdf",
        "a\\b.pdf",
        "",
        "a\nb.pdf",
        "c:x",
        "a\x00b",
    ],
)
def test_evidence_never_leaves_the_folder(path: str) -> None:
    with pytest.raises(ValidationError):
        Evidence(path=path, sha256="a" * 64, effective=TODAY)


@pytest.mark.parametrize("sha256", ["A" * 64, "a" * 63, "a" * 65, "g" * 64, ""])
def test_hash_is_64_lower_case_digits(sha256: str) -> None:
    with pytest.raises(ValidationError):
        Evidence(path="evidence/a.pdf", sha256=sha256, effective=TODAY)


def test_document_cannot_expire_before_it_takes_effect() -> None:
    with pytest.raises(ValidationError, match="before it takes effect"):
        Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY, expires=TODAY - DAY)


@pytest.mark.parametrize(
    "text", ["a\x1b[31mred", "a\u202etxt.exe", "nul\x00", "a\u2066b", "line\rover", "\ufeffbom"]
)
def test_text_that_would_look_different_from_what_it_is_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Entry(reason=text)
    with pytest.raises(ValidationError):
        Entry(owner=text)


def test_reason_may_have_lines_and_any_script() -> None:
    text = "Zeile 1\nZeile 2\tTab – Größe, 日本語, العربية, emoji 🩻"
    assert Entry(reason=text).reason == text


@pytest.mark.parametrize(
    "change",
    [
        {"maturity": 6},
        {"maturity": -1},
        {"maturity": "3"},
        {"maturity": True},
        {"answer": "Yes"},
        {"answer": "maybe"},
        {"answered_on": 1764000000},
        {"answered_on": "24.11.2026"},
        {"unknown": 1},
        {"author": ""},
        {"author": "x" * 121},
        {"reason": "x" * 4001},
    ],
)
def test_unknown_keys_and_values_of_another_type_are_refused_and_never_converted(
    change: dict[str, Any],
) -> None:
    fields = {"answer": "yes", "author": "A", "answered_on": "2026-11-24"} | change
    with pytest.raises(ValidationError):
        Entry.model_validate_json(json.dumps(fields))


def test_claim_covers_all_that_was_claimed_and_the_control_it_was_claimed_of() -> None:
    entry = Entry(
        answer=Answer.YES,
        reason="r",
        maturity=3,
        due=TODAY,
        author="A",
        answered_on=TODAY,
        evidence=(Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY, expires=TODAY),),
    )
    changes: list[dict[str, Any]] = [
        {"answer": Answer.NO},
        {"reason": "s"},
        {"maturity": None},
        {"due": None},
        {"author": "B"},
        {"answered_on": TODAY - DAY},
        {"evidence": ()},
        {"evidence": entry.evidence * 2},
        *(
            {"evidence": (entry.evidence[0].model_copy(update=u),)}
            for u in (
                {"sha256": "b" * 64},
                {"path": "evidence/b.pdf"},
                {"effective": TODAY - DAY},
                {"expires": None},
            )
        ),
    ]
    claims = {claim_sha256("X.1", entry.model_copy(update=c)) for c in changes}
    claims |= {claim_sha256("X.1", entry), claim_sha256("X.2", entry)}
    assert len(claims) == len(changes) + 2


def test_claim_does_not_depend_on_who_owns_or_confirms_it() -> None:
    entry = Entry(answer=Answer.YES, author="A", answered_on=TODAY)
    second = SecondPerson(name="B", date=TODAY, claim="0" * 64)
    for change in ({"owner": "IT"}, {"second_person": second}, {"review_on": TODAY}):
        assert claim_sha256("X.1", entry.model_copy(update=change)) == claim_sha256("X.1", entry)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("A. Meyer", " a.  meyer", True),
        ("Straße", "STRASSE", True),
        ("A. Meyer", "B. Meyer", False),
        (None, None, False),
    ],
)
def test_same_person_ignores_case_and_spaces(a: str | None, b: str | None, same: bool) -> None:
    assert same_person(a, b) is same


def test_last_days_stay_within_the_calendar() -> None:
    end = dt.date.max
    assert Evidence(path="a", sha256="a" * 64, effective=end).last_day == end
    assert Entry(answer=Answer.YES, author="A", answered_on=end).last_day == end


@settings(max_examples=80, deadline=None)
@given(
    st.dates(),
    st.none() | st.integers(0, 4000),
    st.dates(),
    st.none() | st.dates(),
)
def test_days_over_and_last_day_say_the_same(
    effective: dt.date, length: int | None, on: dt.date, review_on: dt.date | None
) -> None:
    expires = None
    if length is not None:
        expires = dt.date.fromordinal(min(effective.toordinal() + length, dt.date.max.toordinal()))
    document = Evidence(path="a", sha256="a" * 64, effective=effective, expires=expires)
    assert max(0, document.days_over(on)) == max(0, (on - document.last_day).days)
    entry = Entry(answer=Answer.YES, author="A", answered_on=effective, review_on=review_on)
    assert entry.last_day is not None
    assert max(0, entry.days_over(on)) == max(0, (on - entry.last_day).days)


# ------------------------------------------------------------------------------------------------------ files


def test_file_reads_back_as_it_was_written(bench: Any, tmp_path: Path) -> None:
    catalogue = bench.two_laws()
    entries = {i: bench.entry(i, level="verified", reason="weil\nso") for i in catalogue.controls}
    assessment = bench.assessment(catalogue, entries, {"cloud": True})
    save_assessment(assessment, tmp_path / "a.json")
    assert load_assessment(tmp_path / "a.json") == assessment
    assert to_jsonable(load_assessment(tmp_path / "a.json")) == to_jsonable(assessment)


def raw_assessment(bench: Any) -> dict[str, Any]:
    return to_jsonable(bench.assessment(bench.two_laws(), {"L.1": bench.entry("L.1")}))


def test_all_problems_are_named_at_once(bench: Any) -> None:
    raw = raw_assessment(bench)
    raw["entries"]["L.1"]["answer"] = "perhaps"
    raw["clinic"] = ""
    raw["extra"] = 1
    with pytest.raises(AssessmentError) as told:
        parse_assessment(json.dumps(raw).encode(), source="a.json")
    for word in ("a.json: 3 problems", "entries.L.1.answer", "clinic", "extra"):
        assert word in told.value.message


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"[]", b"null", b'{"schema": 1}', b"[" * 100_000, b'{"a": NaN}', b'{"id": "\\ud800"}'],
    ids=["empty", "bytes", "list", "null", "schema", "nested", "nan", "surrogate"],
)
def test_what_is_no_assessment_is_refused_without_a_traceback(data: bytes) -> None:
    with pytest.raises(AssessmentError):
        parse_assessment(data, source="a.json")


def test_key_that_occurs_twice_is_refused(bench: Any) -> None:
    text = json.dumps(raw_assessment(bench))
    twice = text.replace('"entries":', '"entries": {}, "entries":', 1)
    with pytest.raises(AssessmentError, match="twice"):
        parse_assessment(twice.encode(), source="a.json")


def test_missing_large_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssessmentError, match="No such file"):
        load_assessment(tmp_path / "nowhere.json")
    with pytest.raises(AssessmentError):
        load_assessment(tmp_path / "nul\x00.json")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(40 * 2**20)
    with pytest.raises(AssessmentError, match="larger than 32 MiB"):
        load_assessment(large)


def test_models_are_frozen(bench: Any) -> None:
    with pytest.raises(ValidationError):
        bench.entry("X.1").answer = Answer.NO
    with pytest.raises(ValidationError):
        bench.assessment(bench.two_laws()).clinic = "B"


def test_whole_assessment_has_one_hash_that_any_change_moves(bench: Any) -> None:
    catalogue = bench.two_laws()
    one = bench.assessment(catalogue, {"L.1": bench.entry("L.1")})
    assert one.sha256 == Assessment.model_validate_json(one.model_dump_json(by_alias=True)).sha256
    assert one.sha256 != bench.assessment(catalogue, {"L.1": bench.entry("L.1", reason="x")}).sha256
    assert one.sha256 != bench.assessment(catalogue, {"L.1": bench.entry("L.1")}, {"cloud": True}).sha256


# ------------------------------------------------------------------------------------------------------ rules


def test_offered_answers_are_exactly_those_that_no_rule_breaks(bench: Any) -> None:
    catalogue = bench.two_laws()
    for control in catalogue.controls.values():
        accepted = {
            a
            for a in Answer
            if not broken_rules(
                control.id,
                bench.entry(control.id, a, level="claim", reason="because", due=TODAY),
                catalogue,
                TODAY,
            )
        }
        assert accepted == set(allowed_answers(control)), control.id


@pytest.mark.parametrize(
    ("control", "answer", "fields", "rule"),
    [
        ("L.1", Answer.NOT_APPLICABLE, {"reason": "x"}, Rule.NA_REFUSED),
        ("S.2", Answer.NOT_APPLICABLE, {"reason": " \n"}, Rule.NA_NEEDS_REASON),
        ("L.1", Answer.ALTERNATIVE, {"reason": "x"}, Rule.ALTERNATIVE_REFUSED),
        ("L.2", Answer.ALTERNATIVE, {}, Rule.ALTERNATIVE_NEEDS_REASON),
        ("L.1", Answer.PLANNED, {}, Rule.PLAN_NEEDS_DATE),
        ("L.1", Answer.YES, {"maturity": 1}, Rule.MATURITY_CONTRADICTS),
        ("L.1", Answer.NO, {"maturity": 3}, Rule.MATURITY_CONTRADICTS),
        ("L.1", Answer.YES, {"answered_on": TODAY + DAY}, Rule.ANSWER_IN_FUTURE),
        ("L.1", Answer.YES, {"review_on": TODAY - DAY}, Rule.REVIEW_BEFORE_ANSWER),
        ("Z.9", Answer.YES, {}, Rule.UNKNOWN_CONTROL),
    ],
)
def test_each_rule_is_broken_by_what_it_forbids(
    bench: Any, control: str, answer: Answer, fields: dict[str, Any], rule: Rule
) -> None:
    entry = bench.changed(bench.entry(control, answer), **fields)
    assert [b.rule for b in broken_rules(control, entry, bench.two_laws(), TODAY)] == [rule]
