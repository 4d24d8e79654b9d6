"""Subgroups and external test sets: published values, planted gaps, and groups too small to say anything."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedvox.errors import DataError
from fedvox.evaluation.score_table import complete
from fedvox.evaluation.subgroups import analyse_subgroups, binned, generalization_gap


def table(values, metric="dice", structures=("liver",), **options):
    values = np.array(values, float)
    values = values[:, :, None] if values.ndim == 2 else values
    m, n, _ = values.shape
    return complete(
        metric, [f"m{i}" for i in range(m)], [f"c{i}" for i in range(n)], structures, values, **options
    )


def test_kruskal_wallis_equals_r_on_hollander_and_wolfes_mucociliary_data():
    # R: kruskal.test(list(x, y, z)) gives chi-squared = 0.77143, df = 2, p = 0.68.
    x, y, z = [2.9, 3.0, 2.5, 2.6, 3.2], [3.8, 2.7, 4.0, 2.4], [2.8, 3.4, 3.7, 2.2, 2.0]
    labels = ["normal"] * 5 + ["obstructive"] * 4 + ["asbestosis"] * 5
    found = analyse_subgroups(table([x + y + z]), "lung", labels, min_patients=4)
    assert found.kruskal_p[0] == pytest.approx(stats.chi2.sf(0.77143, 2), abs=1e-6)
    assert found.pairs == ()  # the gate is closed


@pytest.fixture(scope="module")
def planted():
    """m0 is 0.1 worse in site B, m1 treats all sites alike; four patients are of site D, ten of none."""
    rng = np.random.default_rng(0)
    sites = ["A"] * 60 + ["B"] * 60 + ["C"] * 60 + ["D"] * 4 + [None] * 10
    values = rng.normal(0.85, 0.04, (2, len(sites)))
    values[0, 60:120] -= 0.1
    return table(values), sites


def test_a_planted_gap_is_found_in_the_right_method_and_group(planted):
    found = analyse_subgroups(planted[0], "site", planted[1])
    assert found.kruskal_p[0] < 1e-6 < 0.05 < found.kruskal_p[1]
    assert {pair.method for pair in found.pairs} == {"m0"}
    significant = {(p.a, p.b) for p in found.pairs if p.p_corrected < 0.05}
    assert significant == {("A", "B"), ("B", "C")}
    gap = found.gaps[0]
    assert gap.worst == "B"
    assert gap.low < 0.1 < gap.high
    assert gap.worst_mean == pytest.approx(0.75, abs=0.02)


def test_small_and_unknown_groups_are_reported_but_not_tested(planted):
    found = analyse_subgroups(planted[0], "site", planted[1])
    assert found.groups == ("A", "B", "C", "D", "unknown")
    assert found.num_patients.tolist() == [60, 60, 60, 4, 10]
    assert found.tested.tolist() == [True, True, True, False, False]
    assert np.isfinite(found.means).all()
    assert {g for pair in found.pairs for g in (pair.a, pair.b)} == {"A", "B", "C"}


@pytest.mark.parametrize("correction", ["holm", "fdr_bh"])
def test_pairs_are_mann_whitney_tests_corrected_within_the_method(planted, correction):
    t, sites = planted
    found = analyse_subgroups(t, "site", sites, correction=correction)
    groups = {s: t.values[0, [i for i, x in enumerate(sites) if x == s], 0] for s in "ABC"}
    p = np.array([stats.mannwhitneyu(groups[a], groups[b]).pvalue for a, b in ("AB", "AC", "BC")])
    order = np.argsort(p)
    if correction == "holm":
        expected = np.maximum.accumulate(np.minimum(1, p[order] * [3, 2, 1]))
    else:  # Benjamini and Hochberg (1995)
        expected = np.minimum.accumulate((p[order] * 3 / [1, 2, 3])[::-1])[::-1]
    np.testing.assert_allclose([found.pairs[i].p for i in order], p[order], rtol=1e-12)
    np.testing.assert_allclose([found.pairs[i].p_corrected for i in order], expected, rtol=1e-12)


def test_many_scans_of_one_patient_count_once():
    rng = np.random.default_rng(1)
    values = rng.normal(0.8, 0.05, 60)
    labels = ["F"] * 30 + ["M"] * 30
    once = analyse_subgroups(table([values]), "sex", labels)
    copies = analyse_subgroups(
        table([np.repeat(values, 5)], patients=[f"p{i // 5}" for i in range(300)]),
        "sex",
        list(np.repeat(labels, 5)),
    )
    assert copies.num_patients.tolist() == [30, 30]
    np.testing.assert_allclose(copies.kruskal_p, once.kruskal_p)


def test_a_method_that_scores_all_alike_has_no_gap_and_no_crash():
    found = analyse_subgroups(table(np.full((1, 60), 0.9)), "sex", ["F"] * 30 + ["M"] * 30)
    assert found.kruskal_p[0] == 1
    assert found.gaps[0].difference == found.gaps[0].low == found.gaps[0].high == 0


def test_one_group_alone_is_described_without_tests():
    found = analyse_subgroups(table(np.full((2, 30), 0.9)), "sex", ["F"] * 30)
    assert np.isnan(found.kruskal_p).all()
    assert found.gaps == found.pairs == ()


def test_distances_have_their_worst_group_where_they_are_largest():
    found = analyse_subgroups(
        table([[2.0] * 25 + [9.0] * 25], metric="hd95/voxel"), "sex", ["F"] * 25 + ["M"] * 25
    )
    assert (found.gaps[0].worst, found.gaps[0].difference) == ("M", 7.0)


def test_labels_must_match_the_cases():
    with pytest.raises(DataError, match="labels"):
        analyse_subgroups(table([[0.9, 0.8]]), "sex", ["F"])


def test_ages_are_binned_with_the_bound_in_the_upper_interval():
    assert binned([12, 40, 59.9, 60, 95, None, float("nan")], [40, 60], "years") == [
        "<40 years", "40–60 years", "40–60 years", "≥60 years", "≥60 years", None, None,
    ]  # fmt: skip


def test_a_planted_drop_on_external_cases_is_found_over_common_structures():
    rng = np.random.default_rng(2)
    inside = table(rng.normal(0.9, 0.03, (2, 80, 2)), structures=("liver", "spleen"))
    values = rng.normal(0.9, 0.03, (2, 90, 2))
    values[1] -= 0.08
    outside = table(values, structures=("spleen", "pancreas"))
    steady, dropping = generalization_gap(inside, outside)
    assert steady.low < 0 < steady.high
    assert dropping.low < 0.08 < dropping.high
    assert dropping.low > 0.05
    assert (dropping.best, dropping.worst) == ("internal", "external")
    expected = inside.values[1, :, 1].mean() - outside.values[1, :, 0].mean()
    assert dropping.difference == pytest.approx(expected)


def test_test_sets_without_anything_in_common_are_refused():
    with pytest.raises(DataError, match="share no"):
        generalization_gap(table([[0.9]]), table([[0.9]], structures=("spleen",)))
