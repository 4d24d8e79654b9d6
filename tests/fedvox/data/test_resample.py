"""Resampling against skimage (what nnU-Net calls), a per-label reference, and results known beforehand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from fedvox.data.resample import axis_blocks, coarse_axis, resample_image, resample_label, resampled_shape

shapes = st.tuples(*[st.integers(2, 17)] * 3)


def reference_image(volume: np.ndarray, shape: tuple[int, ...], order: int = 3) -> np.ndarray:
    return resize(volume.astype(np.float64), shape, order=order, mode="edge", anti_aliasing=False)


def reference_label(label: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Arg-max of each label's linearly resized indicator, and the margin of the winner over the runner-up."""
    values = np.unique(label)
    scores = np.stack([reference_image(label == v, shape, order=1) for v in values])
    ranked = np.sort(scores, axis=0)
    margin = ranked[-1] - ranked[-2] if len(values) > 1 else np.ones(shape)
    return values[scores.argmax(axis=0)], margin


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """The MNI152 T1 brain, 1 mm, (D, H, W), uint8: a central crop, which keeps the tests fast."""
    found = importlib.util.find_spec("nilearn")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "datasets" / "data"
    image = nib.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    return np.asarray(image.dataobj).transpose(2, 1, 0)[60:130, 50:170, 40:150]


@pytest.mark.parametrize(
    "target_mm",
    [(1.5, 1.5, 1.5), (0.8, 0.8, 0.8), (2.0, 0.7, 1.3), (1.0, 1.0, 2.5)],
)
def test_an_image_equals_skimage_cubic_resize(brain, target_mm):
    shape = resampled_shape(brain.shape, (1, 1, 1), target_mm)
    ours = resample_image(brain, shape)
    assert ours.dtype == np.float32
    assert np.abs(ours - reference_image(brain, shape)).max() < 1e-3  # of a range of 0..255


