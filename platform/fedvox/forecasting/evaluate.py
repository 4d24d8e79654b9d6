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
from statsmodels.stats.multitest import multipletests
from torch import Tensor

from fedvox import storage
from fedvox.errors import DataError
from fedvox.evaluation.pairwise import exact_signed_rank
from fedvox.forecasting.baselines import BASELINES
from fedvox.forecasting.loaders import list_patients, load_sequence
from fedvox.forecasting.metrics import changing_region, scores
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.predict import Model, Tiling, forecast
from fedvox.forecasting.protocol import PlannedForecast, plan_forecasts, read_plan, write_plan
from fedvox.forecasting.sequence import Sequence4D
from fedvox.forecasting.study.summary import relative_error
from fedvox.storage import Location
from fedvox.training.run_directory import without_nan


def evaluate_cohort(
    folder: Path,
    model: Model | str,
    output: Path,
    *,
    layout: str = "auto",
    unit: str | None = None,
    seed: int = 0,
    tiling: Tiling | None = None,
) -> dict[str, Any]:
    """Scores a model (or one baseline) and all baselines on every patient.

    Args:
        folder: of patients.
        model: a trained one, or the name of a baseline.
        output: folder for plan, scores and report.
        layout: see `fedvox.forecasting.loaders`.
        unit: of times, where the files do not say.
        seed: of a plan that is not there yet.
        tiling: see `forecast`.

    Returns:
        The report.

    Raises:
        DataError: there is no patient with two scans, two patients have one name, or a plan is of other scans.
    """
    target = storage.locate(str(output))
    known, planned = planned_cohort(folder, target, layout=layout, unit=unit, seed=seed)
    location = target.child("plan.json")
    if not storage.exists(location):
        write_plan(planned, location)
    name = model if isinstance(model, str) else "model"
    methods: dict[str, Model | str] = {name: model, **{b: b for b in BASELINES}}
    rows = [
        {
            "patient": one.patient,
            "method": method,
            "scans": len(one.context),
            **scored(known[one.patient], one, chosen, tiling),
        }
        for one in planned
        for method, chosen in methods.items()
    ]
    report = _report(rows, list(methods))
    storage.write_atomic(target.child("scores.csv"), _csv(rows).encode())
    storage.write_atomic(target.child("report.json"), (json.dumps(report, indent=1) + "\n").encode())
    return report


def planned_cohort(
    folder: Path, output: Location, *, layout: str = "auto", unit: str | None = None, seed: int = 0
) -> tuple[dict[str, Sequence4D], list[PlannedForecast]]:
    """The patients with two scans or more by name, and the plan that is there, or else the one that will be.

    Raises:
        DataError: see `evaluate_cohort`.
    """
    known: dict[str, Sequence4D] = {}
    for path in list_patients(folder, layout):
        sequence = load_sequence(path, layout=layout, unit=unit)
        if sequence.patient in known:
            raise DataError(
                f"{path}: there is another patient {sequence.patient!r} in {folder}",
                "Give each patient a name of its own.",
                code="patient_twice",
                file=str(path),
            )
        known[sequence.patient] = sequence
    known = {name: s for name, s in known.items() if s.valid.sum() >= 2}
    location = output.child("plan.json")
    there = storage.exists(location)
    planned = read_plan(location) if there else plan_forecasts(list(known.values()), seed=seed)
    _check_plan(planned, known, location.uri)
    return known, planned


def _check_plan(planned: list[PlannedForecast], known: dict[str, Sequence4D], uri: str) -> None:
    missing = sorted({p.patient for p in planned if p.patient not in known or not p.fits(known[p.patient])})
    if missing or not planned:
        raise DataError(
            f"{uri} names patients or scans that are not there: {', '.join(missing) or 'no patient has two scans'}",
            "Give the folder that the plan was drawn for, or delete the plan.",
            code="bad_plan",
            file=uri,
        )


