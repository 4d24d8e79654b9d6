"""A lesion under treatment: it responds and shrinks, or progresses and grows, and nothing before tells which.

Both happen to half of the patients. Until the treatment acts, at 0.6 of the history, the lesion does not change; by 0.7
its new size is reached. A forecast of a later time is a guess between two futures, and both are known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedvox.forecasting.simulation.shapes import grid, inside, texture
from fedvox.forecasting.simulation.subjects import Simulation, between, bright_volume

ACTS, DONE = 0.6, 0.7
"""Where the treatment begins to act and has acted, as shares of the history."""
_MONTHS = 24.0
_GROWTH = 0.45
"""Logarithm of the final radius over the first, of either sign."""


def render(subjects: Tensor, moments: Tensor, size: int) -> Tensor:
    """Volumes `(B, N, size, size, size)` of patients `(B, 15)` at months `(B, N)`."""
    scale, p = size / 16, subjects[:, None, :]
    sign = torch.where(p[..., 0] < 0.5, -1.0, 1.0)
    acted = ((moments / _MONTHS - ACTS) / (DONE - ACTS)).clamp(0, 1)
    factor = torch.exp(_GROWTH * sign * acted * p[..., -1])
    centre = between(p[..., 1:4], -1.5, 1.5) * scale
    axes = between(p[..., 4:7], 2.6, 3.4) * scale * factor[..., None]
    points = grid(size)
    pattern = texture(points, p[..., 7:10] * 6.3, between(p[..., 10:13], 0.3, 0.6) / scale)
    body = 0.3 + 0.12 * pattern
    level = between(p[..., 13], 0.75, 0.9)[..., None, None, None]
    return body + (level - body) * inside(points, centre, axes)


def futures(subjects: Tensor, moments: Tensor, size: int) -> Tensor:
    """Both futures of each patient, `(2, B, N, size, size, size)`: response, progression."""
    both = []
    for outcome in (0.25, 0.75):
        fated = subjects.clone()
        fated[:, 0] = outcome
        both.append(render(fated, moments, size))
    return torch.stack(both)


RESPONSE = Simulation("response", "months", _MONTHS, 14, render, bright_volume(0.5, 0.8))
