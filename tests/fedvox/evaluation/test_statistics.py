"""Tests, intervals and rankings against values that R and the literature publish, and against SciPy."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from fedvox.errors import DataError
from fedvox.evaluation.bootstrap import Aggregation, Ratios, bca_interval, resample_weights
from fedvox.evaluation.pairwise import compare_all
from fedvox.evaluation.power import paired_sample_size, power_statement, standardised_effect
from fedvox.evaluation.ranking import agreement, critical_difference, rank_methods
from fedvox.evaluation.score_table import complete

NAN = float("nan")


def table(values, metric="dice", names=None, **options):
    values = np.array(values, float)
    values = values[:, :, None] if values.ndim == 2 else values
    m, n, s = values.shape
    names = names or [f"m{i}" for i in range(m)]
    return complete(
        metric, names, [f"c{i}" for i in range(n)], [f"s{i}" for i in range(s)], values, **options
    )


# Hollander and Wolfe (1973), p. 29 f.: depression scale before and during therapy. R: wilcox.test(x, y, paired = TRUE,
# alternative = "greater") gives V = 40, p = 0.01953.
DEPRESSION = [
    [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30],
    [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29],
]

# Demšar (2006), table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets. In "voting" the last two print alike
# but are ranked 2 and 3, so one has a digit more here.
DEMSAR = [
    [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957],
    [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978],
    [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.0, 0.965, 0.614, 0.9751, 0.946],
    [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.0, 0.962, 0.669, 0.975, 0.970],
]

# Hollander and Wolfe (1973), p. 140 ff.: seconds to round first base by three methods. R: friedman.test gives
# chi-squared = 11.143, df = 2, p = 0.003805.
ROUNDING_TIMES = """
    5.40 5.50 5.55  5.85 5.70 5.75  5.20 5.60 5.50  5.55 5.50 5.40  5.90 5.85 5.70  5.45 5.55 5.60  5.40 5.40 5.35
    5.45 5.50 5.35  5.25 5.15 5.00  5.85 5.80 5.70  5.25 5.20 5.10  5.65 5.55 5.45  5.60 5.35 5.45  5.05 5.00 4.95
    5.50 5.50 5.40  5.45 5.55 5.50  5.55 5.55 5.35  5.45 5.50 5.55  5.50 5.45 5.25  5.65 5.60 5.40  5.70 5.65 5.55
    6.30 6.30 6.25
