"""Ranking of methods on one test set, and how much of it would survive other patients.

A rank is specific to a test set, an aggregation and a metric: the winner on one hospital's cases was sixth on
another's with the same models. So a ranking carries all three, its rank distribution under a bootstrap over patients,
and rankings of several test sets are compared (`agreement`), not averaged.

Also here: Friedman's test with the critical difference of average ranks (Demšar 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedvox.errors import DataError
from fedvox.evaluation.bootstrap import Aggregation, Ratios, resample_weights
from fedvox.evaluation.score_table import ScoreTable

FloatArray = npt.NDArray[np.float64]
_ROUNDING = 12
"""Decimals of a score. Methods that agree to this many are tied, whatever the order of summation."""


@dataclass(frozen=True)
class Ranking:
    """Methods by aggregated score.

    Attributes:
        methods: M names, in the order of the table.
        aggregation: how the scores were aggregated.
        scores: `(M,)` aggregated quality (more is better).
        ranks: `(M,)` 1 is best; tied methods share the better rank.
        distribution: `(M, M)` share of resamples in which method m has rank r + 1.
        interval: `(M, 2)` ranks between which a method lies in `confidence` of the resamples.
        confidence: of the intervals.
        kendall_tau: mean agreement of the resampled order with this one; 1 is perfectly stable.
    """

    methods: tuple[str, ...]
    aggregation: Aggregation
    scores: FloatArray
    ranks: npt.NDArray[np.int64]
    distribution: FloatArray
    interval: npt.NDArray[np.int64]
    confidence: float
    kendall_tau: float

    def order(self) -> list[str]:
        """Names from the best to the worst."""
        return [self.methods[m] for m in np.argsort(self.ranks, kind="stable")]

    def winners(self) -> list[str]:
        """The methods with rank 1: several where they tie."""
        return [m for m, rank in zip(self.methods, self.ranks, strict=True) if rank == 1]

    @property
    def probability_first(self) -> FloatArray:
        """`(M,)` share of resamples in which the method is first or ties for it."""
        return self.distribution[:, 0]


def rank_methods(
    table: ScoreTable,
    aggregation: Aggregation = Aggregation.STRUCTURE_MACRO,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Ranking:
    """Rank the methods of a table, with the distribution of the ranks under resampled patients.

    Raises:
        DataError: no cell of the table is applicable.
    """
    if not table.applicable.any():
        raise DataError("no method has a score in any case", "Check that references contain the structures.")
    ratios = Ratios.of(table.measured(), aggregation)
    scores = ratios.scores(ratios.observed_weights())[0]
    weights = resample_weights(ratios.weight.shape[0], resamples, seed)
    drawn = _ranks(ratios.scores(weights))
    ranks = _ranks(scores[None])[0]
    edges = [(1 - confidence) / 2, (1 + confidence) / 2]
    interval = np.quantile(drawn, edges, axis=0, method="inverted_cdf").T
    distribution = np.stack([(drawn == r).mean(axis=0) for r in range(1, len(table.methods) + 1)], axis=1)
    tau = float(_kendall(drawn, ranks))
    return Ranking(
        table.methods, aggregation, scores, ranks, distribution, interval.astype(np.int64), confidence, tau
    )


def agreement(rankings: Sequence[Ranking]) -> FloatArray:
    """Kendall's τ-b between the rankings of several test sets, `(T, T)`; NaN where one ties all methods.

    Raises:
        DataError: the rankings are not of the same methods in the same order.
    """
    if len({r.methods for r in rankings}) > 1:
        raise DataError("rankings are of different methods", "Rank the methods that all test sets have.")
    tau = np.eye(len(rankings))
    for i, a in enumerate(rankings):
        for j, b in enumerate(rankings[:i]):
            tau[i, j] = tau[j, i] = stats.kendalltau(a.ranks, b.ranks).statistic
    return tau


def _ranks(scores: FloatArray) -> npt.NDArray[np.int64]:
    """Competition ranks per row `(B, M)`: 1, 1, 3. Scores are compared in the decimals that count."""
    ranks: npt.NDArray[np.int64] = stats.rankdata(-np.round(scores, _ROUNDING), method="min", axis=1).astype(
        np.int64
    )
    return ranks


def _kendall(drawn: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]) -> float:
    """Mean over resamples of (concordant − discordant) / pairs, over the pairs that are not tied in `ranks`."""
    first, second = np.triu_indices(len(ranks), 1)
    sign = np.sign(ranks[first] - ranks[second])
    untied = np.count_nonzero(sign)
    if not untied:
        return 1.0
    return float((np.sign(drawn[:, first] - drawn[:, second]) * sign).sum(axis=1).mean() / untied)


@dataclass(frozen=True)
class CriticalDifference:
    """Friedman's test and what follows from it.

    Attributes:
        methods: M names.
        average_ranks: `(M,)` over patients; 1 is best, ties share the mean rank.
        statistic: Friedman's χ² with the correction for ties (as in R).
        p: its p value.
        difference: average ranks that differ by more are different (Nemenyi, at `alpha`).
        alpha: error rate.
        groups: maximal sets of methods, best first, whose average ranks do not differ.
        num_patients: blocks of the test.
    """

    methods: tuple[str, ...]
    average_ranks: FloatArray
    statistic: float
    p: float
    difference: float
    alpha: float
    groups: tuple[tuple[str, ...], ...]
    num_patients: int


def critical_difference(table: ScoreTable, alpha: float = 0.05) -> CriticalDifference:
    """Compare the average ranks of methods over patients (mean quality over structures and scans).

    Raises:
        DataError: fewer than three methods, or fewer than two patients (Friedman's test needs them).
    """
    ratios = Ratios.of(table.measured(), Aggregation.CASE_MEAN)
    scores = np.round(ratios.numerator[:, :, 0] / ratios.weight[:, 0], _ROUNDING)
    methods, patients = scores.shape
    if methods < 3 or patients < 2:
        raise DataError(
            f"{methods} methods on {patients} patients are too few for Friedman's test",
            "Compare at least 3 methods on 2 patients; for two methods use the pairwise comparison.",
        )
    average = stats.rankdata(-scores, axis=0).mean(axis=1)
    tied = bool((scores == scores[0]).all())
    statistic, p = (0.0, 1.0) if tied else stats.friedmanchisquare(*scores)
    quantile = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(methods * (methods + 1) / (6 * patients)))
    groups = _groups(average, difference)
    names = tuple(tuple(table.methods[m] for m in group) for group in groups)
    return CriticalDifference(
        table.methods, average, float(statistic), float(p), difference, alpha, names, patients
    )


def _groups(average: FloatArray, difference: float) -> list[list[int]]:
    """Maximal runs of methods in the order of average rank that span at most `difference`."""
    order = [int(m) for m in np.argsort(average, kind="stable")]
    groups: list[list[int]] = []
    for i, start in enumerate(order):
        run = [m for m in order[i:] if average[m] - average[start] <= difference]
        if not groups or run[-1] != groups[-1][-1]:
            groups.append(run)
    return groups
