"""Who takes part with how much noise."""

import math

import pytest

from fedvox_federation.experiment.arms import ARMS, matched_factor, noise_of, participants
from fedvox_federation.privacy.noise_policy import Promise, Workload

PROMISE, WORKLOAD = Promise(3.0, 1e-4), Workload(0.25, 30)


@pytest.fixture
def four(clinic_of_tier):
    return {f"t{tier}": clinic_of_tier(tier, f"t{tier}") for tier in (1, 2, 3, 4)}


def noises(arm, clinics):
    return {
        name: one.noise_multiplier for name, one in noise_of(ARMS[arm], clinics, PROMISE, WORKLOAD).items()
    }


def test_only_the_compliant_take_part_where_it_says_so(four):
    assert list(participants(ARMS["compliant-only"], four)) == ["t3", "t4"]
    assert list(participants(ARMS["tiers"], four)) == list(four)


@pytest.mark.parametrize("arm", ["compliant-only", "uniform", "matched", "tiers", "tiers-weighted"])
def test_every_arm_that_promises_keeps_it_at_every_clinic(arm, four):
    assert all(one.keeps_promise for one in noise_of(ARMS[arm], four, PROMISE, WORKLOAD).values())


def test_uniform_noise_is_the_floor_and_matched_noise_has_the_tiers_variance(four):
    floor = WORKLOAD.floor(PROMISE)
    assert set(noises("uniform", four).values()) == {floor}
    tiers, matched = noises("tiers", four), noises("matched", four)
    assert len(set(matched.values())) == 1
    assert sum(n**2 for n in matched.values()) == pytest.approx(sum(n**2 for n in tiers.values()))
    assert matched_factor(four) == pytest.approx(math.sqrt((2**2 + 1.5**2 + 1.2**2 + 1) / 4))


def test_published_mappings_promise_nothing_and_are_reported_as_what_they_are(four, clinic_of_tier):
    perfect = {"p": clinic_of_tier(4, "p")}
    object.__setattr__(perfect["p"].standing, "score", 1.0)
    published = noise_of(ARMS["published-2025"], perfect, PROMISE, WORKLOAD)["p"]
    assert published.verdict == "no guarantee"
    assert not published.keeps_promise
    assert noises("linear-2026", four)["t4"] == pytest.approx(0.4 + 0.2 * 0.6)


def test_without_dp_there_is_no_noise_and_no_finite_epsilon(four):
    for arm in ("no-dp", "central"):
        assert all(math.isinf(one.epsilon) for one in noise_of(ARMS[arm], four, PROMISE, WORKLOAD).values())
