"""Bootstrap over patients: aggregated scores of all methods at once, and BCa confidence intervals.

An aggregated score is a mean of ratios of sums over patients, `mean_k Σ_u w_u·numerator_uk / Σ_u w_u·weight_uk`. A
resample only changes the weights w, how often each patient was drawn, so all resamples of all methods are two
matrix products. Patients are the units that are drawn: several scans of one are drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from fedvox.evaluation.score_table import ScoreTable

FloatArray = npt.NDArray[np.float64]


class Aggregation(StrEnum):
    """How cells become one score per method. The order of methods can depend on it: declare one.

    Attributes:
        STRUCTURE_MACRO: mean over cases within a structure, then over structures; a rare structure counts as much
            as a frequent one.
        CASE_MEAN: mean over the structures within a case, then over cases.
        POOLED: mean over all cells.
        MEAN_RANK: rank the methods in every cell (1 is best, ties share), then as `STRUCTURE_MACRO`. Reported with
            the sign changed, so that more is better.
    """

    STRUCTURE_MACRO = "structure_macro"
    CASE_MEAN = "case_mean"
    POOLED = "pooled"
    MEAN_RANK = "mean_rank"


@dataclass(frozen=True)
class Ratios:
    """Sums per patient from which aggregated scores are computed under any weights.

    Attributes:
        numerator: `(M, U, K)` summed quality per method, patient and column.
        weight: `(U, K)` number of cells (or cases) summed.
    """

    numerator: FloatArray
    weight: FloatArray

    @classmethod
    def of(cls, table: ScoreTable, aggregation: Aggregation) -> Ratios:
        """Prepare a table for an aggregation."""
        quality, applicable = table.quality, table.applicable
        weight: FloatArray = applicable.astype(np.float64)
        if aggregation is Aggregation.MEAN_RANK:
            quality = -np.asarray(rankdata(-np.where(applicable, quality, 0), axis=0), np.float64)
        cells = np.where(applicable, quality, 0)
        if aggregation is Aggregation.CASE_MEAN:
            weight = np.minimum(weight.sum(axis=1, keepdims=True), 1)
            cells = cells.sum(axis=2, keepdims=True) / np.maximum(applicable.sum(axis=1)[:, None], 1)
        elif aggregation is Aggregation.POOLED:
            cells, weight = cells.sum(axis=2, keepdims=True), weight.sum(axis=1, keepdims=True)
        units = table.num_patients
        numerator = np.zeros((len(table.methods), units, cells.shape[2]))
        per_patient = np.zeros((units, cells.shape[2]))
        for case, patient in enumerate(table.clusters):
            numerator[:, patient] += cells[:, case]
            per_patient[patient] += weight[case]
        return cls(numerator, per_patient)

    def columns(self, weights: FloatArray) -> FloatArray:
        """Mean quality per method and column under weights `(B, U)`: `(B, M, K)`; NaN where no cell is drawn."""
        units, num_columns = self.weight.shape
        flat = self.numerator.transpose(1, 0, 2).reshape(units, -1)
        summed = (weights @ flat).reshape(len(weights), -1, num_columns)
        drawn = (weights @ self.weight)[:, None]
        return _ratio(summed, drawn)

    def scores(self, weights: FloatArray) -> FloatArray:
        """Aggregated score per method under weights `(B, U)`: `(B, M)`."""
        columns = self.columns(weights)
        drawn = np.isfinite(columns)
        return _ratio(np.where(drawn, columns, 0).sum(axis=2), drawn.sum(axis=2, dtype=np.float64))

    def observed_weights(self) -> FloatArray:
        """Every patient once: `(1, U)`."""
        return np.ones((1, self.weight.shape[0]))

    def jackknife_weights(self) -> FloatArray:
        """Every patient left out once: `(U, U)`."""
        units = self.weight.shape[0]
        return np.ones((units, units)) - np.eye(units)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotient; NaN where nothing was counted."""
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def resample_weights(units: int, resamples: int, seed: int) -> FloatArray:
    """How often each of the units is drawn in each bootstrap resample, `(resamples, units)`."""
    drawn = np.random.default_rng(seed).integers(0, units, (resamples, units))
    drawn += np.arange(resamples)[:, None] * units
    counts = np.bincount(drawn.reshape(-1), minlength=resamples * units)
    return counts.reshape(resamples, units).astype(np.float64)


def bca_interval(
    observed: FloatArray, replicates: FloatArray, jackknife: FloatArray, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987), for many statistics at once.

    Args:
        observed: `(P,)` statistics of the sample.
        replicates: `(B, P)` statistics of the resamples; NaN where a resample had none.
        jackknife: `(U, P)` statistics with each unit left out.
        confidence: two-sided coverage.

    Returns:
        Lower and upper bounds `(P,)`. A statistic that no resample changes has an interval of width 0.
    """
    below = (replicates < observed).mean(axis=0) + (replicates <= observed).mean(axis=0)
    bias = ndtri(below / 2)
    pull = np.nanmean(jackknife, axis=0) - jackknife
    cubes, squares = np.nansum(pull**3, axis=0), np.nansum(pull**2, axis=0)
    acceleration = np.divide(cubes, 6 * squares**1.5, out=np.zeros_like(cubes), where=squares > 0)
    bounds = []
    for z in ndtri([(1 - confidence) / 2, (1 + confidence) / 2]):
        with np.errstate(invalid="ignore"):  # bias is infinite where all replicates are on one side
            share = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        share = np.where(np.isinf(bias), bias > 0, share)
        bounds.append(_quantiles(replicates, np.nan_to_num(share, nan=0.5)))
    constant = (replicates == observed).all(axis=0)
    low, high = (np.where(constant, observed, b) for b in bounds)
    return low, high


def _quantiles(replicates: FloatArray, share: FloatArray) -> FloatArray:
    """The quantile `share[p]` of each column p, interpolated as `numpy.quantile` does."""
    ordered = np.sort(replicates, axis=0)  # NaN last
    count = np.isfinite(ordered).sum(axis=0)
    position = share * np.maximum(count - 1, 0)
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    column = np.arange(ordered.shape[1])
    lower, upper = ordered[low, column], ordered[high, column]
    result: FloatArray = lower + (upper - lower) * (position - low)
    return result
