"""Cases over Ray: actors that keep their networks loaded, one case after the other, and a death costs that case alone.

The only module of inference that knows Ray.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from fedvox.data.ingest_ray import connected
from fedvox.data.raw_dataset import RawCase
from fedvox.errors import ConfigError, FedvoxError, RunError
from fedvox.inference.config import PredictConfig
from fedvox.inference.ensemble import load_ensemble
from fedvox.inference.predictor import CaseOutcome, Predictor

log = logging.getLogger(__name__)

_GIB = 1 << 30
_ON_GPU = 2  # cases at a time of one actor: one computes while the other is read or written


class _Worker:
    """Networks on one GPU, or on some CPUs."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config
        self._predictor: Predictor | None = None

    def load(self) -> FedvoxError | None:
        """Loads the networks; returns why not, because Ray hides what a constructor raises."""
        try:
            ensemble = load_ensemble(self._config.models, patch_size=self._config.patch_size)
            self._predictor = Predictor(ensemble, self._config)
        except FedvoxError as error:
            return error
        return None

    def predict(self, case: RawCase) -> CaseOutcome:
        """Predicts one case."""
        assert self._predictor is not None  # `load` comes first
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
        on_gpu, holds = _capacity(config)
        wanted = holds if config.workers == "auto" else config.workers
        self._size = max(1, min(wanted, holds, num_cases))
        self._slots = _ON_GPU if on_gpu else 1
        self._retries = config.retries
        self._config = config.model_copy(update={"device": "cuda" if on_gpu else "cpu", "workers": 0})
        memory = None if config.memory_gib is None else int(config.memory_gib * _GIB)
        self._kind: Any = ray.remote(_Worker).options(
            num_cpus=config.cpus_per_worker, num_gpus=int(on_gpu), memory=memory, max_concurrency=self._slots
        )
        self._actors: list[Any] = []
        self._free: list[Any] = []

    def run(self, cases: Sequence[RawCase]) -> Iterator[CaseOutcome]:
        """Outcomes as they come."""
        self._start(self._size)
        waiting = deque((case, 0) for case in cases)
        running: dict[Any, tuple[Any, RawCase, int]] = {}
        while waiting or running:
            while waiting and self._free:
                actor, (case, attempt) = self._free.pop(), waiting.popleft()
                running[actor.predict.remote(case)] = actor, case, attempt
            done, _ = ray.wait(list(running), num_returns=1)
            actor, case, attempt = running.pop(done[0])
            try:
                outcome: CaseOutcome = ray.get(done[0])
            except RayActorError as error:
                self._replace(actor)
                if attempt >= self._retries:
                    yield _died(case, error)
                else:
                    log.warning("case %s: its worker died; trying again", case.case_id)
                    waiting.append((case, attempt + 1))
                continue
            self._free.append(actor)
            yield outcome

    def close(self) -> None:
        """Ends the actors, and what is still under way with them."""
        for actor in self._actors:
            ray.kill(actor)

    def _start(self, count: int) -> None:
        actors = [self._kind.remote(self._config) for _ in range(count)]
        self._actors += actors
        try:
            reasons = ray.get([actor.load.remote() for actor in actors])
        except RayError as error:
            first = (str(error).strip().splitlines() or [repr(error)])[0]
            remedy = "If memory ran out, give fewer --workers, or set memory aside (--set memory_gib=…)."
            raise RunError(f"a worker died while it loaded the models: {first}", remedy) from error
        for reason in reasons:
            if reason is not None:
                raise reason
        self._free += [actor for actor in actors for _ in range(self._slots)]

    def _replace(self, dead: Any) -> None:
        """Starts another actor, once for each that died, whichever of its cases tells of it first."""
        if dead in self._actors:
            self._actors.remove(dead)
            self._free = [actor for actor in self._free if actor is not dead]
            self._start(1)


def _capacity(config: PredictConfig) -> tuple[bool, int]:
    """Whether workers have GPUs, and how many of them the cluster holds.

    Raises:
        ConfigError: none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and gpus > 0)
    if on_gpu and not gpus:
        raise ConfigError(
            f"device is {config.device}, and no node of the Ray cluster has a GPU", "Use --device cpu."
        )
    needs = {"CPU": config.cpus_per_worker, "GPU": float(on_gpu), "memory": (config.memory_gib or 0) * _GIB}
    holds = sum(min(int(node.get(name, 0) // need) for name, need in needs.items() if need) for node in nodes)
    if not holds:
        largest = {name: max(node.get(name, 0) for node in nodes) for name in needs}
        raise ConfigError(
            f"no node holds a worker of {config.cpus_per_worker:g} CPUs and {config.memory_gib or 0:g} GiB; the "
            f"largest have {largest['CPU']:g} CPUs and {largest['memory'] / _GIB:.1f} GiB",
            "Lower cpus_per_worker or memory_gib.",
        )
    return on_gpu, holds


def _died(case: RawCase, error: RayError) -> CaseOutcome:
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    return CaseOutcome(
        case.case_id,
        "failed",
        message=f"case {case.case_id} ({case.images[0]}): its worker died, once too often: {first}",
        remedy="If memory ran out, predict fewer cases at a time (--workers), halve the logits "
        "(--set logits=float16), or set memory aside (--set memory_gib=…); then run the same command again.",
    )
