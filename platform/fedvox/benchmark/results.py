"""Writes what a benchmark found: for scripts, for spreadsheets, for people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fedvox.benchmark.analysis import TestSetAnalysis
from fedvox.benchmark.pages import site_pages
from fedvox.benchmark.protocol import BenchmarkResult
from fedvox.benchmark.runner import ShardResult
from fedvox.benchmark.volumes import write_json, write_text

SCHEMA = "fedvox.benchmark.result/1"
_PLACES: Any = {"training": {"images"}, "test_sets": {"__all__": {"images", "references", "metadata"}}}
"""Where data lie on the machine of the third party: not part of a result, which is published."""


def write_benchmark(result: BenchmarkResult, output: Path) -> None:
    """Write results.json, pairwise.csv, report.html and the site."""
    write_json(output / "results.json", to_dict(result))
    rows = [
        {"test_set": a.test_set.name, **asdict(c)}
        for a in result.analysis.test_sets
        for c in a.pairwise.comparisons()
    ]
    write_text(output / "pairwise.csv", pd.DataFrame(rows).to_csv(index=False))
    pages = site_pages(result)
    for path, page in pages.items():
        write_text(output / "site" / path, page)
    write_text(output / "report.html", pages["report.html"])


def to_dict(result: BenchmarkResult) -> dict[str, Any]:
    """Everything but the scores of single cases, as plain values."""
    agreement = result.analysis.agreement
    return {
        "schema": SCHEMA,
        "benchmark": result.manifest.name,
        "version": result.manifest.version,
        "manifest": result.manifest.model_dump(mode="json", by_alias=True, exclude=_PLACES),
        "checks": [{**asdict(c), "title": c.title} for c in result.checks],
        "test_sets": [_test_set(result, a) for a in result.analysis.test_sets],
        "agreement": None if agreement is None else agreement.tolist(),
        "gaps": {name: [asdict(g) for g in gaps] for name, gaps in result.analysis.gaps.items()},
        "runs": {
            name: {test_set: [_shard(s) for s in shards] for test_set, shards in runs.items()}
            for name, runs in result.runs.items()
        },
    }


def _shard(shard: ShardResult) -> dict[str, Any]:
    """Without what a successful run printed: results are published, and paths of a machine are nobody's business."""
    found = asdict(shard)
    return found if shard.returncode else {**found, "log": ""}


def _test_set(result: BenchmarkResult, analysis: TestSetAnalysis) -> dict[str, Any]:
    ranking, critical, power = analysis.ranking, analysis.critical, analysis.power
    methods = [
        {
            "name": name,
            "rank": int(ranking.ranks[m]),
            "score": float(ranking.scores[m]),
            "rank_interval": ranking.interval[m].tolist(),
            "rank_distribution": ranking.distribution[m].tolist(),
            "may_be_called_better": result.may_be_called_better(name),
        }
        for m, name in enumerate(ranking.methods)
    ]
    return {
        "name": analysis.test_set.name,
        "conclusive": result.is_conclusive(analysis.test_set.name),
        "methods": methods,
        "unranked": dict(analysis.unranked),
        "coverage": dict(analysis.coverage),
        "kendall_tau": ranking.kendall_tau,
        "order_by_aggregation": {str(a): r.order() for a, r in analysis.alternatives.items()},
        "order_by_metric": {m: r.order() for m, r in analysis.by_metric.items()},
        "filled": {
            m: {"missing": t.missing.tolist(), "rejections": t.rejections.tolist(), "worst": t.worst}
            for m, t in analysis.tables.items()
        },
        "friedman": None
        if critical is None
        else {
            "statistic": critical.statistic,
            "p": critical.p,
            "average_ranks": dict(zip(critical.methods, critical.average_ranks.tolist(), strict=True)),
            "critical_difference": critical.difference,
            "groups": critical.groups,
        },
        "power": None if power is None else {**asdict(power), "text": str(power)},
        "subgroups": [
            {
                "attribute": g.attribute,
                "groups": dict(zip(g.groups, g.num_patients.tolist(), strict=True)),
                "kruskal_p": dict(zip(g.methods, g.kruskal_p.tolist(), strict=True)),
                "pairs": [asdict(p) for p in g.pairs],
                "gaps": [asdict(gap) for gap in g.gaps],
            }
            for g in analysis.subgroups
        ],
    }
