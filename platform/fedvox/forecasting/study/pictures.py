"""Figures of the study: errors relative to "no change", and single forecasts beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fedvox import storage
from fedvox.forecasting.baselines import BASELINES, Baseline
from fedvox.forecasting.flow import Forecaster
from fedvox.forecasting.release import flow_of, load_release, solver_of
from fedvox.forecasting.study import futures
from fedvox.forecasting.study.cells import METHODS, SETS, Cell, conditions
from fedvox.forecasting.study.summary import estimate
from fedvox.training.figures import PALETTE, STYLE

CONDITIONS = {
    "any": "all targets", "between": "between scans", "after": "after the last scan", "beyond": "beyond training",
}  # fmt: skip


def forecaster_of(cell: Cell, folder: str) -> Baseline:
    """The forecasts of a finished cell."""
    if cell.method in BASELINES:
        return BASELINES[cell.method]
    network, info = load_release(storage.locate(folder).child("runs", cell.name).uri)
    return Forecaster(network, flow_of(info), solver_of(info), info.trust)


def relative_errors(cells: Mapping[Cell, dict[str, Any]]) -> Figure:
    """Error relative to LCI of every trained method and the mean of the context, per data set and kind of target."""
    methods = ["mean", *METHODS]
    trained = {cell.data for cell in cells if cell.method in METHODS}
    shown = [data for data in SETS if data in trained and "target" not in SETS[data]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.9 * len(shown)), layout="constrained")
        for panel, data in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
            for number, method in enumerate(methods):
                found = [estimate(cells, data, method, condition, "mse") for condition in CONDITIONS]
                there = [(x, e) for x, e in enumerate(found) if e is not None]
                if not there:
                    continue
                places = [x + (number - len(methods) / 2) * 0.12 for x, _ in there]
                values = [e.value for _, e in there]
                reach = [
                    [max(0.0, e.value - e.low) for _, e in there],
                    [max(0.0, e.high - e.value) for _, e in there],
                ]
                panel.bar(places, values, 0.11, yerr=reach, color=PALETTE[number], label=method, capsize=2)
            panel.axhline(1.0, color="k", ls="--", lw=1)
            panel.set_xticks(range(len(CONDITIONS)), list(CONDITIONS.values()))
            panel.set(
                title=data, ylabel="MSE relative to LCI", ylim=(0, 1.6), xlim=(-0.5, len(CONDITIONS) - 0.5)
            )
            panel.legend(ncols=len(methods), loc="upper right")
    return figure


def examples(
    folder: str, data: str, methods: Sequence[str], patients: Sequence[int], *, seed: int = 0
) -> Figure:
    """Last scan, truth and forecasts of patients, with their errors, in the middle slice.

    Args:
        folder: of the study.
        data: data set.
        methods: trained ones.
        patients: numbers of test patients.
        seed: of the trained models.
    """
    _, asked = conditions(data, max(patients) + 1)[
        "any" if data.endswith("regular") and "ir" not in data else "after"
    ]
    given = (asked.scans, asked.times, asked.valid, asked.target_time)
    assert asked.truth is not None  # simulated
    images = {"last scan": BASELINES["lci"](*given), "truth": asked.truth}
    images |= {method: forecaster_of(Cell(data, method, seed), folder)(*given) for method in methods}
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.7 * (2 * len(images) - 1), 1.9 * len(patients)), layout="constrained")
        panels = np.atleast_2d(figure.subplots(len(patients), 2 * len(images) - 1))
        for row, patient in zip(panels, patients, strict=True):
            truth = asked.truth[patient, 0].numpy()
            middle = int(np.abs(images["last scan"][patient, 0].numpy() - truth).sum(axis=(1, 2)).argmax())
            column = iter(row)
            for name, image in images.items():
                shown = image[patient, 0].numpy()[middle]
                panel = next(column)
                panel.imshow(shown[::-1], cmap="gray", vmin=0, vmax=1)
                panel.set_title(name)
                if name != "truth":
                    panel = next(column)
                    panel.imshow((shown - truth[middle])[::-1], cmap="RdBu_r", vmin=-0.3, vmax=0.3)
                    error = float(((image[patient, 0].numpy() - truth) ** 2).mean())
                    panel.set_title(f"{error:.1e}", fontsize=8, fontweight="normal")
        for panel in panels.flat:
            panel.set_axis_off()
    return figure


def two_futures(folder: str, method: str, patients: int = 3, *, draws: int = 4, seed: int = 0) -> Figure:
    """Where two futures are possible: both, regression's one forecast, draws of a flow, and their spread.

    Args:
        folder: of the study.
        method: a trained flow.
        patients: how many are shown.
        draws: how many are shown; the spread is of all.
        seed: of the trained models.
    """
    base = next(iter(conditions("response", 1).values()))[0]
    asked, both = futures.asked(base, patients)
    given = (asked.scans, asked.times, asked.valid, asked.target_time)
    drawn = futures.ensemble(forecaster_of(Cell("response", method, seed), folder), asked)
    images = {"last scan": BASELINES["lci"](*given), "future A": both[0], "future B": both[1]}
    images["regression"] = forecaster_of(Cell("response", "regression", seed), folder)(*given)
    images |= {f"draw {number + 1}": drawn[number] for number in range(draws)}
    images["spread"] = drawn.std(dim=0)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.5 * len(images), 1.7 * patients), layout="constrained")
        panels = np.atleast_2d(figure.subplots(patients, len(images)))
        for patient, row in enumerate(panels):
            middle = int((both[0] - both[1])[patient, 0].abs().sum(dim=(1, 2)).argmax())
            for panel, (name, image) in zip(row, images.items(), strict=True):
                shown = image[patient, 0, middle].numpy()[::-1]
                panel.imshow(shown, cmap="gray", vmin=0, vmax=0.4 if name == "spread" else 1)
                panel.set_title(name)
                panel.set_axis_off()
    return figure
