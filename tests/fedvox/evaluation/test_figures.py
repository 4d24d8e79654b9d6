"""Figures show the numbers they were given, and stand in a light or dark page."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fedvox.evaluation import figures
from fedvox.evaluation.pairwise import compare_all
from fedvox.evaluation.ranking import critical_difference, rank_methods
from fedvox.evaluation.score_table import complete
from fedvox.evaluation.subgroups import analyse_subgroups

METHODS = ["alpha", "beta", "gamma", "delta"]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    values = rng.beta(8, 2, (1, 80, 2)) * 0.9 + rng.normal(0, 0.01, (4, 80, 2))
    values[1] += 0.05
    return complete("dice", METHODS, [f"c{i}" for i in range(80)], ["liver", "spleen"], values)


@pytest.fixture(scope="module")
def drawn(table):
    groups = analyse_subgroups(table, "sex", ["F"] * 40 + ["M"] * 35 + [None] * 5)
    return {
        "significance": figures.significance_map(compare_all(table)),
        "critical difference": figures.critical_difference_diagram(critical_difference(table)),
        "ranks": figures.rank_distribution(rank_methods(table)),
        "scores": figures.score_distribution(table),
        "groups": figures.subgroup_means(groups),
    }


@pytest.mark.parametrize("name", ["significance", "critical difference", "ranks", "scores", "groups"])
def test_every_method_is_named_and_the_ink_follows_the_page(drawn, name):
    svg = figures.to_svg(drawn[name], f'{name} <of> "methods" & more')
    root = ET.fromstring(svg)
    text = " ".join(root.itertext())
    assert all(method in text for method in METHODS)
    assert root.attrib["aria-label"] == f'{name} <of> "methods" & more'
    assert "currentColor" in svg
    assert figures._INK not in svg


def test_the_same_result_gives_the_same_file(table):
    ranking = rank_methods(table)
    first, second = (figures.to_svg(figures.rank_distribution(ranking), "ranks") for _ in range(2))
    assert first == second


def test_the_significance_map_shows_the_difference_of_every_better_pair(table, drawn):
    result = compare_all(table)
    shown = sorted(t.get_text() for t in drawn["significance"].axes[0].texts)
    better = result.better[-1]
    assert better.sum() >= 3
    assert shown == sorted(f"+{d:.2g}" for d in result.difference[-1][better])


def test_dots_of_the_rank_figure_are_the_rank_distribution(table, drawn):
    ranking = rank_methods(table)
    best = drawn["ranks"].axes[0].collections[0]
    assert best.get_offsets()[0].tolist() == [1, 0]
    assert best.get_sizes()[0] == pytest.approx(160 * ranking.probability_first[METHODS.index("beta")])


def test_boxes_show_medians_and_means_of_case_means(table, drawn):
    axes = drawn["scores"].axes[0]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(means, table.case_means().mean(axis=1))


def test_untested_groups_are_hollow(drawn):
    lines = {line.get_label().split(" ")[0]: line for line in drawn["groups"].axes[0].lines}
    assert lines["unknown"].get_markerfacecolor() == "none"
    assert lines["F"].get_markerfacecolor() != "none"
