"""For whom does a method work less well? Scores by age, sex, site, manufacturer, and on other hospitals' cases.

Groups with fewer than `min_patients` patients are reported but not tested: their means are noise. Within a method the
Kruskal–Wallis test asks whether any group differs (corrected over the methods); only then are pairs of groups
compared (Mann–Whitney, two-sided, corrected over the pairs). The gap between best and worst group has a bootstrap
interval, so that a gap that size alone explains is seen as such.

Units are patients: the scans of a patient within a group count once, with their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fedvox.errors import DataError
from fedvox.evaluation.score_table import ScoreTable

FloatArray = npt.NDArray[np.float64]
Correction = Literal["holm", "fdr_bh"]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class GroupPair:
    """Two groups within one method; `difference` is the mean of `a` minus the mean of `b`, in quality."""

    method: str
    a: str
    b: str
    difference: float
    p: float
    p_corrected: float


@dataclass(frozen=True)
class Gap:
    """Difference between two samples of patients for one method.

    Attributes:
        method: name.
        worst: the group with the lowest mean.
        best: the group with the highest mean.
        worst_mean: mean quality in the worst group.
        difference: best mean minus worst mean.
        low: lower bound of its 95 % BCa bootstrap interval.
        high: upper bound.
    """

    method: str
    worst: str
    best: str
    worst_mean: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class SubgroupAnalysis:
    """Scores of all methods by the groups of one attribute.

    Attributes:
        attribute: for instance `sex`.
        methods: M names.
        groups: G names, in alphabetical order; patients without the attribute are `unknown`.
        num_patients: `(G,)`.
        tested: `(G,)` whether the group is known and large enough to be tested.
        means: `(M, G)` mean quality.
        kruskal_p: `(M,)` p value of "no group differs", corrected by Holm over the methods; NaN where untestable.
        pairs: comparisons of the methods that passed the Kruskal–Wallis test.
        gaps: one per method over the tested groups; empty where fewer than two are tested.
    """

    attribute: str
    methods: tuple[str, ...]
    groups: tuple[str, ...]
    num_patients: npt.NDArray[np.int64]
    tested: npt.NDArray[np.bool_]
    means: FloatArray
    kruskal_p: FloatArray
    pairs: tuple[GroupPair, ...]
    gaps: tuple[Gap, ...]


def analyse_subgroups(
    table: ScoreTable,
    attribute: str,
    labels: Sequence[str | None],
    *,
    min_patients: int = 20,
    alpha: float = 0.05,
    correction: Correction = "holm",
    seed: int = 0,
) -> SubgroupAnalysis:
    """Compare groups of patients within every method.

    Args:
        table: complete scores.
        attribute: name of what is grouped by.
        labels: group of every case of the table; None or "" where unknown.
        min_patients: smallest group that is tested.
        alpha: level of the Kruskal–Wallis gate.
        correction: over the pairs of groups of a method: `holm`, or `fdr_bh` (Benjamini–Hochberg).
        seed: of the bootstrap.

    Raises:
        DataError: labels and cases differ in number.
    """
    if len(labels) != len(table.cases):
        raise DataError(
            f"{attribute}: {len(labels)} labels for {len(table.cases)} cases", "Give one label per case."
        )
    groups, samples = _samples(table, [label or UNKNOWN for label in labels])
    sizes = np.array([sample.shape[1] for sample in samples], np.int64)
    tested = (sizes >= min_patients) & np.array([g != UNKNOWN for g in groups], bool)
    testable = [(g, s) for g, s, t in zip(groups, samples, tested, strict=True) if t]
    kruskal = _kruskal([s for _, s in testable], len(table.methods))
    pairs: list[GroupPair] = []
    gaps: list[Gap] = []
    if len(testable) > 1:
        for m, method in enumerate(table.methods):
            own = [(g, s[m]) for g, s in testable]
            gaps.append(_gap(method, own, seed))
            if kruskal[m] < alpha:
                pairs += _pairs(method, own, correction)
    means = np.array([s.mean(axis=1) for s in samples]).reshape(len(groups), -1).T
    return SubgroupAnalysis(
        attribute, table.methods, tuple(groups), sizes, tested, means, kruskal, tuple(pairs), tuple(gaps)
    )


def generalization_gap(inside: ScoreTable, outside: ScoreTable, *, seed: int = 0) -> tuple[Gap, ...]:
    """How much worse each method is on an external test set than on one like its training data.

    Args:
        inside: scores on the internal test set.
        outside: scores on the external one, of the same metric. Methods and structures that both have are compared.
        seed: of the bootstrap.

    Returns:
        One gap per method: `best` is "internal", `worst` is "external"; a negative difference says that the method
        is better outside.

    Raises:
        DataError: the metrics differ, or there is no common method or structure.
    """
    methods = [m for m in inside.methods if m in outside.methods]
    structures = [s for s in inside.structures if s in outside.structures]
    if str(inside.metric) != str(outside.metric) or not methods or not structures:
        raise DataError(
            "the two test sets share no metric, method or structure",
            "Evaluate the same methods with the same metric on both.",
        )
    tables = (t.select(methods=methods, structures=structures) for t in (inside, outside))
    samples = [_samples(t, [""] * len(t.cases))[1][0] for t in tables]
    return tuple(
        _difference(method, ("internal", samples[0][m]), ("external", samples[1][m]), seed)
        for m, method in enumerate(methods)
    )


def binned(values: Sequence[float | None], edges: Sequence[float], unit: str = "") -> list[str | None]:
    """Label numbers by the interval that they lie in, for instance ages: `<40`, `40–60`, `≥60`.

    Args:
        values: numbers; None or NaN where unknown.
        edges: increasing bounds; a value at a bound belongs to the interval above.
        unit: appended to every label.
    """
    middle = [f"{a:g}–{b:g}" for a, b in pairwise(edges)]
    names = [f"{n} {unit}".rstrip() for n in (f"<{edges[0]:g}", *middle, f"≥{edges[-1]:g}")]
    known = [v if v is not None and np.isfinite(v) else None for v in values]
    return [None if v is None else names[int(np.searchsorted(edges, v, side="right"))] for v in known]


def _samples(table: ScoreTable, labels: list[str]) -> tuple[list[str], list[FloatArray]]:
    """Groups in alphabetical order, and for each the mean quality of its patients, `(M, patients)`."""
    scores = table.case_means()
    scored = np.flatnonzero(np.isfinite(scores[0])) if len(scores) else np.zeros(0, np.intp)
    members: dict[str, dict[int, list[int]]] = {}
    for case in scored:
        members.setdefault(labels[case], {}).setdefault(int(table.clusters[case]), []).append(int(case))
    groups = sorted(members)
    samples = [
        np.stack([scores[:, cases].mean(axis=1) for cases in members[g].values()], axis=1) for g in groups
    ]
    return groups, samples


def _kruskal(samples: list[FloatArray], methods: int) -> FloatArray:
    """Kruskal–Wallis p values per method, corrected by Holm over the methods."""
    if len(samples) < 2 or not methods:
        return np.full(methods, np.nan)
    p = [
        stats.kruskal(*own).pvalue if len(np.unique(np.concatenate(own))) > 1 else 1.0
        for own in zip(*samples, strict=True)
    ]
    corrected: FloatArray = multipletests(p, method="holm")[1]
    return corrected


def _pairs(method: str, groups: list[tuple[str, FloatArray]], correction: Correction) -> list[GroupPair]:
    tests = [
        (a, b, stats.mannwhitneyu(x, y).pvalue, x.mean() - y.mean())
        for (a, x), (b, y) in combinations(groups, 2)
    ]
    corrected = multipletests([t[2] for t in tests], method=correction)[1]
    return [
        GroupPair(method, a, b, float(difference), float(p), float(c))
        for (a, b, p, difference), c in zip(tests, corrected, strict=True)
    ]


def _gap(method: str, groups: list[tuple[str, FloatArray]], seed: int) -> Gap:
    ordered = sorted(groups, key=lambda g: float(g[1].mean()))
    return _difference(method, ordered[-1], ordered[0], seed)


def _difference(method: str, best: tuple[str, FloatArray], worst: tuple[str, FloatArray], seed: int) -> Gap:
    """Mean of one sample of patients minus the mean of another, with a BCa interval."""
    difference = float(best[1].mean() - worst[1].mean())
    low = high = difference
    if min(len(best[1]), len(worst[1])) > 1 and np.ptp(best[1]) + np.ptp(worst[1]) > 0:
        interval = stats.bootstrap(
            (best[1], worst[1]),
            _mean_difference,
            n_resamples=2000,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Gap(method, worst[0], best[0], float(worst[1].mean()), difference, low, high)


def _mean_difference(a: FloatArray, b: FloatArray, axis: int = -1) -> FloatArray:
    difference: FloatArray = a.mean(axis=axis) - b.mean(axis=axis)
    return difference
