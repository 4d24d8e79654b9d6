"""The keyed permutation: a bijection, fair also for few things, and small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedvox.data.permutation import ROUNDS, KeyedPermutation
from fedvox.data.philox import Stream, raw

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(size=st.integers(1, 400), seed=SEEDS, index=st.integers(0, 2**40))
def test_every_position_goes_to_another_place(size, seed, index):
    order = KeyedPermutation.keyed(size, seed=seed, index=index)
    assert sorted(order(position) for position in range(size)) == list(range(size))


@settings(deadline=None)
@given(size=st.integers(1, 10**6), seed=SEEDS, data=st.data())
def test_an_array_of_positions_goes_where_single_positions_go(size, seed, data):
    order = KeyedPermutation.keyed(size, seed=seed, index=0)
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    assert order.many(np.array(positions)).tolist() == [order(position) for position in positions]


def test_a_quarter_million_places_are_each_taken_once_in_an_order_without_trend():
    size = 250_007
    places = KeyedPermutation.keyed(size, seed=5, index=1).many(np.arange(size))
    assert len(np.unique(places)) == size
    assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 0.01
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.01
    runs = np.sum(np.diff(places) == 1)  # neighbours that stay neighbours: Poisson with mean 1
    assert runs <= 8


def test_a_million_million_things_need_no_list():
    order = KeyedPermutation.keyed(10**12, seed=0, index=0)
    places = [order(position) for position in (0, 1, 10**12 - 1)]
    assert len(set(places)) == 3
    assert all(0 <= place < 10**12 for place in places)


def fairness(size: int, rounds: int, keys: int = 6000) -> float:
    """p-value that all ordered pairs of places are equally likely for the first and the last position."""
    counts = np.zeros((size, size))
    for key in range(keys):
        order = KeyedPermutation(size, tuple(int(word) for word in raw(key, 5, Stream.CASE, rounds)))
        counts[order(0), order(size - 1)] += 1
    return float(stats.chisquare(counts[~np.eye(size, dtype=bool)]).pvalue)


@pytest.mark.parametrize("size", [2, 3, 5, 6, 9])
def test_pairs_of_a_small_source_are_ordered_fairly(size):
    assert fairness(size, ROUNDS) > 1e-3


def test_the_fairness_test_would_notice_too_few_rounds():
    assert fairness(6, 4) < 1e-9


def test_all_24_orders_of_four_things_are_equally_likely():
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for key in range(6000):
        order = KeyedPermutation.keyed(4, seed=key, index=0)
        counts[tuple(order(position) for position in range(4))] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_is_refused(position):
    with pytest.raises(IndexError, match=str(position)):
        KeyedPermutation.keyed(5, seed=0, index=0)(position)
