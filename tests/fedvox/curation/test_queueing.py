"""Priority, queue and estimates, against arithmetic, scikit-learn and simulation."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import cohen_kappa_score

from fedvox.curation.check.measure import CaseFacts, StructureFacts
from fedvox.curation.queueing.build import choose_items
from fedvox.curation.queueing.estimates import (
    agreement,
    annotators,
    calibrated_pace,
    detection,
    rate,
)
from fedvox.curation.queueing.priority import Pace, Scores, score_cases
from fedvox.curation.queueing.settings import QueueSection
from fedvox.curation.store import Finding, Review


def case(name, **structures):
    """Facts with (volume, difference) in mm³ of each structure."""
    found = {
        key: StructureFacts(volume, different_mm3=different)
        for key, (volume, different) in structures.items()
    }
    return CaseFacts(name, 1, "s", found, 1.0, (0, 0, 0), (1, 1, 1))


def finding(name, structure, severity):
    return Finding(name, 1, 1, structure, "volume", severity)


def review(
    number, case_id, decision="accept", purpose="queue", reviewer="ann", round_=1, seconds=30.0, seen=1
):
    result = seen if decision != "edit" else number + 10
    return Review(number, case_id, seen, result, decision, round_, reviewer, seconds, "", purpose, "")


def scores(n):
    rng = np.random.default_rng(0)
    wrong = rng.random(n)
    return Scores(tuple(f"c{k:03d}" for k in range(n)), wrong, wrong * 100, wrong, wrong)


def test_a_small_organ_counts_as_much_as_a_large_one():
    cases = [
        case("liver wrong", liver=(1_000_000, 500_000), gland=(1000, 0)),
        case("gland wrong", liver=(1_000_000, 0), gland=(1000, 500)),
    ]
    found = score_cases(cases, [finding("liver wrong", "liver", 0.9), finding("gland wrong", "gland", 0.9)])
    assert found.gain[0] == pytest.approx(found.gain[1])
    assert found.gain_mm3[0] > 100 * found.gain_mm3[1]


def test_findings_on_one_structure_add_up_as_independent_evidence():
    found = score_cases([case("c", liver=(10, 5))], [finding("c", "liver", 0.5), finding("c", "liver", 0.5)])
    assert found.wrong[0] == pytest.approx(1 - 0.98 * 0.25)


def test_priority_is_gain_per_minute():
    found = score_cases([case("c", liver=(10, 10))], [finding("c", "liver", 0.9)])
    pace = Pace(1.0, 4.0)
    assert found.priority(pace)[0] == pytest.approx(found.gain[0] / (1 + 4 * found.wrong[0]))


def test_cases_without_a_finding_are_ordered_by_what_the_consensus_would_change():
    found = score_cases([case("calm", liver=(10, 1)), case("restless", liver=(10, 6))], [])
    assert found.priority(Pace())[1] > found.priority(Pace())[0] > 0


def test_the_budget_holds_the_queue_and_a_random_audit_of_what_it_leaves_out():
    settings = QueueSection(budget=0.1, audit_share=0.2, double_share=0, blind_share=0)
    items = choose_items(scores(200), settings, Pace(), [], 1, seed=0)
    queued = {item.case_id for item in items if item.purpose == "queue"}
    audited = {item.case_id for item in items if item.purpose == "audit"}
    assert (len(queued), len(audited), queued & audited) == (16, 4, set())
    best = np.argsort(-scores(200).priority(Pace()))[:16]
    assert queued == {scores(200).case_ids[n] for n in best}


def test_what_was_settled_is_not_queued_again_but_what_was_rejected_is():
    first = [review(1, "c000"), review(2, "c001", "reject"), review(3, "c002", "edit")]
    settings = QueueSection(budget=1.0, double_share=0, blind_share=0)
    again = {item.case_id for item in choose_items(scores(20), settings, Pace(), first, 2, seed=0)}
    assert {"c000", "c002"}.isdisjoint(again)
    assert "c001" in again


def test_some_are_read_twice_and_some_again():
    settings = QueueSection(budget=0.5, double_share=0.2, blind_share=0.5)
    before = [review(n, f"c{n:03d}") for n in range(10)]
    items = choose_items(scores(100), settings, Pace(), before, 2, seed=0)
    purposes = [item.purpose for item in items]
    assert (purposes.count("double"), purposes.count("blind")) == (10, 5)
    twice = {item.case_id for item in items if item.purpose == "double"}
    assert twice <= {item.case_id for item in items if item.purpose in ("queue", "audit")}


def test_the_interval_of_a_rate_is_exact():
    found = rate(3, 40)
    assert binom.sf(2, 40, found.low) == pytest.approx(0.025)
    assert binom.cdf(3, 40, found.high) == pytest.approx(0.025)
    assert (rate(0, 0).low, rate(0, 0).high) == (0, 1)


def test_detection_is_estimated_from_queue_and_audit():
    queue = [review(n, f"q{n}", "edit" if n < 8 else "accept", seconds=60) for n in range(10)]
    audit = [review(20 + n, f"a{n}", "edit" if n < 1 else "accept", "audit", seconds=60) for n in range(20)]
    found = detection([*queue, *audit], 210)
    assert (found.queued.share, found.audited.share) == (0.8, 0.05)
    assert found.sensitivity == pytest.approx(8 / (8 + 10))  # 5 % of the 200 others
    assert found.specificity == pytest.approx(190 / 192)
    assert found.errors_per_minute / found.random_errors_per_minute == pytest.approx(16)


def test_the_audits_interval_covers_the_true_rate():
    rng = np.random.default_rng(0)
    covered = sum(
        found.low <= 0.05 <= found.high
        for found in (rate(int(rng.binomial(50, 0.05)), 50) for _ in range(500))
    )
    assert covered >= 0.95 * 500


def test_agreement_of_second_readers_is_cohens_kappa():
    first = [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    second = [1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    reviews = [review(n, f"c{n}", "edit" if wrong else "accept") for n, wrong in enumerate(first)]
    reviews += [
        review(50 + n, f"c{n}", "edit" if wrong else "accept", "double", "bob")
        for n, wrong in enumerate(second)
    ]
    found = agreement(reviews, lambda a, b: 0.9, purpose="double")
    assert (found.pairs, found.same_verdict, found.dice) == (10, 0.8, pytest.approx(0.9))
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))


def test_the_pace_is_what_reviewers_show():
    reviews = [review(n, f"c{n}", seconds=12) for n in range(6)]
    reviews += [review(10 + n, f"d{n}", "edit", seconds=72) for n in range(6)]
    assert calibrated_pace(reviews, Pace()) == Pace(0.2, 1.0)
    assert calibrated_pace(reviews[:2], Pace()) == Pace()


def test_annotators_are_compared_on_what_both_have_read():
    reviews = [review(1, "c1", "edit"), review(2, "c1", "accept", "double", "bob"), review(3, "c2")]
    ann, bob = annotators(reviews)
    assert (ann.name, ann.reviews, ann.second_opinions, ann.agreed) == ("ann", 2, 1, 0)
    assert (bob.name, bob.error_rate.hits) == ("bob", 0)
