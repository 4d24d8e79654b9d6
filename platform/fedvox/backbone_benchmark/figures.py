"""Pictures of a comparison, as PNG: who is better, at which price, and whether pretraining keeps the order."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvox.backbone_benchmark.benchmark import Comparison
from fedvox.training.figures import PALETTE, STYLE

Image = tuple[str, bytes]
"""What it shows, in words, and the PNG."""


def draw(found: Comparison) -> dict[str, Image]:
    """All figures, by file name without ending."""
    with mpl.rc_context(STYLE):
        drawn = {
            "dice": ("Dice of each backbone from scratch, with intervals", _dice(found)),
            "cost": ("Dice against the time of a step and peak memory", _cost(found)),
        }
        if found.gains:
            drawn["pretraining"] = ("Dice from scratch against Dice after pretraining", _pretraining(found))
        return {name: (title, _png(figure)) for name, (title, figure) in drawn.items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _dice(found: Comparison) -> Figure:
    figure, axes = _axes(8, 1.4 + 0.45 * len(found.standings))
    for row, standing in enumerate(found.standings):
        axes.plot(standing.both, [row, row], color=PALETTE[0], lw=1.5)
        axes.plot(standing.cases, [row, row], color=PALETTE[0], lw=5, alpha=0.35, solid_capstyle="butt")
        runs = [np.nanmean(_values(run)) for run in found.results["scratch"][standing.label]]
        axes.plot(runs, [row] * len(runs), "|", color=PALETTE[3], ms=9, zorder=3)
        axes.plot(standing.dice, row, "o", color=PALETTE[0], zorder=4)
    axes.set_yticks(range(len(found.standings)), [standing.label for standing in found.standings])
    axes.invert_yaxis()
    axes.set(
        xlabel="held-out Dice; band: cases, line: cases and seeds, ticks: single seeds", title="From scratch"
    )
    return figure


def _values(run: dict[str, object]) -> np.ndarray:
    table = run["dice"]
    assert isinstance(table, dict)  # comparisons hold cases out
    return np.array(table["values"], dtype=np.float64)


def _cost(found: Comparison) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, standing in enumerate(found.standings):
        cost = found.profiles[standing.label]
        color, marker = PALETTE[number % len(PALETTE)], "osD^vPX*"[number % 8]
        error = [[standing.dice - standing.both[0]], [standing.both[1] - standing.dice]]
        for axes, value in ((left, cost.seconds_per_step), (right, cost.peak_gib)):
            axes.errorbar(
                value, standing.dice, error, fmt=marker, color=color, label=standing.label, capsize=2
            )
    left.set(xlabel="seconds a step", ylabel="held-out Dice", xscale="log")
    right.set(xlabel="peak memory (GiB)")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _pretraining(found: Comparison) -> Figure:
    figure, axes = _axes(6, 5)
    for number, gain in enumerate(found.gains):
        error = [[gain.gain - gain.interval[0]], [gain.interval[1] - gain.gain]]
        axes.errorbar(
            gain.scratch, gain.finetuned, error, capsize=2, label=gain.label,
            fmt="osD^vPX*"[number % 8], color=PALETTE[number % len(PALETTE)],
        )  # fmt: skip
    ends = [min(g.scratch for g in found.gains), max(g.scratch for g in found.gains)]
    axes.plot(ends, ends, "--", color=PALETTE[7], lw=1, label="no gain")
    correlation = found.correlation
    title = "" if correlation is None else f"Spearman {correlation.spearman:.2f}"
    axes.set(xlabel="Dice from scratch", ylabel="Dice pretrained, then fine-tuned", title=title)
    axes.legend(fontsize=7)
    return figure
