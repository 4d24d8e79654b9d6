"""Scores against reference libraries, and the seam score on images whose seams are known."""

import numpy as np
import pytest
import torch

from fedvox.restoration.metrics import data_consistency, nmse, psnr, seam_score, ssim


def image(size=(96, 120), seed=0):
    rng = np.random.default_rng(seed)
    spectrum = np.fft.fft2(rng.standard_normal(size))
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1]))
    smooth = np.fft.ifft2(spectrum / (0.01 + f) ** 1.5).real
    return torch.from_numpy(smooth / np.abs(smooth).max()).float()


def test_ssim_and_psnr_are_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    a = image()
    b = a + 0.05 * torch.randn_like(a)
    extent = float(a.max() - a.min())
    expected = metrics.structural_similarity(
        a.double().numpy(), b.double().numpy(), data_range=extent, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(b, a) == pytest.approx(expected, abs=1e-4)
    assert psnr(b, a) == pytest.approx(
        metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=float(a.max())), abs=1e-3
    )
    assert nmse(2 * a, a) == pytest.approx(1.0)


@pytest.mark.parametrize("edge", [16, 24])
@pytest.mark.parametrize("height", [0.01, 0.03])
def test_known_seams_are_found_and_only_on_their_own_grid(edge, height):
    torch.manual_seed(0)
    steps = torch.randn(8, 8) * height
    tiled = steps.repeat_interleave(edge, 0).repeat_interleave(edge, 1)[:96, :120]
    error = 0.005 * torch.randn(96, 120)
    assert seam_score(error + tiled, (edge, edge)).z > 3
    assert seam_score(error + tiled, (edge, edge)).ratio > 1.05
    shifted = torch.roll(tiled, (5, 5), (0, 1))
    assert seam_score(error + shifted, (edge, edge)).z < 1


def test_without_seams_the_score_says_so_whatever_the_image():
    scores = [seam_score(image(seed=s), (16, 16)).z for s in range(12)]
    assert max(np.abs(scores)) < 3
    assert abs(np.mean(scores)) < 1


def test_seams_of_a_volume_are_found_along_each_axis():
    torch.manual_seed(0)
    volume = 0.01 * torch.randn(24, 24, 24)
    volume[:, :, 8:16] += 0.05
    assert seam_score(volume, (24, 24, 8)).z > 3
    with pytest.raises(ValueError, match="no border"):
        seam_score(volume, (24, 24, 24))


def test_data_consistency_is_the_relative_residual():
    from fedvox.restoration.physics import denoising

    y = torch.ones(1, 1, 4, 4)
    assert data_consistency(denoising(0.1), 1.5 * y, y) == pytest.approx(0.5)
