"""Statistics of a comparison, against SciPy, hand-made cases and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fedvox.backbone_benchmark.analysis import Scores, correlate, gains, kendall, sample, spearman, standings
from fedvox.backbone_benchmark.config import Statistics
from fedvox.errors import DataError

SETTINGS = Statistics(resamples=400)


def scores(dice):
    dice = np.asarray(dice, dtype=np.float64)
    m, s, n, k = dice.shape
    return Scores(
        tuple(f"net{i}" for i in range(m)), tuple(range(s)), tuple(f"case{i}" for i in range(n)),
        tuple(f"organ{i}" for i in range(k)), dice,
    )  # fmt: skip


def noisy(means, cases=12, seeds=3, structures=2, sd=0.01, seed=0):
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 0.05, (1, 1, cases, structures))
    noise = rng.normal(0, sd, (len(means), seeds, cases, structures))
    return scores(np.clip(np.array(means)[:, None, None, None] + difficulty + noise, 0, 1))


def test_rank_correlations_of_rows_equal_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(20, 7)), rng.normal(size=(20, 7))
    assert spearman(a, b) == pytest.approx(
        [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    )
    assert kendall(a, b) == pytest.approx(
        [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    )


def test_the_score_is_the_mean_over_cases_seeds_and_structures_where_nothing_is_missing():
    found = noisy([0.5, 0.7])
    rows = standings(sample(found, SETTINGS), SETTINGS)
    assert [row.label for row in rows] == ["net1", "net0"]
    assert rows[0].dice == pytest.approx(found.dice[1].mean())
    assert rows[0].seed_deviation == pytest.approx(found.dice[1].mean(axis=(1, 2)).std(ddof=1))


def test_clearly_different_backbones_have_certain_ranks_and_equal_ones_do_not():
    apart = standings(sample(noisy([0.5, 0.6, 0.7]), SETTINGS), SETTINGS)
    assert [row.rank_interval for row in apart] == [(1, 1), (2, 2), (3, 3)]
    assert apart[0].probability_first == 1
    close = standings(sample(noisy([0.6, 0.6], sd=0.05), SETTINGS), SETTINGS)
    assert all(row.rank_interval == (1, 2) for row in close)


def test_intervals_over_cases_cover_the_expected_score_as_often_as_they_say():
    covered = 0
    for trial in range(100):
        found = noisy([0.6], cases=30, seeds=1, structures=1, seed=trial)
        low, high = standings(sample(found, SETTINGS), SETTINGS)[0].cases
        covered += low <= 0.6 <= high
    assert 86 <= covered <= 100


def test_seeds_that_differ_widen_the_interval_over_seeds_alone():
    dice = np.full((1, 3, 8, 1), 0.5) + np.array([-0.2, 0.0, 0.2])[None, :, None, None]
    row = standings(sample(scores(dice), SETTINGS), SETTINGS)[0]
    assert row.cases == pytest.approx((0.5, 0.5))
    assert row.both == pytest.approx((0.3, 0.7))


def test_gains_are_paired_so_that_the_difficulty_of_cases_cancels():
    before = noisy([0.4, 0.5], sd=0.0)
    after = scores(before.dice + 0.1)
    found = gains(sample(before, SETTINGS), sample(after, SETTINGS), SETTINGS)
    assert [gain.gain for gain in found] == pytest.approx([0.1, 0.1])
    assert found[0].interval == pytest.approx((0.1, 0.1))


def test_the_same_order_correlates_fully_and_p_counts_permutations():
    before, after = noisy([0.4, 0.5, 0.6, 0.7]), noisy([0.6, 0.65, 0.7, 0.75], seed=1)
    found = correlate(sample(before, SETTINGS), sample(after, SETTINGS), SETTINGS)
    assert found.spearman == found.kendall == pytest.approx(1)
    assert found.p == found.least_p == pytest.approx(1 / 24)
    turned = correlate(sample(before, SETTINGS), sample(scores(after.dice[::-1]), SETTINGS), SETTINGS)
    assert turned.spearman == pytest.approx(-1)
    assert turned.p == 1


def test_the_permutation_p_equals_an_enumeration():
    before, after = noisy([0.4, 0.5, 0.6, 0.7, 0.8]), noisy([0.5, 0.4, 0.6, 0.8, 0.7], seed=1)
    a, b = sample(before, SETTINGS), sample(after, SETTINGS)
    found = correlate(a, b, SETTINGS)
    rhos = [stats.spearmanr(a.observed, order).statistic for order in itertools.permutations(b.observed)]
    assert found.p == pytest.approx(np.mean(np.array(rhos) >= found.spearman - 1e-9))


def test_two_backbones_have_no_correlation():
    pair = sample(noisy([0.4, 0.5]), SETTINGS)
    assert correlate(pair, pair, SETTINGS) is None


def test_a_single_case_is_refused():
    with pytest.raises(DataError, match="1 held-out case"):
        sample(noisy([0.5], cases=1), SETTINGS)


def test_a_structure_that_a_case_lacks_is_left_out_for_all_alike():
    dice = np.full((2, 1, 3, 2), 0.5)
    dice[:, :, 0, 1] = np.nan
    dice[1, :, 1:, 1] = 0.9
    found = sample(scores(dice), SETTINGS)
    assert found.observed == pytest.approx([0.5, 0.7])
