"""Errors of forecasts, per patient: in the whole volume, in a region, and in what is asked of a lesion.

Images are in normalised units, where the range of the data is 1. Every metric of a forecast is reported beside that of
the last context image (LCI), whose forecast is "no change".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHANGE = 0.05
"""A voxel is in the changing region where any context image differs from the truth by more than this."""
STILL = 0.002
"""A voxel is still where no noise-free context image differs from the truth by more than this."""
_WINDOW = 7


def mean_squared_error(forecast: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each patient, `(B,)`; NaN where the mask is empty.

    Args:
        forecast: `(B, C, D, H, W)`.
        truth: of the same shape.
        mask: `(B, 1, D, H, W)` bool: the region that counts; None counts every voxel.
    """
    error = (forecast - truth).square()
    if mask is None:
        return error.flatten(1).mean(dim=1)
    inside = mask.to(error.dtype).expand_as(error)
    return (error * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)


def nrmse(mse: Tensor) -> Tensor:
    """Root of the mean squared error, relative to the data's range of 1."""
    return mse.sqrt()


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a data range of 1."""
    return -10 * torch.log10(mse.clamp(min=1e-12))


def ssim(forecast: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity of each patient in cubes of 7³ voxels, `(B,)`, for a data range of 1.

    Args:
        forecast: `(B, C, D, H, W)`; where an axis has fewer than 7 voxels, cubes have as many as there are.
        truth: of the same shape.
        mask: `(B, 1, D, H, W)` bool: cubes whose centre lies there count; None counts all. NaN where there is none.

    Source: Wang et al. 2004, with the sample covariance and without borders, as scikit-image computes it.
    """
    window = [min(_WINDOW, n) for n in forecast.shape[2:]]
    count = window[0] * window[1] * window[2]

    def local(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, window, stride=1)

    x, y = forecast.double(), truth.double()
    mean_x, mean_y = local(x), local(y)
    unbiased = count / (count - 1)
    var_x = unbiased * (local(x * x) - mean_x**2)
    var_y = unbiased * (local(y * y) - mean_y**2)
    cov = unbiased * (local(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    if mask is None:
        return similarity.flatten(1).mean(dim=1).float()
    inside = mask
    for axis, (edge, centres) in enumerate(zip(window, similarity.shape[2:], strict=True), start=2):
        inside = inside.narrow(axis, (edge - 1) // 2, centres)
    inside = inside.to(similarity.dtype).expand_as(similarity)
    return ((similarity * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)).float()


def changing_region(scans: Tensor, truth: Tensor, threshold: float = CHANGE) -> Tensor:
    """Where any context image differs from the truth, `(B, 1, D, H, W)` bool: for evaluation only.

    Args:
        scans: `(B, K, C, D, H, W)`.
        truth: `(B, C, D, H, W)`.
        threshold: of the difference.
    """
    return ((scans - truth[:, None]).abs() > threshold).any(dim=1).any(dim=1, keepdim=True)


def relative_volume_error(volume: Tensor, truth: Tensor) -> Tensor:
    """`|volume - truth| / truth`, `(B,)`; volumes under a voxel count as one."""
    return (volume - truth).abs() / truth.clamp(min=1.0)


def scores(forecast: Tensor, truth: Tensor, *, region: Tensor | None = None) -> dict[str, Tensor]:
    """The metrics of each patient by name, `(B,)` each.

    Args:
        forecast: `(B, C, D, H, W)`.
        truth: of the same shape.
        region: `(B, 1, D, H, W)` bool; adds the same metrics inside it.
    """
    mse = mean_squared_error(forecast, truth)
    found = {"mse": mse, "nrmse": nrmse(mse), "psnr": psnr(mse), "ssim": ssim(forecast, truth)}
    if region is not None:
        inside = mean_squared_error(forecast, truth, region)
        found |= {"region_mse": inside, "region_nrmse": nrmse(inside), "region_psnr": psnr(inside)}
        found["region_ssim"] = ssim(forecast, truth, region)
    return found
