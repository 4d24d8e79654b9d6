"""Many cases: listed, predicted one after the other or over Ray, reported.

OUTPUT/CASE.nii.gz               label map
OUTPUT/CASE_uncertainty.nii.gz   where it is asked for
OUTPUT/cases/CASE.json           written last: the case is done
OUTPUT/labels.json               structure -> label value
OUTPUT/report.json               what became of every case
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from fedvox.data.raw_dataset import RawCase
from fedvox.errors import ConfigError, DataError, FedvoxError, RunError, StorageError
from fedvox.inference.config import PredictConfig
from fedvox.inference.ensemble import load_ensemble, read_infos
from fedvox.inference.inputs import find_cases
from fedvox.inference.predictor import CaseOutcome, Predictor
from fedvox.storage import locate, write_atomic
from fedvox.training.release import ModelInfo

SCHEMA = "fedvox.predict/1"
_ON_GPU = 2  # cases at a time in one process: one computes while the other is read or written

OnOutcome = Callable[[CaseOutcome], None]
OnWindows = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A prediction that is planned and not begun.

    Attributes:
        config: as given.
        infos: of each model.
        cases: to predict.
    """

    config: PredictConfig
    infos: tuple[ModelInfo, ...]
    cases: tuple[RawCase, ...]

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the label values, background first."""
        return self.infos[0].structures


@dataclass(frozen=True)
class PredictReport:
    """What became of every case.

    Attributes:
        output: the folder.
        models: as they were named.
        structures: names of the label values, background first.
        outcomes: by case, sorted.
        seconds: in all.
        peak_memory_gib: of this process; of Ray's workers it is not known.
    """

    output: str
    models: tuple[str, ...]
    structures: tuple[str, ...]
    outcomes: tuple[CaseOutcome, ...]
    seconds: float
    peak_memory_gib: float

    def of_status(self, status: str) -> list[CaseOutcome]:
        """The outcomes with a status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    def error(self) -> FedvoxError | None:
        """What the command has to end with, None for success."""
        failed, rejected = self.of_status("failed"), self.of_status("rejected")
        unfinished = [*failed, *rejected]
        if not unfinished:
            return None
        first = unfinished[0]
        more = f" (and {len(unfinished) - 1} more cases)" if len(unfinished) > 1 else ""
        if failed:
            return RunError(f"{first.message}{more}", first.remedy)
        return DataError(f"{first.message}{more}", first.remedy, code="rejected")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `schema` names the layout."""
        return {
            "schema": SCHEMA,
            "output": self.output,
            "models": list(self.models),
            "structures": list(self.structures),
            "seconds": round(self.seconds, 3),
            "peak_memory_gib": round(self.peak_memory_gib, 3),
            "cases": [outcome.to_dict() for outcome in self.outcomes],
        }


def plan_predict(config: PredictConfig) -> Job:
    """Finds models and cases; nothing is computed or written.

    Raises:
        ConfigError: images, output or models are not named, or do not fit together.
        CheckpointError: a model is missing or unreadable.
        DataError: there is nothing to predict, or cases lack channels.
        StorageError: a bucket is missing or forbidden.
    """
    for name, flag in (("images", "--input"), ("output", "--output")):
        if not getattr(config, name):
            raise ConfigError(f"`{name}` is empty", f"Give {flag}.")
    if locate(config.images).uri.rstrip("/") == locate(config.output).uri.rstrip("/"):
        raise ConfigError(
            f"`output` {config.output} is the folder of the images, which would be overwritten",
            "Name another folder.",
        )
    infos = read_infos(config.models)
    modality = config.modality or infos[0].modality or None
    return Job(config, infos, find_cases(config.images, infos[0].channel_names, modality=modality))


def predict_cases(
    job: Job, *, on_outcome: OnOutcome | None = None, on_windows: OnWindows | None = None
) -> PredictReport:
    """Predicts all cases; those that are done are passed over, and none stops the others.

    Args:
        job: what to do.
        on_outcome: told of each case.
        on_windows: told of the windows of the case in work; not over Ray.

    Raises:
        FedvoxError: a model cannot be loaded, or the device is not there.
        StorageError: the output cannot be written; what is done stays done.
    """
    begin = time.monotonic()
    output = locate(job.config.output)
    values = {name: index for index, name in enumerate(job.structures)}
    write_atomic(output.child("labels.json"), (json.dumps(values, indent=1) + "\n").encode())
    outcomes = []
    for outcome in _outcomes(job, on_windows):
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
        if outcome.status == "stopped":
            raise StorageError(outcome.message, outcome.remedy)
    report = PredictReport(
        output=output.uri,
        models=job.config.models,
        structures=job.structures,
        outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.case_id)),
        seconds=time.monotonic() - begin,
        peak_memory_gib=_peak_memory_gib(),
    )
    write_atomic(output.child("report.json"), (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    return report


def _outcomes(job: Job, on_windows: OnWindows | None) -> Iterator[CaseOutcome]:
    if job.config.workers != 0:
        from fedvox.inference.ray_shell import run_over_ray

        yield from run_over_ray(job.cases, job.config)
        return
    ensemble = load_ensemble(job.config.models, patch_size=job.config.patch_size)
    yield from run_in_process(Predictor(ensemble, job.config), job.cases, on_windows)


def run_in_process(
    predictor: Predictor, cases: Sequence[RawCase], on_windows: OnWindows | None = None
) -> Iterator[CaseOutcome]:
    """Predicts cases in this process; on a GPU the next one is read while it computes."""
    if predictor.device.type == "cpu":
        for case in cases:
            yield predictor(case, on_windows)
        return
    with ThreadPoolExecutor(_ON_GPU, thread_name_prefix="predict") as pool:
        for future in as_completed([pool.submit(predictor, case, on_windows) for case in cases]):
            yield future.result()


def _peak_memory_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def peak_gpu_memory_gib(device: torch.device) -> float:
    """Largest GPU memory that tensors have held in this process, 0 on CPUs."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
