"""Normalisation, against numbers worked by hand and nnU-Net's formulae in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvox.data.intensity import CaseIntensity, ChannelIntensity
from fedvox.data.normalize import normalize
from fedvox.data.records import CaseRecord, StoreMeta
from fedvox.errors import DataError


def channel(mean, std, p005=0.0, p995=0.0) -> ChannelIntensity:
    return ChannelIntensity(mean, std, min=-1e4, max=1e4, p005=p005, p995=p995)


def meta(kind, *channels) -> StoreMeta:
    names = tuple(f"c{n}" for n in range(max(1, len(channels))))
    return StoreMeta("s", names, "CT", ("background",), {"all": (0,)}, kind, intensity=channels)


CASE = CaseIntensity(foreground=(channel(9, 9),), whole=(channel(100, 50),))
RECORD = CaseRecord("a", "s", "a.arrow", (1, 1, 4), (1.0, 1.0, 1.0), 1, "all", {}, CASE, "", 0)


def test_ct_is_clipped_to_the_data_set_s_percentiles_and_standardised_by_hand():
    image = np.array([-1024, -160, 40, 3000], np.int16).reshape(1, 1, 1, 4)
    out = normalize(image, CASE, meta("ct", channel(mean=40, std=200, p005=-160, p995=240)))
    assert out.dtype == torch.float32
    assert out.ravel().tolist() == [-1, -1, 0, 1]


def test_other_modalities_are_standardised_by_the_whole_image_of_the_case_by_hand():
    image = np.array([0, 50, 100, 200], np.uint8).reshape(1, 1, 1, 4)
    for record in (CASE, RECORD):
        assert normalize(image, record, meta("zscore")).ravel().tolist() == [-2, -1, 0, 2]


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_every_dtype_and_volumes_of_many_blocks_follow_the_formula(dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (2, 33, 70, 90)).astype(dtype)
    before = image.copy()
    channels = channel(90, 31, p005=20, p995=170), channel(110, 3, p005=100, p995=120)
    out = normalize(image, CASE, meta("ct", *channels))
    expected = [
        (np.clip(x.astype(float), c.p005, c.p995) - c.mean) / c.std
        for x, c in zip(image, channels, strict=True)
    ]
    np.testing.assert_allclose(out, np.stack(expected), atol=1e-5)
    np.testing.assert_array_equal(image, before)


def test_a_tensor_and_a_strided_array_are_taken_as_well():
    image = np.arange(2 * 4 * 6 * 8, dtype=np.int16).reshape(2, 4, 6, 8)[:, ::2, ::3, ::2]
    kind = meta("ct", channel(5, 2, -1e3, 1e3), channel(5, 2, -1e3, 1e3))
    expected = (image - 5.0) / 2
    np.testing.assert_allclose(normalize(image, CASE, kind), expected)
    np.testing.assert_allclose(normalize(torch.from_numpy(image.copy()), CASE, kind), expected)


def test_a_constant_case_becomes_zero_not_nan():
    flat = CaseIntensity((channel(7, 0),), (channel(7, 0),))
    assert normalize(np.full((1, 2, 2, 2), 7, np.int16), flat, meta("zscore")).abs().max() == 0


@pytest.mark.parametrize(("kind", "problem"), [(meta("ct"), "0 channels"), (meta("minmax"), "minmax")])
def test_a_store_that_cannot_be_normalised_is_refused_with_a_remedy(kind, problem):
    with pytest.raises(DataError, match=problem) as caught:
        normalize(np.zeros((1, 2, 2, 2), np.int16), CASE, kind)
    assert caught.value.remedy
