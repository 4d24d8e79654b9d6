"""Pictures of forecasting: training curves, forecasts beside the truth, animations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fedvox.training.figures import PALETTE, STYLE


def training_curves(lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss and error on held-out targets relative to "no change".

    Args:
        lines: as `RunDirectory.metrics` returns them.
        title: the run's name.
    """
    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        loss, error = figure.subplots(1, 2)
        loss.plot([line["step"] for line in train], [line["loss"] for line in train], color=PALETTE[0])
        loss.set(title="Training loss (1: no change)", xlabel="step", ylim=(0, None))
        steps = [line["step"] for line in validation]
        error.plot(steps, [line["relative_mse"] for line in validation], "o-", color=PALETTE[0])
        error.axhline(1.0, color="k", ls="--", lw=1, label="last context image")
        error.set(title="Error on held-out targets, relative", xlabel="step", ylim=(0, None))
        error.legend()
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure
