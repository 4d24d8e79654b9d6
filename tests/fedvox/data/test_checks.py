"""Each reason for a rejection, on volumes that have just that fault, and none on sound ones."""

from __future__ import annotations

import numpy as np
import pytest

from fedvox.data.checks import (
    check_image,
    check_label,
    check_same_grid,
    split_tolerated,
    value_counts,
    whole_numbers,
)
from fedvox.data.geometry import Geometry, Volume
from fedvox.data.label_space import parse_labels
from fedvox.errors import DataError

LABELS = parse_labels({"background": 0, "liver": 1, "tumor": 2, "ignore": 9}, "dataset.json")


def volume(data: np.ndarray, affine: np.ndarray | None = None, path: str = "case.nii.gz") -> Volume:
    channels = data if data.ndim == 4 else data[None]
    geometry = Geometry.of_file(channels.shape[:0:-1], np.eye(4) if affine is None else affine)
    return Volume(channels, geometry, path)


def ct(shape=(20, 20, 20), air=-1000, seed=0) -> np.ndarray:
    """Half air, half soft tissue with bone."""
    rng = np.random.default_rng(seed)
    tissue = rng.normal(40, 20, shape)
    tissue[: shape[0] // 2] = air
    tissue[-1] = 900
    return tissue.astype(np.int16)


def codes(errors: list[DataError]) -> list[str]:
    for error in errors:
        assert "case.nii.gz" in error.message
        assert error.file == "case.nii.gz"
        assert error.remedy
    return [error.code for error in errors]


def test_a_sound_ct_and_its_label_pass():
    label = np.random.default_rng(0).choice([0, 1, 2, 9], (20, 20, 20)).astype(np.uint8)
    assert check_image(volume(ct()), "CT", 1) == []
    assert check_label(volume(label), LABELS) == []
    assert check_same_grid(volume(ct()), volume(label)) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_undefined_voxel_is_found_and_counted(bad):
    data = ct().astype(np.float32)
    data[3, 4, 5] = bad
    errors = check_image(volume(data), "CT", 1)
    assert codes(errors) == ["non_finite"]
    assert " 1 voxels" in errors[0].message
    label = np.zeros((4, 4, 4), np.float32)
    label[1, 2, 3] = bad
    assert codes(check_label(volume(label), LABELS)) == ["non_finite"]


def test_an_image_of_one_value_is_found_in_the_channel_that_has_it():
    data = np.stack([ct(), np.full((20, 20, 20), 7, np.int16)])
    errors = check_image(volume(data), None, 2)
    assert codes(errors) == ["no_contrast"]
    assert "channel 1" in errors[0].message


@pytest.mark.parametrize("zooms", [(1e-3, 1e-3, 1e-3), (1, 1, 200)])
def test_absurd_spacing_is_found(zooms):
    assert codes(check_image(volume(ct(), np.diag([*zooms, 1.0])), "CT", 1)) == ["absurd_spacing"]


def test_a_tilted_gantry_is_found_and_an_oblique_scan_is_not():
    tilt = np.eye(4)
    tilt[1, 2], tilt[2, 2] = np.sin(np.radians(15)), np.cos(np.radians(15))
    errors = check_image(volume(ct(), tilt), "CT", 1)
    assert codes(errors) == ["sheared_affine"]
    assert "15.0°" in errors[0].message
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    assert check_image(volume(ct(), turn), "CT", 1) == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (ct().astype(np.float32) / 3000, "normalized"),
        (np.clip(ct() + 160, 0, 400).astype(np.int16), "intercept"),  # windowed
        (ct() + 1024, "intercept"),  # as stored, before the rescale intercept
        (ct().astype(np.float32) * 100, "beyond"),
    ],
)
def test_what_is_no_hounsfield_unit_is_found(data, told):
    errors = check_image(volume(data), "CT", 1)
    assert codes(errors) == ["implausible_ct"]
    assert told in errors[0].message
    assert check_image(volume(data), "MR", 1) == []


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_the_usual_paddings_of_a_ct_are_plausible(padding):
    assert check_image(volume(ct(air=padding)), "CT", 1) == []


