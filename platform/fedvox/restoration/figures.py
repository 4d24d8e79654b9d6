"""Pictures of restoration: training curves, and how well an image explains its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
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
        loss.plot(
            [line["step"] for line in train], [line["loss"] for line in train], color=PALETTE[0], lw=0.6
        )
        loss.set(title="Training loss", xlabel="step", yscale="log")
        names = [
            n for n in (validation[0] if validation else {}) if n.startswith("psnr_") and "noisy" not in n
        ]
        steps = [line["step"] for line in validation]
        for colour, name in zip(PALETTE, names, strict=False):
            label = f"noise {name.removeprefix('psnr_')}"
            psnr.plot(steps, [line[name] for line in validation], "o-", ms=3, color=colour, label=label)
        psnr.set(title="Denoised held-out patches, PSNR (dB)", xlabel="step")
        psnr.legend()
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def consistency_figure(measured: np.ndarray, predicted: np.ndarray, *, kspace: bool) -> Figure:
    """Measurements, what the restored image predicts for them, and the difference.

    Args:
        measured: `(H, W)`; the modulus, for k-space.
        predicted: the same.
        kspace: show logarithms.
    """
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        panels = figure.subplots(1, 3)
        difference = predicted - measured
        if kspace:
            top = float(np.log10(max(measured.max(), 1e-9)))
            images = [np.log10(np.abs(a) + 1e-9) for a in (measured, predicted, difference)]
            limits = [(top - 5, top)] * 3
        else:
            images = [measured, predicted, difference]
            reach = max(float(np.abs(difference).max()), 1e-9)
            limits = [(0.0, float(measured.max()))] * 2 + [(-reach, reach)]
        titles = ("measured" + (" (log)" if kspace else ""), "predicted by the image", "difference")
        for panel, image, (low, high), title in zip(panels, images, limits, titles, strict=True):
            shown = panel.imshow(
                image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest"
            )
            panel.set(title=title, xticks=[], yticks=[])
            figure.colorbar(shown, ax=panel, shrink=0.8)
    return figure
