"""What the pages show of a benchmark: rows of text, made from results without any HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedvox.benchmark.analysis import TestSetAnalysis
from fedvox.benchmark.runner import ShardResult
from fedvox.benchmark.submission import MethodCard, Submission
from fedvox.evaluation.bootstrap import Aggregation
from fedvox.evaluation.metric_ids import parse
from fedvox.evaluation.pairwise import OVERALL
from fedvox.evaluation.subgroups import Gap, SubgroupAnalysis

if TYPE_CHECKING:
    from fedvox.benchmark.protocol import BenchmarkResult

_MOST_CASES = 5
AGGREGATIONS: dict[Aggregation, str] = {
    Aggregation.STRUCTURE_MACRO: "mean over structures of the means over cases",
    Aggregation.CASE_MEAN: "mean over cases of the means over structures",
    Aggregation.POOLED: "mean over all cases and structures together",
    Aggregation.MEAN_RANK: "mean rank over cases, then structures",
}


def names_of(metrics: Sequence[str]) -> dict[str, str]:
    """Metric id -> title for a table's head."""
    return {metric: parse(metric).label for metric in metrics}


def statements(result: BenchmarkResult) -> list[dict[str, str]]:
    """What may be said, sentence by sentence; and what may not, with the reason."""
    found = []
    for analysis in result.analysis.test_sets:
        name = analysis.test_set.name
        winners = " and ".join(analysis.ranking.winners())
        share = analysis.ranking.probability_first[analysis.ranking.ranks == 1].max()
        found.append(
            {"kind": "", "text": f"{name}: {winners} ranks first, in {share:.0%} of resampled test sets."}
        )
        if not result.is_conclusive(name):
            failed = _failing(c.id for c in result.checks_of(name) if not c.holds)
            text = (
                f"{name}: the ranking is not conclusive, because {failed}. No method is called better here."
            )
            found.append({"kind": "fail", "text": text})
            continue
        found += _better(result, analysis)
    return found


def _failing(checks: Iterable[str]) -> str:
    found = list(checks)
    return f"{' and '.join(found)} {'fails' if len(found) == 1 else 'fail'}"


def _better(result: BenchmarkResult, analysis: TestSetAnalysis) -> list[dict[str, str]]:
    """Sentences about claims: a submission against what it compares to."""
    found = []
    pairs = {(c.a, c.b): c for c in analysis.pairwise.comparisons() if c.scope == OVERALL}
    for submission in result.submissions.values():
        pair = pairs.get((submission.name, submission.compares_to or ""))
        if pair is None:
            continue
        name = f"{analysis.test_set.name}: {pair.a}"
        interval = (
            f"{pair.difference:+.3g} [{pair.low:.3g}, {pair.high:.3g}], p = {pair.p_holm:.2g} after Holm"
        )
        failed = [c.id for c in result.checks_of(submission.name) if not c.holds]
        if pair.better and failed:
            text = f"{name} may not be called better than {pair.b}, because {_failing(failed)} ({interval})."
            found.append({"kind": "fail", "text": text})
        elif pair.better:
            found.append({"kind": "pass", "text": f"{name} is better than {pair.b}: {interval}."})
        else:
            found.append({"kind": "", "text": f"{name} is not shown to be better than {pair.b}: {interval}."})
    return found


def test_set_view(result: BenchmarkResult, analysis: TestSetAnalysis, *, figures: bool) -> dict[str, Any]:
    """One test set: leaderboard, remarks, and figures if wanted."""
    test_set = analysis.test_set
    metric = parse(result.manifest.ranking.metric)
    failed = [c for c in result.checks_of(test_set.name) if not c.holds]
    return {
        "name": test_set.name,
        "kind": test_set.kind,
        "patients": analysis.tables[str(metric)].num_patients,
        "caption": f"Score: {metric.label}, {AGGREGATIONS[analysis.ranking.aggregation]}. "
        "Rank interval and “first” over resampled patients.",
        "rows": _leaderboard(result, analysis),
        "notes": _notes(analysis) if figures else [],
        "conclusive": not failed,
        "inconclusive": [f"{c.id}: {c.reason}" for c in failed],
        "figures": _figures(analysis, str(metric)) if figures else [],
        "power": str(analysis.power) if analysis.power else "",
        "subgroups": [_subgroup(analysis, g) for g in analysis.subgroups] if figures else [],
    }


test_set_view.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of the name


def _leaderboard(result: BenchmarkResult, analysis: TestSetAnalysis) -> list[dict[str, Any]]:
    ranking = analysis.ranking
    rows = []
    for name in [*ranking.order(), *analysis.unranked]:
        ranked = name in ranking.methods
        at = ranking.methods.index(name) if ranked else -1
        evaluation = result.evaluations[analysis.test_set.name][name]
        means = evaluation.summary()["mean_over_structures"]
        failed = [c.id for c in result.checks_of(name) if not c.holds]
        rows.append(
            {
                "name": name,
                "role": result.submissions[name].role,
                "rank": int(ranking.ranks[at]) if ranked else None,
                "score": _number(float(abs(ranking.scores[at]))) if ranked else "not ranked",
                "interval": "–".join(map(str, ranking.interval[at])) if ranked else "",
                "first": f"{ranking.probability_first[at]:.0%}" if ranked else "",
                "metrics": [_number(means[m]) for m in result.manifest.metrics],
                "coverage": f"{analysis.coverage[name]:.1%}",
                "fair": not failed,
                "failed": failed,
            }
        )
    return rows


