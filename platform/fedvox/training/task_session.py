"""What the trainings of other tasks than segmentation share: the session, the stream of samples, the scored loop.

A task subclasses `TaskSession` (how samples are drawn, the learning rate, what a checkpoint must fit) and
`ScoredLoop` (how a batch is learnt from, how held-out samples are scored, what is released).
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from torch import nn
from torch.optim import Optimizer

from fedvox.errors import CheckpointError, StorageError
from fedvox.training.checkpoint import CheckpointStore, Snapshot, newest_meta
from fedvox.training.config import TrainingConfig
from fedvox.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from fedvox.training.run_directory import MetricsLog, RunDirectory
from fedvox.training.session import Progress, begin_attempt, distributed, restore_newest
from fedvox.training.state import state_tensors
from fedvox.training.training_loop import TrainingLoop
from fedvox.training.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

C = TypeVar("C", bound=TrainingConfig)
D = TypeVar("D")


@dataclass
class TaskSession(ABC, Generic[C, D]):
    """One worker's training: data, network, optimiser, files. `model` is `network`, perhaps wrapped in DDP."""

    config: C
    world: World
    run: RunDirectory
    source: D
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    checkpoints: CheckpointStore
    progress: Progress
    attempt: int
    metrics: MetricsLog | None

    @staticmethod
    @abstractmethod
    def identity(config: C, source: D) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit, each under a name for people."""

    @abstractmethod
    def draw(self, step: int, indices: range) -> Any:
        """The batch of the samples `indices` of a step, on this worker's device."""

    @classmethod
    def open(cls, config: C, world: World, source: D, network: nn.Module) -> Self:
        """Restores the newest checkpoint into a new network, and joins the workers.

        Raises:
            FedvoxError: a checkpoint cannot be used.
        """
        run = RunDirectory.of(config)
        network = network.to(world.device)
        optimizer = build_optimizer(config.optimizer, network)
        progress = restore_newest(
            run,
            network,
            optimizer,
            world,
            lambda meta: check_identity(cls.identity(config, source), meta, run),
        )
        attempt, checkpoints, metrics = begin_attempt(config, run, world)
        model = distributed(network, world)
        return cls(
            config, world, run, source, network, model, optimizer, checkpoints, progress or Progress(), attempt,
            metrics,
        )  # fmt: skip

    @classmethod
    def check_newest(cls, config: C, source: D, run: RunDirectory) -> None:
        """Compares the newest checkpoint, if there is one, with what the run is now.

        Raises:
            CheckpointError: they differ.
        """
        meta = newest_meta(run.checkpoints)
        if meta is not None:
            check_identity(cls.identity(config, source), meta, run)

    def learning_rate(self) -> float:
        """Of the current step."""
        return learning_rate(self.config.optimizer, self.progress.step, self.config.steps)

    def begin_step(self) -> float:
        """Sets the learning rate of the current step, which is returned."""
        lr = self.learning_rate()
        set_learning_rate(self.optimizer, lr)
        return lr

    def batches(self) -> SampleStream:
        """This worker's batches from the current step to the end of the run."""
        return SampleStream(self.draw, self.config, self.world, self.progress.step)

    def snapshot(self) -> Snapshot:
        """The state to write into a checkpoint."""
        meta = {"progress": asdict(self.progress), **self.identity(self.config, self.source)}
        return Snapshot(self.progress.step, state_tensors(self.network, self.optimizer), meta)

    def close(self) -> None:
        """Ends background threads and stores what is still in memory."""
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()


class SampleStream:
    """Batches of one worker, each with the seconds it took: rank r of w takes samples r, r + w, … of a global batch."""

    def __init__(
        self, draw: Callable[[int, range], Any], config: TrainingConfig, world: World, start: int
    ) -> None:
        self.damaged: dict[str, str] = {}
        self._draw, self._config, self._world, self._start = draw, config, world, start

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        size, world = self._config.global_batch_size, self._world
        for step in range(self._start, self._config.steps):
            began = time.monotonic()
            drawn = self._draw(step, range(step * size + world.rank, (step + 1) * size, world.size))
            yield drawn, time.monotonic() - began

    def close(self) -> None:
        """Nothing runs in the background."""


def check_identity(now: dict[str, Any], meta: dict[str, Any], run: RunDirectory) -> None:
    """Compares what a checkpoint notes with what the run is now.

    Raises:
        CheckpointError: they differ.
    """
    different = [key for key, value in now.items() if meta.get(key) != value]
    if different:
        raise CheckpointError(
            f"the checkpoints in {run.checkpoints.uri} are of another {' and '.join(different)}",
            "Resume with the old settings and data, or give the run another name (--set name=…).",
        )


@dataclass(frozen=True)
class ScoredResult:
    """What a finished training tells.

    Attributes:
        step: optimiser steps done.
        scores: on held-out samples, by name.
    """

    step: int
    scores: dict[str, float]

    def outcome(self) -> dict[str, Any]:
        """What `outcome.json` of the run directory holds."""
        return {"step": self.step, **self.scores}


S = TypeVar("S", bound=TaskSession[Any, Any])


class ScoredLoop(TrainingLoop[S, ScoredResult]):
    """A training whose network is judged by a few named numbers."""

    scores: dict[str, float] | None = None

    @abstractmethod
    def score(self) -> dict[str, float]:
        """Judges the network as it is on held-out samples."""

    @abstractmethod
    def curves(self) -> Figure:
        """The training's curves."""

    def scores_to_log(self, counts: bool) -> dict[str, Any]:  # noqa: ARG002 - for tasks with a moving average
        """The line of the log of a validation that has just been made; see `validate`."""
        return dict(self.scores or {})

    def validate(self, *, counts: bool = True) -> None:
        """Judges the network, notes the scores and reports them."""
        session, progress = self.session, self.session.progress
        self.status("validation")
        self.scores = self.score()
        self.mark_validated()
        line = self.scores_to_log(counts)
        if session.metrics is not None:
            session.metrics.write("validation", progress.step, line)
        self.report(self.last_report())

    def draw(self) -> None:
        """Draws the curves; a store that is out of reach goes without."""
        from fedvox.training.figures import save_figure  # matplotlib, worker 0 only

        try:
            save_figure(self.curves(), self.session.run.child("figures", "curves.png"))
        except StorageError as error:
            log.warning("the curves were not drawn: %s", error)

    def last_report(self) -> dict[str, Any]:
        """The newest scores, with the step."""
        return {"step": self.session.progress.step, **(self.scores or {})}

    def result(self) -> ScoredResult:
        """Where the run ended, with the newest scores."""
        return ScoredResult(self.session.progress.step, dict(self.scores or {}))
