"""Properties that every metric must have, over random masks, spacings and orientations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedvox.evaluation.lesions import LesionPolicy
from fedvox.evaluation.metrics import measure

TOLERANCES = (0.6, 2.0)
BOTH = ("voxel", "surfel")
shapes = npst.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)
spacings = st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.7, 3.0])] * 3)


@st.composite
def pairs(draw, non_empty=False):
    shape = draw(shapes)
    masks = [draw(npst.arrays(bool, shape, elements=st.booleans(), fill=st.just(False))) for _ in range(2)]
    if non_empty:
        for mask in masks:
            mask[draw(st.tuples(*[st.integers(0, n - 1) for n in shape]))] = True
    return masks[0], masks[1], draw(spacings)


def scores(a, b, spacing, tolerance_mm=TOLERANCES):
    return measure(a, b, spacing, tolerance_mm=tolerance_mm, surface=BOTH, lesions=LesionPolicy())


def same(found, expected):
    assert set(found) == set(expected)
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), metric


common = settings(max_examples=60, deadline=None)


@common
@given(pairs())
def test_every_value_lies_within_its_bounds(case):
    a, b, spacing = case
    diagonal = np.linalg.norm(np.multiply(a.shape, spacing))
    for metric, value in scores(a, b, spacing).items():
        if np.isnan(value):
            assert not a.any()
            assert not b.any()
        elif metric.split("/")[0] in ("hd", "hd95", "assd", "masd"):
            assert 0 <= value <= diagonal * (1 + 1e-9)
        elif not metric.startswith("volume"):
            assert 0 <= value <= 1


@common
@given(pairs(non_empty=True))
def test_a_mask_equals_itself_perfectly(case):
    a, _, spacing = case
    for metric, value in scores(a, a, spacing).items():
        distance = metric.startswith("volume") or metric.split("/")[0] in ("hd", "hd95", "assd", "masd")
        assert value == (0 if distance else 1), metric


@common
@given(pairs(non_empty=True))
def test_exchanging_reference_and_prediction_changes_only_what_has_a_direction(case):
    a, b, spacing = case
    forth, back = dict(scores(a, b, spacing)), dict(scores(b, a, spacing))
    assert forth.pop("volume_difference_ml") == pytest.approx(-back.pop("volume_difference_ml"))
    assert forth.pop("lesion_precision@iou0.1") == back.pop("lesion_recall@iou0.1")
    assert forth.pop("lesion_recall@iou0.1") == back.pop("lesion_precision@iou0.1")
    for values in (forth, back):
        values.pop("volume_error")
    same(forth, back)


@common
@given(pairs(), st.sampled_from(list(permutations(range(3)))))
def test_transposing_volumes_and_spacing_changes_nothing(case, axes):
    a, b, spacing = case
    turned = scores(a.transpose(axes), b.transpose(axes), tuple(spacing[i] for i in axes))
    same(turned, scores(a, b, spacing))


@common
@given(pairs(), st.sets(st.integers(0, 2), min_size=1))
def test_mirroring_changes_nothing(case, axes):
    a, b, spacing = case
    same(scores(np.flip(a, tuple(axes)), np.flip(b, tuple(axes)), spacing), scores(a, b, spacing))


@common
@given(
    pairs(non_empty=True), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3)
)
def test_background_around_changes_nothing(case, margins):
    a, b, spacing = case
    same(scores(np.pad(a, margins), np.pad(b, margins), spacing), scores(a, b, spacing))


@common
@given(pairs(non_empty=True), st.sampled_from([0.1, 0.37, 2.0, 10.0]))
def test_scaling_the_spacing_scales_distances_and_nothing_else(case, factor):
    a, b, spacing = case
    before = scores(a, b, spacing)
    after = scores(a, b, tuple(s * factor for s in spacing), tuple(t * factor for t in TOLERANCES))
    assert len(before) == len(after)
    for (metric, value), scaled in zip(before.items(), after.values(), strict=True):
        power = (
            3 if metric == "volume_difference_ml" else metric.split("/")[0] in ("hd", "hd95", "assd", "masd")
        )
        assert scaled == pytest.approx(value * factor**power, rel=1e-9, abs=1e-12), metric


@common
@given(pairs(non_empty=True))
def test_metrics_of_one_family_are_ordered(case):
    found = scores(*case)
    assert found["iou"] == pytest.approx(found["dice"] / (2 - found["dice"]))
    assert found["pq@iou0.5"] == pytest.approx(found["sq@iou0.5"] * found["rq@iou0.5"])
    for surface in BOTH:
        assert found[f"nsd@0.6mm/{surface}"] <= found[f"nsd@2mm/{surface}"]
        assert found[f"hd95/{surface}"] <= found[f"hd/{surface}"]
        assert found[f"assd/{surface}"] <= found[f"hd/{surface}"] * (1 + 1e-9)


@common
@given(pairs(non_empty=True))
def test_hausdorff_distance_equals_the_brute_force_over_all_pairs_of_surface_voxels(case):
    a, b, spacing = case

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = padded.copy()
        for axis in range(3):
            inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
        return np.argwhere(padded & ~inner) * spacing

    distance = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=2)
    expected = max(distance.min(axis=0).max(), distance.min(axis=1).max())
    assert scores(a, b, spacing)["hd/voxel"] == pytest.approx(expected)
