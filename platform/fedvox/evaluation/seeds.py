"""A figure over several trainings: its mean, and how much it varies with patients and with seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class SeedEstimate:
    """A mean over seeds.

    Attributes:
        value: mean of what the seeds say.
        low: of the 95 % bootstrap interval over patients.
        high: see `low`.
        seed_low: of the 95 % t interval over seeds; NaN for a single one.
        seed_high: see `seed_low`.
        seeds: how many.
    """

    value: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    seeds: int

    @classmethod
    def of(cls, per_seed: np.ndarray[Any, Any], low: float, high: float) -> SeedEstimate:
        """From a value of each seed, `(S,)`, and an interval over patients."""
        seeds, value, reach = len(per_seed), float(per_seed.mean()), float("nan")
        if seeds > 1:
            reach = float(stats.t.ppf(0.975, seeds - 1) * per_seed.std(ddof=1) / np.sqrt(seeds))
        return cls(value, low, high, value - reach, value + reach, seeds)
