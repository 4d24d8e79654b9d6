"""Cases over Ray: actors that keep their networks loaded, one case after the other, and a death costs that case alone.

The only module of inference that knows Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedvox.data.ingest_ray import connected
from fedvox.data.raw_dataset import RawCase
from fedvox.errors import ConfigError, FedvoxError, RunError
from fedvox.inference.config import PredictConfig
from fedvox.inference.ensemble import load_ensemble
from fedvox.inference.predictor import CaseOutcome, Predictor

_GIB = 1 << 30
_ON_GPU = 2  # cases at a time of one actor: one computes while the other is read or written


class _Worker:
    """Networks on one GPU, or on some CPUs."""

    def __init__(self, config: PredictConfig) -> None:
        self._predictor = Predictor(load_ensemble(config.models, patch_size=config.patch_size), config)

    def ready(self) -> bool:
        """Whether the networks are loaded."""
        return True

    def predict(self, case: RawCase) -> CaseOutcome:
        """Predicts one case."""
        return self._predictor(case)


def run_over_ray(cases: Sequence[RawCase], config: PredictConfig) -> Iterator[CaseOutcome]:
    """Predicts cases on the cluster at hand, or on a Ray of this process's own; outcomes come in any order.

    Raises:
        ConfigError: the cluster has no GPU where one was asked for, or no node has so many CPUs.
        FedvoxError: what a worker could not start for: a model that cannot be loaded.
    """
    with connected("auto"):
        pool = _Pool(config, len(cases))
        try:
            yield from pool.run(cases)
        finally:
            pool.close()


class _Pool:
    """As many actors as the cluster holds, replaced when they die."""

    def __init__(self, config: PredictConfig, num_cases: int) -> None:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cpus = int(resources.get("GPU", 0)), float(resources.get("CPU", 0))
        self._on_gpu = config.device.startswith("cuda") or (config.device == "auto" and gpus > 0)
        if self._on_gpu and not gpus:
            raise ConfigError(f"device {config.device}: the Ray cluster has no GPU", "Use --device cpu.")
        if config.cpus_per_worker > cpus:
            raise ConfigError(
                f"cpus_per_worker is {config.cpus_per_worker:g}, the cluster has {cpus:g} CPUs", "Lower it."
            )
        holds = gpus if self._on_gpu else int(cpus // config.cpus_per_worker)
        wanted = holds if config.workers == "auto" else config.workers
        self._size = max(1, min(wanted, holds, num_cases))
        self._retries = config.retries
        self._config = config.model_copy(update={"device": "cuda" if self._on_gpu else "cpu", "workers": 0})
        memory = {} if config.memory_gib is None else {"memory": int(config.memory_gib * _GIB)}
        self._kind = ray.remote(
            num_cpus=config.cpus_per_worker,
            num_gpus=1 if self._on_gpu else 0,
            max_concurrency=_ON_GPU if self._on_gpu else 1,
            **memory,
        )(_Worker)
        self._actors: list[Any] = []

    def run(self, cases: Sequence[RawCase]) -> Iterator[CaseOutcome]:
        """Outcomes as they come."""
        self._actors = [self._started() for _ in range(self._size)]
        waiting = deque((case, 0) for case in cases)
        free = [actor for actor in self._actors for _ in range(_ON_GPU if self._on_gpu else 1)]
        running: dict[Any, tuple[Any, RawCase, int]] = {}
        while waiting or running:
            while waiting and free:
                actor, (case, attempt) = free.pop(), waiting.popleft()
                running[actor.predict.remote(case)] = actor, case, attempt
            done, _ = ray.wait(list(running), num_returns=1)
            actor, case, attempt = running.pop(done[0])
            try:
                outcome: CaseOutcome = ray.get(done[0])
            except RayError as error:
                if isinstance(error, RayActorError) and actor in self._actors:  # its other case finds a new one too
                    self._actors.remove(actor)
                    self._actors.append(self._started())
                    free = [a for a in free if a is not actor] + [self._actors[-1]] * (2 if self._on_gpu else 1)
                elif not isinstance(error, RayActorError):
                    free.append(actor)
                if attempt < self._retries:
                    waiting.append((case, attempt + 1))
                else:
                    yield _died(case, error)
                continue
            free.append(actor)
            yield outcome

    def close(self) -> None:
        """Ends the actors, and what is still under way with them."""
        for actor in self._actors:
            ray.kill(actor)

    def _started(self) -> Any:
        actor = self._kind.remote(self._config)
        try:
            ray.get(actor.ready.remote())
        except RayError as error:
            raise _told(error) from error
        return actor


def _told(error: RayError) -> FedvoxError:
    """Why a worker could not start: our own error, if it was one."""
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(error, RayTaskError):
        cause = error.as_instanceof_cause()
    if isinstance(cause, FedvoxError):
        return cause
    text = str(error).strip().splitlines()
    return RunError(f"a worker could not start: {text[-1] if text else error!r}", "See its log: ray logs.")


def _died(case: RawCase, error: RayError) -> CaseOutcome:
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    return CaseOutcome(
        case.case_id,
        "failed",
        message=f"case {case.case_id} ({case.images[0]}): its worker died, once too often: {first}",
        remedy="If memory ran out, predict fewer cases at a time (--workers), halve the logits "
        "(--set logits=float16), or set memory aside (--set memory_gib=…); then run the same command again.",
    )
