"""Forecasts that need no training. All take what `Forecaster` takes, and only use scans that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from fedvox.forecasting.examples import keep_valid

Baseline = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`(scans (B, T, C, D, H, W), times (B, T), valid (B, T), target_time (B,)) -> forecast (B, C, D, H, W)`."""


def last_context_image(scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor) -> Tensor:  # noqa: ARG001
    """LCI: nothing changes."""
    return keep_valid(scans, times, valid, 1).images[:, -1]


def mean_context(scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor) -> Tensor:  # noqa: ARG001
    """The mean of the scans that there are."""
    weight = valid.to(scans.dtype)[:, :, None, None, None, None]
    kept = torch.where(valid[:, :, None, None, None, None], scans, scans.new_zeros(()))
    return kept.sum(dim=1) / weight.sum(dim=1)


def linear(scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor) -> Tensor:
    """The line through the last two scans, voxel by voxel, kept within [0, 1]; one scan only: LCI."""
    pair = keep_valid(scans, times, valid, 2)
    count = valid.sum(dim=1)
    gap = pair.times[:, 1] - pair.times[:, 0]
    share = torch.where((count > 1) & (gap > 0), (target_time - pair.times[:, 1]) / gap.clamp(min=1e-6), 0.0)
    first, last = pair.images[:, 0], pair.images[:, 1]
    extrapolated = last + (last - first) * share[:, None, None, None, None]
    return torch.where(share[:, None, None, None, None] == 0, last, extrapolated.clamp(0, 1))


def spline(scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor) -> Tensor:
    """A natural cubic spline through all scans, voxel by voxel, a line beyond its ends; kept within [0, 1]."""
    return torch.stack(
        [_spline(*(part[row] for part in (scans, times, valid, target_time))) for row in range(len(scans))]
    )


def _spline(scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor) -> Tensor:
    knots, images = times[valid].double().numpy(), scans[valid].numpy()
    if len(knots) == 1:
        return scans[valid][-1]
    if len(knots) == 2:
        return linear(scans[None], times[None], valid[None], target_time[None])[0]
    curve = CubicSpline(knots, images, bc_type="natural")
    at = float(target_time)
    edge = float(np.clip(at, knots[0], knots[-1]))
    value = curve(edge) + curve(edge, 1) * (at - edge)
    return torch.from_numpy(np.clip(value, 0, 1).astype(np.float32))


BASELINES: Mapping[str, Baseline] = {
    "lci": last_context_image, "mean": mean_context, "linear": linear, "spline": spline,
}  # fmt: skip
"""By name."""
