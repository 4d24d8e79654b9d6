"""What makes two evaluations comparable: patients dealt into folds, and targets and missing scans drawn once.

A plan is a JSON file. Written once, it says for every patient which scan is the target and which context scans are
missing; whoever evaluates with it evaluates the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from fedvox import storage
from fedvox.data.philox import Stream, philox
from fedvox.errors import DataError
from fedvox.forecasting.sequence import Sequence4D
from fedvox.storage import Location

SCHEMA = "fedvox.forecast.plan/2"


@dataclass(frozen=True)
class PlannedForecast:
    """One forecast of an evaluation.

    Attributes:
        patient: name.
        target: index of the scan to forecast.
        context: indices of the scans that may be used, ascending.
        times: of the context scans and, last, of the target, by which a plan is known to be of these scans.
    """

    patient: str
    target: int
    context: tuple[int, ...]
    times: tuple[float, ...]

    def history(self, sequence: Sequence4D) -> Sequence4D:
        """The patient's visits before the target from the first of the context on, those between it as missing."""
        rows = np.arange(self.context[0], self.target)
        return replace(sequence, valid=np.isin(np.arange(len(sequence)), self.context)).take(rows)

    def fits(self, sequence: Sequence4D) -> bool:
        """Whether the patient's scans are still those that the plan was drawn for."""
        rows = (*self.context, self.target)
        return (
            len(self.context) > 0
            and len(self.times) == len(rows)
            and min(rows) >= 0
            and max(rows[:-1]) < self.target < len(sequence)
            and np.allclose(sequence.times[list(rows)], self.times)
        )


def patient_folds(patients: Sequence[str], folds: int) -> list[tuple[str, ...]]:
    """Deals patients into folds of nearly equal size, by a hash of their names: new patients disturb no old order."""
    ranked = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    return [tuple(sorted(ranked[fold::folds])) for fold in range(folds)]


def plan_forecasts(
    sequences: Sequence[Sequence4D],
    *,
    seed: int,
    missing: float = 0.3,
    context: int = 4,
    per_patient: int = 1,
) -> list[PlannedForecast]:
    """Draws targets after the context, and which context scans are missing.

    Of one scan every method makes that scan, which compares nothing: where a patient has three scans or more, two scans
    at least come before the target and stay.

    Args:
        sequences: patients with at least two scans.
        seed: of the draw, which depends on the patient's name and not on the order.
        missing: share of context scans that are left out, as far as that leaves two.
        context: largest number of context scans.
        per_patient: targets of each.
    """
    planned = []
    for sequence in sequences:
        rows = np.flatnonzero(sequence.valid)
        number = int.from_bytes(hashlib.sha256(sequence.patient.encode()).digest()[:6], "big")
        for attempt in range(per_patient):
            rng = philox(seed, number, Stream.CASE, attempt=attempt)
            place = int(rng.integers(min(2, len(rows) - 1), len(rows)))
            before = rows[max(0, place - context) : place]
            kept = before[rng.random(len(before)) >= missing]
            if len(kept) < 2:
                kept = np.sort(rng.permutation(before)[:2])
            chosen, target = tuple(int(r) for r in kept), int(rows[place])
            times = tuple(float(t) for t in sequence.times[[*chosen, target]])
            planned.append(PlannedForecast(sequence.patient, target, chosen, times))
    return planned


def write_plan(planned: Sequence[PlannedForecast], location: Location) -> None:
    """Writes a plan, atomically."""
    value = {"schema": SCHEMA, "forecasts": [asdict(one) for one in planned]}
    storage.write_atomic(location, (json.dumps(value, indent=1) + "\n").encode())


def read_plan(location: Location) -> list[PlannedForecast]:
    """Reads a plan.

    Raises:
        DataError: it is no plan.
    """
    try:
        value = json.loads(storage.read_bytes(location))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        return [
            PlannedForecast(
                one["patient"],
                int(one["target"]),
                tuple(int(i) for i in one["context"]),
                tuple(float(t) for t in one["times"]),
            )
            for one in value["forecasts"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{location.uri} is no plan of forecasts ({error!r})",
            "Delete it; a new one is drawn.",
            code="bad_plan",
            file=location.uri,
        ) from None
