"""Cases over Ray: one task a case, a bounded number under way, and a worker's death costs that case alone."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from fedvox.data.ingest_case import CaseFunction, CaseOutcome, CasePlan
from fedvox.data.raw_dataset import RawCase
from fedvox.errors import ConfigError, DataError

_GIB = 1 << 30
_QUEUED_PER_CPU = 2  # one running, one whose arguments and worker are made ready meanwhile
_SOURCE_ROOTS = ("platform", "federation", "compliance")


@contextmanager
def connected(workers: int | Literal["auto"]) -> Iterator[None]:
    """Joins the cluster of `RAY_ADDRESS`, or starts a Ray of this process's own and ends it afterwards.

    Args:
        workers: CPUs of a Ray that is started here; `auto` for all.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"runtime_env": _runtime_env(), "logging_level": logging.WARNING}
    if "RAY_ADDRESS" not in os.environ:  # never join a cluster that merely happens to run on this host
        options |= {"address": "local", "include_dashboard": False, "log_to_driver": False}
        options |= {} if workers == "auto" else {"num_cpus": workers}
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def _runtime_env() -> dict[str, Any]:
    """Makes workers import the code that runs here, whatever version their image has installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "platform" / "fedvox").is_dir():  # an installed package: workers have it too
        return {}
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job or "RAY_ADDRESS" not in os.environ:
        # a job's working directory is unpacked on every node, and Ray changes to it: relative paths are right
        roots = [name if in_job else str(root / name) for name in _SOURCE_ROOTS]
        return {"env_vars": {"PYTHONPATH": ":".join(roots)}}
    return {"env_vars": {"PYTHONPATH": ":".join(_SOURCE_ROOTS)}, "working_dir": str(root)}


def run_over_ray(
    step: CaseFunction,
    cases: Sequence[RawCase],
    plan: CasePlan,
    *,
    workers: int | Literal["auto"],
    memory_gib: float,
    retries: int,
    on_outcome: Callable[[CaseOutcome], None],
) -> None:
    """Runs one step over all cases; outcomes arrive in any order.

    Args:
        step: `measure_case` or `write_case`.
        cases: which.
        plan: what they share; sent to each node once.
        workers: how many cases at a time; `auto` follows the cluster as it grows and shrinks.
        memory_gib: that Ray sets aside for a case.
        retries: after the death of a worker or its node.
        on_outcome: called in this process. What it raises cancels what is under way.

    Raises:
        ConfigError: no node has that much memory.
    """
    _check_memory(memory_gib)
    task = ray.remote(num_cpus=1, memory=int(memory_gib * _GIB), max_retries=retries)(step)
    shared = ray.put(plan)
    waiting = iter(cases)
    running: dict[Any, RawCase] = {}
    try:
        while True:
            for case in itertools.islice(waiting, max(0, _limit(workers) - len(running))):
                running[task.options(name=f"{step.__name__}:{case.case_id}").remote(case, shared)] = case
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=5.0)
            for reference in done:
                on_outcome(_outcome(reference, running.pop(reference)))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _limit(workers: int | Literal["auto"]) -> int:
    if workers != "auto":
        return workers
    return max(1, int(ray.cluster_resources().get("CPU", 1))) * _QUEUED_PER_CPU  # type: ignore[no-untyped-call]


def _outcome(reference: Any, case: RawCase) -> CaseOutcome:
    try:
        outcome: CaseOutcome = ray.get(reference)
    except RayError as error:  # the step itself never raises: its worker or node died, once too often
        died = DataError(
            f"case {case.case_id} ({case.images[0]}): its worker died: {str(error).strip().splitlines()[0]}",
            "If memory ran out, give a case more of it (memory_gib); then run the same command again.",
            code="worker_died",
            file=case.images[0],
        )
        return CaseOutcome(case.case_id, case.source, "failed", (died,))
    return outcome


def _check_memory(memory_gib: float) -> None:
    """A task that asks for more than any node has would wait for ever."""
    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)  # type: ignore[no-untyped-call]
    if memory_gib * _GIB > largest:
        raise ConfigError(
            f"memory_gib is {memory_gib:g}, and the largest node offers Ray {largest / _GIB:.1f} GiB",
            f"Set memory_gib to at most {max(largest / _GIB - 0.05, 0):.1f}, or workers to 0 to do without Ray.",
        )
