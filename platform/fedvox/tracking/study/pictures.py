"""Pictures of the study: scores beside each other, and a lesion through a patient's scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvox.tracking.study import summary
from fedvox.tracking.study.cells import METHODS, PEERS
from fedvox.tracking.study.patients import Judge
from fedvox.training.figures import PALETTE, STYLE

Labels = npt.NDArray[np.integer[Any]]
_SIDE = 24  # voxels to either side of a lesion that are shown


def scores(cells: summary.Cells) -> Figure:
    """Segmentation, tracking and rounds of every method that has been judged.

    Args:
        cells: of `summary.read_cells`.
    """
    methods = [m for m in (*METHODS, *PEERS) if any(cell.method == m for cell in cells)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _bars(left, methods, lambda m: summary.prompted_scores(cells, m, None))
        left.set(title="Dice from a first prompt", xlim=(0, 1))
        _bars(middle, methods, lambda m: summary.tracked_scores(cells, m, summary.persisting_dice))
        middle.set(title="Dice on follow-up scans", xlim=(0, 1))
        middle.tick_params(labelleft=False)
        for number, method in enumerate(methods):
            values = summary.rounds(cells, method)
            if values:
                right.plot(range(len(values)), values, "o-", ms=3, color=_color(number), label=method)
        right.set(title="Dice after clicks", xlabel="correcting clicks", ylim=(0, 1))
        right.legend(fontsize=7)
    return figure


def _bars(axes: Axes, methods: Sequence[str], of: Callable[[str], summary.PerPatient]) -> None:
    for number, method in enumerate(methods):
        parts = of(method)
        if parts:
            found = summary.over_seeds(parts)
            reach = [[found.value - found.low], [found.high - found.value]]
            axes.barh(number, found.value, xerr=reach, color=_color(number), height=0.7, capsize=2)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _color(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def followed(judge: Judge, lesion: int, found: Mapping[str, Sequence[Labels]]) -> Figure:
    """One lesion on all scans of a patient: the truth in white, what each method says in colour.

    Args:
        judge: the patient.
        lesion: an id that is on the first scan.
        found: method -> instance maps of every scan.
    """
    count = len(judge.scans)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * count, 2.7 * len(found)), layout="constrained")
        grid = figure.subplots(len(found), count, squeeze=False)
        for row, (method, maps) in enumerate(found.items()):
            for column in range(count):
                _slice(grid[row, column], judge, column, lesion, maps[column], _color(row))
                grid[row, column].set_title(f"{method}, scan {column}", fontsize=8)
    return figure


def _slice(axes: Axes, judge: Judge, index: int, lesion: int, labels: Labels, color: str) -> None:
    truth, said = judge.lesions[index] == lesion, labels == lesion
    there = truth if truth.any() else said
    z, y, x = np.argwhere(there).mean(0).round().astype(int) if there.any() else np.array(truth.shape) // 2
    box = (slice(max(0, y - _SIDE), y + _SIDE), slice(max(0, x - _SIDE), x + _SIDE))
    image = judge.scans[index].data[0][z][box]
    axes.imshow(image, cmap="gray", origin="lower", vmin=0, vmax=np.percentile(image, 99.5))
    for mask, line in ((truth, "white"), (said, color)):
        if mask[z][box].any():
            axes.contour(mask[z][box].astype(float), [0.5], colors=[line], linewidths=1.2)
    axes.set_axis_off()
