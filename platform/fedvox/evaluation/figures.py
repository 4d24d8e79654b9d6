"""Figures of a comparison, as Matplotlib figures: for papers as they are, for reports as SVG.

Colors are blind-safe (Okabe and Ito) and never the only carrier: every cell and bar also has its number or text. In
the SVG, ink is `currentColor`, so a figure follows the light or dark page that it stands in.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import scikit_posthocs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from fedvox.evaluation.pairwise import OVERALL, PairwiseResult
from fedvox.evaluation.ranking import CriticalDifference, Ranking
from fedvox.evaluation.score_table import ScoreTable
from fedvox.evaluation.subgroups import SubgroupAnalysis

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
_INK = "#010203"
"""Stands for the ink while Matplotlib draws; becomes `currentColor` in the SVG."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedvox",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element that can stand in a page, named for screen readers."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = svg.replace(_INK, "currentColor")
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', svg, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def significance_map(
    result: PairwiseResult, scope: str = OVERALL, order: Sequence[str] | None = None
) -> Figure:
    """Which method (row) is better than which (column): the difference where the verdict is "better".

    Args:
        result: all comparisons.
        scope: a structure, or `overall`.
        order: methods from the best to the worst; the order of the result by default.
    """
    names = list(order or result.methods)
    at = [result.methods.index(n) for n in names]
    k = result.scopes.index(scope)
    better = result.better[k][np.ix_(at, at)]
    difference = result.difference[k][np.ix_(at, at)]
    size = 1.5 + 0.42 * len(names)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(size + 1, size)
        shade = np.where(better, 1.0, np.where(better.T, -1.0, 0.0))
        axes.imshow(shade, cmap=mpl.colors.ListedColormap([ORANGE, "none", BLUE]), vmin=-1, vmax=1, alpha=0.8)
        for a, b in np.argwhere(better):
            axes.text(b, a, f"+{difference[a, b]:.2g}", ha="center", va="center", color="white", fontsize=7)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("… than this method")
        axes.set_ylabel("This method scores better …")
        axes.set_title(
            f"{scope}: Holm-corrected p < {result.alpha:g}, difference ≥ {result.margin:g}", fontsize=9
        )
        axes.spines[["top", "right"]].set_visible(True)
    return figure


def critical_difference_diagram(cd: CriticalDifference) -> Figure:
    """Average ranks on a line; a bar joins methods whose ranks do not differ (Demšar 2006)."""
    ranks = dict(zip(cd.methods, cd.average_ranks, strict=True))
    count = len(cd.methods)
    error = np.sqrt(count * (count + 1) / (6 * cd.num_patients))
    spread = np.abs(np.subtract.outer(cd.average_ranks, cd.average_ranks)) / error * np.sqrt(2)
    p = pd.DataFrame(stats.studentized_range.sf(spread, count, np.inf), index=cd.methods, columns=cd.methods)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(7, 1.2 + 0.22 * count)
        style = {"color": _INK}
        scikit_posthocs.critical_difference_diagram(
            ranks,
            p,
            alpha=cd.alpha,
            ax=axes,
            elbow_props=style,
            crossbar_props={"color": BLUE, "linewidth": 3},
            text_h_margin=0.01 * count,
        )
        axes.set_title(
            f"average rank over {cd.num_patients} patients (Friedman p = {cd.p:.2g}, critical difference "
            f"{cd.difference:.2f})",
            fontsize=9,
        )
    return figure


def rank_distribution(ranking: Ranking) -> Figure:
    """How often each method has each rank when patients are resampled; the area of a dot is its share."""
    names = ranking.order()
    at = [ranking.methods.index(n) for n in names]
    count = len(names)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(2.5 + 0.32 * count, 1.2 + 0.28 * count)
        for row, m in enumerate(at):
            share = ranking.distribution[m]
            shown = np.flatnonzero(share > 0)
            axes.scatter(
                shown + 1, np.full(len(shown), row), s=160 * share[shown], color=BLUE, alpha=0.8, zorder=2
            )
            low, high = ranking.interval[m]
            axes.plot([low, high], [row, row], color=_INK, linewidth=1, zorder=1)
        axes.set_yticks(range(count), names)
        axes.set_xticks(range(1, count + 1))
        axes.set_xlim(0.5, count + 0.5)
        axes.set_ylim(count - 0.4, -0.6)  # the best on top, and every dot whole
        axes.set_xlabel(f"rank in resamples of patients; line: {ranking.confidence:.0%} of them")
        axes.grid(axis="x", alpha=0.2)
    return figure


def score_distribution(table: ScoreTable, order: Sequence[str] | None = None) -> Figure:
    """Case means of every method: box with quartiles, whiskers at 5 % and 95 %, and the mean as a diamond."""
    means = table.case_means()
    sign = 1 if table.metric.family.better == "higher" else -1
    samples = {}
    for name in order or table.methods:
        own = means[table.methods.index(name)]
        samples[name] = (sign * own[np.isfinite(own)]).tolist()
    count = len(next(iter(samples.values()), ()))
    return boxes(samples, f"{table.metric.label}, mean over structures of a case (n = {count})")


def boxes(samples: Mapping[str, Sequence[float]], label: str) -> Figure:
    """A box per sample: quartiles, whiskers at 5 % and 95 %, and the mean as a diamond.

    Args:
        samples: name -> values, in the order from top to bottom.
        label: of the axis of values.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(6.5, 1.0 + 0.28 * len(samples))
        ink = {"color": _INK}
        axes.boxplot(
            list(samples.values()),
            orientation="horizontal",
            whis=(5, 95),
            sym="",
            showmeans=True,
            meanprops={"marker": "D", "markerfacecolor": ORANGE, "markeredgecolor": ORANGE, "markersize": 4},
            medianprops={"color": BLUE, "linewidth": 2},
            boxprops=ink,
            whiskerprops=ink,
            capprops=ink,
        )
        axes.set_yticks(range(1, len(samples) + 1), list(samples))
        axes.invert_yaxis()
        axes.set_xlabel(label)
    return figure


def subgroup_means(analysis: SubgroupAnalysis, order: Sequence[str] | None = None) -> Figure:
    """Mean quality of every method by group; hollow markers are groups too small to be tested."""
    names = list(order or analysis.methods)
    at = [analysis.methods.index(n) for n in names]
    markers = "osD^vPX*<>"
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(6.5, 1.2 + 0.28 * len(names))
        for g, group in enumerate(analysis.groups):
            axes.plot(
                np.abs(analysis.means[at, g]),
                range(len(names)),
                markers[g % len(markers)],
                markerfacecolor=f"C{g % 10}" if analysis.tested[g] else "none",
                markeredgecolor=f"C{g % 10}",
                label=f"{group} (n = {analysis.num_patients[g]})",
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"mean by {analysis.attribute}")
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(axis="x", alpha=0.2)
    return figure
