"""From held-out Dice to statements about backbones, with intervals over patients and seeds.

Two things could have come out otherwise: which patients were held out, and which seeds were drawn. So there are two
intervals: `cases` is the BCa bootstrap over patients at these seeds, and `both` resamples patients and seeds together.
All backbones are judged on the same resamples, for they are trained on the same samples and tested on the same cases.

The question behind the comparison is whether the order from scratch predicts the order after pretraining. Its rank
correlation is over backbones, of which there are few; next to its interval over patients and seeds (of these
backbones) stands the permutation p value, which says what as few backbones can show at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from fedvox.backbone_benchmark.config import Statistics
from fedvox.errors import DataError
from fedvox.evaluation.bootstrap import Aggregation, Ratios, bca_interval, resample_weights
from fedvox.evaluation.score_table import complete

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]

_ROUNDING = 12
_EXACT_UP_TO = 8  # backbones; 40,320 permutations
_SAMPLED_PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Scores:
    """Held-out Dice of several backbones.

    Attributes:
        labels: M backbones.
        seeds: S seeds.
        cases: N held-out cases.
        structures: K structures without background.
        dice: `(M, S, N, K)`; NaN where neither reference nor prediction has the structure.
    """

    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    cases: tuple[str, ...]
    structures: tuple[str, ...]
    dice: FloatArray


@dataclass(frozen=True)
class Sampled:
    """Aggregated scores (mean over cases within a structure, then over structures), observed and resampled.

    Attributes:
        labels: M backbones.
        by_seed: `(M, S)` observed score of each seed.
        cases: `(B, M)` mean over seeds on resampled patients.
        both: `(B, M)` mean over resampled seeds on resampled patients.
        jackknife: `(N, M)` mean over seeds, each patient left out once.
    """

    labels: tuple[str, ...]
    by_seed: FloatArray
    cases: FloatArray
    both: FloatArray
    jackknife: FloatArray

    @property
    def observed(self) -> FloatArray:
        """`(M,)` mean over seeds."""
        mean: FloatArray = self.by_seed.mean(axis=1)
        return mean


@dataclass(frozen=True)
class Standing:
    """One backbone among the others.

    Attributes:
        label: its name.
        dice: mean over seeds.
        cases: interval over patients at these seeds.
        both: interval over patients and seeds.
        seed_deviation: standard deviation over seeds; NaN for one seed.
        rank: 1 is best; ties share the better rank.
        rank_interval: over patients and seeds.
        probability_first: share of the resamples in which it is first or ties for it.
    """

    label: str
    dice: float
    cases: Interval
    both: Interval
    seed_deviation: float
    rank: int
    rank_interval: tuple[int, int]
    probability_first: float


@dataclass(frozen=True)
class Gain:
    """What pretraining adds to one backbone: fine-tuned minus scratch, same budget, patients and seeds."""

    label: str
    scratch: float
    finetuned: float
    gain: float
    interval: Interval


@dataclass(frozen=True)
class Correlation:
    """Whether scratch strength predicts pretrained strength.

    Attributes:
        backbones: how many.
        spearman: rank correlation.
        spearman_interval: over patients and seeds, of these backbones.
        kendall: share of concordant minus share of discordant pairs.
        kendall_interval: likewise.
        p: one-sided permutation p value of Spearman's correlation over backbones.
        least_p: the smallest p value that so many backbones can give.
    """

    backbones: int
    spearman: float
    spearman_interval: Interval
    kendall: float
    kendall_interval: Interval
    p: float
    least_p: float


def sample(scores: Scores, settings: Statistics) -> Sampled:
    """Resamples patients and seeds; equal settings give equal resamples, so that two `Sampled` are paired.

    Raises:
        DataError: fewer than two held-out cases.
    """
    units = len(scores.cases)
    if units < 2:
        raise DataError(
            f"{units} held-out case gives no interval",
            "Hold out at least 2 cases, better 20: recipe.data.validation_cases or validation_fraction.",
        )
    weights = resample_weights(units, settings.resamples, settings.seed)
    left_out = np.ones((units, units)) - np.eye(units)
    observed, drawn, jackknife = [], [], []
    for s in range(len(scores.seeds)):
        table = complete("dice", scores.labels, scores.cases, scores.structures, scores.dice[:, s])
        ratios = Ratios.of(table, Aggregation.STRUCTURE_MACRO)
        observed.append(ratios.scores(ratios.observed_weights())[0])
        drawn.append(ratios.scores(weights))
        jackknife.append(ratios.scores(left_out))
    by_seed = np.stack(drawn)  # (S, B, M)
    rng = np.random.default_rng([settings.seed, 1])
    chosen = rng.integers(0, len(by_seed), (len(by_seed), settings.resamples))
    both = np.take_along_axis(by_seed, chosen[:, :, None], axis=0).mean(axis=0)
    return Sampled(
        scores.labels,
        np.stack(observed, axis=1),
        by_seed.mean(axis=0),
        both,
        np.stack(jackknife).mean(axis=0),
    )


def standings(found: Sampled, settings: Statistics) -> list[Standing]:
    """The backbones, from the best to the worst."""
    low, high = bca_interval(found.observed, found.cases, found.jackknife, settings.confidence)
    both = percentiles(found.both, settings.confidence)
    ranks, drawn = _ranks(found.observed[None])[0], _ranks(found.both)
    edges = _edges(settings.confidence)
    bounds = np.quantile(drawn, edges, axis=0, method="inverted_cdf").astype(int)
    spread = found.by_seed.std(axis=1, ddof=1) if found.by_seed.shape[1] > 1 else np.full(len(ranks), np.nan)
    rows = [
        Standing(
            label,
            float(found.observed[m]),
            (float(low[m]), float(high[m])),
            both[m],
            float(spread[m]),
            int(ranks[m]),
            (int(bounds[0, m]), int(bounds[1, m])),
            float((drawn[:, m] == 1).mean()),
        )
        for m, label in enumerate(found.labels)
    ]
    return sorted(rows, key=lambda row: row.rank)


def gains(scratch: Sampled, finetuned: Sampled, settings: Statistics) -> list[Gain]:
    """Paired differences, backbone by backbone."""
    difference = finetuned.both - scratch.both
    intervals = percentiles(difference, settings.confidence)
    pairs = zip(scratch.labels, scratch.observed, finetuned.observed, intervals, strict=True)
    return [Gain(label, float(a), float(b), float(b - a), interval) for label, a, b, interval in pairs]


def correlate(scratch: Sampled, finetuned: Sampled, settings: Statistics) -> Correlation | None:
    """Rank correlation over backbones; None for fewer than three."""
    count = len(scratch.labels)
    if count < 3:
        return None
    a, b = scratch.observed[None], finetuned.observed[None]
    rho = float(spearman(a, b)[0])
    p, least = _permutation_p(a[0], b[0], rho, settings.seed)
    resampled = scratch.both, finetuned.both
    return Correlation(
        count,
        rho,
        percentiles(spearman(*resampled)[:, None], settings.confidence)[0],
        float(kendall(a, b)[0]),
        percentiles(kendall(*resampled)[:, None], settings.confidence)[0],
        p,
        least,
    )


def spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    """Spearman's rank correlation of each row of two `(B, M)`; 0 where a row ties all."""
    x, y = (rankdata(np.round(v, _ROUNDING), axis=1) for v in (a, b))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    rho: FloatArray = np.divide((x * y).sum(axis=1), norm, out=np.zeros(len(x)), where=norm > 0)
    return rho


