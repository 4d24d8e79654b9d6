import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from fedvox.errors import ConfigError
from fedvox.inference.sliding_window import (
    SlidingWindow,
    gaussian_weight,
    predict_logits,
    stream_logits,
    window_starts,
)
from fedvox.inference.windows import WindowGrid, axis_gaussian


@given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 0.9))
def test_windows_cover_the_axis_and_step_no_further_than_asked(length, patch, overlap):
    starts = window_starts(length, patch, overlap)
    covered = np.zeros(max(length, patch), bool)
    for start in starts:
        covered[start : start + patch] = True
    assert covered[:length].all()
    assert starts == sorted(set(starts))
    if length > patch:
        assert starts[-1] + patch == length
        assert (
            max(b - a for a, b in itertools.pairwise([*starts])) <= max(1, patch * (1 - overlap)) + 1
            if len(starts) > 1
            else True
        )


@pytest.mark.parametrize("shape", [(20, 17, 33), (8, 8, 8), (5, 30, 9)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_pointwise_network_is_reproduced_exactly(shape, mirror):
    image = torch.randn(2, *shape)
    found = predict_logits(lambda x: torch.stack([x[:, 0] * 2, x.sum(1)], 1), image,
                           SlidingWindow((8, 8, 8), 0.5, mirror, batch_size=3))  # fmt: skip
    assert torch.allclose(found, torch.stack([image[0] * 2, image.sum(0)]), atol=1e-5)


def test_every_voxel_is_the_gaussian_mean_of_the_windows_that_cover_it():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    image = torch.randn(1, 24, 20, 16)
    found = predict_logits(network, image, SlidingWindow((16, 16, 16), 0.5))
    weight = gaussian_weight((16, 16, 16))
    for voxel in [(0, 0, 0), (8, 4, 3), (12, 10, 8), (23, 19, 15), (15, 3, 0)]:
        votes = []
        for corner in itertools.product((0, 8), (0, 4), (0,)):
            inside = [v - c for v, c in zip(voxel, corner, strict=True)]
            if all(0 <= i < 16 for i in inside):
                box = tuple(slice(c, c + 16) for c in corner)
                votes.append(
                    (float(weight[tuple(inside)]), network(image[:, *box][None])[0, :, *inside].detach())
                )
        mean = sum(w * v for w, v in votes) / sum(w for w, _ in votes)
        assert torch.allclose(found[:, *voxel], mean, atol=1e-5)


def test_a_smooth_network_gives_nearly_what_monai_gives():
    """MONAI raises small weights to another floor, so that only nearly equal results can be asked for."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AvgPool3d(5, 1, 2), torch.nn.Conv3d(1, 3, 1))
    image = torch.nn.functional.avg_pool3d(torch.randn(1, 1, 30, 30, 30), 5, 1)[0]
    ours = predict_logits(network, image, SlidingWindow((16, 16, 16), 0.5))
    theirs = sliding_window_inference(
        image[None], (16, 16, 16), 1, network, overlap=0.5, mode="gaussian", sigma_scale=0.125
    )[0]
    assert (ours - theirs).abs().mean() < 0.02 * theirs.std()


def test_mirroring_averages_the_eight_flips():
    def network(x):  # not symmetric: counts the distance to the first corner
        return torch.arange(8.0).view(1, 1, 8, 1, 1).expand(x.shape[0], 1, 8, 8, 8).clone()

    found = predict_logits(network, torch.zeros(1, 8, 8, 8), SlidingWindow((8, 8, 8), mirror=True))
    assert torch.allclose(found, torch.full((1, 8, 8, 8), 3.5))


def test_the_weight_is_a_separable_gaussian_of_an_eighth_of_the_patch():
    weight = gaussian_weight((9, 17, 33)).double()
    assert weight[4, 8, 16] == 1
    assert weight[4, 8, 20] == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2), rel=1e-5)
    assert (weight > 0).all()


# ---- the grid of windows -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@given(st.integers(1, 260), st.integers(1, 96), st.sampled_from([0.25, 0.5, 0.75]))
def test_windows_start_where_nnunets_do(length, patch, overlap):
    peer = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    padded = max(length, patch)
    theirs = peer.compute_steps_for_sliding_window((padded,), (patch,), 1 - overlap)[0]
    if patch * (1 - overlap) >= 1:  # nnU-Net steps by less than a voxel there
        assert window_starts(length, patch, overlap) == theirs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("patch", [(16, 24, 31), (8, 8, 8), (5, 64, 40)])
def test_the_weight_of_a_window_is_nnunets(patch):
    peer = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    theirs = peer.compute_gaussian(patch, device=torch.device("cpu"), dtype=torch.float64)
    ours = gaussian_weight(patch).double()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@given(st.tuples(*[st.integers(1, 60)] * 3), st.tuples(*[st.integers(1, 24)] * 3), st.floats(0, 0.8))
def test_the_weights_of_all_windows_at_a_voxel_sum_to_one(size, patch, overlap):
    grid = WindowGrid.of(size, patch, overlap)
    for axis in range(3):
        total = torch.zeros(grid.padded_size[axis], dtype=torch.float64)
        for start, weight in zip(grid.starts[axis], grid.weights[axis], strict=True):
            total[start : start + patch[axis]] += weight.double()
        assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_the_weights_do_not_underflow_in_the_corners():
    """nnU-Net's product is 4e-11 there, which half precision does not hold; a factor an axis does."""
    assert float(axis_gaussian(128).min()) > torch.finfo(torch.float16).tiny
    assert min(float(w.min()) for w in WindowGrid.of((300, 300, 300), (128,) * 3, 0.5).weights) > 1e-5


def test_half_precision_keeps_three_digits():
    torch.manual_seed(0)
    network, image = torch.nn.Conv3d(1, 4, 3, padding=1), torch.randn(1, 40, 30, 30)
    window = SlidingWindow((16, 16, 16))
    exact = predict_logits(network, image, window)
    half = torch.stack(list(stream_logits([network], image, window, dtype=torch.float16)), dim=1)
    assert half.dtype == torch.float16
    assert (half.float() - exact).abs().max() < 3e-3 * exact.abs().max()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_nothing(batch_size):
    torch.manual_seed(0)
    network, image = torch.nn.Conv3d(2, 3, 3, padding=1), torch.randn(2, 21, 33, 18)
    one = predict_logits(network, image, SlidingWindow((16, 16, 16)))
    assert torch.allclose(
        predict_logits(network, image, SlidingWindow((16,) * 3, batch_size=batch_size)), one, atol=1e-5
    )


def test_no_more_planes_are_held_than_a_patch_is_deep():
    """The band, not the volume: planes are handed on as soon as no window reaches them any more."""
    held, peak = 0, 0
    original = torch.zeros

    def counted(*arguments, **options):
        nonlocal held, peak
        if arguments[0] == (3, 20, 20):  # a plane of logits, not the weights of an axis
            held += 1
            peak = max(peak, held)
        return original(*arguments, **options)

    network = torch.nn.Conv3d(1, 3, 1)
    planes = stream_logits([network], torch.randn(1, 200, 20, 20), SlidingWindow((16, 16, 16)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedvox.inference.sliding_window.torch.zeros", counted)
        for _ in planes:
            held -= 1
    assert held == 0
    assert peak == 16


def test_a_short_axis_is_padded_with_the_channels_minimum_or_a_given_value():
    seen = []

    def network(x):
        seen.append(x.clone())
        return x[:, :1]

    image = torch.arange(2 * 4 * 8 * 8, dtype=torch.float32).reshape(2, 4, 8, 8) + 5
    predict_logits(network, image, SlidingWindow((8, 8, 8)))
    predict_logits(network, image, SlidingWindow((8, 8, 8)), pad_value=0.0)
    assert torch.equal(seen[0][0, :, 2:6], image)
    assert seen[0][0, 0, :2].unique().tolist() == [5.0]
    assert seen[0][0, 1, 6:].unique().tolist() == [float(image[1].min())]
    assert seen[1][0, :, :2].unique().tolist() == [0.0]


def test_a_network_that_returns_its_input_is_not_overwritten():
    image = torch.randn(2, 16, 16, 16)
    found = predict_logits(lambda x: x, image, SlidingWindow((16, 16, 16), mirror=True))
    assert torch.allclose(found, image, atol=1e-6)


def test_logits_of_another_size_than_the_patch_are_refused():
    with pytest.raises(ConfigError, match="evaluation mode"):
        predict_logits(lambda x: x[..., ::2], torch.zeros(1, 8, 8, 8), SlidingWindow((8, 8, 8)))
