"""Pictures of forecasting: training curves, forecasts beside the truth, animations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

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


def difference_overlay(
    last: np.ndarray, forecast: np.ndarray, title: str, spacing_mm: Sequence[float]
) -> Figure:
    """Last scan, forecast, and where they differ, in the slice of the largest change in each direction.

    Args:
        last: `(D, H, W)`.
        forecast: of the same shape.
        title: patient and time.
        spacing_mm: (D, H, W).
    """
    change = forecast - last
    low, high = np.percentile(last, [1, 99.5])
    reach = max(float(np.abs(change).max()), 1e-6)
    busiest = np.unravel_index(int(np.abs(change).argmax()), change.shape)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9, 9), layout="constrained")
        panels = figure.subplots(3, 3)
        for row, axis in enumerate(range(3)):
            ratio = [spacing_mm[a] for a in range(3) if a != axis]
            slices = [np.take(v, int(busiest[axis]), axis=axis)[::-1] for v in (last, forecast, change)]
            for panel, image in zip(panels[row], (slices[0], slices[1], slices[0]), strict=True):
                panel.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=ratio[0] / ratio[1])
                panel.set_axis_off()
            faint = np.abs(slices[2]) < 0.05 * reach
            shown = panels[row][2].imshow(
                np.ma.array(slices[2], mask=faint), cmap="RdBu_r", vmin=-reach, vmax=reach, alpha=0.75,
                aspect=ratio[0] / ratio[1],
            )  # fmt: skip
        for panel, name in zip(panels[0], ("last scan", "forecast", "forecast - last scan"), strict=True):
            panel.set_title(name)
        figure.colorbar(shown, ax=panels[:, 2], shrink=0.5)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def animation(volumes: Sequence[np.ndarray], labels: Sequence[str], spacing_mm: Sequence[float]) -> bytes:
    """A GIF of the middle axial slice: the scans, then the forecast, framed in colour.

    Args:
        volumes: `(D, H, W)` each, the forecast last.
        labels: of the frames.
        spacing_mm: (D, H, W).
    """
    low, high = np.percentile(volumes[0], [1, 99.5])
    frames = []
    for number, (volume, label) in enumerate(zip(volumes, labels, strict=True)):
        figure = Figure(figsize=(4, 4.3), layout="constrained", dpi=90)
        panel = figure.add_subplot()
        middle = volume[len(volume) // 2][::-1]
        panel.imshow(middle, cmap="gray", vmin=low, vmax=high, aspect=spacing_mm[1] / spacing_mm[2])
        panel.set(xticks=[], yticks=[], title=label)
        for side in panel.spines.values():
            side.set(visible=True, color=PALETTE[3] if number == len(volumes) - 1 else "k", linewidth=3)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        frames.append(Image.fromarray(pixels[..., :3].copy()))
    stream = io.BytesIO()
    pauses = [700] * (len(frames) - 1) + [1800]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return stream.getvalue()
