"""The lower bound on ε: against an independent computation of the formula, randomised response, and its properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox.errors import ConfigError
from fedvox_federation.audit.bound import Guesses, best_bound, epsilon_lower_bound, guess, p_value


def binomial_tail(made, right, truthful):
    """P[Binomial >= right], by adding up exact terms."""
    return math.fsum(
        math.comb(made, k) * truthful**k * (1 - truthful) ** (made - k) for k in range(right, made + 1)
    )


def p_by_definition(canaries, made, right, epsilon, delta):
    """The theorem as written: tail + 2 m δ max_i (F(v - i) - F(v)) / i, with F the tail."""
    truthful = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = binomial_tail(made, right, truthful)
    gains = [(binomial_tail(made, right - i, truthful) - tail) / i for i in range(1, right + 1)]
    return min(1.0, tail + 2 * canaries * delta * max(gains, default=0.0))


counts = st.integers(1, 60).flatmap(
    lambda made: st.tuples(st.integers(made, 100), st.just(made), st.integers(0, made))
)


@given(counts, st.floats(0, 6), st.sampled_from([0.0, 1e-6, 1e-3, 0.05]))
def test_the_p_value_is_that_of_the_theorem(count, epsilon, delta):
    assert p_value(Guesses(*count), epsilon, delta) == pytest.approx(
        p_by_definition(*count, epsilon, delta), rel=1e-9, abs=1e-12
    )


def test_one_hundred_right_guesses_of_a_hundred_prove_what_can_be_solved_by_hand():
    # q^100 = 0.05, hence ε = ln(q / (1 - q)).
    q = 0.05**0.01
    assert epsilon_lower_bound(Guesses(100, 100, 100), 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_half_the_guesses_right_prove_nothing():
    assert epsilon_lower_bound(Guesses(1000, 1000, 500), 1e-5) == 0.0
    assert epsilon_lower_bound(Guesses(10, 0, 0), 1e-5) == 0.0


@given(counts, st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_never_prove_less(count, delta):
    canaries, made, right = count
    more = Guesses(canaries, made, min(made, right + 1))
    assert epsilon_lower_bound(more, delta) >= epsilon_lower_bound(Guesses(*count), delta) - 1e-6


@given(counts)
def test_a_larger_delta_or_confidence_never_proves_more(count):
    guesses = Guesses(*count)
    bounds = [epsilon_lower_bound(guesses, delta) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
    assert bounds == sorted(bounds, reverse=True)
    assert epsilon_lower_bound(guesses, 0.0, 0.99) <= epsilon_lower_bound(guesses, 0.0, 0.9) + 1e-6


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_response_is_bounded_below_its_epsilon_in_nineteen_of_twenty_runs_and_not_far_below(
    epsilon,
):
    # Each coin is reported truthfully with probability e^ε / (1 + e^ε): the mechanism for which the bound is exact.
    rng = np.random.default_rng(1)
    truthful = rng.random((400, 1000)) < math.exp(epsilon) / (1 + math.exp(epsilon))
    bounds = np.array([epsilon_lower_bound(Guesses(1000, 1000, int(row.sum())), 0.0) for row in truthful])
    assert (bounds > epsilon).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.median(bounds) > epsilon - 0.35


def test_a_mechanism_that_gives_everything_away_with_probability_delta_is_not_called_worse_than_it_is():
    # With probability δ all coins are published, otherwise nothing: (0, δ)-DP.
    delta, canaries = 0.01, 50
    assert p_value(Guesses(canaries, canaries, canaries), 0.0, delta) >= delta


def test_guesses_are_counted_on_both_ends():
    scores = np.array([3.0, -2.0, 0.0, 1.0, -1.0, 2.0])
    included = np.array([True, False, True, False, True, True])
    assert guess(scores, included, 1) == Guesses(6, 2, 2)
    assert guess(scores, included, 2) == Guesses(6, 4, 3)
    with pytest.raises(ConfigError, match="4 guesses"):
        guess(scores, included, 4)


def test_several_numbers_of_guesses_share_the_probability_of_error():
    scores, included = np.arange(40.0), np.arange(40) >= 20
    alone = best_bound(scores, included, 0.0, each_side=(20,))
    tried = best_bound(scores, included, 0.0, each_side=(5, 20))
    assert tried.guesses == alone.guesses == Guesses(40, 40, 40)
    assert tried.epsilon == pytest.approx(epsilon_lower_bound(Guesses(40, 40, 40), 0.0, 0.975))
    assert tried.epsilon < alone.epsilon


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="is no count"):
        Guesses(10, 5, 6)
    with pytest.raises(ConfigError, match="confidence"):
        epsilon_lower_bound(Guesses(10, 5, 5), 0.0, 1.0)
