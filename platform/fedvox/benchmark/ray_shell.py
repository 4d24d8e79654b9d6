"""Cases over Ray: one task a case, a bounded number under way. The only module of the benchmark that knows Ray."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from fedvox.benchmark.cases import CaseOutcome, CaseTask, Rules, score_case
from fedvox.benchmark.runner import ShardResult, ShardTask, run_shard
from fedvox.data.ingest_ray import connected
from fedvox.errors import FedvoxError, RunError

Workers = int | Literal["auto"]

_GIB = 1 << 30
_QUEUED_PER_CPU = 2  # one running, one whose arguments and worker are made ready meanwhile


def score_over_ray(
    tasks: Sequence[CaseTask], rules: Rules, *, workers: Workers, memory_gib: float, retries: int = 2
) -> Iterator[CaseOutcome]:
    """Score cases on the cluster at hand, or on a Ray of this process's own; outcomes come in any order.

    Args:
        tasks: which cases; their files are readable from every node.
        rules: what they share; sent to each node once.
        workers: how many cases at a time; `auto` follows the cluster.
        memory_gib: that Ray sets aside for a case.
        retries: after the death of a worker or its node.

    Raises:
        DataError: a reference cannot be used.
        RunError: the worker of a case died once too often.
    """
    with connected(workers):
        score = ray.remote(num_cpus=1, memory=int(memory_gib * _GIB), max_retries=retries)(
            _expected(score_case)
        )
        shared = ray.put(rules)
        named = ((f"case {task.case}", (task, shared)) for task in tasks)
        yield from _run_all(score, named, workers)


def run_shards_over_ray(
    shards: Sequence[ShardTask], *, workers: Workers, gpus: float, retries: int = 1
) -> Iterator[ShardResult]:
    """Run a submitted command on many shards at a time, each in a sandbox of its own on some node.

    Raises:
        ConfigError: references lie where the command may read.
        RunError: a node cannot hide the references, or died once too often.
    """
    with connected(workers):
        run = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=retries)(_expected(run_shard))
        yield from _run_all(run, ((f"shard {s.number}", (s,)) for s in shards), workers)


def _expected(function: Callable[..., Any]) -> Callable[..., Any]:
    """Expected errors travel as values: Ray wraps what a task raises."""

    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except FedvoxError as error:
            return error

    return guarded


def _run_all(function: Any, tasks: Iterable[tuple[str, tuple[Any, ...]]], workers: Workers) -> Iterator[Any]:
    waiting, running = iter(tasks), dict[Any, str]()
    try:
        while True:
            for name, arguments in itertools.islice(waiting, max(0, _limit(workers) - len(running))):
                running[function.options(name=name).remote(*arguments)] = name
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=5.0)
            for reference in done:
                yield _result(reference, running.pop(reference))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _limit(workers: Workers) -> int:
    if workers != "auto":
        return workers
    return max(1, int(ray.cluster_resources().get("CPU", 1))) * _QUEUED_PER_CPU  # type: ignore[no-untyped-call]


def _result(reference: Any, name: str) -> Any:
    try:
        found = ray.get(reference)
    except RayTaskError:
        raise
    except RayError as error:
        raise RunError(
            f"{name}: its worker died: {(str(error).strip().splitlines() or [repr(error)])[0]}",
            "If memory ran out, give a case more of it (memory_gib). Run the same command again to go on.",
        ) from error
    if isinstance(found, FedvoxError):
        raise found
    return found