def scored(
    sequence: Sequence4D, one: PlannedForecast, model: Model | str, tiling: Tiling | None = None
) -> dict[str, float]:
    """The metrics of one planned forecast, in normalised units of its context."""
    context = sequence.take(np.array(one.context))
    found = forecast(one.history(sequence), float(sequence.times[one.target]), model, tiling=tiling)
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
    lci = [row for row in rows if row["method"] == "lci"]
    value: dict[str, Any] = {
        "schema": "fedvox.forecast.report/1", "patients": len(patients), "forecasts": len(lci),
        "of_one_scan": sum(row["scans"] == 1 for row in lci), "methods": {},
    }  # fmt: skip
    others = [method for method in methods if method != "lci"]
    p = dict(zip(others, _better_than_lci(rows, others), strict=True))
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        # not every patient has a region of interest
        named = dict.fromkeys(key for row in mine for key in row)
        metrics = [key for key in named if key not in ("patient", "method", "scans")]
        of = [patients.index(row["patient"]) for row in mine]
        relative = {metric: _relative(metric, mine, lci, of) for metric in metrics}
        value["methods"][method] = {
            "mean": {m: float(np.mean(v)) if (v := _there(mine, m)) else None for m in metrics},
            "relative_to_lci": {metric: found for metric, found in relative.items() if found is not None},
            "mse_relative_to_lci": relative["mse"], "p_better_than_lci_holm": p.get(method),
        }  # fmt: skip
    cleaned: dict[str, Any] = without_nan(value)
    return cleaned


def _there(rows: list[dict[str, Any]], metric: str) -> list[float]:
    return [row[metric] for row in rows if np.isfinite(row.get(metric, np.nan))]


def _relative(
    metric: str, mine: list[dict[str, Any]], lci: list[dict[str, Any]], patients: list[int]
) -> dict[str, float] | None:
    """A metric beside LCI's: the ratio of the sums of errors, the mean difference of PSNR and SSIM."""
    values, of_lci = (np.array([row.get(metric, np.nan) for row in rows], float) for rows in (mine, lci))
    there = np.isfinite(values) & np.isfinite(of_lci)
    if not there.any():
        return None
    clusters = np.unique(np.array(patients)[there], return_inverse=True)[1].tolist()
    if metric.endswith(("psnr", "ssim")):
        difference = (values - of_lci)[there]
        return relative_error(difference, np.ones_like(difference), clusters=clusters)
    return relative_error(values[there], of_lci[there], clusters=clusters)


def _better_than_lci(rows: list[dict[str, Any]], methods: list[str]) -> list[float]:
    """One-sided Wilcoxon signed-rank p values of smaller errors than LCI's, corrected after Holm over the methods."""
    mean: dict[str, dict[str, float]] = {}
    for method in (*methods, "lci"):
        mine = [row for row in rows if row["method"] == method]
        names = {row["patient"] for row in mine}
        mean[method] = {
            name: float(np.mean([row["mse"] for row in mine if row["patient"] == name])) for name in names
        }
    p = []
    for method in methods:
        gains = np.array([mean["lci"][name] - mean[method][name] for name in sorted(mean["lci"])])
        p.append(exact_signed_rank(gains)[0] if gains.any() else 1.0)
    return [float(v) for v in multipletests(p, method="holm")[1]] if p else []


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{report['patients']} patients, {report['forecasts']} forecasts, {report['of_one_scan']} of them of one scan",
        f"{'method':<10}{'MSE':>11}{'PSNR':>8}{'SSIM':>8}   {'MSE relative to LCI':<24}p (better than LCI)",
    ]
    for method, found in report["methods"].items():
        mean, ratio, p = found["mean"], found["mse_relative_to_lci"], found["p_better_than_lci_holm"]
        low, high = ("-" if ratio[end] is None else f"{ratio[end]:.3f}" for end in ("low", "high"))
        told = "-" if ratio["value"] is None else f"{ratio['value']:.3f} [{low}, {high}]"
        lines.append(
            f"{method:<10}{mean['mse']:>11.3e}{mean['psnr']:>8.2f}{mean['ssim']:>8.4f}   {told:<24}"
            f"{'' if p is None else f'{p:.4f}'}"
        )
    return "\n".join(lines)


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    fields = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, fields)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
