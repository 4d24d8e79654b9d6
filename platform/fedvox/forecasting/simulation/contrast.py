"""Contrast agent in a body: a vessel fills first, tissue slowly, a tumour fast and then loses it."""

from __future__ import annotations

import torch
from torch import Tensor

from fedvox.forecasting.simulation.shapes import grid, inside, texture
from fedvox.forecasting.simulation.subjects import Simulation, between, bright_volume


def uptake(seconds: Tensor, arrival: Tensor, wash_in: Tensor, wash_out: Tensor) -> Tensor:
    """Concentration after the agent's arrival: `(1 - exp(-k_in s)) exp(-k_out s)`, 0 before."""
    since = (seconds - arrival).clamp(min=0)
    return (1 - torch.exp(-wash_in * since)) * torch.exp(-wash_out * since)


def render(subjects: Tensor, moments: Tensor, size: int) -> Tensor:
    """Volumes `(B, N, size, size, size)` of patients `(B, 23)` at seconds `(B, N)`."""
    scale, p = size / 16, subjects[:, None, :]
    points = grid(size)

    def organ(first: int, low: float, high: float) -> Tensor:
        centre = between(p[..., first : first + 3], -3.5, 3.5) * scale
        return inside(points, centre, between(p[..., first + 3 : first + 6], low, high) * scale)

    pattern = texture(points, p[..., 18:21] * 6.3, torch.full_like(p[..., 18:21], 0.45 / scale))
    image = 0.22 + 0.05 * pattern + 0.08 * organ(0, 5.0, 7.0)
    image = image.expand(-1, moments.shape[1], -1, -1, -1)
    arrival = between(p[..., 21], 4.0, 12.0)
    for first, low, high, gain, wash_in, wash_out in (
        (0, 5.0, 7.0, 0.20, 0.05, 0.002),
        (6, 1.2, 1.8, 0.55, 0.40, 0.02),
        (12, 2.0, 3.2, 0.50, 0.15, 0.012),
    ):
        rate = between(p[..., first + 5], 0.7, 1.3)
        curve = uptake(moments, arrival, wash_in * rate, wash_out * rate) * p[..., -1]
        image = image + organ(first, low, high) * (gain * curve)[..., None, None, None]
    return image.clamp(0, 1)


CONTRAST = Simulation("contrast", "seconds", 60.0, 22, render, bright_volume(0.35, 0.8))
