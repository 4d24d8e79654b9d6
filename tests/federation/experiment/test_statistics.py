"""Intervals and tests, against SciPy and by hand."""

import numpy as np
import pytest
from scipy import stats

from fedvox_federation.experiment.statistics import compare, estimate, two_sided


def test_the_test_is_scipys_exact_one():
    differences = np.random.default_rng(0).normal(0.3, 1, 12)
    assert two_sided(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_five_seeds_of_one_mind_are_not_significant_and_six_are():
    assert two_sided(np.arange(1.0, 6.0)) == pytest.approx(2 / 2**5)
    assert two_sided(np.arange(1.0, 7.0)) == pytest.approx(2 / 2**6)
    assert two_sided(np.zeros(5)) == 1.0


def test_holm_corrects_over_all_comparisons_given():
    rng = np.random.default_rng(1)
    base = rng.normal(size=10)
    pairs = {
        ("a", "b", 1.0): (base + 1, base),
        ("c", "b", 1.0): (base + rng.normal(size=10), base),
        ("a", "c", 8.0): (base, base),
    }
    first, second, third = compare(pairs)
    assert first.p == pytest.approx(2 / 2**10)
    assert first.p_holm == pytest.approx(3 * first.p)
    assert second.p_holm == pytest.approx(max(first.p_holm, min(1.0, 2 * second.p)))
    assert (third.p, third.p_holm, third.wins) == (1.0, 1.0, 0.5)
    assert (first.wins, first.significant, first.seeds) == (1.0, True, 10)
    assert first.difference.mean == pytest.approx(1.0)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = [(e := estimate(rng.normal(size=20))).low <= 0 <= e.high for _ in range(100)]
    assert np.mean(inside) > 0.85


def test_one_seed_has_no_interval():
    assert np.isnan(estimate([0.5]).low)
    assert estimate([0.5]).mean == 0.5
    assert compare({}) == []
