"""What the cells of the study say together: errors relative to "no change", and what must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox import storage
from fedvox.evaluation.bootstrap import Ratios, bca_interval, resample_weights
from fedvox.evaluation.seeds import SeedEstimate
from fedvox.forecasting.study.cells import Cell

RESAMPLES = 2000


def relative_error(
    errors: np.ndarray, of_lci: np.ndarray, *, clusters: Sequence[int] | None = None, confidence: float = 0.95
) -> dict[str, float]:
    """Sum of errors over the sum of LCI's, with the BCa interval over patients.

    Args:
        errors: `(N,)`.
        of_lci: `(N,)`.
        clusters: `(N,)` number of each error's patient, whose errors are drawn together; None: one each.
        confidence: two-sided coverage.
    """
    patients = np.arange(len(errors)) if clusters is None else np.asarray(clusters)
    count = int(patients.max()) + 1
    numerator, weight = np.zeros((1, count, 1)), np.zeros((count, 1))
    np.add.at(numerator[0, :, 0], patients, errors)
    np.add.at(weight[:, 0], patients, of_lci)
    ratios = Ratios(numerator, weight)
    observed = ratios.scores(ratios.observed_weights())[0]
    if count < 2:
        return {"value": float(observed[0]), "low": float("nan"), "high": float("nan")}
    low, high = bca_interval(
        observed, ratios.scores(resample_weights(count, RESAMPLES, 0)), ratios.scores(ratios.jackknife_weights()),
        confidence,
    )  # fmt: skip
    return {"value": float(observed[0]), "low": float(low[0]), "high": float(high[0])}


def read_cells(folder: str) -> dict[Cell, dict[str, Any]]:
    """Every finished cell in a study's folder."""
    found = {}
    for location in storage.list_files(storage.locate(folder).child("cells")):
        if location.path.endswith(".json"):
            value = json.loads(storage.read_bytes(location))
            found[Cell(value["data"], value["method"], value["seed"])] = value
    return found


def seeds_of(cells: Mapping[Cell, dict[str, Any]], data: str, method: str) -> list[dict[str, Any]]:
    """The cells of a method on a data set, by seed."""
    chosen = [cell for cell in cells if (cell.data, cell.method) == (data, method)]
    return [cells[cell] for cell in sorted(chosen, key=lambda cell: cell.seed)]


def estimate(
    cells: Mapping[Cell, dict[str, Any]], data: str, method: str, condition: str, metric: str
) -> SeedEstimate | None:
    """A metric of a method relative to LCI's in a condition; None where no seed has been trained."""
    mine = seeds_of(cells, data, method)
    if not mine or condition not in mine[0]["conditions"]:
        return None
    errors = np.array([value["conditions"][condition][metric] for value in mine])
    of_lci = np.array(mine[0]["conditions"][condition][f"{metric}_lci"])
    there = of_lci >= 0
    if not there.any():
        return None
    per_seed = errors[:, there].sum(axis=1) / of_lci[there].sum()
    over_patients = relative_error(errors[:, there].mean(axis=0), of_lci[there])
    return SeedEstimate.of(per_seed, over_patients["low"], over_patients["high"])


@dataclass(frozen=True)
class Claim:
    """Something that must hold.

    Attributes:
        text: for people.
        limit: the largest value that is allowed.
        data: data set.
        method: method.
        condition: targets.
        metric: of `judged`.
        against: another method, whose ratio divides; None for LCI alone.
    """

    text: str
    limit: float
    data: str
    method: str
    condition: str = "any"
    metric: str = "mse"
    against: str | None = None

    def measured(self, cells: Mapping[Cell, dict[str, Any]]) -> float | None:
        """The value to hold against the limit; None where it has not been measured."""
        found = estimate(cells, self.data, self.method, self.condition, self.metric)
        if found is None or self.against is None:
            return None if found is None else found.value
        other = estimate(cells, self.data, self.against, self.condition, self.metric)
        return None if other is None else found.value / other.value


CLAIMS: tuple[Claim, ...] = (
    Claim("CRONOS on the irregular heart: error of LCI's", 0.20, "heart-irregular", "cronos"),
    Claim("CRONOS on the irregular heart: error of TFM's", 0.50, "heart-irregular", "cronos", against="tfm"),
    Claim("CRONOS on the brain: error of LCI's", 0.65, "brain", "cronos"),
    Claim(
        "CRONOS on the brain, where it changes: error of LCI's", 0.50, "brain", "cronos", metric="region_mse"
    ),
    Claim(
        "CRONOS on the brain: volume error of the lesion of LCI's",
        0.70,
        "brain",
        "cronos",
        metric="volume_error",
    ),
    Claim("CRONOS on the brain: error of TFM's", 0.50, "brain", "cronos", against="tfm"),
    Claim("TFM on the regular heart: error of LCI's", 0.80, "heart-regular", "tfm"),
    *(
        Claim(
            f"{method.upper()} where nothing changes ({data}, {what}): error of LCI's",
            1.01,
            data,
            method,
            condition,
            metric,
        )
        for data, method in (
            ("heart-irregular", "cronos"),
            ("brain", "cronos"),
            ("heart-irregular", "tfm"),
            ("brain", "tfm"),
            ("heart-regular", "tfm"),
        )
        for what, condition, metric in (
            ("still voxels", "any", "still_mse"),
            ("whole patients", "static", "mse"),
        )
    ),
    Claim(
        "Continuous times off the grid: error of grid times'",
        1.00,
        "heart-irregular",
        "cronos",
        against="cronos-grid",
    ),
)
"""The smaller, the better, all of them."""


def verdicts(cells: Mapping[Cell, dict[str, Any]]) -> list[tuple[Claim, float | None, str]]:
    """Each claim with what was measured, and "holds", "fails" or "not measured"."""
    found = []
    for claim in CLAIMS:
        value = claim.measured(cells)
        told = "not measured" if value is None else "holds" if value <= claim.limit else "fails"
        found.append((claim, value, told))
    return found
