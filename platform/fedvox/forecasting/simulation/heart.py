"""A left ventricle that beats: a bright ellipsoid in a grey wall, gated so that phase 0 is end-diastole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedvox.forecasting.simulation.shapes import grid, inside, texture
from fedvox.forecasting.simulation.subjects import Simulation, between, bright_volume


def contraction(phase: Tensor, systole: Tensor) -> Tensor:
    """Share of the stroke that is done at a phase: 0 at 0 and 1, 1 at `systole`, raised cosines between."""
    phase = torch.remainder(phase, 1.0)
    rising = phase / systole
    falling = (phase - systole) / (1 - systole)
    return 0.5 - 0.5 * torch.cos(math.pi * torch.where(phase < systole, rising, 1 + falling))


def render(subjects: Tensor, moments: Tensor, size: int) -> Tensor:
    """Volumes `(B, N, size, size, size)` of hearts `(B, 17)` at phases `(B, N)`."""
    scale, p = size / 16, subjects[:, None, :]
    stroke = between(p[..., 0], 0.18, 0.4) * p[..., -1]
    done = stroke * contraction(moments, between(p[..., 1], 0.28, 0.42))  # (B, N)
    centre = between(p[..., 2:5], -1.2, 1.2) * scale
    axes = between(p[..., 5:8], 3.4, 4.6) * scale
    wall = between(p[..., 8], 1.4, 2.2) * scale
    cavity = axes * (1 - done)[..., None]
    # The muscle keeps its volume: the wall thickens as the cavity shrinks.
    shrink = (1 - done).pow(1 / 2)
    outer = torch.maximum(cavity + wall[..., None], (axes + wall[..., None]) * shrink[..., None])
    points = grid(size)
    pattern = texture(points, p[..., 9:12] * 6.3, between(p[..., 12:15], 0.3, 0.6) / scale)
    body = 0.16 + 0.06 * pattern
    muscle, blood = inside(points, centre, outer), inside(points, centre, cavity)
    level = between(p[..., 15], 0.75, 0.9)[..., None, None, None]
    image = body + (0.42 - body) * muscle
    return image + (level - image) * blood


HEART = Simulation("heart", "cycle", 1.0, 16, render, bright_volume(0.42, 0.82))
