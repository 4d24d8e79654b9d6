"""Noise levels of a restoration, from large to small (Karras et al. 2022, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_levels(steps: int, largest: float, smallest: float, *, rho: float = 7.0) -> Tensor:
    """`(steps,)` decreasing levels, evenly spread after taking the rho-th root."""
    if steps == 1:
        return torch.tensor([largest])
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    top, bottom = largest ** (1 / rho), smallest ** (1 / rho)
    return torch.pow(top + share * (bottom - top), rho).float()
