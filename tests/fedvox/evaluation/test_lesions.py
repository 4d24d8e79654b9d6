"""Lesion-wise metrics: components counted by hand, and matchings against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.evaluation.lesions import LesionOverlap, LesionPolicy, lesion_overlap
from fedvox.evaluation.metrics import measure

ISO = (1.0, 1.0, 1.0)
DEFAULT = LesionPolicy()


def cubes(*corners, side=3, shape=(20, 20, 20)):
    mask = np.zeros(shape, bool)
    for z, y, x in corners:
        mask[z : z + side, y : y + side, x : x + side] = True
    return mask


def lesion_scores(reference, prediction, policy=DEFAULT, spacing=ISO):
    return measure(reference, prediction, spacing, lesions=policy)


def test_one_of_two_lesions_found_and_one_invented():
    scores = lesion_scores(cubes((1, 1, 1), (10, 10, 10)), cubes((1, 1, 1), (1, 10, 1)))
    assert scores["lesion_precision@iou0.1"] == 0.5
    assert scores["lesion_recall@iou0.1"] == 0.5
    assert scores["lesion_f1@iou0.1"] == 0.5
    assert (scores["pq@iou0.5"], scores["sq@iou0.5"], scores["rq@iou0.5"]) == (0.5, 1.0, 0.5)


def test_panoptic_quality_of_a_lesion_shifted_by_a_third():
    # IoU of a 3³ cube and itself one voxel further: 18 / 36, which reaches a threshold of 0.5 exactly.
    scores = lesion_scores(cubes((5, 5, 5), (12, 12, 12)), cubes((5, 5, 6), (12, 12, 12)))
    assert scores["sq@iou0.5"] == pytest.approx((0.5 + 1) / 2)
    assert scores["pq@iou0.5"] == pytest.approx(0.75)
    strict = lesion_scores(
        cubes((5, 5, 5), (12, 12, 12)), cubes((5, 5, 6), (12, 12, 12)), LesionPolicy(pq_iou=0.51)
    )
    assert strict["pq@iou0.51"] == pytest.approx(1 / 2)


def test_a_bridge_between_two_lesions_loses_one_of_them():
    reference = cubes((5, 5, 2), (5, 5, 8))
    bridged = reference.copy()
    bridged[6, 6, 2:11] = True
    scores = lesion_scores(reference, bridged)
    assert scores["dice"] > 0.95
    assert scores["lesion_recall@iou0.1"] == 0.5
    assert scores["lesion_precision@iou0.1"] == 1.0


@pytest.mark.parametrize(("connectivity", "lesions"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity_says_which_neighbours_belong_together(connectivity, lesions):
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[2, 2, 1] = True  # share an edge
    mask[3, 3, 2] = True  # shares a corner with the second
    found = lesion_overlap(mask, mask, 1.0, LesionPolicy(connectivity=connectivity))
    assert found.num_reference == found.num_prediction == lesions


def test_specks_below_the_smallest_volume_are_ignored_on_both_sides():
    reference = cubes((1, 1, 1)) | cubes((10, 10, 10), side=1)
    prediction = cubes((1, 1, 1)) | cubes((15, 3, 3), side=1) | cubes((3, 15, 3), side=1)
    assert lesion_scores(reference, prediction)["lesion_f1@iou0.1"] == pytest.approx(2 / 5)
    scores = lesion_scores(reference, prediction, LesionPolicy(min_volume_mm3=2.0))
    assert scores["lesion_f1@iou0.1"] == scores["pq@iou0.5"] == 1.0
    fine = lesion_scores(reference, prediction, LesionPolicy(min_volume_mm3=2.0), spacing=(2.0, 1.0, 1.0))
    assert fine["lesion_f1@iou0.1"] == pytest.approx(2 / 5)  # a voxel is 2 mm³ now


def test_lesions_on_one_side_only_score_zero():
    found = LesionOverlap(0, 3, np.zeros((0, 2), np.intp), np.zeros(0))
    assert found.detection(0.1) == found.panoptic(0.5) == (0.0, 0.0, 0.0)


@st.composite
def overlaps(draw):
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    iou = np.round(np.array(draw(st.lists(st.floats(0, 1), min_size=n * m, max_size=n * m))).reshape(n, m), 3)
    pairs = np.argwhere(iou > 0)
    return LesionOverlap(n, m, pairs, iou[iou > 0]), iou


@settings(max_examples=150, deadline=None)
@given(overlaps(), st.sampled_from([0.05, 0.25, 0.5]))
def test_the_matching_has_the_most_pairs_and_then_the_largest_overlap(case, threshold):
    found, iou = case
    small, large = sorted(iou.shape)
    table = iou if iou.shape[0] == small else iou.T
    valid = np.where(table >= threshold, table, 0)
    best = max(
        (np.count_nonzero(chosen), chosen.sum())
        for order in permutations(range(large), small)
        for chosen in [valid[np.arange(small), list(order)]]
    )
    matched = found.matched(threshold)
    assert (len(matched), matched.sum()) == (best[0], pytest.approx(best[1]))
