"""One figure a task and scenario: score and worst clinic over ε, and learning curves at one ε."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedvox_federation.experiment.runs import RunResult

if TYPE_CHECKING:
    from fedvox_federation.experiment.report import Section

_STYLES: dict[str, tuple[str, str]] = {
    "compliant-only": ("#D55E00", "s"),
    "uniform": ("#009E73", "^"),
    "matched": ("#E69F00", "v"),
    "tiers": ("#0072B2", "o"),
    "tiers-weighted": ("#56B4E9", "D"),
    "published-2025": ("#CC79A7", "x"),
    "linear-2026": ("#AA4499", "+"),
    "no-dp": ("#555555", ""),
    "central": ("#000000", ""),
}
_LINES = {"no-dp": "--", "central": "-"}
_PANELS = (("all", "all test patients"), ("worst clinic", "worst clinic"))


def draw(section: Section, results: Sequence[RunResult], path: Path) -> None:
    """Write the figure as a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, (measure, title) in zip(panels, _PANELS, strict=False):
            _over_epsilon(axes, section, measure)
            axes.set(title=title, xlabel="promised ε", xscale="log")
            promised = sorted({row.promised for row in section.rows if row.promised})
            axes.set_xticks(promised, [f"{epsilon:g}" for epsilon in promised])
            axes.minorticks_off()
        _learning(panels[2], results)
        panels[0].set_ylabel(f"{section.task}, {section.scenario}: score")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside right center")
        figure.savefig(path, dpi=130)


def _over_epsilon(axes: Any, section: Section, measure: str) -> None:
    epsilons = sorted({row.promised for row in section.rows if row.promised})
    for arm, (color, marker) in _STYLES.items():
        mine = [row for row in section.rows if row.arm == arm]
        if not mine:
            continue
        values = [row.measures[measure] for row in mine]
        if arm in _LINES:
            axes.axhline(values[0].mean, color=color, linestyle=_LINES[arm], linewidth=1, label=arm)
        elif mine[0].promised:
            at = [row.promised for row in mine]
            means = [value.mean for value in values]
            around = [
                [value.mean - value.low for value in values],
                [value.high - value.mean for value in values],
            ]
            axes.errorbar(at, means, around, color=color, marker=marker, markersize=4, linewidth=1, capsize=2,
                          label=arm)  # fmt: skip
    axes.set_xticks(epsilons, [f"{value:g}" for value in epsilons])
    axes.minorticks_off()


def _learning(axes: Any, results: Sequence[RunResult]) -> None:
    """Mean learning curves at the middle ε, and of the arms without one."""
    epsilons = sorted({result.run.epsilon for result in results if result.run.epsilon})
    middle = epsilons[len(epsilons) // 2] if epsilons else 0.0
    for arm, (color, _) in _STYLES.items():
        curves = [r.curve for r in results if r.run.arm == arm and r.run.epsilon in (0.0, middle)]
        if curves:
            rounds = [number for number, _ in curves[0]]
            means = np.mean([[score for _, score in curve] for curve in curves], axis=0)
            axes.plot(rounds, means, color=color, linestyle=_LINES.get(arm, "-"), linewidth=1)
    axes.set(title=f"learning curves, ε = {middle:g} where promised", xlabel="round")
