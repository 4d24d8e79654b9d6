"""What a test set of this size can show: the smallest difference that it would detect.

A comparison that finds nothing says little unless it could have found something. The statement is about the
one-sided signed-rank test of one pair, at the level that Holm's correction starts from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.power import TTestPower

from fedvox.evaluation.bootstrap import Aggregation, Ratios
from fedvox.evaluation.score_table import ScoreTable

SIGNED_RANK_EFFICIENCY = 3 / math.pi
"""Asymptotic relative efficiency of the signed-rank test to the paired t test for normal differences (Lehmann)."""


@dataclass(frozen=True)
class PowerStatement:
    """Smallest difference detected with a given power.

    Attributes:
        num_patients: pairs.
        spread: standard deviation of paired differences, the median over the pairs of methods.
        alpha: level of one test, after dividing by the number of tests.
        power: probability of detection.
        detectable: the smallest mean difference, in units of the metric; infinite for fewer than 3 patients.
        needed: patients needed to detect `margin`; None where no margin was given.
        margin: difference that matters.
    """

    num_patients: int
    spread: float
    alpha: float
    power: float
    detectable: float
    needed: int | None
    margin: float

    def __str__(self) -> str:
        text = (
            f"With {self.num_patients} patients, a mean difference of {self.detectable:.3g} is detected with "
            f"{self.power:.0%} power (one-sided signed-rank test at {self.alpha:.2g}, paired differences with a "
            f"standard deviation of {self.spread:.3g})."
        )
        if self.needed is not None:
            text += f" To detect {self.margin:g}, {self.needed} patients would be needed."
        return text


def power_statement(
    table: ScoreTable,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    margin: float = 0.0,
    num_tests: int | None = None,
) -> PowerStatement:
    """State what the overall comparison of a table's methods can detect.

    Args:
        table: complete scores of at least two methods.
        alpha: family-wise error rate.
        power: wanted probability of detection.
        margin: difference that matters; 0 for none.
        num_tests: tests in the family; by default all ordered pairs of methods.
    """
    ratios = Ratios.of(table.measured(), Aggregation.CASE_MEAN)
    scores = ratios.numerator[:, :, 0] / ratios.weight[:, 0]
    methods, patients = scores.shape
    first, second = np.triu_indices(methods, 1)
    spreads = (scores[first] - scores[second]).std(axis=1, ddof=1) if patients > 1 else np.zeros(len(first))
    spread = float(np.median(spreads)) if len(spreads) else 0.0
    level = alpha / (num_tests or max(methods * (methods - 1), 1))
    pairs = patients * SIGNED_RANK_EFFICIENCY
    detectable = math.inf if pairs < 3 else standardised_effect(pairs, level, power) * spread
    needed = None
    if margin > 0 and spread > 0:
        needed = math.ceil(paired_sample_size(margin / spread, level, power) / SIGNED_RANK_EFFICIENCY)
    return PowerStatement(patients, spread, level, power, detectable, needed, margin)


def standardised_effect(pairs: float, alpha: float, power: float) -> float:
    """Smallest mean difference over its standard deviation that a one-sided paired t test detects."""
    return float(TTestPower().solve_power(nobs=pairs, alpha=alpha, power=power, alternative="larger"))


def paired_sample_size(effect: float, alpha: float, power: float) -> float:
    """Pairs with which a one-sided paired t test detects a standardised effect."""
    # Beyond 4 standard deviations two or three pairs do, where the solver does not converge.
    return float(
        TTestPower().solve_power(effect_size=min(effect, 4.0), alpha=alpha, power=power, alternative="larger")
    )
