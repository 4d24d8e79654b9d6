"""What seeds say: intervals of means, and paired tests of comparisons that were declared beforehand.

The unit is the seed: another deal of patients, other test patients, another model. Arms of one seed share all of that,
so differences are taken within seeds. Means have BCa bootstrap intervals; a comparison has Wilcoxon's signed-rank test,
two-sided and exact, and Holm's correction over all comparisons of one task and scenario, all ε together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.multitest import multipletests

from fedvox.evaluation.bootstrap import FloatArray, bca_interval, resample_weights
from fedvox.evaluation.pairwise import exact_signed_rank

RESAMPLES = 5000
ALPHA = 0.05
_ROUNDING = 12  # decimals; differences by summation order are none


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One arm against another.

    Attributes:
        a: the arm that may be better.
        b: the other.
        epsilon: promised in both.
        seeds: pairs.
        difference: a - b.
        p: two-sided.
        p_holm: corrected.
        wins: share of seeds with a above b; ties count half.
    """

    a: str
    b: str
    epsilon: float
    seeds: int
    difference: Estimate
    p: float
    p_holm: float
    wins: float

    @property
    def significant(self) -> bool:
        """After correction."""
        return self.p_holm < ALPHA


def estimate(values: Sequence[float] | FloatArray, *, seed: int = 0) -> Estimate:
    """Mean and BCa interval.

    Args:
        values: one a seed.
        seed: of the bootstrap.
    """
    sample = np.asarray(values, np.float64)
    count = len(sample)
    if count < 2:
        return Estimate(float(sample.mean()), float("nan"), float("nan"))
    replicates = resample_weights(count, RESAMPLES, seed) @ sample / count
    jackknife = (sample.sum() - sample) / (count - 1)
    low, high = bca_interval(np.array([sample.mean()]), replicates[:, None], jackknife[:, None])
    return Estimate(float(sample.mean()), float(low[0]), float(high[0]))


def compare(pairs: Mapping[tuple[str, str, float], tuple[FloatArray, FloatArray]]) -> list[Comparison]:
    """Test a family of comparisons.

    Args:
        pairs: (a, b, ε) -> the scores of both, paired by seed.

    Returns:
        In the order given, with Holm's correction over all of them.
    """
    if not pairs:
        return []
    differences = {key: np.round(a - b, _ROUNDING) for key, (a, b) in pairs.items()}
    p = [two_sided(difference) for difference in differences.values()]
    corrected = multipletests(p, method="holm")[1]
    return [
        Comparison(
            *key,
            seeds=len(difference),
            difference=estimate(difference),
            p=p[number],
            p_holm=float(corrected[number]),
            wins=float(np.mean((difference > 0) + 0.5 * (difference == 0))),
        )
        for number, (key, difference) in enumerate(differences.items())
    ]


def two_sided(differences: FloatArray) -> float:
    """Wilcoxon's signed-rank test; 1 where nothing differs."""
    if not np.any(differences):
        return 1.0
    greater, less, _ = exact_signed_rank(differences)
    return min(1.0, 2 * min(greater, less))
