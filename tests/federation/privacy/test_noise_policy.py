"""What no noise policy may do, whatever score, promise and clinic it meets."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox_compliance.scoring import tier_of
from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy import epsilon, noise_multiplier
from fedvox_federation.privacy.noise_policy import (
    NO_PRIVACY,
    POLICIES,
    UNATTESTED,
    ContinuousPolicy,
    EpsilonPolicy,
    Excluded,
    Linear2026Policy,
    Promise,
    Published2025Policy,
    Standing,
    TierPolicy,
    UniformPolicy,
    Workload,
    build_policy,
    site_noise,
    standing_of,
)

PROMISE = Promise(6.0, 1e-5)
CLINICS = (Workload(0.1, 60), Workload(0.4, 25))  # few, so that their floors are found once
MAPPINGS = [TierPolicy(), ContinuousPolicy(), EpsilonPolicy(), UniformPolicy(), UniformPolicy(1.3)]

scores = st.floats(0, 1)


def standing(score: float) -> Standing:
    return Standing(score, tier_of(score), eligible=True, attested=True)


@pytest.mark.parametrize("policy", MAPPINGS, ids=lambda p: p.name)
@settings(max_examples=20, deadline=None)
@given(first=scores, second=scores, clinic=st.sampled_from(CLINICS))
def test_noise_never_rises_with_the_score_and_never_falls_below_the_floor(policy, first, second, clinic):
    low, high = sorted((first, second))
    more, less = (policy.noise_multiplier(standing(s), PROMISE, clinic) for s in (low, high))
    assert more >= less >= clinic.floor(PROMISE)


@pytest.mark.parametrize("policy", MAPPINGS, ids=lambda p: p.name)
@pytest.mark.parametrize("score", [0, 0.21, 0.5, 0.7, 1])
def test_every_mapping_keeps_the_promise_to_every_clinic(policy, score):
    for clinic in CLINICS:
        noise = site_noise(policy, standing(score), PROMISE, clinic)
        assert noise.keeps_promise
        assert noise.epsilon == epsilon(noise.noise_multiplier, clinic.sample_rate, clinic.steps, 1e-5)


@pytest.mark.parametrize("policy", [TierPolicy(), ContinuousPolicy(), EpsilonPolicy()], ids=lambda p: p.name)
def test_full_compliance_gets_exactly_the_floor_and_no_less(policy):
    for clinic in CLINICS:
        floor = noise_multiplier(PROMISE.epsilon, PROMISE.delta, clinic.sample_rate, clinic.steps)
        assert policy.noise_multiplier(standing(1), PROMISE, clinic) == floor


def test_within_a_tier_one_answer_does_not_move_the_noise_but_across_a_bound_it_does():
    policy, clinic = TierPolicy(), CLINICS[0]
    assert policy.noise_multiplier(standing(0.56), PROMISE, clinic) == policy.noise_multiplier(
        standing(0.79), PROMISE, clinic
    )
    assert policy.noise_multiplier(standing(0.54), PROMISE, clinic) > policy.noise_multiplier(
        standing(0.56), PROMISE, clinic
    )


def test_the_epsilon_mapping_gives_each_tier_its_own_promise():
    shares = EpsilonPolicy().shares
    for tier, share in enumerate(shares):
        noise = site_noise(EpsilonPolicy(), Standing(0.5, tier, True, True), PROMISE, CLINICS[1])
        assert noise.epsilon == pytest.approx(PROMISE.epsilon * share, rel=0.01)


def test_ineligible_and_unattested_clinics_are_excluded_with_the_reason():
    ineligible = Standing(0.9, 4, eligible=False, attested=True)
    assert site_noise(TierPolicy(), ineligible, PROMISE, CLINICS[0]) == Excluded(
        "an eligibility gate is not passed"
    )
    assert site_noise(TierPolicy(), standing_of(None), PROMISE, CLINICS[0]) == Excluded(
        "no valid attestation"
    )


def test_an_unattested_clinic_that_a_study_admits_counts_as_score_zero():
    noise = site_noise(TierPolicy(), UNATTESTED, PROMISE, CLINICS[0], admit_unattested=True)
    assert noise.noise_multiplier == pytest.approx(2.5 * CLINICS[0].floor(PROMISE))
    assert UNATTESTED.score == 0


def test_admitting_the_unattested_does_not_admit_who_failed_a_gate():
    failed = Standing(0.3, 1, eligible=False, attested=True)
    assert isinstance(site_noise(TierPolicy(), failed, PROMISE, CLINICS[0], admit_unattested=True), Excluded)


def test_no_noise_must_be_asked_for_in_words_and_runs_in_simulations_only():
    with pytest.raises(PrivacyError, match="switches privacy off"):
        build_policy("none")
    policy = build_policy("none", acknowledge=NO_PRIVACY)
    with pytest.raises(PrivacyError, match="no guarantee"):
        site_noise(policy, standing(1), PROMISE, CLINICS[0])
    noise = site_noise(policy, standing(1), PROMISE, CLINICS[0], simulation=True)
    assert (noise.noise_multiplier, noise.epsilon, noise.verdict) == (0, math.inf, "no guarantee")


def test_the_mapping_published_in_2025_has_no_guarantee_at_full_score_and_is_refused_in_earnest():
    with pytest.raises(PrivacyError, match="no guarantee"):
        site_noise(Published2025Policy(), standing(1), PROMISE, CLINICS[0])
    noise = site_noise(Published2025Policy(), standing(1), PROMISE, CLINICS[0], simulation=True)
    assert noise.verdict == "no guarantee"
    assert noise.noise_multiplier == pytest.approx(1e-10)


def test_the_linear_mapping_is_judged_by_the_epsilon_that_comes_of_it():
    noise = site_noise(Linear2026Policy(), standing(0.5), PROMISE, CLINICS[1], simulation=True)
    assert noise.noise_multiplier == pytest.approx(0.7)
    assert "exceeds the promised 6" in noise.verdict
    gentle = Workload(0.01, 20)
    assert site_noise(Linear2026Policy(), standing(0), PROMISE, gentle).verdict == "promise kept"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiers", {"factors": (2.0, 1.5, 1.2, 1.1, 0.9)}),
        ("tiers", {"factors": (1.0, 1.5, 1.2, 1.1, 1.0)}),
        ("tiers", {"factors": (2.0, 1.0)}),
        ("tiers", {"factors": (math.inf, 1.5, 1.2, 1.1, 1.0)}),
        ("tiers", {"factors": (math.nan, 1.5, 1.2, 1.1, 1.0)}),
        ("continuous", {"factor_at_zero": 0.5}),
        ("continuous", {"factor_at_zero": math.nan}),
        ("epsilon", {"shares": (0, 0.4, 0.6, 0.8, 1.0)}),
        ("epsilon", {"shares": (0.5, 0.4, 0.6, 0.8, 1.0)}),
        ("epsilon", {"shares": (0.5, 0.6, 0.7, 0.8, 1.2)}),
        ("uniform", {"factor": 0.99}),
        ("linear-2026", {"at_full_score": 0.29}),
        ("linear-2026", {"at_full_score": 1.1}),
        ("published-2025", {"floor": 1}),
        ("gaussian", {}),
    ],
)
def test_options_that_would_undercut_the_floor_are_refused(name, options):
    with pytest.raises(PrivacyError):
        build_policy(name, **options)


@pytest.mark.parametrize(("score", "tier"), [(-0.1, 0), (1.1, 4), (math.nan, 0), (0.5, 5), (0.5, -1)])
def test_a_standing_that_cannot_be_is_refused(score, tier):
    with pytest.raises(PrivacyError):
        Standing(score, tier, eligible=True, attested=True)


def test_every_policy_has_a_name_and_is_in_the_list():
    assert set(POLICIES) == {
        "tiers", "continuous", "epsilon", "uniform", "none", "published-2025", "linear-2026",
    }  # fmt: skip


def test_a_promise_that_is_none_is_not_called_kept():
    found = site_noise(build_policy("uniform"), standing(1.0), Promise(100.0, 1e-3), Workload(0.1, 100))
    assert (found.keeps_promise, found.verdict) == (True, "no guarantee")