def _notes(analysis: TestSetAnalysis) -> list[str]:
    notes = [f"{name} is not ranked: {why}." for name, why in analysis.unranked.items()]
    if other := analysis.order_depends_on_aggregation:
        orders = "; ".join(f"{AGGREGATIONS[a]}: {', '.join(analysis.alternatives[a].order())}" for a in other)
        notes.append(f"The order depends on the aggregation. {orders}.")
    declared = analysis.ranking.ranks
    other_metrics = [m for m, r in analysis.by_metric.items() if (r.ranks != declared).any()]
    if other_metrics:
        orders = "; ".join(f"{m}: {', '.join(analysis.by_metric[m].order())}" for m in other_metrics)
        notes.append(f"The order depends on the metric. {orders}.")
    return notes


def _figures(analysis: TestSetAnalysis, metric: str) -> list[dict[str, str]]:
    from fedvox.evaluation import figures

    order = analysis.ranking.order()
    table = analysis.tables[metric]
    drawn = [
        (figures.score_distribution(table, order), "Scores of all cases."),
        (figures.rank_distribution(analysis.ranking), "Ranks when patients are resampled."),
    ]
    if len(order) > 1:
        text = "Blue: the row scores better than the column, by the difference shown; orange: worse."
        drawn.append((figures.significance_map(analysis.pairwise, order=order), text))
    if analysis.critical is not None:
        text = "Average ranks; a bar joins methods that are not shown to differ."
        drawn.append((figures.critical_difference_diagram(analysis.critical), text))
    name = analysis.test_set.name
    return [{"svg": figures.to_svg(f, f"{name}: {caption}"), "caption": caption} for f, caption in drawn]


def _subgroup(analysis: TestSetAnalysis, found: SubgroupAnalysis) -> dict[str, Any]:
    from fedvox.evaluation import figures

    order = analysis.ranking.order()
    caption = f"Means by {found.attribute}; hollow: too few patients to be tested."
    p = dict(zip(found.methods, found.kruskal_p, strict=True))
    by_method = {gap.method: gap for gap in found.gaps}
    gaps = [{**_gap_row(by_method[m]), "p": f"{p[m]:.2g}"} for m in order if m in by_method]
    svg = figures.to_svg(figures.subgroup_means(found, order), caption)
    return {"attribute": found.attribute, "svg": svg, "caption": caption, "gaps": gaps}


def _gap_row(gap: Gap) -> dict[str, str]:
    return {
        "method": gap.method,
        "worst": gap.worst,
        "mean": _number(abs(gap.worst_mean)),
        "gap": _number(gap.difference),
        "interval": f"{_number(gap.low)} to {_number(gap.high)}",
    }


def gap_rows(result: BenchmarkResult) -> list[dict[str, str]]:
    """Drop of every submission on every external test set."""
    gaps = result.analysis.gaps.items()
    return [{"test_set": name, **_gap_row(gap)} for name, found in gaps for gap in found]


def agreement_rows(result: BenchmarkResult) -> list[list[str]]:
    """Kendall's τ between test sets as text; empty where there is none."""
    found = result.analysis.agreement
    return [] if found is None else [[_number(float(v)) for v in row] for row in found]


def submission_view(result: BenchmarkResult, submission: Submission) -> dict[str, Any]:
    """One submission: card, checks, runs and results."""
    runs = [_run(submission, *found) for found in result.runs.get(submission.name, {}).items()]
    return {
        "name": submission.name,
        "role": submission.role,
        "team": submission.team,
        "claims": submission.claims,
        "compares_to": submission.compares_to,
        "card": _card(submission.method),
        "checks": result.checks_of(submission.name),
        "runs": runs,
        "results": _results(result, submission.name),
    }


def _run(submission: Submission, test_set: str, shards: Sequence[ShardResult]) -> str:
    cases, seconds = sum(s.cases for s in shards), sum(s.seconds for s in shards)
    failed = sum(s.returncode != 0 for s in shards)
    where = "a container" if submission.container else "a sandbox"
    text = f"{test_set}: run by the third party in {where}, {seconds / cases:.1f} s a case"
    peaks = [s.peak_mib for s in shards if s.peak_mib is not None]
    text += f", at most {max(peaks):.0f} MiB of main memory" if peaks else ""
    return text + (f"; {failed} of {len(shards)} shards failed." if failed else ".")


def _results(result: BenchmarkResult, name: str) -> list[dict[str, Any]]:
    rows = []
    for test_set, found in result.evaluations.items():
        if name not in found:
            continue
        structures: Mapping[str, Any] = found[name].summary()["structures"]
        for structure, values in structures.items():
            shown = [_number(values["mean"][m]) for m in result.manifest.metrics]
            rows.append({"test_set": test_set, "structure": structure, "shown": shown})
    return rows


def _card(method: MethodCard) -> list[tuple[str, str]]:
    rows = []
    for field in MethodCard.model_fields:
        value = getattr(method, field)
        if value is None:
            text = "not declared"
        elif field == "training_cases":
            text = f"{len(value)} cases: {', '.join(value[:_MOST_CASES])}{' …' if len(value) > _MOST_CASES else ''}"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, tuple):
            text = " × ".join(map(str, value)) if field != "seeds" else ", ".join(map(str, value))
        else:
            text = str(value) or "none"
        rows.append((field.replace("_", " "), text))
    return rows


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"
