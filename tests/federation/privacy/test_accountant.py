"""ε against independent accountants, closed forms, and what must hold whatever the numbers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy import Phase, compose, epsilon, noise_multiplier

ROWS = json.loads((Path(__file__).parents[1] / "data" / "dp_reference.json").read_text())["rows"]
NAMES = [f"noise {r['sigma']}, rate {r['sample_rate']:.4g}, {r['steps']} steps" for r in ROWS]

noises = st.floats(0.6, 6)
rates = st.floats(0.005, 0.5)
counts = st.integers(1, 300)
deltas = st.sampled_from([1e-3, 1e-5])


def delta_of_gaussian(epsilon: float, mu: float) -> float:
    """δ of the Gaussian mechanism with sensitivity / standard deviation μ (Balle and Wang 2018, theorem 8)."""
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_every_row_of_the_reference_is_met_within_one_percent(row):
    mine = epsilon(row["sigma"], row["sample_rate"], row["steps"], row["delta"])
    assert mine == pytest.approx(row["dpacc_pld"], rel=0.01)
    assert mine == pytest.approx(row["opacus_prv"], rel=0.01)
    assert mine >= row["dpacc_pld"] * 0.999  # the reference is itself an upper bound


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_renyi_accounting_is_never_below_and_no_looser_than_others(row):
    arguments = row["sigma"], row["sample_rate"], row["steps"], row["delta"]
    renyi = epsilon(*arguments, accountant="rdp")
    assert epsilon(*arguments) <= renyi <= 1.02 * min(row["opacus_rdp"], row["dpacc_rdp"])


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_the_search_for_noise_inverts_epsilon_on_every_row(row):
    target = row["dpacc_pld"]
    found = noise_multiplier(target, row["delta"], row["sample_rate"], row["steps"])
    assert found == pytest.approx(row["sigma"], rel=0.01)
    assert epsilon(found, row["sample_rate"], row["steps"], row["delta"]) <= target


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1, 1, 1e-5), (2, 7, 1e-3), (20, 400, 1e-6)])
def test_without_sampling_it_is_the_gaussian_mechanism(noise, steps, delta):
    found = epsilon(noise, 1, steps, delta)
    mu = math.sqrt(steps) / noise
    assert delta_of_gaussian(found, mu) <= delta <= delta_of_gaussian(found * 0.98, mu)


@pytest.mark.parametrize(("noise", "rate"), [(0.7, 0.1), (1, 0.3), (1, 0.02), (3, 0.5)])
def test_one_sampled_step_is_the_closed_form(noise, rate):
    """δ(ε) = q δ_Gauss(log(1 + (e^ε - 1) / q)) for adding or removing one patient."""
    delta = 1e-4
    found = epsilon(noise, rate, 1, delta)

    def exact(at):
        return rate * delta_of_gaussian(math.log1p(math.expm1(at) / rate), 1 / noise)

    assert exact(found) <= delta <= exact(max(0, found * 0.98 - 0.002))


def test_different_phases_without_sampling_add_their_squared_signal():
    phases = [Phase(2, 1, 3), Phase(5, 1, 40), Phase(9, 1, 1)]
    mu = math.sqrt(sum(p.steps / p.noise_multiplier**2 for p in phases))
    found = compose(phases, 1e-5)
    assert delta_of_gaussian(found, mu) <= 1e-5 <= delta_of_gaussian(found * 0.98, mu)


def test_a_history_cut_into_many_rounds_costs_what_it_costs_in_one():
    whole = [Phase(1.1, 0.05, 120), Phase(1.7, 0.05, 80)]
    cut = [Phase(1.1, 0.05, 3)] * 40 + [Phase(1.7, 0.05, 1)] * 80
    assert compose(cut, 1e-5) == compose(whole, 1e-5) == compose(whole[::-1], 1e-5)


def test_many_different_rounds_cost_between_those_with_the_most_and_the_least_noise():
    rounds = [Phase(1 + 0.01 * i, 0.1, 5) for i in range(10)]
    mixed = compose(rounds, 1e-4)
    assert epsilon(1.09, 0.1, 50, 1e-4) < mixed < epsilon(1, 0.1, 50, 1e-4)


@settings(max_examples=6, deadline=None)
@given(noises, rates, counts, deltas)
def test_less_noise_more_sampling_more_steps_or_a_smaller_delta_never_cost_less(noise, rate, steps, delta):
    cost = epsilon(noise, rate, steps, delta)
    slack = 0.99  # of the grid's error
    assert epsilon(noise * 0.9, rate, steps, delta) >= cost * slack
    assert epsilon(noise, min(1, rate * 1.2), steps, delta) >= cost * slack
    assert epsilon(noise, rate, steps + 20, delta) >= cost * slack
    assert epsilon(noise, rate, steps, delta / 10) >= cost * slack


@settings(max_examples=4, deadline=None)
@given(st.floats(0.3, 12), rates, counts, deltas)
def test_the_noise_found_keeps_the_promise_and_little_less_would_not(target, rate, steps, delta):
    found = noise_multiplier(target, delta, rate, steps)
    assert epsilon(found, rate, steps, delta) <= target
    assert found < 0.07 or epsilon(found * 0.98, rate, steps, delta) > target


@settings(max_examples=4, deadline=None)
@given(noises, rates, counts, noises, rates, counts)
def test_two_phases_cost_at_least_each_and_at_most_their_sum_at_half_of_delta(n1, q1, t1, n2, q2, t2):
    both = compose([Phase(n1, q1, t1), Phase(n2, q2, t2)], 1e-5)
    assert both >= 0.99 * max(epsilon(n1, q1, t1, 1e-5), epsilon(n2, q2, t2, 1e-5))
    assert both <= epsilon(n1, q1, t1, 5e-6) + epsilon(n2, q2, t2, 5e-6) + 0.01


def test_no_noise_is_no_guarantee_and_no_step_costs_nothing():
    assert epsilon(0, 0.1, 1, 1e-5) == math.inf
    assert epsilon(1, 0.1, 0, 1e-5) == 0
    assert compose([], 1e-5) == 0


@pytest.mark.parametrize("noise", [1e-10, 1e-3, 0.05])
def test_vanishing_noise_is_reported_as_vacuous_and_does_not_crash(noise):
    assert epsilon(noise, 0.1, 10, 1e-5) > 1000


def test_a_tiny_delta_beyond_the_grid_still_gets_a_bound():
    assert epsilon(1, 0.1, 200, 1e-5) < epsilon(1, 0.1, 200, 1e-18) < 30


def test_the_central_limit_accountant_is_refused_with_its_reason():
    with pytest.raises(PrivacyError, match="not a bound"):
        epsilon(1, 0.1, 10, 1e-5, accountant="gdp")


@pytest.mark.parametrize(
    "arguments",
    [(-1, 0.1, 10, 1e-5), (math.nan, 0.1, 10, 1e-5), (1, 0, 10, 1e-5), (1, 1.1, 10, 1e-5), (1, 0.1, -1, 1e-5),
     (1, 0.1, 2.5, 1e-5), (1, 0.1, True, 1e-5), (1, 0.1, 10, 0), (1, 0.1, 10, 1), (1, 0.1, 10, math.nan)],
)  # fmt: skip
def test_what_means_nothing_is_refused(arguments):
    with pytest.raises(PrivacyError):
        epsilon(*arguments)


@pytest.mark.parametrize("arguments", [(0, 1e-5, 0.1, 10), (math.inf, 1e-5, 0.1, 10), (1, 1e-5, 0.1, 0)])
def test_a_promise_that_means_nothing_is_refused(arguments):
    with pytest.raises(PrivacyError):
        noise_multiplier(*arguments)


def test_the_package_is_imported_without_torch_numpy_or_opacus():
    code = (
        "import sys, fedvox_federation.privacy;"
        "print([m for m in ('torch', 'numpy', 'opacus', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_noise_beyond_all_measure_still_gets_a_bound():
    assert 0 <= epsilon(1e308, 0.1, 10, 1e-3) <= epsilon(1e6, 0.1, 10, 1e-3)
