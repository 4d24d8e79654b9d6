import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from fedvox.inference.sliding_window import SlidingWindow, gaussian_weight, predict_logits, window_starts


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