"""

# --- published values -----------------------------------------------------------------------------------------


def test_signed_rank_test_equals_r_on_hollander_and_wolfes_depression_data():
    result = compare_all(table(DEPRESSION))
    assert result.p[0, 0, 1] == pytest.approx(0.01953125, abs=1e-12)
    assert result.p[0, 1, 0] == pytest.approx(1 - 7 / 512, abs=1e-12)  # R, alternative = "less": 0.9863
    assert result.rank_biserial[0, 0, 1] == pytest.approx(2 * 40 / 45 - 1)
    assert result.win_share[0, 0, 1] == pytest.approx(7 / 9)


def test_average_ranks_and_critical_difference_equal_demsar():
    cd = critical_difference(table(DEMSAR, names=["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]))
    np.testing.assert_allclose(cd.average_ranks, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    assert cd.difference == pytest.approx(1.25, abs=0.005)
    # "the data is not sufficient to reach any conclusion" for the post-hoc test at 0.05 of all pairs
    assert cd.groups == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)
    at_ten_percent = critical_difference(table(DEMSAR), alpha=0.10)
    assert at_ten_percent.difference == pytest.approx(1.12, abs=0.005)
    assert len(at_ten_percent.groups) > 1


def test_friedmans_test_equals_r_on_the_rounding_times():
    cd = critical_difference(
        table(np.array(ROUNDING_TIMES.split(), float).reshape(22, 3).T, metric="hd/voxel")
    )
    assert cd.statistic == pytest.approx(11.143, abs=5e-4)
    assert cd.p == pytest.approx(0.003805, abs=5e-7)
    assert cd.num_patients == 22


def test_sample_sizes_equal_cohens_tables():
    # R: pwr.t.test(d = 0.5, sig.level = 0.025, power = 0.8, type = "paired", alternative = "greater") gives 33.37.
    assert paired_sample_size(0.5, 0.025, 0.8) == pytest.approx(33.37, abs=0.01)
    assert standardised_effect(33.3671, 0.025, 0.8) == pytest.approx(0.5, abs=1e-4)


# --- against SciPy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patients", "decimals"), [(7, 1), (9, 8), (50, 8), (51, 2), (200, 2)])
def test_every_p_value_equals_scipys_for_its_pair(patients, decimals):
    """Few decimals make ties and zeros; SciPy has exact values with them up to 13 pairs, without them up to 50."""
    rng = np.random.default_rng(patients)
    values = np.round(rng.beta(6, 2, (5, patients, 3)), decimals)
    result = compare_all(table(values))
    for k in range(3):
        for a, b in [(0, 1), (3, 2), (4, 0)]:
            expected = stats.wilcoxon(
                np.round(values[a, :, k] - values[b, :, k], 12), alternative="greater"
            ).pvalue
            assert result.p[k, a, b] == pytest.approx(expected, rel=1e-12)


def test_holm_corrects_over_all_ordered_pairs_and_structures_together():
    rng = np.random.default_rng(5)
    result = compare_all(table(rng.beta(6, 2, (4, 60, 3)) + np.linspace(0, 0.1, 4)[:, None, None]))
    pairs = ~np.eye(4, dtype=bool)
    p = result.p[:-1][:, pairs].reshape(-1)
    assert len(p) == 3 * 12
    order, running, expected = np.argsort(p), 0.0, np.empty_like(p)
    for i, index in enumerate(order):  # Holm (1979): (n - i) p(i), made monotone
        running = max(running, min(1.0, (len(p) - i) * p[index]))
        expected[index] = running
    np.testing.assert_allclose(result.p_holm[:-1][:, pairs].reshape(-1), expected, rtol=1e-12)


def test_bca_interval_equals_scipys_on_the_same_resamples():
    rng = np.random.default_rng(6)
    sample = rng.lognormal(size=40)
    drawn = stats.bootstrap((sample,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(1))
    jackknife = (sample.sum() - sample) / 39
    low, high = bca_interval(
        np.array([sample.mean()]), drawn.bootstrap_distribution[:, None], jackknife[:, None]
    )
    assert low[0] == pytest.approx(drawn.confidence_interval.low, rel=1e-12)
    assert high[0] == pytest.approx(drawn.confidence_interval.high, rel=1e-12)


def test_bca_interval_covers_a_skewed_mean_nearly_as_often_as_it_says():
    hits, rng = 0, np.random.default_rng(7)
    for seed in range(300):
        sample = rng.exponential(size=50)
        weights = resample_weights(50, 500, seed)
        low, high = bca_interval(
            np.array([sample.mean()]),
            (weights @ sample / 50)[:, None],
            ((sample.sum() - sample) / 49)[:, None],
        )
        hits += low[0] <= 1 <= high[0]
    assert 0.90 <= hits / 300 <= 0.98  # 0.93 is known for the exponential and n = 50


def test_an_interval_of_something_constant_has_no_width():
    low, high = bca_interval(np.array([0.3]), np.full((100, 1), 0.3), np.full((10, 1), 0.3))
    assert low[0] == high[0] == 0.3


def test_resamples_draw_as_many_patients_as_there_are_evenly():
    weights = resample_weights(30, 4000, 0)
    assert (weights.sum(axis=1) == 30).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    assert weights.var() == pytest.approx(1 - 1 / 30, abs=0.02)


# --- aggregation ----------------------------------------------------------------------------------------------


def test_aggregations_weigh_rare_structures_and_short_cases_as_they_say():
    # Two cases; the rare structure s1 is in the second only.
    t = table([[[0.9, NAN], [0.9, 0.1]], [[0.8, NAN], [0.8, 0.8]]])
    scores = {a: Ratios.of(t, a).scores(np.ones((1, 2)))[0] for a in Aggregation}
    np.testing.assert_allclose(scores[Aggregation.STRUCTURE_MACRO], [(0.9 + 0.1) / 2, 0.8])
    np.testing.assert_allclose(scores[Aggregation.CASE_MEAN], [(0.9 + 0.5) / 2, 0.8])
    np.testing.assert_allclose(scores[Aggregation.POOLED], [1.9 / 3, 0.8])
    np.testing.assert_allclose(scores[Aggregation.MEAN_RANK], [-(1 + 2) / 2, -(2 + 1) / 2])


def test_scans_of_one_patient_are_resampled_together():
    t = table(np.random.default_rng(0).random((2, 6, 1)), patients=["p", "p", "p", "q", "q", "r"])
    ratios = Ratios.of(t, Aggregation.STRUCTURE_MACRO)
    twice_p = ratios.scores(np.array([[2.0, 1.0, 0.0]]))[0]
    expected = t.values[:, [0, 1, 2, 0, 1, 2, 3, 4], 0].mean(axis=1)
    np.testing.assert_allclose(twice_p, expected)


def test_ten_copies_of_every_scan_do_not_make_a_result_more_certain():
    rng = np.random.default_rng(1)
    values = rng.normal([[0.80], [0.79]], 0.05, (2, 30))
    once = compare_all(table(values))
    copies = compare_all(table(np.repeat(values, 10, axis=1), patients=[f"p{i // 10}" for i in range(300)]))
    np.testing.assert_allclose(copies.p, once.p)
    assert copies.num_patients.tolist() == once.num_patients.tolist() == [30, 30]
    believed = compare_all(table(np.repeat(values, 10, axis=1)))
    assert believed.p[0].min() < once.p[0].min() / 10


# --- planted results ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """Six methods on 200 patients: m2 is best by 0.02, m0 and m4 are the same submission, m5 is 0.05 worse."""
    rng = np.random.default_rng(42)
    difficulty = rng.beta(8, 2, (1, 200, 4)) * 0.9
    values = difficulty + rng.normal(0, 0.02, (6, 200, 4))
    values[2] += 0.02
    values[4] = values[0]
    values[5] -= 0.05
    return np.clip(values, 0, 1)


def test_a_planted_winner_wins_every_ranking_with_certainty(planted):
    for aggregation in Aggregation:
        ranking = rank_methods(table(planted), aggregation)
        assert ranking.winners() == ["m2"]
        assert ranking.probability_first[2] > 0.99
        assert ranking.interval[2].tolist() == [1, 1]
        assert ranking.order()[-1] == "m5"


def test_a_planted_winner_is_better_than_everyone_and_the_differences_are_right(planted):
    result = compare_all(table(planted))
    overall = result.better[-1]
    assert overall[2].sum() == 5
    assert not overall[:, 2].any()
    assert (result.low[-1, 2, 1] < 0.02 < result.high[-1, 2, 1]) or abs(
        result.difference[-1, 2, 1] - 0.02
    ) < 0.005
    np.testing.assert_allclose(result.difference, -result.difference.transpose(0, 2, 1))
    np.testing.assert_allclose(result.low, -result.high.transpose(0, 2, 1))


def test_a_tie_is_a_tie_in_every_resample(planted):
    ranking = rank_methods(table(planted))
    assert ranking.ranks[0] == ranking.ranks[4]
    np.testing.assert_array_equal(ranking.distribution[0], ranking.distribution[4])
    result = compare_all(table(planted))
    assert (result.p[:, 0, 4] == 1).all()
    assert (result.p[:, 4, 0] == 1).all()
    assert (result.difference[:, 0, 4] == 0).all()
    assert not result.better[:, 0, 4].any()


def test_significance_alone_is_no_verdict_where_a_margin_is_declared(planted):
    small = compare_all(table(planted), margin=0.03)
    assert small.p_holm[-1, 2, 1] < 0.05
    assert not small.better[-1, 2, 1]
    assert small.better[-1, 2, 5]


def test_leaving_out_the_hard_cases_does_not_pay(planted):
    """The cheat of published tables: submit only what went well."""
    missing = np.zeros(planted.shape, bool)
    missing[1, np.argsort(planted[1].mean(axis=1))[:40]] = True
    believed = np.where(missing, np.nan, planted)
    naive = np.nanmean(believed, axis=(1, 2))
    assert naive.argmax() == 1, "the cheat tops the table if missing cases are dropped"
    ranking = rank_methods(table(planted, missing=missing))
    assert ranking.winners() == ["m2"]
    assert ranking.order()[-1] == "m1"
    assert not compare_all(table(planted, missing=missing)).better[-1, 1].any()


def test_noise_alone_rejects_no_more_often_than_alpha():
    rejections = 0
    for seed in range(30):
        values = np.random.default_rng(seed).normal(0.8, 0.05, (4, 40, 2))
        rejections += bool(compare_all(table(values), resamples=200).better.any())
    assert rejections <= 7  # two families at 5 % each: 3 expected at most


def test_rank_probabilities_of_two_equal_methods_are_even():
    values = np.random.default_rng(3).normal(0.8, 0.05, (2, 400))
    values[1] += values[0].mean() - values[1].mean()
    ranking = rank_methods(table(values), resamples=4000)
    np.testing.assert_allclose(ranking.probability_first, 0.5, atol=0.05)
    assert ranking.interval.tolist() == [[1, 2], [1, 2]]
    assert abs(ranking.kendall_tau) < 0.1 or (ranking.ranks == 1).all()


def test_distances_rank_the_other_way_round():
    values = [[3.0, 4.0, 5.0], [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]
    assert rank_methods(table(values, metric="hd95/voxel")).order() == ["m1", "m0", "m2"]


def test_rankings_of_two_test_sets_are_compared_not_averaged(planted):
    first, second = rank_methods(table(planted)), rank_methods(table(planted[[5, 4, 3, 2, 1, 0]]))
    tau = agreement([first, second])
    assert tau[0, 0] == tau[1, 1] == 1
    assert tau[0, 1] == pytest.approx(stats.kendalltau(first.ranks, second.ranks).statistic)
    with pytest.raises(DataError):
        agreement([first, rank_methods(table(planted[:2]))])


# --- edges ----------------------------------------------------------------------------------------------------


def test_a_structure_that_no_case_has_is_left_out_of_the_comparison(planted):
    values = np.concatenate([planted, np.full((6, 200, 1), NAN)], axis=2)
    result, expected = compare_all(table(values)), compare_all(table(planted))
    assert result.scopes == expected.scopes
    np.testing.assert_allclose(result.p_holm, expected.p_holm)


def test_one_method_alone_is_ranked_first_and_compared_with_nobody():
    single = table([[0.5, 0.6, 0.7]])
    assert rank_methods(single).ranks.tolist() == [1]
    assert list(compare_all(single).comparisons()) == []


def test_too_little_for_a_statement_is_said():
    with pytest.raises(DataError, match="no method has a score"):
        rank_methods(table(np.full((2, 3, 1), NAN)))
    with pytest.raises(DataError, match="Friedman"):
        critical_difference(table(DEPRESSION))
    assert power_statement(table([[0.5, 0.6], [0.4, 0.7]])).detectable == float("inf")


def test_the_power_statement_holds_when_it_is_tried():
    rng = np.random.default_rng(8)
    n, spread = 80, 0.05
    base = rng.normal(0.8, 0.1, n)
    statement = power_statement(table([base, base + rng.normal(0, spread, n)]))
    hits = 0
    for _ in range(400):
        shifted = rng.normal(statement.detectable, statement.spread, n)
        hits += stats.wilcoxon(shifted, alternative="greater").pvalue < statement.alpha
    assert hits / 400 == pytest.approx(0.8, abs=0.06)


def test_the_power_statement_is_a_sentence_with_the_patients_that_a_margin_needs(planted):
    statement = power_statement(table(planted), margin=0.001)
    assert "200 patients" in str(statement)
    assert f"{statement.needed} patients would be needed" in str(statement)
    assert statement.needed > 200


def test_seventeen_methods_on_743_cases_and_nine_structures_take_seconds():
    rng = np.random.default_rng(0)
    values = np.clip(rng.beta(8, 2, (1, 743, 9)) + rng.normal(0, 0.05, (17, 743, 9)), 0, 1)
    values[:, rng.random((743, 9)) < 0.4] = NAN
    t = table(values)
    start = time.process_time()
    compare_all(t)
    rank_methods(t)
    critical_difference(t)
    power_statement(t)
    assert time.process_time() - start < 30
