"""Tasks over Ray Tune, a bounded number at a time: the only module of the comparison that knows Ray.

Tune places them, restarts those whose worker died, and shows them on Ray's dashboard. What is finished is not Tune's
to remember: each task leaves its result where the next driver looks for it, so that a killed driver, a lost cluster
and a plain rerun all go on alike.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune

from fedvox import errors
from fedvox.backbone_benchmark.config import Compute
from fedvox.backbone_benchmark.tasks import Task, Told
from fedvox.errors import FedvoxError, RunError
from fedvox.storage import Location

log = logging.getLogger(__name__)

_QUIET = {"RAY_AIR_NEW_OUTPUT": "0"}


def run_over_tune(
    tasks: Mapping[str, Task], compute: Compute, folder: Location, *, at_a_time: int, told: Told
) -> dict[str, FedvoxError]:
    """Runs tasks on the Ray that this process is connected to.

    Args:
        tasks: by name, at least one; each leaves its result behind by itself.
        compute: resources of a task, and how often it is started again.
        folder: for Tune's own files.
        at_a_time: bound on tasks that run together.
        told: see `Told`.

    Returns:
        Why tasks failed, by name; empty if none did.
    """
    resources = {"cpu": float(compute.cpus_per_trial), "gpu": float(compute.gpus_per_trial)}
    with _quiet():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_work, tasks=dict(tasks)), resources),
            param_space={"task": tune.grid_search(list(tasks))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_a_time,
                reuse_actors=True,  # importing torch takes seconds
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=folder.path,
                storage_filesystem=folder.filesystem,
                failure_config=tune.FailureConfig(max_failures=compute.retries),
                callbacks=[_Watch(told)],
                verbose=0,
            ),
        )
        grid = tuner.fit()
        return dict(_failures(list(tasks), grid))


def _work(config: dict[str, Any], tasks: Mapping[str, Task]) -> None:
    """One Tune trial. Expected errors travel as values: a restart would only repeat them."""
    try:
        tasks[config["task"]]()
    except FedvoxError as error:
        tune.report(
            {
                "task": config["task"],
                "failed": type(error).__name__,
                "message": error.message,
                "remedy": error.remedy,
            }
        )
        return
    tune.report({"task": config["task"], "failed": ""})


def _failures(names: Sequence[str], grid: Any) -> Iterator[tuple[str, FedvoxError]]:
    for found in grid:
        name = found.config["task"]
        if found.error is not None:
            last = (str(found.error).strip().splitlines() or [repr(found.error)])[-1]
            yield (
                name,
                RunError(
                    f"{name}: its worker failed, once too often: {last}",
                    "If memory ran out, lower recipe.global_batch_size or compute.concurrent; then run the same again.",
                ),
            )
        elif found.metrics.get("failed"):
            kind: type[FedvoxError] = getattr(errors, found.metrics["failed"])
            yield name, kind(f"{name}: {found.metrics['message']}", found.metrics["remedy"])
    missing = set(names) - {found.config["task"] for found in grid}
    for name in sorted(missing):
        yield name, RunError(f"{name}: was not run", "Run the same command again.")


def _name(trial: Any) -> str:
    return str(trial.config["task"])


class _Watch(tune.Callback):
    """Passes on what becomes of the trials."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial got its resources."""
        self._told(_name(trial), "started")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial ended by itself."""
        failed = (trial.last_result or {}).get("failed")
        self._told(_name(trial), "failed" if failed else "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial's worker died once too often."""
        self._told(_name(trial), "failed")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Tune's controller went round once."""
        self._told("", "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune without its own tables, while it runs."""
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