def test_thick_slices_are_interpolated_in_plane_and_repeated_along_z_as_nnunet_does(brain):
    target_mm = (5.0, 1.0, 1.0)
    assert coarse_axis((1, 1, 1), target_mm) == 0
    source = brain.astype(np.float64)
    shape = resampled_shape(brain.shape, (1, 1, 1), target_mm)
    ours = resample_image(brain, shape, slice_axis=0)
    planes = np.stack([reference_image(plane, shape[1:]) for plane in source])
    position = (np.arange(shape[0]) + 0.5) * (len(source) / shape[0]) - 0.5
    grid = np.meshgrid(position, np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    expected = map_coordinates(planes, grid, order=0, mode="nearest")
    assert np.abs(ours - expected).max() < 1e-3


@pytest.fixture(scope="module")
def nnunet():
    """nnU-Net's own resampling: `resample(volume, shape, spacing, target, is_seg)`."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, "/nonexistent")  # it complains on import without them
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    def resample(volume, shape, spacing, target, is_seg=False):
        return resample_data_or_seg_to_shape(
            volume[None], shape, spacing, target, is_seg, order=1 if is_seg else 3, force_separate_z=None
        )[0]

    return resample


@pytest.mark.parametrize(
    ("spacing", "target"),
    [
        ((1, 1, 1), (5, 1, 1)),  # the whole way to thick slices
        ((5, 1, 1), (1, 1, 1)),  # and back
        ((5, 1, 1), (4, 1.3, 1.3)),
        ((1, 1, 1), (1.3, 1.3, 1.3)),
    ],
)
def test_image_and_label_equal_nnunets_on_the_mni152_brain(brain, nnunet, spacing, target):
    image = brain[:: int(spacing[0])].astype(np.float32)
    label = np.digitize(image, (60, 150, 200)).astype(np.uint8)
    shape, axis = resampled_shape(image.shape, spacing, target), coarse_axis(spacing, target)
    theirs = nnunet(image, shape, spacing, target)
    assert np.abs(resample_image(image, shape, slice_axis=axis) - theirs).max() < 1e-3  # of 0..255
    same = resample_label(label, shape, slice_axis=axis) == nnunet(label, shape, spacing, target, is_seg=True)
    assert same.mean() > 0.9999


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_plane_interpolation_of_a_coarse_axis_is_clipped_slice_by_slice(axis):
    rng = np.random.default_rng(axis)
    volume = np.moveaxis(rng.integers(-1000, 1000, (6, 20, 24)), 0, axis).astype(np.int16)
    shape = tuple(6 if i == axis else 31 for i in range(3))
    ours = np.moveaxis(resample_image(volume, shape, slice_axis=axis), axis, 0)
    for plane, resized in zip(np.moveaxis(volume, axis, 0), ours, strict=True):
        expected = reference_image(plane, resized.shape)
        assert np.abs(resized - expected).max() < 5e-3  # of a range of 2000
        assert resized.min() >= plane.min()
        assert resized.max() <= plane.max()


@settings(max_examples=40, deadline=None)
@given(shapes, shapes, st.sampled_from([0, 1, 3]), st.integers(0, 2**16))
def test_any_shape_and_order_equals_skimage(shape, new_shape, order, seed):
    volume = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    difference = resample_image(volume, new_shape, order=order) - reference_image(volume, new_shape, order)
    if order == 0:  # a sample midway between two voxels may go either way in floating point
        assert (difference != 0).mean() < 0.5 if 0.5 in _fractions(shape, new_shape) else not difference.any()
    else:
        assert np.abs(difference).max() < 2e-5


def _fractions(shape, new_shape) -> set[float]:
    positions = [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(shape, new_shape, strict=True)]
    return {float(x) for axis in positions for x in np.round(axis % 1, 9)}


@settings(max_examples=60, deadline=None)
@given(shapes, shapes, st.integers(1, 40), st.integers(0, 2**16))
def test_any_label_map_equals_the_argmax_of_its_resized_indicators(shape, new_shape, num_labels, seed):
    label = np.random.default_rng(seed).integers(0, num_labels, shape).astype(np.uint8)
    expected, margin = reference_label(label, new_shape)
    ours = resample_label(label, new_shape)
    assert (ours == expected)[margin > 1e-6].all()


def test_a_tie_goes_to_the_nearest_voxel_and_else_to_the_smallest_label():
    label = np.array([7, 7, 3, 3], dtype=np.uint8).reshape(1, 1, 4)
    assert resample_label(label, (1, 1, 3)).ravel().tolist() == [7, 3, 3]  # 1.5 lies midway: 2 is rounded to
    corners = np.array([[9, 4], [6, 5]], dtype=np.uint8).reshape(1, 2, 2)
    assert resample_label(corners, (1, 1, 1)).item() == 5  # all four tie; the nearest by rounding up
    three = np.array([[4, 4], [9, 2]], dtype=np.uint8).reshape(1, 2, 2)
    assert resample_label(three, (1, 1, 1)).item() == 4  # 4 has half the weight, the nearest (2) a quarter


def test_a_label_along_a_coarse_axis_is_taken_from_the_nearest_slice():
    label = np.zeros((4, 6, 6), dtype=np.uint16)
    label[1], label[2], label[3] = 300, 2, 3
    assert resample_label(label, (8, 6, 6), slice_axis=0)[:, 0, 0].tolist() == [0, 0, 300, 300, 2, 2, 3, 3]


def test_labels_never_invent_a_value():
    label = np.random.default_rng(0).choice([0, 5, 200], (9, 11, 13)).astype(np.uint8)
    assert set(np.unique(resample_label(label, (17, 8, 20)))) <= {0, 5, 200}


def test_an_unchanged_shape_returns_the_same_voxels_in_a_new_array():
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for result in (
        resample_image(volume, (2, 3, 4), dtype=np.dtype(np.int16)),
        resample_label(volume, (2, 3, 4)),
    ):
        np.testing.assert_array_equal(result, volume)
        assert not np.shares_memory(result, volume)


def test_integers_are_rounded_and_stay_in_the_range_of_the_input():
    volume = np.random.default_rng(1).integers(-1024, 3071, (12, 12, 12)).astype(np.int16)
    ours = resample_image(volume, (17, 19, 9), dtype=np.dtype(np.int16))
    exact = resample_image(volume, (17, 19, 9))
    assert ours.dtype == np.int16
    assert np.abs(ours - exact).max() <= 0.5 + 1e-3
    assert volume.min() <= ours.min()
    assert ours.max() <= volume.max()


def test_a_constant_and_a_ramp_are_reproduced():
    np.testing.assert_allclose(resample_image(np.full((7, 8, 9), 42.0), (13, 5, 11)), 42.0, rtol=1e-6)
    ramp = np.broadcast_to(np.arange(60.0)[:, None, None], (60, 4, 4))
    position = (np.arange(90) + 0.5) * (60 / 90) - 0.5
    inside = slice(30, 60)  # away from the repeated edges a spline reproduces a straight line
    np.testing.assert_allclose(resample_image(ramp, (90, 4, 4))[inside, 0, 0], position[inside], atol=1e-4)


def test_the_band_matrices_cover_every_sample_once_and_sum_to_one():
    blocks = axis_blocks(100, 137, order=3)
    assert [b.target.start for b in blocks[1:]] == [b.target.stop for b in blocks[:-1]]
    assert (blocks[0].target.start, blocks[-1].target.stop) == (0, 137)
    for block in blocks:
        np.testing.assert_allclose(block.weights.sum(axis=1), 1, atol=1e-6)
        assert block.weights.shape[1] <= 32 * 100 / 137 + 2 * 12 + 5


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3.0, 1, 1), (1, 1, 1), None),  # a ratio of exactly 3 is not above the threshold
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 5, 1), 1),
        ((1, 1, 4), (6, 1, 1), 2),  # the present spacing decides before the target's
        ((0.24, 1.25, 1.25), (1, 1, 1), None),  # two coarse axes are no stack of slices
    ],
)
def test_the_coarse_axis_follows_nnunets_rule(spacing, target, axis):
    assert coarse_axis(spacing, target) == axis


def test_the_new_shape_is_rounded_and_never_empty():
    assert resampled_shape((100, 100, 10), (1, 0.75, 5), (1.5, 1.5, 1.5)) == (67, 50, 33)
    assert resampled_shape((2, 2, 2), (0.1, 0.1, 0.1), (1, 1, 1)) == (1, 1, 1)


_MEASURE = """
import resource, sys
import numpy as np
from fedvox.data.resample import resample_image, resample_label
depth = int(sys.argv[1])
image = np.zeros((depth, 256, 256), np.int16)
image[::7] = 40
resample_image(image[:64], (48, 192, 192), dtype=np.dtype(np.int16))  # BLAS buffers and imports are not ours
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shape = (depth * 3 // 4, 192, 192)
resampled = resample_image(image, shape, dtype=np.dtype(np.int16))
label = resample_label(image, shape)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 - resampled.nbytes - label.nbytes)
"""


def test_working_memory_does_not_grow_with_the_number_of_slices():
    spent = [
        int(subprocess.run([sys.executable, "-c", _MEASURE, str(n)], capture_output=True, check=True).stdout)
        for n in (200, 800)
    ]
    window = 60 * 192 * 192 * 4  # slices · rows · columns · float32
    assert max(spent) < 3 * window
    assert spent[1] - spent[0] < window
