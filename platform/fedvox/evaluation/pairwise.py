"""Is one method better than another? Every ordered pair of methods, per structure and overall.

- *Significance*: one-sided Wilcoxon signed-rank test on the paired scores of patients, missing cases included as
  worst. Holm's correction over all ordered pairs and all structures together; over all ordered pairs for the overall
  scores. Zero differences are dropped (as in SciPy and R); two identical methods have p = 1 in both directions.
- *Effect*: mean paired difference with a BCa bootstrap interval, share of patients won, and the matched-pairs
  rank-biserial correlation.
- *Verdict*: a method is called better only if the corrected test rejects, the interval excludes 0, and the
  difference reaches the margin that was declared to matter. With hundreds of cases significance alone is cheap.

The statistic of the one-sided test is the sum of the ranks of positive differences, so its rank-biserial effect is
2·R⁺/(R⁺ + R⁻) − 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fedvox.evaluation.bootstrap import Aggregation, Ratios, bca_interval, resample_weights
from fedvox.evaluation.score_table import ScoreTable

FloatArray = npt.NDArray[np.float64]
OVERALL = "overall"

_EXACT_UP_TO = 50
"""Pairs up to which the exact null distribution is used, as in R and SciPy; beyond it is normal to three digits."""


@dataclass(frozen=True)
class Comparison:
    """Method `a` against method `b` in one scope.

    Attributes:
        scope: a structure, or `overall`.
        a: the method that is hypothesised to be better.
        b: the other method.
        num_patients: pairs compared.
        p: one-sided p value of "a is better".
        p_holm: the same after Holm's correction.
        difference: mean quality of a minus mean quality of b (positive: a is better).
        low: lower bound of the BCa interval of the difference.
        high: upper bound.
        rank_biserial: from −1 (b wins every rank) to 1.
        win_share: share of patients with a better than b; ties count half.
        better: the verdict.
    """

    scope: str
    a: str
    b: str
    num_patients: int
    p: float
    p_holm: float
    difference: float
    low: float
    high: float
    rank_biserial: float
    win_share: float
    better: bool


@dataclass(frozen=True)
class PairwiseResult:
    """All ordered pairs of M methods in K scopes (the structures, then `overall`); `[k, a, b]` is a against b."""

    methods: tuple[str, ...]
    scopes: tuple[str, ...]
    num_patients: npt.NDArray[np.int64]
    p: FloatArray
    p_holm: FloatArray
    difference: FloatArray
    low: FloatArray
    high: FloatArray
    rank_biserial: FloatArray
    win_share: FloatArray
    alpha: float
    margin: float

    @property
    def better(self) -> npt.NDArray[np.bool_]:
        """`(K, M, M)` verdicts."""
        return (self.p_holm < self.alpha) & (self.low > 0) & (self.difference >= self.margin)

    def comparisons(self) -> Iterator[Comparison]:
        """Every ordered pair as a record, for tables."""
        better = self.better
        for k, scope in enumerate(self.scopes):
            for a, b in np.argwhere(~np.eye(len(self.methods), dtype=bool)):
                yield Comparison(
                    scope=scope,
                    a=self.methods[a],
                    b=self.methods[b],
                    num_patients=int(self.num_patients[k]),
                    p=float(self.p[k, a, b]),
                    p_holm=float(self.p_holm[k, a, b]),
                    difference=float(self.difference[k, a, b]),
                    low=float(self.low[k, a, b]),
                    high=float(self.high[k, a, b]),
                    rank_biserial=float(self.rank_biserial[k, a, b]),
                    win_share=float(self.win_share[k, a, b]),
                    better=bool(better[k, a, b]),
                )


def compare_all(
    table: ScoreTable,
    *,
    alpha: float = 0.05,
    margin: float = 0.0,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairwiseResult:
    """Compare every ordered pair of methods in every structure and overall.

    Args:
        table: complete scores.
        alpha: family-wise error rate.
        margin: smallest difference that matters, in units of the metric.
        confidence: coverage of the intervals.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    table = table.measured()
    per_structure = Ratios.of(table, Aggregation.STRUCTURE_MACRO)
    overall = Ratios.of(table, Aggregation.CASE_MEAN)
    scopes = [_scope(per_structure, k) for k in range(len(table.structures))] + [_scope(overall, 0)]
    tests = [_signed_rank(scope) for scope in scopes]
    p = np.stack([t[0] for t in tests])
    weights = resample_weights(table.num_patients, resamples, seed)
    effects = [_differences(ratios, weights, confidence) for ratios in (per_structure, overall)]
    difference, low, high = (np.concatenate(parts) for parts in zip(*effects, strict=True))
    return PairwiseResult(
        table.methods,
        (*table.structures, OVERALL),
        np.array([scope.shape[1] for scope in scopes], np.int64),
        p,
        np.concatenate([_holm(p[:-1]), _holm(p[-1:])]),
        difference,
        low,
        high,
        np.stack([t[1] for t in tests]),
        np.stack([_win_share(scope) for scope in scopes]),
        alpha,
        margin,
    )


