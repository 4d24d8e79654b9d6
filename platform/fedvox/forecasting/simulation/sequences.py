"""Simulated patients: `Simulated.examples` draws batches as a pure function of seed and sample number.

    heart      an ellipsoid that beats, gated to the cycle; time is the phase of the cycle
    contrast   vessel, tissue and tumour take up a contrast agent and lose it, each at its own rate; seconds
    brain      the MNI152 brain with a growing (or shrinking) lesion and an expanding ventricle; months
    response   a lesion that grows or shrinks under treatment, with equal probability: two futures; months

The truth at any time is a formula. Scans are the truth with Gaussian noise. A share of the patients never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedvox.data.philox import Stream, philox, uniforms
from fedvox.forecasting.examples import Examples
from fedvox.forecasting.simulation.brain import BRAIN
from fedvox.forecasting.simulation.contrast import CONTRAST
from fedvox.forecasting.simulation.heart import HEART
from fedvox.forecasting.simulation.response import RESPONSE
from fedvox.forecasting.simulation.subjects import Simulation

SIMULATIONS: Mapping[str, Simulation] = {
    "heart": HEART, "contrast": CONTRAST, "brain": BRAIN, "response": RESPONSE,
}  # fmt: skip
"""By name."""

Target = Literal["any", "between", "after", "beyond"]
"""Which times are asked for; see `Schedule`."""
TEST = 1 << 40
"""Sample numbers from here on are of subjects that training never draws."""


@dataclass(frozen=True)
class Schedule:
    """When simulated patients are scanned, in units of the simulation's own range.

    Attributes:
        kind: irregular draws visits and target freely; regular puts them on a grid.
        visits: context visits.
        missing: share of the visits that did not take place.
        history: end of the time from which irregular visits are drawn.
        horizon: latest target in training.
        target: which targets are drawn: `any` up to the horizon, `between` the first and the last scan there is,
            `after` it up to the horizon, `beyond` the horizon up to 1.
        steps: of the regular grid, up to 1.
    """

    kind: Literal["irregular", "regular"] = "irregular"
    visits: int = 4
    missing: float = 0.3
    history: float = 0.6
    horizon: float = 0.85
    target: Target = "any"
    steps: int = 10


@dataclass(frozen=True)
class Simulated:
    """Simulated patients of one kind.

    Attributes:
        simulation: what changes, and how.
        schedule: when it is seen.
        seed: of the patients.
        size: edge of the volumes in voxels.
        noise: standard deviation of the scans' noise; images lie between 0 and 1.
        static: share of the patients that never change.
    """

    simulation: Simulation
    schedule: Schedule
    seed: int = 0
    size: int = 16
    noise: float = 0.01
    static: float = 0.1

    def examples(self, indices: Sequence[int]) -> Examples:
        """The samples of these numbers; each depends on its own number and the seed only."""
        subjects = self.subjects(indices)
        schedules = [self._schedule(index) for index in indices]
        times = torch.tensor(np.stack([s[0] for s in schedules]), dtype=torch.float32)
        valid = torch.tensor(np.stack([s[1] for s in schedules]))
        target_time = torch.tensor([s[2] for s in schedules], dtype=torch.float32)
        moments = torch.cat([times, target_time[:, None]], dim=1) * self.simulation.duration
        truth = self.simulation.render(subjects, moments, self.size)[:, :, None]
        noisy = truth + self.noise * torch.stack([self._noise(i, truth.shape[1:]) for i in indices])
        return Examples(
            scans=noisy[:, :-1], times=moments[:, :-1], valid=valid, target=noisy[:, -1],
            target_time=moments[:, -1], truth=truth[:, -1], scans_truth=truth[:, :-1],
        )  # fmt: skip

    def subjects(self, indices: Sequence[int]) -> Tensor:
        """What the patients are like: numbers in [0, 1) and, last, whether they change, `(B, P + 1)`."""
        count = self.simulation.parameters
        drawn = np.stack([uniforms(self.seed, index, Stream.CASE, count + 1) for index in indices])
        subjects = torch.tensor(drawn, dtype=torch.float32)
        subjects[:, -1] = (subjects[:, -1] >= self.static).float()
        return subjects

    def _noise(self, index: int, shape: Sequence[int]) -> Tensor:
        rng = philox(self.seed, index, Stream.NOISE)
        return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))

    def _schedule(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Times (T,), which took place (T,), and the target's time, in [0, 1]."""
        plan = self.schedule
        rng = philox(self.seed, index, Stream.LOCATION)
        valid = rng.random(plan.visits) >= plan.missing
        if not valid.any():
            valid[rng.integers(plan.visits)] = True
        if plan.kind == "regular":
            start = int(rng.integers(plan.steps - plan.visits + 1))
            times = (start + np.arange(plan.visits)) / plan.steps
            return times, valid, (start + plan.visits) / plan.steps
        times = np.sort(rng.random(plan.visits)) * plan.history
        seen = times[valid]
        low, high = {
            "any": (0.0, plan.horizon), "between": (seen[0], seen[-1]),
            "after": (seen[-1], plan.horizon), "beyond": (plan.horizon, 1.0),
        }[plan.target]  # fmt: skip
        return times, valid, float(low + (high - low) * rng.random())
