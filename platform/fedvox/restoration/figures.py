"""Pictures of restoration: training curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fedvox.training.figures import PALETTE, STYLE


def training_curves(lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss, and PSNR of denoised held-out patches at each noise level.

    Args:
        lines: as `RunDirectory.metrics` returns them.
        title: the run's name.
    """
    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        loss, psnr = figure.subplots(1, 2)
        loss.plot([line["step"] for line in train], [line["loss"] for line in train], color=PALETTE[0], lw=0.6)
        loss.set(title="Training loss", xlabel="step", yscale="log")
        names = [n for n in (validation[0] if validation else {}) if n.startswith("psnr_") and "noisy" not in n]
        steps = [line["step"] for line in validation]
        for colour, name in zip(PALETTE, names, strict=False):
            label = f"noise {name.removeprefix('psnr_')}"
            psnr.plot(steps, [line[name] for line in validation], "o-", ms=3, color=colour, label=label)
        psnr.set(title="Denoised held-out patches, PSNR (dB)", xlabel="step")
        psnr.legend()
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure
