"""Pictures of a run: curves and overlays, as PNG.

Colours are Okabe and Ito's, which people with any common colour vision tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.lines
import matplotlib.patches
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvox import storage
from fedvox.storage import Location
from fedvox.training.session import Session
from fedvox.training.validation import predict_case

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
MISSED, INVENTED = "#D55E00", "#56B4E9"
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "figure.dpi": 110,
}  # fmt: skip


def draw_run(session: Session) -> None:
    """Curves of the run and overlays of its first validation cases, into `figures/`."""
    save_figure(
        curves(session.run.metrics(), session.config.name), session.run.child("figures", "curves.png")
    )
    session.network.eval()
    whole = [
        int(row) for row in session.split.validation
        if session.store.case_ids[int(row)] not in session.progress.damaged
    ]  # fmt: skip
    for row in whole[: session.config.validation.overlays]:
        record = session.store.record(row)
        image, reference, prediction = predict_case(
            session.network, session.store, row, session.window, session.world.device, session.autocast
        )
        figure = overlay(
            image[0],
            reference.numpy(),
            prediction.numpy(),
            record.spacing_mm,
            session.store.meta.structures,
            record.case_id,
        )
        save_figure(figure, session.run.child("figures", f"overlay-{record.case_id}.png"))


def save_figure(figure: Figure, location: Location) -> None:
    """Stores a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    storage.write_atomic(location, buffer.getvalue())


