"""Scores by hand, the choice among candidates, and what is written of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox.errors import ConfigError
from fedvox.inference.selection import (
    Candidate,
    Counts,
    Selection,
    choose_best,
    mean_dice,
    read_selection,
    write_selection,
)
from fedvox.storage import locate


def test_dice_is_counted_by_structure_and_empty_ones_are_told_apart():
    reference = np.array([0, 1, 1, 1, 2, 0]).reshape(1, 2, 3).astype(np.uint8)
    prediction = np.array([0, 1, 1, 0, 0, 3]).reshape(1, 2, 3).astype(np.uint16)
    dice = Counts.of(reference, prediction, 5).dice()
    np.testing.assert_allclose(dice[:4], [2 * 1 / (2 + 3), 2 * 2 / (3 + 2), 0, 0])
    assert np.isnan(dice[4])


def test_values_beyond_the_structures_count_as_nothing():
    labels = np.full((1, 1, 4), 9, np.uint8)
    assert np.isnan(Counts.of(labels, labels, 3).dice()).all()


def test_the_mean_leaves_out_cases_without_the_structure():
    rows = [np.array([1.0, 0.5, np.nan]), np.array([1.0, np.nan, np.nan]), np.array([0.0, 1.0, np.nan])]
    found = mean_dice(rows)
    np.testing.assert_allclose(found[:2], [2 / 3, 0.75])
    assert np.isnan(found[2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_best_is_the_first_of_the_highest(scores):
    candidates = [Candidate(str(i), (f"run{i}",), score, {}) for i, score in enumerate(scores)]
    assert choose_best(candidates).name == str(scores.index(max(scores)))


def test_a_candidate_without_a_score_never_wins_and_none_at_all_is_refused():
    nothing = Candidate("empty", ("r",), float("nan"), {})
    assert choose_best([nothing, Candidate("b", ("s",), 0.0, {})]).name == "b"
    with pytest.raises(ConfigError, match="no structure is in any case"):
        choose_best([nothing])


def test_a_selection_is_read_as_it_was_written(tmp_path):
    candidate = Candidate("a", ("r0", "r1"), 0.8, {"liver": 0.8})
    selection = Selection("a", ("r0", "r1"), (candidate,), 10, "x/postprocessing.json", 0.81)
    location = write_selection(selection, locate(tmp_path))
    assert read_selection(location.uri) == selection


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "does not exist"),
        ("{", "no selection"),
        ('{"schema": "fedvox.selection/9"}', "another schema"),
        ('{"schema": "fedvox.selection/1", "candidates": []}', "no selection"),
    ],
)
def test_a_selection_that_cannot_be_used_is_refused(tmp_path, content, match):
    if content is not None:
        (tmp_path / "selection.json").write_text(content)
    with pytest.raises(ConfigError, match=match):
        read_selection(str(tmp_path / "selection.json"))