def _scope(ratios: Ratios, column: int) -> FloatArray:
    """Mean score of every patient who has the structure, `(M, patients)`."""
    weight = ratios.weight[:, column]
    drawn = weight > 0
    means: FloatArray = ratios.numerator[:, drawn, column] / weight[drawn]
    return means


def _signed_rank(scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """One-sided p values and rank-biserial correlations `(M, M)` of methods with scores `(M, n)`."""
    methods, patients = scores.shape
    p, effect = np.ones((methods, methods)), np.zeros((methods, methods))
    first, second = np.triu_indices(methods, 1)
    # Differences below rounding are ties: two methods with equal masks must not differ by summation order.
    differences = np.round(scores[first] - scores[second], 12)
    differing = np.count_nonzero(differences, axis=1)
    keep = np.flatnonzero(differing)
    if not len(keep):
        return p, effect
    if patients <= _EXACT_UP_TO:
        greater, less, positive = (
            np.array(c) for c in zip(*map(exact_signed_rank, differences[keep]), strict=True)
        )
    else:
        sides = (
            stats.wilcoxon(differences[keep], axis=1, alternative=s, method="approx")
            for s in ("greater", "less")
        )
        (positive, greater), (_, less) = ((r.statistic, r.pvalue) for r in sides)
    p[first[keep], second[keep]], p[second[keep], first[keep]] = greater, less
    correlation = 4 * positive / (differing[keep] * (differing[keep] + 1)) - 1
    effect[first[keep], second[keep]], effect[second[keep], first[keep]] = correlation, -correlation
    return p, effect


def exact_signed_rank(differences: FloatArray) -> tuple[float, float, float]:
    """Wilcoxon's signed-rank test by the exact distribution, also with ties and zeros.

    SciPy enumerates all 2ⁿ signs where there are ties, and for that reason stops at 13 pairs. The distribution of the
    rank sum is a product of n polynomials 1 + x^rank, which takes n² steps (ranks are doubled, so that the mean ranks
    of ties are whole numbers).

    Args:
        differences: `(n,)` paired differences; zeros are dropped.

    Returns:
        P(R ≥ r), P(R ≤ r) and the sum r of the ranks of the positive differences.
    """
    differences = differences[differences != 0]
    doubled = np.rint(2 * stats.rankdata(np.abs(differences))).astype(np.intp)
    probability = np.zeros(int(doubled.sum()) + 1)
    probability[0] = 1.0
    for rank in doubled:
        probability[rank:] = probability[rank:] / 2 + probability[:-rank] / 2
        probability[:rank] /= 2
    at = int(doubled[differences > 0].sum())
    return min(1.0, float(probability[at:].sum())), min(1.0, float(probability[: at + 1].sum())), at / 2


def _win_share(scores: FloatArray) -> FloatArray:
    difference = np.round(scores[:, None] - scores[None], 12)
    share: FloatArray = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=2)
    return share


def _holm(p: FloatArray) -> FloatArray:
    """Holm's step-down correction over all ordered pairs of all scopes `(K, M, M)`."""
    adjusted = np.ones_like(p)
    pairs = np.broadcast_to(~np.eye(p.shape[1], dtype=bool), p.shape)
    if pairs.any():
        adjusted[pairs] = multipletests(p[pairs], method="holm")[1]
    return adjusted


def _differences(
    ratios: Ratios, weights: FloatArray, confidence: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean differences and their intervals, each `(K, M, M)`."""
    observed, drawn, left_out = (
        ratios.columns(w) for w in (ratios.observed_weights(), weights, ratios.jackknife_weights())
    )
    methods, columns = observed.shape[1:]
    difference, low, high = np.zeros((3, columns, methods, methods))
    first, second = np.triu_indices(methods, 1)
    for k in range(columns):
        at, replicates, jackknife = (v[:, first, k] - v[:, second, k] for v in (observed, drawn, left_out))
        a, b = bca_interval(at[0], replicates, jackknife, confidence)
        difference[k, first, second], difference[k, second, first] = at[0], -at[0]
        low[k, first, second], high[k, first, second] = a, b
        low[k, second, first], high[k, second, first] = -b, -a
    return difference, low, high
