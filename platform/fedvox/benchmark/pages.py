"""Pages for people: the report of an evaluation, the report of a benchmark, and the leaderboard site.

Static HTML without anything from elsewhere, for a file server or an e-mail. Light and dark, usable with a keyboard
alone (tables are sorted with buttons), and every verdict is a word as well as a color.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedvox import __version__
from fedvox.benchmark.views import (
    AGGREGATIONS,
    agreement_rows,
    gap_rows,
    names_of,
    statements,
    submission_view,
    test_set_view,
)
from fedvox.evaluation.metric_ids import MetricId
from fedvox.evaluation.metrics import Presence

if TYPE_CHECKING:
    from fedvox.benchmark.evaluate import Evaluation
    from fedvox.benchmark.protocol import BenchmarkResult

_WORST = 25
_FOOTER = (
    f"Made by Fedvox {__version__}. Numbers describe these test sets; no proof of fitness for clinical use."
)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedvox.benchmark"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    return environment


def number(value: float | None) -> str:
    """Four significant digits; a dash where not applicable."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def evaluation_page(evaluation: Evaluation, metrics: Sequence[MetricId], title: str = "Evaluation") -> str:
    """The report of one evaluation.

    Args:
        evaluation: what was found.
        metrics: those that were measured; the first one ranks the worst cases.
        title: of the page.
    """
    first = metrics[0]
    frame = evaluation.frame()
    frame["value"] = frame[str(first)]
    scored = frame.dropna(subset=["value"])
    order = scored["value"].map(first.quality).sort_values(kind="stable").index
    worst = scored.loc[order[:_WORST], ["case", "structure", "presence", "value"]].to_dict("records")
    context = {
        "s": evaluation.summary(),
        "metrics": metrics,
        "presences": [str(p) for p in Presence],
        "first": first,
        "worst": worst,
        "problems": [o for o in evaluation.outcomes if o.status != "scored" or o.notes],
        "unexpected": evaluation.unexpected,
        **_distribution(evaluation, first),
    }
    return _render("evaluation.html.j2", title, context)


def _distribution(evaluation: Evaluation, metric: MetricId) -> dict[str, Any]:
    """A box per structure."""
    from fedvox.evaluation import figures

    frame = evaluation.frame()
    samples = {
        name: rows.dropna().to_list() for name, rows in frame.groupby("structure", sort=False)[str(metric)]
    }
    samples = {name: values for name, values in samples.items() if values}
    if not samples:
        return {"figure": "", "caption": ""}
    caption = f"{metric.label} of every case: quartiles, whiskers at 5 % and 95 %, mean as a diamond."
    return {"figure": figures.to_svg(figures.boxes(samples, metric.label), caption), "caption": caption}


def benchmark_page(result: BenchmarkResult) -> str:
    """The full report of a benchmark."""
    manifest = result.manifest
    context = {
        "m": manifest,
        "aggregation": AGGREGATIONS[manifest.ranking.aggregation],
        "names": names_of(manifest.metrics),
        "statements": statements(result),
        "checks": result.checks,
        "sets": [test_set_view(result, a, figures=True) for a in result.analysis.test_sets],
        "gaps": gap_rows(result),
        "agreement": agreement_rows(result),
        "submissions": [submission_view(result, s) for s in result.submissions.values()],
    }
    return _render("report.html.j2", manifest.title or manifest.name, context)


def site_pages(result: BenchmarkResult) -> dict[str, str]:
    """The leaderboard site: path within the site -> page."""
    manifest = result.manifest
    names = names_of(manifest.metrics)
    sets = [test_set_view(result, a, figures=False) for a in result.analysis.test_sets]
    context = {"m": manifest, "names": names, "sets": sets}
    pages = {
        "index.html": _render(
            "leaderboard.html.j2", f"{manifest.title or manifest.name}: leaderboard", context
        ),
        "report.html": benchmark_page(result),
    }
    for submission in result.submissions.values():
        view = submission_view(result, submission)
        page = _render("submission.html.j2", submission.name, {"m": manifest, "names": names, "s": view})
        pages[f"submissions/{submission.name}.html"] = page
    return pages


def _render(template: str, title: str, context: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(title=title, footer=_FOOTER, **context)
