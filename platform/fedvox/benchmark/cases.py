"""One case: read reference and prediction, check that they can be compared, measure.

No case is ever lost. A prediction that is missing or cannot be compared scores like an empty one (the structures of
the reference are missed), and its outcome says why.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fedvox.data.checks import check_label, check_same_grid, whole_numbers
from fedvox.data.geometry import Volume
from fedvox.data.label_space import SourceLabels
from fedvox.data.readers import read_volume
from fedvox.errors import DataError
from fedvox.evaluation.metrics import MetricPlan, measure_labels

Status = Literal["scored", "missing", "rejected"]
Labels = Mapping[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class Rules:
    """What is the same for all cases of an evaluation.

    Attributes:
        structures: name -> label or labels, those that are scored.
        known: name -> label or labels, all that may occur in a label map.
        plan: what is measured.
        ignore_label: reference label that belongs to no structure.
    """

    structures: Labels
    known: Labels
    plan: MetricPlan
    ignore_label: int | None = None

    def source_labels(self) -> SourceLabels:
        """The values that may occur, for the checks."""
        named = tuple((n, (v,) if isinstance(v, int) else tuple(v)) for n, v in self.known.items())
        return SourceLabels(named, ignore=self.ignore_label)

    def digest(self) -> str:
        """Changes with anything that changes a score."""
        content = [dict(self.structures), dict(self.known), asdict(self.plan), self.ignore_label]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CaseTask:
    """A case to score; `prediction` is None where there is none."""

    case: str
    reference: Path
    prediction: Path | None


@dataclass(frozen=True)
class CaseOutcome:
    """What became of a case.

    Attributes:
        case: its name.
        status: `scored`, `missing` (no prediction) or `rejected` (a prediction that cannot be compared).
        rows: one per structure: structure, presence, voxel counts and metrics by id.
        code: stable name of the reason, for `missing` and `rejected`.
        message: the reason in words.
        remedy: what to do about it.
        notes: what is unusual but was scored.
        seconds: that it took.
    """

    case: str
    status: Status
    rows: tuple[dict[str, Any], ...]
    code: str = ""
    message: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `dataclasses.asdict`, after a round trip through JSON (where NaN is null)."""
        rows = tuple({k: np.nan if v is None else v for k, v in row.items()} for row in values["rows"])
        return cls(**{**values, "rows": rows, "notes": tuple(values["notes"])})


CaseFunction = Callable[[CaseTask, Rules], CaseOutcome]


def score_case(task: CaseTask, rules: Rules) -> CaseOutcome:
    """Score one case.

    Raises:
        DataError: the reference cannot be used: the benchmark itself is at fault, and nothing can be scored.
    """
    start = time.perf_counter()
    reference = _read(task.reference, rules)
    status: Status = "scored"
    error: DataError | None = None
    notes: list[str] = []
    predicted: npt.NDArray[np.integer[Any]] = np.zeros(reference.data.shape[1:], np.uint8)
    if task.prediction is None:
        status = "missing"
        error = DataError("there is no prediction", f"Submit {task.case}.nii.gz.", code="missing_prediction")
    else:
        try:
            prediction = _read(task.prediction, rules)
            _raise_first(check_same_grid(reference, prediction))
        except DataError as refusal:
            status, error = "rejected", refusal
        else:
            predicted = _labels(prediction)
            if prediction.data.dtype.kind == "f":
                notes.append(f"labels are stored as {prediction.data.dtype}; all are whole numbers")
    scores = measure_labels(
        _labels(reference),
        predicted,
        reference.geometry.spacing_mm,
        rules.structures,
        plan=rules.plan,
        ignore_label=rules.ignore_label,
    )
    rows = tuple(
        {
            "structure": name,
            "presence": str(found.presence),
            "reference_voxels": found.reference_voxels,
            "prediction_voxels": found.prediction_voxels,
            **found,
        }
        for name, found in scores.items()
    )
    told = (error.code, error.message, error.remedy) if error else ("", "", "")
    return CaseOutcome(task.case, status, rows, *told, tuple(notes), time.perf_counter() - start)


def _read(path: Path, rules: Rules) -> Volume:
    volume = read_volume(str(path))
    _raise_first(check_label(volume, rules.source_labels()))
    return volume


def _labels(volume: Volume) -> npt.NDArray[np.integer[Any]]:
    labels: npt.NDArray[np.integer[Any]] = whole_numbers(volume.data[0])
    return labels


def _raise_first(errors: list[DataError]) -> None:
    if errors:
        raise errors[0]