def test_the_number_of_channels_must_be_the_announced_one():
    assert codes(check_image(volume(np.stack([ct(), ct(seed=1)])), "CT", 1)) == ["channel_count"]
    assert codes(check_label(volume(np.zeros((2, 4, 4, 4), np.uint8)), LABELS)) == ["channel_count"]


def test_unknown_values_are_listed_with_their_counts_and_the_known_names():
    label = np.zeros((6, 6, 6), np.int16)
    label[0, 0, :3], label[1, 1, 1] = 5, -1
    errors = check_label(volume(label), LABELS)
    assert codes(errors) == ["unknown_label_value"]
    assert "-1 (1 voxels), 5 (3 voxels)" in errors[0].message
    assert "1 liver; 2 tumor; 9 ignore" in errors[0].remedy


def test_fractions_in_a_label_are_found_and_rounding_noise_is_not():
    label = np.zeros((6, 6, 6), np.float32)
    label[0] = 2 + 1e-5  # a scaled header leaves such values
    assert check_label(volume(label), LABELS) == []
    assert set(np.unique(whole_numbers(label))) == {0, 2}
    label[1, 0, 0], label[2, 0, 0] = 0.5, 1.25
    errors = check_label(volume(label), LABELS)
    assert codes(errors) == ["non_integer_label"]
    assert "2 voxels" in errors[0].message
    assert "0.5, 1.25" in errors[0].message


def test_whole_floats_of_unknown_value_are_unknown_not_fractional():
    assert codes(check_label(volume(np.full((4, 4, 4), 7.0)), LABELS)) == ["unknown_label_value"]


def test_a_label_of_another_shape_or_place_is_found():
    image = volume(ct(), path="image.nii.gz")
    other = check_same_grid(image, volume(np.zeros((20, 20, 19), np.uint8)))
    assert codes(other) == ["shape_mismatch"]
    assert "19 × 20 × 20" in other[0].message
    assert "image.nii.gz" in other[0].message
    moved = np.eye(4)
    moved[:3, 3] = (3, 4, 0)
    shifted = check_same_grid(image, volume(np.zeros((20, 20, 20), np.uint8), moved))
    assert codes(shifted) == ["affine_mismatch"]
    assert "5.00 mm" in shifted[0].message


def test_rounding_in_a_header_is_no_mismatch_but_a_flip_is():
    label = np.zeros((20, 20, 20), np.uint8)
    nearly = np.eye(4) + 1e-4 * np.random.default_rng(0).normal(size=(4, 4))
    nearly[3] = (0, 0, 0, 1)
    assert check_same_grid(volume(ct()), volume(label, nearly)) == []
    assert codes(check_same_grid(volume(ct()), volume(label, np.diag([-1.0, 1, 1, 1])))) == [
        "affine_mismatch"
    ]


def test_the_same_place_in_another_voxel_order_is_no_mismatch():
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned[:3, 3] = (19, 19, 0)  # the same box, stored from the other corner
    assert check_same_grid(volume(ct()), volume(np.zeros((20, 20, 20), np.uint8), turned)) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_values_are_counted_as_numpy_counts_them(dtype):
    low = 0 if dtype is np.uint8 else -100
    values = np.random.default_rng(0).integers(low, 100, (7, 8, 9)).astype(dtype)
    expected = dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
    assert value_counts(values) == expected
    assert value_counts(values.astype(np.int64) * 10**6) == {v * 10**6: n for v, n in expected.items()}


def test_overruled_reasons_are_kept_apart():
    errors = [DataError("a", code="affine_mismatch"), DataError("b", code="non_finite")]
    fatal, tolerated = split_tolerated(errors, ["affine_mismatch"])
    assert [e.code for e in fatal] == ["non_finite"]
    assert [e.code for e in tolerated] == ["affine_mismatch"]
