"""A federation's curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvox.training.figures import PALETTE, STYLE, save_figure
from fedvox_federation.server.journal import Journal, Row

_NAMED_CLINICS = len(PALETTE)


def draw_curves(journal: Journal, title: str) -> None:
    """Loss, Dice, ε and participation over the rounds, into `figures/curves.png`."""
    if journal.rounds:
        figure = curves(journal.rounds, journal.clinics, title)
        save_figure(figure, journal.run.child("figures", "curves.png"))


def curves(rounds: Sequence[Row], clinics: Sequence[Row], title: str) -> Figure:
    """Four panels.

    Args:
        rounds: of `rounds.jsonl`.
        clinics: of `clinics.jsonl`.
        title: the run's name.
    """
    numbers = [line["round"] for line in rounds]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        loss, dice, epsilon, part = figure.subplots(2, 2).flat
        loss.plot(numbers, _known(rounds, "loss"), "o-", ms=3, color=PALETTE[0])
        loss.set(title="Training loss of the clinics that share it", xlabel="round")
        for key, label, color in (
            ("dice_before", "before the clinics' training", PALETTE[7]),
            ("dice_after", "after it, in each clinic", PALETTE[2]),
            ("dice_global", "new model, study's own data", PALETTE[0]),
        ):
            if any(math.isfinite(value) for value in _known(rounds, key)):
                dice.plot(numbers, _known(rounds, key), "o-", ms=3, color=color, label=label)
        dice.set(title="Dice of held-out patients", xlabel="round", ylim=(0, 1))
        if dice.get_legend_handles_labels()[0]:
            dice.legend(loc="lower right")
        _epsilon_panel(epsilon, rounds, clinics)
        part.bar(numbers, [line["asked"] for line in rounds], color="#dddddd", label="asked")
        part.bar(numbers, [line["accepted"] for line in rounds], color=PALETTE[0], label="in the model")
        part.set(title="Clinics", xlabel="round")
        part.legend(loc="lower right")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def _epsilon_panel(axes: Axes, rounds: Sequence[Row], clinics: Sequence[Row]) -> None:
    names = sorted({row["clinic"] for row in clinics if row.get("epsilon") is not None})
    if len(names) <= _NAMED_CLINICS:
        for name, color in zip(names, PALETTE, strict=False):
            rows = [row for row in clinics if row["clinic"] == name and row.get("epsilon") is not None]
            axes.plot(
                [r["round"] for r in rows],
                [r["epsilon"] for r in rows],
                "o-",
                ms=3,
                lw=1,
                color=color,
                label=name,
            )
    worst = _known(rounds, "epsilon")
    axes.plot(
        [line["round"] for line in rounds], worst, "k--", lw=1, label="federation: the clinic worst off"
    )
    axes.set(title="ε spent", xlabel="round")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _known(lines: Sequence[Row], key: str) -> list[float]:
    """With NaN, which leaves a gap, for what is not known or infinite."""
    values: list[Any] = [line.get(key) for line in lines]
    return [float(value) if value is not None and math.isfinite(value) else math.nan for value in values]
