"""The score by hand, by property, and by the cases that it was made for."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvox_compliance.assessment import (
    Answer,
    Assessment,
    CatalogueRef,
    Entry,
    Evidence,
    ScopeAnswer,
    SecondPerson,
    Verdict,
    Verification,
    claim_sha256,
)
from fedvox_compliance.catalogue import Catalogue, Control, Gate, Protection, list_profiles, load_catalogue
from fedvox_compliance.errors import AssessmentError, CatalogueError
from fedvox_compliance.judgement import OPEN, Assurance, Note, Status, judge, judge_all, judge_in_full
from fedvox_compliance.score_report import GateState, ScoreReport
from fedvox_compliance.scoring import GATE_CAP, score, tier_of

TODAY = dt.date(2026, 11, 24)
DAY = dt.timedelta(days=1)
TRUSTED = frozenset({"Assessor"})
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ----------------------------------------------------------------------------------------------- by hand


def test_two_frameworks_by_hand(bench: Any) -> None:
    # LAW:  weights 8 4 1 8 in scope (L.3 is out, w 2). L.1 yes documented .6, L.2 partly claim .125, L.4 no, L.5 yes
    #       second person .8.       (8*.6 + 4*.125 + 0 + 8*.8) / 21 = 11.7/21
    # STANDARD: S.1 yes verified 1.0 (w 8), S.2 not applicable (w 4), S.3 open (w 2), S.4 planned and dated (w 2),
    #       S.5 is informative. Weight 16, excluded 4, allowance .15*16 = 2.4, excess 1.6.
    #       low = (8*1 + 2*.1*.25)/(16-4+1.6) = 8.05/13.6; high = 10.05/13.6
    catalogue = bench.two_laws()
    entries = {
        "L.1": bench.entry("L.1"),
        "L.2": bench.entry("L.2", Answer.PARTLY, level="claim"),
        "L.4": bench.entry("L.4", Answer.NO, level="claim"),
        "L.5": bench.entry("L.5", level="second_person"),
        "S.1": bench.entry("S.1", level="verified"),
        "S.2": bench.entry("S.2", Answer.NOT_APPLICABLE, level="claim", reason="no such thing here"),
        "S.4": bench.entry("S.4", Answer.PLANNED, level="claim", due=TODAY + 30 * DAY),
    }
    assessment = bench.assessment(catalogue, entries, {"cloud": False})
    report = score(assessment, catalogue, on=TODAY, trusted_assessors=TRUSTED)
    law, standard = 11.7 / 21, 8.05 / 13.6
    assert report.frameworks["LAW"].score == pytest.approx(law)
    assert report.frameworks["STANDARD"].score == pytest.approx(standard)
    assert report.frameworks["STANDARD"].excess_weight == pytest.approx(1.6)
    assert report.overall == pytest.approx(0.5 * min(law, standard) + 0.5 * (law + standard) / 2)
    high = 10.05 / 13.6
    assert report.interval.high == pytest.approx(0.5 * law + 0.5 * (law + high) / 2)
    assert report.open_controls == ("S.3", "S.5")
    assert report.open_scope == ()  # `deep` comes after `cloud`, which is denied
    assert report.eligible
    assert not report.capped
    assert report.tier == 3


def test_score_is_at_most_the_cap_while_a_gate_is_not_passed(bench: Any) -> None:
    catalogue = bench.two_laws()
    entries = {i: bench.entry(i, level="verified") for i in catalogue.controls}
    entries["L.5"] = bench.entry("L.5", Answer.PARTLY, level="verified")  # a cap gate
    report = score(bench.assessment(catalogue, entries), catalogue, on=TODAY, trusted_assessors=TRUSTED)
    assert report.uncapped > 0.8
    assert report.overall == GATE_CAP
    assert report.capped
    assert report.interval.high == GATE_CAP
    assert report.eligible  # only an eligibility gate excludes
    assert [g.control for g in report.failed_gates] == ["L.5"]


@pytest.mark.parametrize(
    ("answer", "level", "fields", "state"),
    [
        (Answer.YES, "document", {}, GateState.PASSED),
        (Answer.YES, "claim", {}, GateState.UNDOCUMENTED),
        (Answer.PARTLY, "document", {}, GateState.FAILED),
        (Answer.PLANNED, "document", {"due": TODAY + DAY}, GateState.FAILED),
        (Answer.NO, "document", {}, GateState.FAILED),
        (Answer.ALTERNATIVE, "document", {"reason": "another way"}, GateState.FAILED),
        (Answer.NOT_APPLICABLE, "document", {"reason": "not us"}, GateState.FAILED),
        (Answer.YES, "document", {"maturity": 1}, GateState.FAILED),
        (Answer.YES, "document", {"review_on": TODAY - DAY}, GateState.EXPIRED),
    ],
)
def test_only_a_current_documented_yes_passes_a_gate(
    bench: Any, answer: Answer, level: str, fields: dict[str, Any], state: GateState
) -> None:
    catalogue = bench.two_laws()
    on = TODAY - 30 * DAY if "review_on" in fields else TODAY
    entries = {i: bench.entry(i, level="verified") for i in catalogue.controls}
    entries["S.1"] = bench.entry("S.1", answer, level=level, on=on, **fields)
    report = score(bench.assessment(catalogue, entries), catalogue, on=TODAY, trusted_assessors=TRUSTED)
    gate = next(g for g in report.gates if g.control == "S.1")
    assert gate.state is state
    assert report.eligible is (state is GateState.PASSED)
    assert (report.overall <= GATE_CAP) is (state is not GateState.PASSED)


def test_open_gate_may_still_pass_and_a_refuted_one_may_not(bench: Any) -> None:
    catalogue = bench.two_laws()
    entries = {i: bench.entry(i, level="verified") for i in catalogue.controls if i != "S.1"}
    open_gate = score(bench.assessment(catalogue, entries), catalogue, on=TODAY, trusted_assessors=TRUSTED)
    assert (open_gate.overall, open_gate.interval.high) == (GATE_CAP, 1.0)
    yes = bench.entry("S.1")
    finding = Verification(
        assessor="Stranger", date=TODAY, claim=claim_sha256("S.1", yes), result=Verdict.REFUTED
    )
    entries["S.1"] = bench.changed(yes, verification=finding)
    refuted = score(bench.assessment(catalogue, entries), catalogue, on=TODAY, trusted_assessors=TRUSTED)
    assert next(g.state for g in refuted.gates if g.control == "S.1") is GateState.REFUTED
    assert refuted.interval.high == GATE_CAP
    assert refuted.judgements["S.1"].value == 0  # whoever refuted it


# ----------------------------------------------------------------------------- what one entry is worth


@pytest.mark.parametrize(
    ("level", "worth"), [("claim", 0.25), ("document", 0.6), ("second_person", 0.8), ("verified", 1.0)]
)
def test_assurance_factors(bench: Any, level: str, worth: float) -> None:
    control = bench.control("X.1", "F")
    assert judge(control, bench.entry("X.1", level=level), TODAY, TRUSTED).value == worth


def test_nobody_is_trusted_as_an_assessor_by_default(bench: Any) -> None:
    control = bench.control("X.1", "F")
    judged = judge(control, bench.entry("X.1", level="verified"), TODAY, frozenset())
    assert judged.value == 0.6
    assert judged.notes == (Note.ASSESSOR_NOT_TRUSTED,)


def test_confirmation_of_another_claim_counts_for_nothing(bench: Any) -> None:
    control, other = bench.control("X.1", "F"), bench.control("X.2", "F")
    confirmed = bench.entry("X.1", level="second_person")
    assert judge(control, confirmed, TODAY, TRUSTED).assurance is Assurance.SECOND_PERSON
    assert judge(other, confirmed, TODAY, TRUSTED).notes == (
        Note.SECOND_PERSON_STALE,
    )  # copied to another question
    for change in (
        {"answer": Answer.PARTLY},
        {"reason": "but"},
        {"author": "C. Other"},
        {"evidence": (Evidence(path="evidence/b.pdf", sha256="b" * 64, effective=TODAY),)},
    ):
        assert (
            Note.SECOND_PERSON_STALE
            in judge(control, bench.changed(confirmed, **change), TODAY, TRUSTED).notes
        )
    verified = bench.entry("X.1", level="verified")
    assert judge(control, bench.changed(verified, reason="x"), TODAY, TRUSTED).value == 0.6


@pytest.mark.parametrize("name", ["A. Meyer", "a. meyer", " A.  MEYER "])
def test_nobody_is_their_own_second_person_or_assessor(bench: Any, name: str) -> None:
    control, entry = bench.control("X.1", "F"), bench.entry("X.1")
    claim = claim_sha256("X.1", entry)
    second = bench.changed(entry, second_person=SecondPerson(name=name.strip(), date=TODAY, claim=claim))
    assert judge(control, second, TODAY, TRUSTED).notes == (Note.SECOND_PERSON_IS_AUTHOR,)
    own = bench.changed(entry, verification=Verification(assessor=name.strip(), date=TODAY, claim=claim))
    judged = judge(control, own, TODAY, frozenset({name.strip()}))
    assert (judged.assurance, judged.notes) == (Assurance.DOCUMENT, (Note.ASSESSOR_NOT_INDEPENDENT,))


def test_second_person_without_a_document_confirms_a_claim(bench: Any) -> None:
    control, entry = bench.control("X.1", "F"), bench.entry("X.1", level="claim")
    second = SecondPerson(name="B. Beck", date=TODAY, claim=claim_sha256("X.1", entry))
    judged = judge(control, bench.changed(entry, second_person=second), TODAY, TRUSTED)
    assert judged.value == 0.25
    assert Note.SECOND_PERSON_WITHOUT_EVIDENCE in judged.notes


@pytest.mark.parametrize(
    ("days", "worth"),
    [(365, 0.25), (366, 0.25 * 179 / 180), (365 + 90, 0.125), (365 + 180, 0.0), (9999, 0.0)],
)
def test_answer_loses_its_worth_within_180_days_after_a_year(bench: Any, days: int, worth: float) -> None:
    entry = bench.entry("X.1", level="claim", on=TODAY)
    judged = judge(bench.control("X.1", "F"), entry, TODAY + days * DAY, TRUSTED)
    assert judged.value == pytest.approx(worth)
    assert (Note.ANSWER_EXPIRED in judged.notes) is (days > 365)


def test_review_date_can_only_shorten_an_answers_life(bench: Any) -> None:
    control = bench.control("X.1", "F")
    far = bench.entry("X.1", level="claim", on=TODAY, review_on=dt.date(2099, 1, 1))
    near = bench.entry("X.1", level="claim", on=TODAY, review_on=TODAY + 10 * DAY)
    assert judge(control, far, TODAY + 366 * DAY, TRUSTED).value < 0.25
    assert judge(control, near, TODAY + 11 * DAY, TRUSTED).value < 0.25
    assert judge(control, near, TODAY + 10 * DAY, TRUSTED).value == 0.25


def test_expired_document_fades_to_a_claim_and_not_below(bench: Any) -> None:
    control = bench.control("X.1", "F")
    document = Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY - 99 * DAY, expires=TODAY)
    entry = bench.entry("X.1", level="claim", evidence=(document,))
    worth = [judge(control, entry, TODAY + n * DAY, TRUSTED).value for n in (0, 1, 90, 104, 106, 180, 364)]
    assert worth == pytest.approx([0.6, 0.6 * 179 / 180, 0.3, 0.6 * 76 / 180, 0.25, 0.25, 0.25])


def test_document_without_an_expiry_holds_three_years(bench: Any) -> None:
    control = bench.control("X.1", "F")
    old = Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY - 1095 * DAY)
    older = Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY - 1096 * DAY)
    assert judge(control, bench.entry("X.1", level="claim", evidence=(old,)), TODAY, TRUSTED).value == 0.6
    assert judge(control, bench.entry("X.1", level="claim", evidence=(older,)), TODAY, TRUSTED).value < 0.6
    assert (
        judge(control, bench.entry("X.1", level="claim", evidence=(older, old)), TODAY, TRUSTED).value == 0.6
    )


def test_what_lies_in_the_future_does_not_exist_yet(bench: Any) -> None:
    control = bench.control("X.1", "F")
    later = Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY + DAY)
    judged = judge(control, bench.entry("X.1", level="claim", evidence=(later,)), TODAY, TRUSTED)
    assert (judged.value, judged.notes) == (0.25, (Note.EVIDENCE_NOT_YET,))
    assert judge(control, bench.entry("X.1", on=TODAY + DAY), TODAY, TRUSTED).status is Status.OPEN
    assert judge(control, None, TODAY, TRUSTED) is OPEN


@pytest.mark.parametrize(("maturity", "worth"), [(None, 0.6), (0, 0.0), (1, 0.3), (2, 0.6), (5, 0.6)])
def test_maturity_can_lower_a_yes_and_never_raise_it(bench: Any, maturity: int | None, worth: float) -> None:
    entry = bench.entry("X.1", maturity=maturity)
    assert judge(bench.control("X.1", "F"), entry, TODAY, TRUSTED).value == pytest.approx(worth)


def test_answers_that_a_control_does_not_allow_or_that_lack_their_reason_are_worth_nothing(
    bench: Any,
) -> None:
    from fedvox_compliance.catalogue import Obligation

    plain = bench.control("X.1", "F")
    addressable = bench.control("X.1", "F", obligation=Obligation.ADDRESSABLE)
    annex = bench.control("X.1", "F", obligation=Obligation.APPLICABILITY)
    alternative = bench.entry("X.1", Answer.ALTERNATIVE, reason="equivalent")
    unreasoned = bench.entry("X.1", Answer.ALTERNATIVE, reason="  ")
    left_out = bench.entry("X.1", Answer.NOT_APPLICABLE, reason="no software here")
    assert judge(addressable, alternative, TODAY, TRUSTED).value == pytest.approx(0.9 * 0.6)
    assert judge(plain, alternative, TODAY, TRUSTED).notes == (Note.ALTERNATIVE_REFUSED,)
    assert judge(addressable, unreasoned, TODAY, TRUSTED).notes == (Note.ALTERNATIVE_WITHOUT_REASON,)
    assert judge(annex, left_out, TODAY, TRUSTED).status is Status.NOT_APPLICABLE
    for control, entry, note in (
        (plain, left_out, Note.NA_REFUSED),
        (annex, bench.changed(left_out, reason=""), Note.NA_WITHOUT_REASON),
        (plain, bench.entry("X.1", Answer.PLANNED), Note.PLAN_WITHOUT_DATE),
        (plain, bench.entry("X.1", Answer.PLANNED, due=TODAY - DAY), Note.PLAN_OVERDUE),
    ):
        judged = judge(control, entry, TODAY, TRUSTED)
        assert (judged.status, judged.value, judged.notes) == (Status.SCORED, 0.0, (note,))


# ---------------------------------------------------------------------------------- the cases it was made for


def everywhere(catalogue: Catalogue, entry_of: Callable[[Control], Entry]) -> Assessment:
    entries = {c.id: entry_of(c) for c in catalogue.controls.values()}
    return Assessment(
        id="0" * 32,
        clinic="Clinic",
        profile=catalogue.profile,
        catalogue=CatalogueRef(version=catalogue.version, sha256=catalogue.sha256),
        created=dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
        scope={
            q: ScopeAnswer(applies=True, author="A", answered_on=TODAY) for q in catalogue.scope_questions
        },
        entries=entries,
    )


def honest_small_clinic(bench: Any, catalogue: Catalogue, seed: int) -> Assessment:
    """60 % yes, 25 % partly, 15 % no, as in the design; all with documents. Gates are in place."""
    generator = random.Random(seed)

    def entry(control: Control) -> Entry:
        drawn = generator.random()
        answer = Answer.YES if drawn < 0.6 or control.gate else Answer.PARTLY if drawn < 0.85 else Answer.NO
        return bench.entry(control.id, answer)

    return everywhere(catalogue, entry)


@pytest.mark.parametrize("profile", list_profiles())
def test_undocumented_liar_scores_below_an_honest_mediocre_documented_clinic(
    bench: Any, profile: str
) -> None:
    catalogue = load_catalogue(profile)
    liar = score(everywhere(catalogue, lambda c: bench.entry(c.id, level="claim")), catalogue, on=TODAY)
    assert liar.overall == pytest.approx(0.25)
    assert not liar.eligible
    assert liar.assurance is Assurance.CLAIM
    for seed in range(20):
        honest = score(honest_small_clinic(bench, catalogue, seed), catalogue, on=TODAY)
        assert honest.overall > liar.overall + 0.05
        assert honest.tier > liar.tier
        assert honest.eligible


@pytest.mark.parametrize(
    ("level", "overall", "tier", "assurance"),
    [
        ("claim", 0.25, 1, Assurance.CLAIM),
        ("document", 0.6, 3, Assurance.DOCUMENT),
        ("second_person", 0.8, 3, Assurance.SECOND_PERSON),
        ("verified", 1.0, 4, Assurance.VERIFIED),
    ],
)
def test_all_yes_at_each_assurance_level(
    bench: Any, level: str, overall: float, tier: int, assurance: Assurance
) -> None:
    catalogue = load_catalogue("combined")
    assessment = everywhere(catalogue, lambda c: bench.entry(c.id, level=level))
    report = score(assessment, catalogue, on=TODAY, trusted_assessors=TRUSTED)
    assert report.overall == pytest.approx(overall)
    assert (report.tier, report.assurance) == (tier, assurance)


def test_top_tier_is_out_of_reach_without_an_assessor(bench: Any) -> None:
    catalogue = load_catalogue("combined")
    assessment = everywhere(catalogue, lambda c: bench.entry(c.id, level="second_person"))
    assert score(assessment, catalogue, on=TODAY).tier == 3
    assert tier_of(0.8) == 3
    assert tier_of(math.nextafter(0.8, 1)) == 4


def test_security_cannot_pay_for_missing_privacy(bench: Any) -> None:
    catalogue = load_catalogue("combined")
    iso_only = everywhere(
        catalogue,
        lambda c: bench.entry(
            c.id, Answer.YES if c.framework == "ISO27001:2022" else Answer.NO, level="verified"
        ),
    )
    report = score(iso_only, catalogue, on=TODAY, trusted_assessors=TRUSTED)
    assert report.frameworks["ISO27001:2022"].score == pytest.approx(1.0)
    assert report.overall < 0.2
    assert not report.eligible


def test_scope_statements_shorten_the_questionnaire_and_nothing_else(bench: Any) -> None:
    catalogue = load_catalogue("gdpr")
    assessment = everywhere(catalogue, lambda c: bench.entry(c.id, level="verified"))
    denied = {q: ScopeAnswer(applies=False, author="A", answered_on=TODAY) for q in catalogue.scope_questions}
    closed = assessment.model_copy(update={"scope": denied})
    report = score(closed, catalogue, on=TODAY, trusted_assessors=TRUSTED)
    outside = {i for i, j in report.judgements.items() if j.status is Status.OUT_OF_SCOPE}
    assert outside == {c.id for c in catalogue.controls.values() if c.only_if}
    assert report.overall == pytest.approx(1.0)
    opened = score(
        assessment.model_copy(update={"scope": {}}), catalogue, on=TODAY, trusted_assessors=TRUSTED
    )
    assert not [i for i, j in opened.judgements.items() if j.status is Status.OUT_OF_SCOPE]
    assert not opened.complete


def test_catalogue_without_encryption_or_legal_basis_makes_nobody_eligible(bench: Any) -> None:
    for missing in Protection:
        catalogue = bench.catalogue(
            *[
                bench.control(f"X.{p}", "F", 8, gate=Gate.ELIGIBILITY, protects=p)
                for p in Protection
                if p is not missing
            ]
        )
        entries = {i: bench.entry(i, level="verified") for i in catalogue.controls}
        report = score(bench.assessment(catalogue, entries), catalogue, on=TODAY, trusted_assessors=TRUSTED)
        assert not report.failed_gates
        assert not report.eligible


def test_answers_to_another_catalogue_are_not_judged_by_this_one(bench: Any) -> None:
    gdpr = load_catalogue("gdpr")
    assessment = everywhere(gdpr, lambda c: bench.entry(c.id))
    with pytest.raises(AssessmentError, match="not 2026"):
        score(assessment, load_catalogue("combined"), on=TODAY)


def test_weights_must_be_of_known_controls_finite_and_not_negative(bench: Any) -> None:
    catalogue = bench.two_laws()
    assessment = bench.assessment(catalogue)
    with pytest.raises(CatalogueError):
        score(assessment, catalogue, on=TODAY, weights={"L.9": 1.0})
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(AssessmentError, match=r"L\.1"):
            score(assessment, catalogue, on=TODAY, weights={"L.1": wrong})


def test_no_questions_no_score_and_no_part_in_the_study(bench: Any) -> None:
    catalogue = bench.catalogue()
    report = score(bench.assessment(catalogue), catalogue, on=TODAY)
    assert (report.overall, report.eligible, report.assurance) == (0.0, False, Assurance.NONE)


def test_nothing_applies_nothing_is_scored(bench: Any) -> None:
    catalogue = bench.two_laws()
    report = score(
        bench.assessment(catalogue), catalogue, on=TODAY, weights=dict.fromkeys(catalogue.controls, 0.0)
    )
    assert report.overall == 0.0
    assert all(p.score is None for p in report.frameworks.values())


# ------------------------------------------------------------------------------------------- properties

IDS = ("L.1", "L.2", "L.3", "L.4", "L.5", "S.1", "S.2", "S.3", "S.4", "S.5")
RANK = [Answer.NO, Answer.PLANNED, Answer.PARTLY, Answer.ALTERNATIVE, Answer.YES]
LEVELS = ["claim", "document", "second_person", "verified"]

days = st.integers(-30, 900).map(lambda n: TODAY - n * DAY)
documents = st.builds(
    lambda effective, length, n: Evidence(
        path=f"evidence/{n}.pdf",
        sha256=str(n) * 64,
        effective=effective,
        expires=None if length is None else effective + length * DAY,
    ),
    days,
    st.none() | st.integers(0, 900),
    st.integers(0, 3),
)


@st.composite
def entries(draw: st.DrawFn, control_id: str) -> Entry:
    """Any entry that a file can hold, confirmations by all sorts of people of all sorts of claims included."""
    fields: dict[str, Any] = {
        "answer": draw(st.sampled_from(Answer)),
        "reason": draw(st.sampled_from(["", "because"])),
        "maturity": draw(st.none() | st.integers(0, 5)),
        "due": draw(st.none() | days),
        "evidence": tuple(draw(st.lists(documents, max_size=2))),
        "author": draw(st.sampled_from(["A. Meyer", "B. Beck"])),
        "answered_on": draw(days),
        "review_on": draw(st.none() | days),
    }
    claim = draw(st.sampled_from([claim_sha256(control_id, Entry(**fields)), "f" * 64]))
    if draw(st.booleans()):
        fields["second_person"] = SecondPerson(
            name=draw(st.sampled_from(["B. Beck", "A. Meyer"])), date=draw(days), claim=claim
        )
    if draw(st.booleans()):
        fields["verification"] = Verification(
            assessor=draw(st.sampled_from(["Assessor", "Stranger", "B. Beck"])),
            date=draw(days),
            claim=claim,
            result=draw(st.sampled_from(Verdict)),
        )
    return Entry(**fields)


@st.composite
def answer_sets(draw: st.DrawFn) -> dict[str, Entry]:
    chosen = draw(st.lists(st.sampled_from(IDS), unique=True))
    return {i: draw(entries(i)) for i in chosen}


scopes = st.fixed_dictionaries({}, optional={"cloud": st.booleans(), "deep": st.booleans()})


def scored(bench: Any, answers: dict[str, Entry], scope: dict[str, bool]) -> ScoreReport:
    catalogue = bench.two_laws()
    return score(bench.assessment(catalogue, answers, scope), catalogue, on=TODAY, trusted_assessors=TRUSTED)


@QUICK
@given(answers=answer_sets(), scope=scopes)
def test_every_score_lies_between_0_and_1_and_within_its_interval(
    bench: Any, answers: dict[str, Entry], scope: dict[str, bool]
) -> None:
    report = scored(bench, answers, scope)
    parts = [p for p in (*report.frameworks.values(), *report.themes.values()) if p.interval is not None]
    for interval in (report.interval, *(p.interval for p in parts)):
        assert interval is not None
        assert 0.0 <= interval.low <= interval.high <= 1.0
    assert 0 <= report.tier <= 4
    assert report.overall <= report.uncapped <= 1.0


@QUICK
@given(answers=answer_sets(), scope=scopes, seed=st.integers(0, 2**32))
def test_order_in_which_answers_stand_does_not_matter_to_the_last_bit(
    bench: Any, answers: dict[str, Entry], scope: dict[str, bool], seed: int
) -> None:
    shuffled = list(answers.items())
    random.Random(seed).shuffle(shuffled)
    assert scored(bench, dict(shuffled), scope) == scored(bench, answers, scope)


@QUICK
@given(data=st.data(), answers=answer_sets(), scope=scopes, control=st.sampled_from(IDS))
def test_no_better_answer_lowers_the_score(
    bench: Any, data: st.DataObject, answers: dict[str, Entry], scope: dict[str, bool], control: str
) -> None:
    """Better: a better answer, or better shown; the rest of the entry equal."""
    allowed = [a for a in RANK if a is not Answer.ALTERNATIVE or control == "L.2"]
    worse, better = sorted(
        (
            (data.draw(st.sampled_from(allowed)), data.draw(st.sampled_from(LEVELS))),
            (data.draw(st.sampled_from(allowed)), data.draw(st.sampled_from(LEVELS))),
        ),
        key=lambda pair: (RANK.index(pair[0]), LEVELS.index(pair[1])),
    )
    if LEVELS.index(worse[1]) > LEVELS.index(better[1]):
        better = (better[0], worse[1])
    fields = {"reason": "because", "due": TODAY + DAY}
    low = scored(bench, answers | {control: bench.entry(control, worse[0], level=worse[1], **fields)}, scope)
    high = scored(
        bench, answers | {control: bench.entry(control, better[0], level=better[1], **fields)}, scope
    )
    assert high.overall >= low.overall
    assert high.uncapped >= low.uncapped
    assert high.interval.high >= low.interval.high
    assert high.eligible >= low.eligible


@QUICK
@given(answers=answer_sets(), completion=answer_sets(), scope=scopes)
def test_whatever_open_questions_come_to_the_score_stays_within_the_interval(
    bench: Any, answers: dict[str, Entry], completion: dict[str, Entry], scope: dict[str, bool]
) -> None:
    before = scored(bench, answers, scope)
    still_open = {i: e for i, e in completion.items() if i in before.open_controls}
    after = scored(bench, answers | still_open, scope)
    # 1e-12: an exclusion changes the divisor, and with it the last bit
    assert before.interval.low - 1e-12 <= after.interval.low
    assert after.interval.high <= before.interval.high + 1e-12


@QUICK
@given(value=st.sampled_from(LEVELS), excluded=st.sets(st.sampled_from(["S.3", "S.4"]), max_size=1))
def test_not_applicable_neither_rewards_nor_punishes(bench: Any, value: str, excluded: set[str]) -> None:
    """A clinic that is equally good everywhere keeps its score, whichever controls do not apply to it."""
    catalogue = bench.two_laws()
    entries = {i: bench.entry(i, level=value) for i in catalogue.controls}
    left_out = {i: bench.entry(i, Answer.NOT_APPLICABLE, level="claim", reason="not here") for i in excluded}
    everything, without = scored(bench, entries, {}), scored(bench, entries | left_out, {})
    assert without.frameworks["STANDARD"].excess_weight == 0
    assert without.frameworks["STANDARD"].score == pytest.approx(everything.frameworks["STANDARD"].score)


@QUICK
@given(answers=answer_sets(), control=st.sampled_from(["S.3", "S.4"]))
def test_control_that_does_not_apply_is_as_if_it_were_not_in_the_catalogue(
    bench: Any, answers: dict[str, Entry], control: str
) -> None:
    catalogue = bench.two_laws()
    others = {i: e for i, e in answers.items() if i != control}
    if any(e.answer is Answer.NOT_APPLICABLE for e in others.values()):
        return  # the allowance is for one control of weight 2 here
    left_out = bench.entry(control, Answer.NOT_APPLICABLE, level="claim", reason="not here")
    smaller = bench.catalogue(
        *[c for c in catalogue.controls.values() if c.id != control],
        scope=tuple(catalogue.scope_questions.values()),
    )
    with_it = scored(bench, others | {control: left_out}, {})
    without = score(bench.assessment(smaller, others), smaller, on=TODAY, trusted_assessors=TRUSTED)
    assert with_it.overall == pytest.approx(without.overall)


@QUICK
@given(answers=answer_sets(), excluded=st.sets(st.sampled_from(["S.2", "S.3", "S.4"])))
def test_excluding_what_is_failed_gains_at_most_the_allowance(
    bench: Any, answers: dict[str, Entry], excluded: set[str]
) -> None:
    honest = answers | {i: bench.entry(i, Answer.NO, level="claim") for i in excluded}
    evasive = answers | {
        i: bench.entry(i, Answer.NOT_APPLICABLE, level="claim", reason="not here") for i in excluded
    }
    before = scored(bench, honest, {}).frameworks["STANDARD"]
    after = scored(bench, evasive, {}).frameworks["STANDARD"]
    assert before.score is not None
    assert after.score is not None
    already = before.excluded_weight > 0
    if not already:
        assert after.score <= before.score / (1 - 0.15) + 1e-12


@settings(max_examples=150, deadline=None)
@given(data=st.data(), profile=st.sampled_from(sorted(list_profiles())))
def test_no_answer_set_without_encryption_or_legal_basis_is_eligible(
    data: st.DataObject, profile: str
) -> None:
    """All profiles, any entry for the protecting control but a current documented yes, everything else perfect."""
    catalogue = load_catalogue(profile)
    protecting = [c for c in catalogue.controls.values() if c.protects]
    victim = data.draw(st.sampled_from(protecting))
    entry = data.draw(st.none() | entries(victim.id))
    proper = judge(victim, entry, TODAY, TRUSTED)
    really = (
        entry is not None
        and entry.answer is Answer.YES
        and proper.answer_value == 1.0
        and proper.assurance >= Assurance.DOCUMENT
        and not {Note.ANSWER_EXPIRED, Note.EVIDENCE_EXPIRED} & set(proper.notes)
    )
    document = (Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=TODAY),)
    perfect = everywhere(
        catalogue, lambda _c: Entry(answer=Answer.YES, author="A", answered_on=TODAY, evidence=document)
    )
    others = {i: e for i, e in perfect.entries.items() if i != victim.id}
    given_entries = others | ({} if entry is None else {victim.id: entry})
    scope = data.draw(
        st.fixed_dictionaries({}, optional={q: st.booleans() for q in catalogue.scope_questions})
    )
    said = {q: ScopeAnswer(applies=v, author="A", answered_on=TODAY) for q, v in scope.items()}
    assessment = perfect.model_copy(update={"entries": given_entries, "scope": said})
    report = score(assessment, catalogue, on=TODAY, trusted_assessors=TRUSTED)
    assert report.eligible is really


@QUICK
@given(data=st.data(), control=st.sampled_from(IDS))
def test_common_cases_are_judged_as_if_each_had_been_worked_out_in_full(
    bench: Any, data: st.DataObject, control: str
) -> None:
    of = bench.two_laws().controls[control]
    common = st.builds(
        lambda answer, on, level, length: bench.entry(
            control,
            answer,
            level=level,
            on=on,
            **({} if length is None or level == "claim" else {"evidence": (expiring(on, length),)}),
        ),
        st.sampled_from(Answer),
        days,
        st.sampled_from(LEVELS),
        st.none() | st.integers(0, 900),
    )
    entry = data.draw(common | entries(control))
    assert judge_all({control: of}, {control: entry}, TODAY, TRUSTED) == {
        control: judge_in_full(of, entry, TODAY, TRUSTED)
    }


def expiring(on: dt.date, length: int) -> Evidence:
    return Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=on, expires=on + length * DAY)


@pytest.mark.parametrize("days_before", [364, 365, 366, 1094, 1095, 1096, -1, 0])
def test_edges_of_the_common_cases_are_those_of_the_full_judgement(bench: Any, days_before: int) -> None:
    control, day = bench.control("X.1", "F"), TODAY - days_before * DAY
    document = Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=day)
    for entry in (
        bench.entry("X.1", level="claim", on=day),
        bench.entry("X.1", level="claim", evidence=(document,)),
        bench.entry("X.1", level="claim", evidence=(expiring(day, max(0, days_before)),)),
        bench.entry("X.1", level="second_person", on=day),
    ):
        judged = judge_all({"X.1": control}, {"X.1": entry}, TODAY, TRUSTED)["X.1"]
        assert judged == judge_in_full(control, entry, TODAY, TRUSTED)


def test_first_and_last_day_of_the_calendar_can_be_scored(bench: Any) -> None:
    catalogue = bench.two_laws()
    for on in (dt.date.min, dt.date.max):
        entries = {"L.1": bench.entry("L.1", on=on)}
        assert score(bench.assessment(catalogue, entries), catalogue, on=on).judgements["L.1"].value == 0.6


@QUICK
@given(answers=answer_sets(), scope=scopes)
def test_explanation_adds_up_to_the_score_it_explains(
    bench: Any, answers: dict[str, Entry], scope: dict[str, bool]
) -> None:
    report = scored(bench, answers, scope)
    for name, part in report.frameworks.items():
        of = [c for c in report.controls if c.framework == name]
        if part.score is None:
            continue
        assert sum(c.points for c in of) == pytest.approx(part.score, abs=1e-9)
        spread = part.weight - part.excluded_weight
        total = spread / (spread + part.excess_weight)
        assert sum(c.points + c.lost for c in of) == pytest.approx(total, abs=1e-9)
        for scored_control in of:
            assert scored_control.value == pytest.approx(scored_control.answer_value * scored_control.factor)


@QUICK
@given(answers=answer_sets(), later=st.integers(0, 500))
def test_time_alone_never_raises_the_score_of_what_is_in_effect(
    bench: Any, answers: dict[str, Entry], later: int
) -> None:
    in_effect = {
        i: e
        for i, e in answers.items()
        if e.answered_on is not None
        and e.answered_on <= TODAY
        and all(d.effective <= TODAY for d in e.evidence)
        and (e.second_person is None or e.second_person.date <= TODAY)
        and (e.verification is None or e.verification.date <= TODAY)
    }
    catalogue = bench.two_laws()
    assessment = bench.assessment(catalogue, in_effect)
    now = score(assessment, catalogue, on=TODAY, trusted_assessors=TRUSTED)
    then = score(assessment, catalogue, on=TODAY + later * DAY, trusted_assessors=TRUSTED)
    assert then.overall <= now.overall + 1e-12
    assert then.eligible <= now.eligible