def curves(lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss, Dice, learning rate, gradient norm and time of a run.

    Args:
        lines: as `RunDirectory.metrics` returns them.
        title: the run's name.
    """
    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    steps = [line["step"] for line in train]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 6), layout="constrained")
        grid = figure.add_gridspec(2, 6)
        _loss_panel(figure.add_subplot(grid[0, :3]), steps, train)
        _dice_panel(figure.add_subplot(grid[0, 3:]), validation)
        rate = figure.add_subplot(grid[1, :2])
        rate.plot(steps, [line["lr"] for line in train], color=PALETTE[0])
        rate.set(title="Learning rate", xlabel="step")
        norm = figure.add_subplot(grid[1, 2:4])
        norm.semilogy(steps, [line["grad_norm"] for line in train], color=PALETTE[0], lw=0.8)
        norm.set(title="Gradient norm before clipping", xlabel="step")
        _time_panel(figure.add_subplot(grid[1, 4:]), steps, train)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def _loss_panel(axes: Axes, steps: list[int], train: list[dict[str, Any]]) -> None:
    loss = np.array([line["loss"] for line in train])
    axes.plot(steps, loss, color=PALETTE[0], alpha=0.3, lw=0.8, label="each logged step")
    width = max(1, len(loss) // 25)
    if width > 1:
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color=PALETTE[0], lw=1.8, label=f"mean of {width}")
    axes.set(title="Training loss (cross-entropy − Dice)", xlabel="step")
    axes.legend()


def _dice_panel(axes: Axes, validation: list[dict[str, Any]]) -> None:
    names = sorted({key for line in validation for key in line if key.startswith("dice/")})
    steps = [line["step"] for line in validation]
    if len(names) <= len(PALETTE):
        for name, color in zip(names, PALETTE, strict=False):
            axes.plot(steps, [line.get(name, np.nan) for line in validation], "o-", ms=3, color=color,
                      label=name.removeprefix("dice/"))  # fmt: skip
    else:
        values = np.array([[line.get(name, np.nan) for name in names] for line in validation], float)
        low, high = np.nanpercentile(values, [10, 90], axis=1)
        axes.fill_between(
            steps, low, high, color=PALETTE[0], alpha=0.2, label="10th to 90th percentile of structures"
        )
    axes.plot(
        steps, [line.get("ema_dice", np.nan) for line in validation], "k--", lw=1, label="moving average"
    )
    axes.set(title="Dice on held-out volumes", xlabel="step", ylim=(0, 1))
    axes.legend(loc="lower right")


def _time_panel(axes: Axes, steps: list[int], train: list[dict[str, Any]]) -> None:
    axes.plot(steps, [line["step_s"] for line in train], color=PALETTE[0], lw=0.8, label="computing")
    axes.plot(
        steps, [line["data_wait_s"] for line in train], color=PALETTE[1], lw=0.8, label="waiting for data"
    )
    axes.set(title="Seconds a step", xlabel="step")
    # A few stalls (a first batch, a checkpoint on a slow disk) must not flatten the rest.
    axes.set_ylim(0, 2 * float(np.percentile([line["step_s"] for line in train], 95)) if train else None)
    axes.legend()


def overlay(
    image: np.ndarray, reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float],
    structures: Sequence[str], title: str,
) -> Figure:  # fmt: skip
    """Three orthogonal slices: the image, outlines of reference and prediction, and where they differ.

    Args:
        image: `(D, H, W)` in RAS order.
        reference: labels `(D, H, W)`.
        prediction: labels `(D, H, W)`.
        spacing_mm: (D, H, W) in mm.
        structures: names, background first.
        title: the case.
    """
    centre = _busiest_slices(reference if (reference > 0).any() else prediction)
    low, high = np.percentile(image, [1, 99.5])
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(12, 8.4), layout="constrained")
        axes = figure.subplots(2, 3)
        for column, (axis, name, sides) in enumerate(_PLANES):
            aspect = [s for a, s in enumerate(spacing_mm) if a != axis]
            cut = [np.flipud(np.take(v, centre[axis], axis)) for v in (image, reference, prediction)]
            for row in range(2):
                panel = axes[row, column]
                panel.imshow(cut[0], cmap="gray", vmin=low, vmax=high, aspect=aspect[0] / aspect[1])
                panel.set(xticks=[], yticks=[])
                for where, letter in zip(
                    ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03)), sides, strict=True
                ):
                    panel.text(
                        *where, letter, color="white", ha="center", va="center", transform=panel.transAxes
                    )
            _outlines(axes[0, column], cut[1], cut[2], len(structures))
            _errors(axes[1, column], cut[1], cut[2])
            _scale_bar(axes[1, column], aspect[1])
            axes[0, column].set_title(f"{name}, slice {centre[axis]}")
        _legend(figure, structures, np.union1d(np.unique(reference), np.unique(prediction)))
        spacing = " × ".join(f"{s:.2f}" for s in spacing_mm)
        figure.suptitle(
            f"{title}   spacing (D, H, W) {spacing} mm", x=0.01, ha="left", fontsize=12, fontweight="bold"
        )
    return figure


# Axis cut, plane, letters at the left, right, top and bottom edge of the flipped slice. Volumes are RAS+, so
# the first column is the patient's left, as in neurological convention.
_PLANES = ((0, "axial", "LRAP"), (1, "coronal", "LRSI"), (2, "sagittal", "PASI"))


def _busiest_slices(labels: np.ndarray) -> list[int]:
    foreground = labels > 0
    return [int(foreground.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]


def _outlines(panel: Axes, reference: np.ndarray, prediction: np.ndarray, num_classes: int) -> None:
    for k in range(1, num_classes):
        color = PALETTE[(k - 1) % len(PALETTE)]
        for labels, style in ((reference, "solid"), (prediction, "dashed")):
            if (labels == k).any() and not (labels == k).all():
                panel.contour(labels == k, levels=[0.5], colors=[color], linewidths=0.9, linestyles=style)


def _errors(panel: Axes, reference: np.ndarray, prediction: np.ndarray) -> None:
    for wrong, color in (((reference > 0) & (reference != prediction), MISSED),
                         ((prediction > 0) & (reference == 0), INVENTED)):  # fmt: skip
        tint = np.zeros((*wrong.shape, 4))
        tint[wrong] = mpl.colors.to_rgba(color, 0.75)
        panel.imshow(tint, aspect=panel.get_aspect())


def _scale_bar(panel: Axes, column_mm: float) -> None:
    left, right = panel.get_xlim()
    bottom = max(panel.get_ylim())
    length = 20.0 / column_mm
    start = left + 0.06 * (right - left)
    panel.plot([start, start + length], [bottom * 0.95] * 2, color="white", lw=2)
    panel.text(
        start + length / 2, bottom * 0.93, "20 mm", color="white", ha="center", va="bottom", fontsize=7
    )


def _legend(figure: Figure, structures: Sequence[str], present: np.ndarray) -> None:
    shown = [int(k) for k in present if k > 0][: len(PALETTE)]
    lines: list[Any] = [
        mpl.lines.Line2D([], [], color=PALETTE[(k - 1) % len(PALETTE)], label=structures[k]) for k in shown
    ]
    lines += [
        mpl.lines.Line2D([], [], color="black", label="reference"),
        mpl.lines.Line2D([], [], color="black", ls="dashed", label="prediction"),
        mpl.patches.Patch(color=MISSED, label="missed or another structure"),
        mpl.patches.Patch(color=INVENTED, label="predicted, not in the reference"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
