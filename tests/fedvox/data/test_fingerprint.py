"""Fingerprints against numpy on the same voxels, nnU-Net's sampling, and its spacing rule by worked examples."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from fedvox.data.fingerprint import (
    QUANTILES,
    CaseFingerprint,
    case_intensity,
    join_fingerprints,
    sample_case,
    sample_channel,
    target_spacing,
)


def volumes(seed: int, dtype=np.int16) -> tuple[np.ndarray, np.ndarray]:
    """An image (2, D, H, W) and its foreground."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100 * seed, 50 + seed, (2, 12, 13, 14))
    return image.astype(dtype), rng.random((12, 13, 14)) > 0.7


def fingerprint(seed: int, dtype=np.int16, annotated=True) -> CaseFingerprint:
    image, inside = volumes(seed, dtype)
    foreground, whole = sample_case(image, inside if annotated else None)
    return CaseFingerprint(
        f"case_{seed}", (12, 13, 14), (24, 13, 14), (float(seed + 1), 1, 1), foreground, whole
    )


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("region", ["foreground", "whole"])
def test_a_sample_equals_numpy_on_the_same_voxels(dtype, region):
    image, inside = volumes(1, dtype)
    values = image[0][inside] if region == "foreground" else image[0].ravel()
    sample = sample_channel(image[0], inside if region == "foreground" else None)
    assert sample.count == values.size
    assert sample.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)
    assert sample.std == pytest.approx(values.std(dtype=np.float64), rel=1e-6)
    assert (sample.min, sample.max) == (values.min(), values.max())
    np.testing.assert_allclose(
        sample.quantiles, np.quantile(values.astype(np.float64), QUANTILES), rtol=1e-6, atol=1e-5
    )


def test_the_percentiles_of_nnunet_are_read_at_their_places():
    image, _ = volumes(2)
    intensity = sample_channel(image[1]).intensity
    low, high = np.percentile(image[1], (0.5, 99.5))
    assert (intensity.p005, intensity.p995) == (pytest.approx(low), pytest.approx(high))


def test_a_large_float_image_is_measured_on_a_part_with_the_exact_moments():
    image = np.random.default_rng(0).normal(5, 2, (150, 200, 200)).astype(np.float32)
    sample = sample_channel(image)
    assert sample.mean == pytest.approx(image.mean(dtype=np.float64), rel=1e-7)
    assert (sample.min, sample.max) == (image.min(), image.max())
    assert np.abs(np.asarray(sample.quantiles)[1:-1] - np.quantile(image, QUANTILES[1:-1])).max() < 0.1


def test_a_case_without_annotation_stands_with_its_whole_image():
    image, _ = volumes(3)
    foreground, whole = sample_case(image, np.zeros(image.shape[1:], bool))
    assert foreground == ()
    intensity = case_intensity(foreground, whole)
    assert intensity.foreground == intensity.whole


def test_a_data_set_is_what_nnunet_gets_by_drawing_equally_many_voxels_from_each_case():
    rng = np.random.default_rng(1234)
    drawn = []
    for seed in range(4):
        image, inside = volumes(seed)
        drawn.append(rng.choice(image[0][inside], 200_000, replace=True))
    pooled = np.concatenate(drawn).astype(np.float64)
    joined = join_fingerprints([fingerprint(seed) for seed in range(4)])
    channel, tolerance = joined.intensity[0], 0.02 * pooled.std()
    assert channel.mean == pytest.approx(pooled.mean(), abs=tolerance)
    assert channel.std == pytest.approx(pooled.std(), abs=tolerance)
    assert (channel.min, channel.max) == (pooled.min(), pooled.max())
    low, median, high = np.percentile(pooled, (0.5, 50, 99.5))
    assert channel.p005 == pytest.approx(low, abs=5 * tolerance)
    assert joined.medians[0] == pytest.approx(median, abs=5 * tolerance)
    assert channel.p995 == pytest.approx(high, abs=5 * tolerance)


def test_a_single_case_is_its_own_data_set():
    case = fingerprint(2)
    joined = join_fingerprints([case])
    ours, theirs = joined.intensity[0], case.foreground[0].intensity
    for name in ("mean", "std", "min", "max", "p005", "p995"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6), name


def test_neither_order_nor_storage_changes_a_digit():
    cases = [fingerprint(seed, np.float32) for seed in range(7)]
    expected = join_fingerprints(cases)
    stored = [CaseFingerprint.from_dict(json.loads(json.dumps(case.to_dict()))) for case in cases]
    random.Random(0).shuffle(stored)
    assert join_fingerprints(stored) == expected


def test_cases_without_foreground_leave_the_intensities_alone_unless_none_has_any():
    annotated, empty = fingerprint(1), fingerprint(5, annotated=False)
    assert join_fingerprints([annotated, empty]).intensity == join_fingerprints([annotated]).intensity
    assert join_fingerprints([annotated, empty]).spacings_mm == ((2.0, 1, 1), (6.0, 1, 1))
    assert join_fingerprints([empty]).intensity[0].mean == pytest.approx(empty.whole[0].mean)


def test_it_is_written_under_nnunets_names():
    written = join_fingerprints([fingerprint(1), fingerprint(2)]).to_nnunet()
    assert set(written) == {
        "foreground_intensity_properties_per_channel",
        "median_relative_size_after_cropping",
        "shapes_after_crop",
        "spacings",
    }
    assert set(written["foreground_intensity_properties_per_channel"]["1"]) == {
        "max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std",
    }  # fmt: skip
    assert written["median_relative_size_after_cropping"] == 0.5
    assert json.loads(json.dumps(written)) == written


# ---- spacing -----------------------------------------------------------------------------------------------

CUBE = (300, 300, 300)
STACK = (20, 300, 300)


def test_the_median_of_each_axis_is_taken():
    spacings = [(1.0, 0.5, 0.7), (2.0, 0.6, 0.7), (3.0, 0.9, 0.8)]
    assert target_spacing(spacings, [CUBE] * 3) == (2.0, 0.6, 0.7)


def test_stacks_of_thick_slices_take_their_tenth_percentile():
    spacings = [(5.0, 1, 1)] * 9 + [(2.0, 1, 1)] * 2
    assert target_spacing(spacings, [STACK] * 11) == (2.0, 1, 1)
    assert target_spacing(spacings, [CUBE] * 11) == (5.0, 1, 1)  # many thick slices: long, not coarse


def test_the_coarse_axis_stays_the_coarsest():
    spacings = [(5.0, 1, 1)] * 9 + [(0.5, 1, 1)] * 2
    assert target_spacing(spacings, [STACK] * 11) == (pytest.approx(1.00001), 1, 1)


def test_a_ratio_of_exactly_three_is_not_coarse():
    assert target_spacing([(3.0, 1, 1)] * 9 + [(1.5, 1, 1)] * 2, [STACK] * 11) == (3.0, 1, 1)


def test_any_axis_may_be_the_coarse_one():
    spacings = [(1, 1, 6.0)] * 9 + [(1, 1, 3.0)] * 2
    assert target_spacing(spacings, [(300, 300, 20)] * 11) == (1, 1, 3.0)
