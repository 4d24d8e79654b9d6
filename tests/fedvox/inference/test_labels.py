"""Labels in the original grid against dense interpolation of all logits, as nnU-Net exports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from fedvox.data.resample import coarse_axis
from fedvox.errors import RunError
from fedvox.inference.labels import AxisTaps, LogitStream, decode_labels

shapes = st.tuples(*[st.integers(1, 11)] * 3)


def stream(logits: np.ndarray, slice_axis: int | None = None) -> LogitStream:
    planes = iter(torch.from_numpy(np.ascontiguousarray(logits[:, z])) for z in range(logits.shape[1]))
    return LogitStream(planes, logits.shape[1:], slice_axis)


def dense(logits: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Every class interpolated everywhere (skimage order 1 is what nnU-Net calls), float64."""
    return np.stack(
        [resize(c.astype(np.float64), size, order=1, mode="edge", anti_aliasing=False) for c in logits]
    )


def margin(scores: np.ndarray) -> np.ndarray:
    ranked = np.sort(scores, axis=0)
    return ranked[-1] - ranked[-2]


@settings(max_examples=80, deadline=None)
@given(shapes, shapes, st.integers(2, 9), st.floats(0, 2), st.integers(0, 2**16))
def test_labels_equal_the_argmax_of_densely_interpolated_logits(shape, size, classes, smooth, seed):
    logits = np.random.default_rng(seed).normal(size=(classes, *shape)).astype(np.float32)
    logits = gaussian_filter(logits, (0, smooth, smooth, smooth))
    expected = dense(logits, size)
    found = decode_labels([stream(logits)], size)
    assert found.shape == size
    assert (found == expected.argmax(0))[margin(expected) > 1e-5].all()


@settings(max_examples=40, deadline=None)
@given(shapes, shapes, shapes, st.integers(2, 6), st.integers(0, 2**16))
def test_models_of_different_grids_are_averaged_as_probabilities(first, second, size, classes, seed):
    rng = np.random.default_rng(seed)
    both = [3 * rng.normal(size=(classes, *shape)).astype(np.float32) for shape in (first, second)]
    mean = np.mean(
        [torch.softmax(torch.from_numpy(dense(logits, size)), 0).numpy() for logits in both], axis=0
    )
    entropy = np.empty(size, np.float32)
    found = decode_labels([stream(logits) for logits in both], size, entropy=entropy)
    assert (found == mean.argmax(0))[margin(mean) > 1e-5].all()
    np.testing.assert_allclose(entropy, -(mean * np.log(mean)).sum(0) / np.log(classes), atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_a_coarse_axis_the_nearest_slice_decides_as_in_nnunet(axis):
    resampling = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    rng = np.random.default_rng(axis)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    shape, size = [12, 13, 14], [17, 19, 21]
    shape[axis], size[axis] = 5, 9
    assert coarse_axis(spacing, (1, 1, 1)) == axis
    logits = gaussian_filter(rng.normal(size=(4, *shape)), (0, 1, 1, 1)).astype(np.float32)
    theirs = resampling.resample_data_or_seg_to_shape(
        logits.astype(np.float64),
        size,
        spacing,
        (1, 1, 1),
        is_seg=False,
        order=1,
        order_z=0,
        force_separate_z=None,
    )
    found = decode_labels([stream(logits, slice_axis=axis)], tuple(size))
    assert (found == theirs.argmax(0))[margin(theirs) > 1e-5].all()


def test_a_class_that_is_nowhere_the_largest_may_win_in_between():
    """Two corners disagree, and a third class is second in both: only interpolating every class finds it."""
    logits = np.array([[5.0, -9.0], [-9.0, 5.0], [4.0, 4.0]], np.float32).reshape(3, 1, 1, 2)
    assert decode_labels([stream(logits)], (1, 1, 3)).ravel().tolist() == [0, 2, 1]


def test_the_entropy_is_zero_where_sure_and_one_where_all_classes_are_alike():
    logits = np.zeros((3, 2, 2, 2), np.float32)
    logits[1, 0] = 200
    entropy = np.empty((2, 2, 2), np.float32)
    decode_labels([stream(logits)], (2, 2, 2), entropy=entropy)
    np.testing.assert_allclose(entropy[0], 0, atol=1e-6)
    np.testing.assert_allclose(entropy[1], 1, atol=1e-6)


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_the_label_type_holds_every_class(classes, dtype):
    logits = np.zeros((classes, 1, 2, 2), np.float32)
    logits[-1] = 1
    found = decode_labels([stream(logits)], (1, 2, 2))
    assert found.dtype == dtype
    assert (found == classes - 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_with_the_knob(value):
    logits = np.zeros((2, 3, 4, 4), np.float32)
    logits[1, 1, 2, 2] = value
    with pytest.raises(RunError, match="not finite") as error:
        decode_labels([stream(logits)], (3, 4, 4))
    assert "--precision fp32" in error.value.remedy


def test_no_more_than_two_planes_are_held_at_a_time():
    alive, peak = set(), 0

    class Plane(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def planes():
        nonlocal peak
        for _ in range(30):
            plane = torch.zeros(2, 4, 4).as_subclass(Plane)
            alive.add(id(plane))
            peak = max(peak, len(alive))
            yield plane
            del plane

    decode_labels([LogitStream(planes(), (30, 4, 4))], (45, 4, 4))
    assert peak <= 3  # two, and the one that is being drawn


@given(st.integers(1, 40), st.integers(1, 40))
def test_taps_interpolate_a_ramp_exactly_within_the_grid(size, new_size):
    taps = AxisTaps.of(size, new_size)
    ramp = torch.arange(size, dtype=torch.float64)
    found = torch.lerp(ramp[taps.lower], ramp[taps.upper], taps.weight.double())
    position = (torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5
    assert torch.allclose(found, position.clamp(0, size - 1), atol=1e-5)


_MEASURE = """
import sys
from pathlib import Path
import torch
from fedvox.inference.labels import LogitStream, decode_labels

torch.set_num_threads(1)
depth, classes = int(sys.argv[1]), 40

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

def planes(count):
    for z in range(count):
        plane = torch.zeros(classes, 96, 96)
        plane[z // 8 % classes, :, z % 96 :] = 1
        yield plane

decode_labels([LogitStream(planes(8), (8, 96, 96))], (12, 192, 192))  # buffers of the libraries
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
labels = decode_labels([LogitStream(planes(depth), (depth, 96, 96))], (2 * depth, 192, 192))
print((status("VmHWM") - before) * 1024 - labels.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it")
def test_the_logits_of_a_volume_are_never_held():
    """The allocator keeps 16 to 34 planes' worth, at 40 slices as at 640; holding them all would be 320 and more."""
    depth, plane = 320, 40 * 96 * 96 * 4
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(depth)], capture_output=True, check=True)
    assert int(done.stdout) < depth * plane / 4
