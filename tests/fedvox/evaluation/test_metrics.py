"""`measure` and `measure_labels`: geometry to check by hand, empty masks, label maps, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.metrics import EmptyPolicy, MetricPlan, Presence, measure, measure_labels

ISO = (1.0, 1.0, 1.0)
BOTH = ("voxel", "surfel")


def voxels(*points, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    for point in points:
        mask[point] = True
    return mask


def cube(low, high, shape=(20, 20, 20)):
    mask = np.zeros(shape, bool)
    mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


# --- geometry that a radiologist can check by hand ----------------------------------------------------------


@pytest.mark.parametrize(("axis", "millimetres"), [(0, 6.0), (1, 1.6), (2, 1.4)])
def test_two_voxels_two_steps_apart_are_twice_the_spacing_apart(axis, millimetres):
    step = np.eye(3, dtype=int)[axis] * 2
    scores = measure(voxels((5, 5, 5)), voxels(tuple(5 + step)), (3.0, 0.8, 0.7), surface="voxel")
    for metric in ("hd/voxel", "hd95/voxel", "assd/voxel", "masd/voxel"):
        assert scores[metric] == pytest.approx(millimetres)
    assert scores["dice"] == 0


def test_a_cube_shifted_by_its_quarter_has_dice_three_quarters():
    scores = measure(cube((4, 4, 4), (8, 8, 8)), cube((4, 4, 5), (8, 8, 9)), ISO, surface=BOTH)
    assert scores["dice"] == 0.75
    assert scores["iou"] == pytest.approx(48 / 80)
    assert scores["hd/voxel"] == scores["hd/surfel"] == 1.0


def test_surface_voxels_of_a_shifted_cube_counted_by_hand():
    # A 4³ cube has 4³ - 2³ = 56 surface voxels. After a shift by one voxel along x, those of one cube that are also
    # surface of the other are the 12 rim voxels of each of the 3 shared slices, and the 2² middles of two slices.
    scores = measure(
        cube((4, 4, 4), (8, 8, 8)), cube((4, 4, 5), (8, 8, 9)), ISO, surface="voxel", tolerance_mm=0.5
    )
    assert scores["nsd@0.5mm/voxel"] == pytest.approx((3 * 12) / 56)


def test_surfel_area_of_a_cuboid_is_its_faces_with_bevelled_edges_and_corners():
    # A prediction far away makes no difference to sizes; the surface area is read from an NSD of two parts.
    from fedvox.evaluation.boundaries import scan
    from fedvox.evaluation.surfels import surfel_areas

    mask = cube((3, 4, 5), (9, 12, 15)).astype(np.uint8)
    sz, sy, sx = spacing = (2.0, 1.0, 0.5)
    points = scan(mask, mask, 1, ("surfel",)).points["surfel"][0]
    area = surfel_areas(spacing)[points.codes].sum()
    nz, ny, nx = 6 - 1, 8 - 1, 10 - 1  # cells along a face
    faces = 2 * (ny * nx * sy * sx + nz * nx * sz * sx + nz * ny * sz * sy)
    bevels = (
        4 * 0.5 * (nx * sx * math.hypot(sy, sz) + ny * sy * math.hypot(sx, sz) + nz * sz * math.hypot(sx, sy))
    )
    corner = 0.5 * math.sqrt((sy * sx) ** 2 + (sz * sx) ** 2 + (sz * sy) ** 2) / 4
    assert area == pytest.approx(faces + bevels + 8 * corner)


def test_volume_difference_is_signed_and_in_millilitres():
    scores = measure(cube((0, 0, 0), (10, 10, 10)), cube((0, 0, 0), (10, 10, 5)), (2.0, 1.0, 1.0))
    assert scores["volume_difference_ml"] == pytest.approx(-1.0)
    assert scores["volume_error"] == pytest.approx(0.5)
    assert (scores.reference_voxels, scores.prediction_voxels) == (1000, 500)


def test_hd95_ignores_a_stray_voxel_that_hd_reports():
    ball = cube((5, 5, 5), (15, 15, 15))
    stray = ball | voxels((0, 0, 0), shape=(20, 20, 20))
    scores = measure(ball, stray, ISO, surface=BOTH)
    assert scores["hd/voxel"] == pytest.approx(math.sqrt(75))
    assert scores["hd95/voxel"] == scores["hd95/surfel"] == 0


def test_a_structure_at_the_border_of_the_volume_has_a_surface_there():
    full = np.ones((3, 3, 3), bool)
    scores = measure(full, voxels((1, 1, 1), shape=(3, 3, 3)), ISO, surface="voxel", tolerance_mm=1.0)
    # 26 border voxels are surface; 6 of them are 1 mm from the single voxel in the middle, which is 1 mm from them.
    assert scores["nsd@1mm/voxel"] == pytest.approx((6 + 1) / (26 + 1))


def test_a_distance_that_equals_the_tolerance_counts_despite_rounding():
    assert 3 * 0.8 > 2.4  # what floating point makes of it
    scores = measure(voxels((5, 2, 5)), voxels((5, 5, 5)), (1.0, 0.8, 1.0), surface="voxel", tolerance_mm=2.4)
    assert scores["nsd@2.4mm/voxel"] == 1.0


# --- empty masks ----------------------------------------------------------------------------------------------


def test_a_missed_structure_scores_worst_and_is_not_dropped():
    scores = measure(cube((2, 2, 2), (6, 6, 6)), np.zeros((20, 20, 20), bool), (2.0, 1.0, 1.0), surface=BOTH)
    assert scores.presence is Presence.MISSED
    diagonal = math.sqrt(40**2 + 20**2 + 20**2)
    for metric, value in scores.items():
        if metric.split("/")[0] in ("hd", "hd95", "assd", "masd"):
            assert value == pytest.approx(diagonal)
        elif metric in ("dice", "iou") or metric.startswith("nsd"):
            assert value == 0
    assert scores["volume_error"] == 1


def test_a_hallucinated_structure_scores_like_a_missed_one():
    a, b = cube((2, 2, 2), (6, 6, 6)), np.zeros((20, 20, 20), bool)
    missed, hallucinated = measure(a, b, ISO, surface=BOTH), measure(b, a, ISO, surface=BOTH)
    assert hallucinated.presence is Presence.HALLUCINATED
    assert hallucinated["volume_difference_ml"] == -missed["volume_difference_ml"] > 0
    assert {m: v for m, v in missed.items() if "ml" not in m} == {
        m: v for m, v in hallucinated.items() if "ml" not in m
    }


def test_a_structure_that_nobody_has_is_not_applicable_or_perfect_as_declared():
    empty = np.zeros((4, 5, 6), bool)
    excluded = measure(empty, empty, ISO, surface=BOTH)
    assert excluded.presence is Presence.ABSENT
    assert all(math.isnan(v) for v in excluded.values())
    perfect = measure(empty, empty, ISO, surface=BOTH, empty=EmptyPolicy(absent="perfect"))
    assert perfect["dice"] == perfect["nsd@2mm/voxel"] == 1
    assert perfect["hd/surfel"] == perfect["volume_error"] == 0


def test_a_fixed_distance_penalty_is_used_as_given():
    a, b = cube((2, 2, 2), (6, 6, 6)), np.zeros((20, 20, 20), bool)
    assert measure(a, b, ISO, empty=EmptyPolicy(distance=50.0))["hd95/surfel"] == 50.0


def test_no_distance_between_two_masks_exceeds_the_penalty():
    a, b = voxels((0, 0, 0), shape=(9, 4, 5)), voxels((8, 3, 4), shape=(9, 4, 5))
    scores = measure(a, b, (3.0, 0.5, 2.0), surface=BOTH)
    penalty = measure(a, b & False, (3.0, 0.5, 2.0), surface=BOTH)["hd/voxel"]
    assert max(scores["hd/voxel"], scores["hd/surfel"]) < penalty


# --- label maps -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def label_maps():
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 5, (4, 5, 6), dtype=np.uint8)
    reference = coarse.repeat(5, 0).repeat(5, 1).repeat(5, 2)
    prediction = np.where(rng.random(reference.shape) < 0.05, rng.integers(0, 5, reference.shape), reference)
    return reference, np.roll(prediction, 1, 2).astype(np.uint8)


def test_a_label_map_scores_each_structure_as_its_mask_alone_does(label_maps):
    reference, prediction = label_maps
    plan = MetricPlan(tolerances_mm=(1.0, 3.0), surfaces=BOTH)
    together = measure_labels(
        reference, prediction, (2.0, 1.0, 0.7), {f"s{k}": k for k in range(1, 5)}, plan=plan
    )
    for k in range(1, 5):
        alone = measure(
            reference == k, prediction == k, (2.0, 1.0, 0.7), tolerance_mm=(1.0, 3.0), surface=BOTH
        )
        assert dict(together[f"s{k}"]) == pytest.approx(dict(alone), rel=1e-12)


def test_a_region_of_several_labels_is_their_union_even_when_regions_overlap(label_maps):
    reference, prediction = label_maps
    regions = {"tumour": (2, 3), "core": 3, "all": (1, 2, 3, 4)}
    scores = measure_labels(reference, prediction, ISO, regions)
    assert list(scores) == list(regions)
    for name, labels in regions.items():
        labels = np.atleast_1d(labels)
        expected = measure(np.isin(reference, labels), np.isin(prediction, labels), ISO)
        assert dict(scores[name]) == pytest.approx(dict(expected), rel=1e-12)


def test_labels_that_no_structure_names_are_background(label_maps):
    reference, prediction = label_maps
    scores = measure_labels(reference, prediction, ISO, {"only": 4})
    assert dict(scores["only"]) == pytest.approx(
        dict(measure(reference == 4, prediction == 4, ISO)), rel=1e-12
    )


def test_ignored_voxels_count_for_nobody(label_maps):
    reference, prediction = label_maps
    scores = measure_labels(reference, prediction, ISO, {"a": 1}, ignore_label=2)
    keep = reference != 2
    expected = measure((reference == 1) & keep, (prediction == 1) & keep, ISO)
    assert dict(scores["a"]) == pytest.approx(dict(expected), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_any_integer_type_and_memory_layout_gives_the_same_scores(label_maps, dtype):
    reference, prediction = label_maps
    expected = measure_labels(reference, prediction, ISO, {"a": 1, "b": 2})
    scores = measure_labels(
        np.asfortranarray(reference.astype(dtype)),
        prediction[::-1].astype(dtype)[::-1],
        ISO,
        {"a": 1, "b": 2},
    )
    assert {k: dict(v) for k, v in scores.items()} == {k: dict(v) for k, v in expected.items()}


def test_more_structures_than_a_byte_counts_and_high_labels_are_scored():
    reference = np.zeros((10, 10, 10), np.uint16)
    reference.reshape(-1)[:300] = np.arange(300) + 1000
    prediction = reference.copy()
    prediction[0, 0, 0] = 0
    scores = measure_labels(reference, prediction, ISO, {str(k): k for k in range(1000, 1300)})
    assert scores["1000"].presence is Presence.MISSED
    assert all(scores[str(k)]["dice"] == 1 for k in range(1001, 1300))


def test_threads_change_nothing(label_maps):
    reference, prediction = label_maps
    structures = {f"s{k}": k for k in range(1, 5)}
    one, many = (measure_labels(reference, prediction, ISO, structures, threads=n) for n in (1, 4))
    assert {k: dict(v) for k, v in one.items()} == {k: dict(v) for k, v in many.items()}


def test_inputs_are_left_as_they_were(label_maps):
    reference, prediction = (v.copy() for v in label_maps)
    for volume in (reference, prediction):
        volume.setflags(write=False)
    measure_labels(reference, prediction, ISO, {"a": 1}, ignore_label=3)
    assert np.array_equal(reference, label_maps[0])


# --- bad input ------------------------------------------------------------------------------------------------

MASK = np.ones((3, 4, 5), bool)


@pytest.mark.parametrize(
    ("reference", "prediction", "spacing", "code"),
    [
        (MASK, MASK[:2], ISO, "shape_mismatch"),
        (MASK, MASK.astype(np.float32), ISO, "label_type"),
        (MASK.astype(np.float64), MASK, ISO, "label_type"),
        (MASK[0], MASK[0], ISO, "dimensions"),
        (MASK[:0], MASK[:0], ISO, "dimensions"),
        (MASK, MASK * 2, ISO, "not_a_mask"),
        (MASK, MASK * np.int8(-1), ISO, "label_range"),
        (MASK, MASK, (1.0, 0.0, 1.0), "spacing"),
        (MASK, MASK, (1.0, math.nan, 1.0), "spacing"),
        (MASK, MASK, (1.0, 1.0), "spacing"),
    ],
)
def test_unusable_input_is_refused_with_its_reason(reference, prediction, spacing, code):
    with pytest.raises(DataError) as caught:
        measure(reference, prediction, spacing)
    assert caught.value.code == code
    assert caught.value.remedy


@pytest.mark.parametrize("options", [{"surface": "mesh"}, {"tolerance_mm": 0}, {"tolerance_mm": (1.0, -2.0)}])
def test_unusable_options_are_refused(options):
    with pytest.raises(ConfigError):
        measure(MASK, MASK, ISO, **options)


@pytest.mark.parametrize("structures", [{"background": 0}, {"nothing": ()}, {"ignored": (1, 9)}])
def test_structures_without_a_label_of_their_own_are_refused(structures):
    with pytest.raises(ConfigError, match=next(iter(structures))):
        measure_labels(MASK, MASK, ISO, structures, ignore_label=9)


def test_an_unmeasured_metric_names_those_that_were():
    with pytest.raises(KeyError, match="nsd@2mm/surfel"):
        measure(MASK, MASK, ISO)["nsd@2mm/voxel"]
