"""`measure` against recorded values of surface-distance and of a plain voxel-surface computation."""

from __future__ import annotations

import math

import pytest

from fedvox.evaluation.metrics import EmptyPolicy, Presence, measure

TOLERANCES = (0.5, 1.0, 2.0, 3.0, 5.0)


def scores_of(case, surface, **options):
    return measure(
        case.reference, case.prediction, case.spacing, tolerance_mm=TOLERANCES, surface=surface, **options
    )


def test_every_recorded_case_has_a_recipe(recorded_case):
    assert recorded_case.reference.sum() == recorded_case.expected["gt_voxels"]
    assert recorded_case.prediction.sum() == recorded_case.expected["pred_voxels"]


def test_overlap_equals_the_recorded_values(recorded_case):
    scores = scores_of(recorded_case, "surfel")
    for metric, key in (("dice", "dsc"), ("iou", "iou")):
        if recorded_case.expected[key] is None:
            assert math.isnan(scores[metric])
        else:
            assert scores[metric] == pytest.approx(recorded_case.expected[key], abs=1e-9)


def test_surfel_metrics_equal_surface_distance(solid_case):
    scores, expected = scores_of(solid_case, "surfel"), solid_case.expected
    assert scores["hd/surfel"] == pytest.approx(expected["hd100"], abs=1e-9)
    assert scores["hd95/surfel"] == pytest.approx(expected["hd95"], abs=1e-9)
    assert scores["assd/surfel"] == pytest.approx(expected["assd"], abs=1e-9)
    for tolerance in TOLERANCES:
        assert scores[f"nsd@{tolerance:g}mm/surfel"] == pytest.approx(
            expected["nsd"][str(tolerance)], abs=1e-9
        )


def test_voxel_metrics_equal_the_voxel_anchor(solid_case):
    scores, expected = scores_of(solid_case, "voxel"), solid_case.expected["voxel_anchor"]
    assert scores["hd/voxel"] == pytest.approx(expected["hd"], abs=1e-9)
    assert scores["hd95/voxel"] == pytest.approx(expected["hd95_max"], abs=1e-9)
    assert scores["assd/voxel"] == pytest.approx(expected["assd_pooled"], abs=1e-9)
    assert scores["masd/voxel"] == pytest.approx(expected["assd_meanofmeans"], abs=1e-9)
    for tolerance in TOLERANCES:
        assert scores[f"nsd@{tolerance:g}mm/voxel"] == pytest.approx(
            expected["nsd"][str(tolerance)], abs=1e-9
        )


def test_both_surfaces_at_once_equal_each_alone(recorded_case):
    both = scores_of(recorded_case, ("surfel", "voxel"))
    alone = {**scores_of(recorded_case, "voxel"), **scores_of(recorded_case, "surfel")}
    assert set(both) == set(alone)
    for metric, value in both.items():
        assert value == pytest.approx(alone[metric], nan_ok=True, abs=0)


def test_infinite_penalty_reproduces_what_surface_distance_reports_for_one_empty_mask(half_empty_case):
    scores = scores_of(half_empty_case, "surfel", empty=EmptyPolicy(distance="infinite"))
    assert scores["hd/surfel"] == scores["hd95/surfel"] == math.inf
    assert all(scores[f"nsd@{t:g}mm/surfel"] == 0 for t in TOLERANCES)
    assert scores.presence is (
        Presence.MISSED if half_empty_case.name == "pred_empty" else Presence.HALLUCINATED
    )