def kendall(a: FloatArray, b: FloatArray) -> FloatArray:
    """Kendall's τ-a of each row of two `(B, M)`: concordant minus discordant pairs, over all pairs."""
    first, second = np.triu_indices(a.shape[1], 1)
    a, b = np.round(a, _ROUNDING), np.round(b, _ROUNDING)
    agree = np.sign(a[:, first] - a[:, second]) * np.sign(b[:, first] - b[:, second])
    mean: FloatArray = agree.mean(axis=1)
    return mean


def percentiles(replicates: FloatArray, confidence: float) -> list[Interval]:
    """The central interval of each column of `(B, P)`."""
    low, high = np.nanquantile(replicates, _edges(confidence), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _permutation_p(a: FloatArray, b: FloatArray, rho: float, seed: int) -> tuple[float, float]:
    """Share of the orders of `b` that correlate as much, and the smallest share possible."""
    count = len(a)
    if count <= _EXACT_UP_TO:
        orders: Sequence[Sequence[int]] = list(itertools.permutations(range(count)))
        found = spearman(np.broadcast_to(a, (len(orders), count)), b[np.array(orders)])
        return float((found >= rho - 1e-9).mean()), 1 / math.factorial(count)
    rng = np.random.default_rng([seed, 2])
    shuffled = rng.permuted(np.broadcast_to(b, (_SAMPLED_PERMUTATIONS, count)).copy(), axis=1)
    found = spearman(np.broadcast_to(a, shuffled.shape), shuffled)
    above = int((found >= rho - 1e-9).sum())
    return (above + 1) / (_SAMPLED_PERMUTATIONS + 1), 1 / (_SAMPLED_PERMUTATIONS + 1)


def _edges(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _ranks(scores: FloatArray) -> npt.NDArray[np.int64]:
    """Competition ranks of each row of `(B, M)`: 1 is best."""
    ranks: npt.NDArray[np.int64] = rankdata(-np.round(scores, _ROUNDING), method="min", axis=1).astype(
        np.int64
    )
    return ranks
