"""From evaluated submissions to statements: per test set, because a rank is specific to its test set.

Submissions that cover too few cases are scored but not ranked and not compared: with missing cases as worst they would
only be last, and what their method can do is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedvox.benchmark.manifest import BenchmarkManifest, TestSetConfig
from fedvox.errors import DataError
from fedvox.evaluation.bootstrap import Aggregation
from fedvox.evaluation.pairwise import PairwiseResult, compare_all
from fedvox.evaluation.power import PowerStatement, power_statement
from fedvox.evaluation.ranking import (
    CriticalDifference,
    Ranking,
    agreement,
    critical_difference,
    rank_methods,
)
from fedvox.evaluation.score_table import ScoreTable, from_frames
from fedvox.evaluation.subgroups import Gap, SubgroupAnalysis, analyse_subgroups, binned, generalization_gap

Frames = Mapping[str, pd.DataFrame]
"""Submission -> a row per case and structure, as `Evaluation.frame` gives it."""


@dataclass(frozen=True)
class TestSetAnalysis:
    """Everything that is said about one test set.

    Attributes:
        test_set: its configuration.
        tables: metric -> scores of the ranked submissions.
        ranking: by the declared metric and aggregation.
        alternatives: aggregation -> ranking by the same metric, to see whether the order depends on it.
        by_metric: metric -> ranking by the declared aggregation.
        pairwise: all ordered pairs.
        critical: average ranks; None for fewer than three submissions.
        power: what this test set can show; None for one submission.
        subgroups: one per attribute that the metadata has.
        coverage: submission -> share of cases with a usable prediction, for all that submitted to this test set.
        unranked: submission -> why it is not ranked.
    """

    __test__ = False

    test_set: TestSetConfig
    tables: Mapping[str, ScoreTable]
    ranking: Ranking
    alternatives: Mapping[Aggregation, Ranking]
    by_metric: Mapping[str, Ranking]
    pairwise: PairwiseResult
    critical: CriticalDifference | None
    power: PowerStatement | None
    subgroups: tuple[SubgroupAnalysis, ...]
    coverage: Mapping[str, float]
    unranked: Mapping[str, str]

    @property
    def order_depends_on_aggregation(self) -> list[Aggregation]:
        """Aggregations under which the submissions are in another order than under the declared one."""
        return [a for a, r in self.alternatives.items() if (r.ranks != self.ranking.ranks).any()]


@dataclass(frozen=True)
class BenchmarkAnalysis:
    """All test sets, and what can be said across them.

    Attributes:
        test_sets: analyses, in the order of the manifest; test sets that nobody covers are left out.
        agreement: Kendall's τ between the rankings of the submissions that all of them rank, `(T, T)`; None for one
            test set or fewer than two common submissions.
        gaps: external test set -> gap of every common submission to the internal test sets' first.
    """

    test_sets: tuple[TestSetAnalysis, ...]
    agreement: npt.NDArray[np.float64] | None
    gaps: Mapping[str, tuple[Gap, ...]]


def analyse(manifest: BenchmarkManifest, frames: Mapping[str, Frames]) -> BenchmarkAnalysis:
    """Analyse a benchmark.

    Args:
        manifest: the rules.
        frames: test set -> submission -> scores.

    Raises:
        DataError: no submission covers any test set.
    """
    found = [
        a
        for t in manifest.test_sets
        if frames.get(t.name) and (a := analyse_test_set(manifest, t, frames[t.name]))
    ]
    if not found:
        raise DataError(
            "no submission covers a test set",
            "Submit predictions of every case of one, or lower min_coverage.",
        )
    internal = next((a for a in found if a.test_set.kind == "internal"), None)
    gaps = {}
    if internal is not None:
        for external in (a for a in found if a.test_set.kind == "external"):
            tables = (a.tables[manifest.ranking.metric] for a in (internal, external))
            if set(internal.ranking.methods) & set(external.ranking.methods):
                gaps[external.test_set.name] = generalization_gap(*tables, seed=manifest.ranking.seed)
    return BenchmarkAnalysis(tuple(found), _agreement(manifest, found), gaps)


def analyse_test_set(
    manifest: BenchmarkManifest, test_set: TestSetConfig, frames: Frames
) -> TestSetAnalysis | None:
    """Analyse one test set; None if no submission covers it."""
    rules = manifest.ranking
    coverage = {
        name: float((frame.groupby("case")["status"].first() == "scored").mean())
        for name, frame in frames.items()
    }
    unranked = {
        name: f"{share:.1%} of the cases have a usable prediction, {manifest.min_coverage:.0%} are asked for"
        for name, share in coverage.items()
        if share < manifest.min_coverage
    }
    ranked = {name: frame for name, frame in frames.items() if name not in unranked}
    if not ranked:
        return None
    attributes = test_set.attributes()
    patients = {case: attributes.get(case, {}).get("patient") or case for case in test_set.cases()}
    tables = {
        metric: from_frames(
            metric, ranked, list(patients), list(manifest.structures_of(test_set)), patients=patients
        )
        for metric in manifest.metrics
    }
    table = tables[rules.metric]
    rank = partial(rank_methods, confidence=rules.confidence, resamples=rules.resamples, seed=rules.seed)
    enough = len(ranked) >= 3 and table.measured().num_patients >= 2
    return TestSetAnalysis(
        test_set,
        tables,
        rank(table, rules.aggregation),
        {a: rank(table, a) for a in Aggregation},
        {metric: rank(t, rules.aggregation) for metric, t in tables.items()},
        compare_all(
            table,
            alpha=rules.alpha,
            margin=rules.margin,
            confidence=rules.confidence,
            resamples=max(rules.resamples, 1000),  # a BCa interval needs its tails
            seed=rules.seed,
        ),
        critical_difference(table, rules.alpha) if enough else None,
        power_statement(table, alpha=rules.alpha, margin=rules.margin) if len(ranked) > 1 else None,
        tuple(_subgroups(manifest, table, attributes)),
        coverage,
        unranked,
    )


def _subgroups(
    manifest: BenchmarkManifest, table: ScoreTable, attributes: Mapping[str, Mapping[str, str]]
) -> list[SubgroupAnalysis]:
    found = []
    for name in manifest.subgroups:
        raw = [attributes.get(case, {}).get(name, "") for case in table.cases]
        if not any(raw):
            continue
        labels: Sequence[str | None] = (
            binned([_number(v) for v in raw], manifest.age_bins) if name == "age" else raw
        )
        found.append(analyse_subgroups(table, name, labels, min_patients=manifest.ranking.min_group))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _agreement(
    manifest: BenchmarkManifest, found: Sequence[TestSetAnalysis]
) -> npt.NDArray[np.float64] | None:
    common = [m for m in found[0].ranking.methods if all(m in a.ranking.methods for a in found)]
    if len(found) < 2 or len(common) < 2:
        return None
    rules = manifest.ranking
    tables = [a.tables[rules.metric].select(methods=common) for a in found]
    return agreement([rank_methods(t, rules.aggregation, resamples=100, seed=rules.seed) for t in tables])
