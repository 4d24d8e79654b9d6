"""Completing scores: nothing is dropped, every comparison is over the same cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.score_table import complete, from_frames

NAN = float("nan")


def table(values, metric="dice", **options):
    values = np.array(values, float)
    m, n, s = values.shape
    names = [f"m{i}" for i in range(m)], [f"c{i}" for i in range(n)], [f"s{i}" for i in range(s)]
    return complete(metric, *names, values, **options)


def test_a_cell_that_applies_to_nobody_counts_for_nobody():
    t = table([[[0.9, NAN]], [[0.8, NAN]]])
    assert t.applicable.tolist() == [[True, False]]
    assert np.isnan(t.values[:, 0, 1]).all()
    assert t.rejections.tolist() == t.missing.tolist() == [0, 0]


def test_leaving_out_what_another_hallucinated_scores_best_and_hallucinating_worst():
    t = table([[[NAN]], [[0.0]]])
    assert t.values[:, 0, 0].tolist() == [1.0, 0.0]
    assert t.rejections.tolist() == [1, 0]
    distances = table([[[NAN]], [[120.0]]], metric="hd95/voxel")
    assert distances.values[:, 0, 0].tolist() == [0.0, 120.0]


def test_missing_cells_score_worst():
    missing = np.zeros((2, 2, 1), bool)
    missing[0, 1] = True
    t = table([[[0.9], [NAN]], [[0.8], [0.7]]], missing=missing)
    assert t.values[0].reshape(-1).tolist() == [0.9, 0.0]
    assert t.missing.tolist() == [1, 0]
    distances = table([[[3.0], [NAN]], [[4.0], [90.0]]], metric="hd95/voxel", missing=missing)
    assert distances.values[0, 1, 0] == distances.worst == 90.0
    declared = table([[[3.0], [NAN]], [[4.0], [90.0]]], metric="hd95/voxel", missing=missing, worst=500.0)
    assert declared.values[0, 1, 0] == 500.0


def test_a_value_in_a_missing_cell_is_not_believed():
    missing = np.array([[[True]], [[False]]])
    assert table([[[0.99]], [[0.5]]], missing=missing).values[:, 0, 0].tolist() == [0.0, 0.5]


def test_quality_is_the_value_or_its_negative():
    assert table([[[0.9]], [[0.8]]]).quality[0, 0, 0] == 0.9
    assert table([[[2.0]], [[3.0]]], metric="hd95/voxel").quality[0, 0, 0] == -2.0
    assert table([[[-2.0]], [[3.0]]], metric="volume_difference_ml").quality[0, 0, 0] == -2.0


def test_case_means_are_over_applicable_structures():
    t = table([[[0.9, NAN], [0.6, 0.8], [NAN, NAN]], [[0.5, NAN], [0.5, 0.5], [NAN, NAN]]])
    np.testing.assert_allclose(t.case_means()[0], [0.9, 0.7, NAN])


def frame(rows):
    return pd.DataFrame(rows, columns=["case", "structure", "dice"])


def test_frames_are_aligned_by_name_and_absent_rows_are_missing():
    frames = {
        "a": frame([("c2", "liver", 0.7), ("c1", "liver", 0.9)]),
        "b": frame([("c1", "liver", 0.8)]),
    }
    t = from_frames("dice", frames, ["c1", "c2"], ["liver"], patients={"c1": "p", "c2": "p"})
    assert t.values[:, :, 0].tolist() == [[0.9, 0.7], [0.8, 0.0]]
    assert t.missing.tolist() == [0, 1]
    assert t.num_patients == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("c9", "liver", 0.9)], "c9"),
        ([("c1", "spleen", 0.9)], "spleen"),
        ([("c1", "liver", 0.9), ("c1", "liver", 0.9)], "two scores"),
        ([("c1", "liver", np.inf)], "infinity"),
    ],
)
def test_scores_that_do_not_fit_the_test_set_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        from_frames("dice", {"a": frame(rows)}, ["c1", "c2"], ["liver"])


def test_a_metric_that_was_not_measured_and_repeated_names_are_refused():
    with pytest.raises(DataError, match="iou"):
        from_frames("iou", {"a": frame([])}, ["c1"], ["liver"])
    with pytest.raises(DataError, match="more than once"):
        complete("dice", ["a", "a"], ["c"], ["s"], np.zeros((2, 1, 1)))
    with pytest.raises(DataError, match="shape"):
        complete("dice", ["a"], ["c"], ["s"], np.zeros((2, 1, 1)))
    with pytest.raises(ConfigError):
        complete("nsd", ["a"], ["c"], ["s"], np.zeros((1, 1, 1)))


def test_selecting_keeps_values_with_their_names():
    t = table(np.random.default_rng(0).random((3, 4, 2)), patients=["x", "y", "x", "z"])
    part = t.select(cases=[3, 1], methods=["m2"], structures=["s1"])
    assert (part.cases, part.methods, part.structures) == (("c3", "c1"), ("m2",), ("s1",))
    assert part.values.tolist() == [[[t.values[2, 3, 1]], [t.values[2, 1, 1]]]]
    assert part.num_patients == 2
