"""A model against "no change" and the other baselines on a folder of patients, by a plan that is drawn once.

OUTPUT/plan.json       targets and context scans of every patient; used again if it is there
OUTPUT/scores.csv      a row per patient, method and metric
OUTPUT/report.json     error relative to the last context image with confidence intervals over patients
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox import storage
from fedvox.errors import DataError
from fedvox.forecasting.baselines import BASELINES
from fedvox.forecasting.loaders import list_patients, load_sequence
from fedvox.forecasting.metrics import changing_region, scores
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.predict import Model, forecast
from fedvox.forecasting.protocol import PlannedForecast, plan_forecasts, read_plan, write_plan
from fedvox.forecasting.sequence import Sequence4D
from fedvox.forecasting.study.summary import relative_error
from fedvox.training.run_directory import without_nan


def evaluate_cohort(
    folder: Path, model: Model | str, output: Path, *, layout: str = "auto", seed: int = 0
) -> dict[str, Any]:
    """Scores a model (or one baseline) and LCI on every patient.

    Args:
        folder: of patients.
        model: a trained one, or the name of a baseline.
        output: folder for plan, scores and report.
        layout: see `fedvox.forecasting.loaders`.
        seed: of a plan that is not there yet.

    Returns:
        The report.

    Raises:
        DataError: there is no patient with two scans, or a plan that names others.
    """
    sequences = [load_sequence(path, layout=layout) for path in list_patients(folder, layout)]
    known = {s.patient: s for s in sequences if s.valid.sum() >= 2}
    target = storage.locate(str(output))
    location = target.child("plan.json")
    if storage.exists(location):
        planned = read_plan(location)
    else:
        planned = plan_forecasts(list(known.values()), seed=seed)
        write_plan(planned, location)
    missing = sorted({one.patient for one in planned} - known.keys())
    if missing or not planned:
        raise DataError(
            f"{location.uri} names patients that are not there: {', '.join(missing) or 'none has two scans'}",
            "Give the folder that the plan was drawn for, or delete the plan.",
            code="bad_plan",
            file=location.uri,
        )
    name = model if isinstance(model, str) else "model"
    methods: dict[str, Model | str] = {name: model, **{b: b for b in BASELINES}}
    rows = [
        {"patient": one.patient, "method": method, **scored(known[one.patient], one, chosen)}
        for one in planned
        for method, chosen in methods.items()
    ]
    report = _report(rows, list(methods))
    storage.write_atomic(target.child("scores.csv"), _csv(rows).encode())
    storage.write_atomic(target.child("report.json"), (json.dumps(report, indent=1) + "\n").encode())
    return report


def scored(sequence: Sequence4D, one: PlannedForecast, model: Model | str) -> dict[str, float]:
    """The metrics of one planned forecast, in normalised units of its context."""
    context = sequence.take(np.array(one.context))
    found = forecast(context, float(sequence.times[one.target]), model)
    normalization = Normalization.of(context.volumes)

    def normal(volume: np.ndarray) -> Tensor:
        return torch.from_numpy(normalization.apply(volume))[None]

    truth = normal(sequence.volumes[one.target])
    region = changing_region(normal(context.volumes), truth)
    values = {f"change_{k}": v for k, v in _region(normal(found.volume), truth, region).items()}
    if sequence.roi is not None:
        roi = torch.from_numpy(np.ascontiguousarray(sequence.roi[one.target]))[None, None]
        values |= {f"roi_{k}": v for k, v in _region(normal(found.volume), truth, roi).items()}
    whole = scores(normal(found.volume), truth)
    return {k: float(v[0]) for k, v in (whole | values).items()}


def _region(image: Tensor, truth: Tensor, region: Tensor) -> dict[str, Tensor]:
    found = scores(image, truth, region=region)
    return {k.removeprefix("region_"): v for k, v in found.items() if k.startswith("region_")}


def _report(rows: list[dict[str, Any]], methods: list[str]) -> dict[str, Any]:
    patients = sorted({row["patient"] for row in rows})
    value: dict[str, Any] = {"schema": "fedvox.forecast.report/1", "patients": len(patients), "methods": {}}
    for method in methods:
        means = {}
        mine = [row for row in rows if row["method"] == method]
        for metric in (key for key in mine[0] if key not in ("patient", "method")):
            means[metric] = float(np.nanmean([row[metric] for row in mine]))
        lci = [row for row in rows if row["method"] == "lci"]
        ratio = relative_error(
            np.array([row["mse"] for row in mine]), np.array([row["mse"] for row in lci]),
            clusters=[patients.index(row["patient"]) for row in mine],
        )  # fmt: skip
        value["methods"][method] = {"mean": means, "mse_relative_to_lci": ratio}
    cleaned: dict[str, Any] = without_nan(value)
    return cleaned


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{report['patients']} patients",
        f"{'method':<10}{'MSE':>11}{'PSNR':>8}{'SSIM':>8}   MSE relative to LCI",
    ]
    for method, found in report["methods"].items():
        mean, ratio = found["mean"], found["mse_relative_to_lci"]
        lines.append(
            f"{method:<10}{mean['mse']:>11.3e}{mean['psnr']:>8.2f}{mean['ssim']:>8.4f}   {ratio['value']:.3f} "
            f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
        )
    return "\n".join(lines)


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    fields = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, fields)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
