"""The moving parts of every training: steps, log, checkpoints, being stopped.

    [ batch -> step -> log -> checkpoint? -> validate? ]* -> final checkpoint, release, figures

What is trained fills in how a batch is learnt from, how the network is judged and what is released:
`fedvox.training.loop` for segmentation. Sample i of step n is a pure function of the seed, so a resumed run sees what
the uninterrupted one would have seen. No Ray here.
"""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fedvox import storage
from fedvox.errors import CheckpointNotWritten, FedvoxError, NonFiniteLoss, Preempted, StorageError
from fedvox.training.checkpoint import CheckpointStore, Snapshot
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.run_directory import MetricsLog, RunDirectory, without_nan
from fedvox.training.session import Progress
from fedvox.training.step import StepResult
from fedvox.training.world import World

log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any]], None]
"""Told metrics after every validation and at the end, at the same steps on all workers."""

STATUS_S = 2.0
_SEED_MASK = 2**64 - 1


class LoopSession(Protocol):
    """What the loop needs of one worker's training, whatever is trained."""

    config: Any
    """A `TrainingConfig`; the protocol leaves open of which kind."""
    world: World
    run: RunDirectory
    network: nn.Module
    checkpoints: CheckpointStore
    progress: Progress
    attempt: int
    metrics: MetricsLog | None

    def begin_step(self) -> float:
        """Sets the learning rate of the current step, which is returned."""

    def batches(self) -> Any:
        """An iterator of batches up to the end of the run, with `damaged` and `close()`."""

    def snapshot(self) -> Snapshot:
        """The state to write into a checkpoint."""


S = TypeVar("S", bound=LoopSession)
R = TypeVar("R")


class TrainingLoop(ABC, Generic[S, R]):
    """Steps, log, checkpoints, stop: the moving parts of every training.

    What is trained says in subclasses how a batch is learnt from, how the network is validated, and what is released.

    Args:
        session: opened, at its newest checkpoint.
        report: see `Report`.
        watch: tells when to stop early; None never stops.
    """

    def __init__(self, session: S, report: Report, watch: PreemptionWatch | None) -> None:
        self.session = session
        self.report = report
        self.watch = watch
        self.started = time.monotonic()
        self.first_step = session.progress.step
        self.next_status = 0.0
        self.has_validated = False

    # What is trained

    @abstractmethod
    def update(self, batch: Any) -> tuple[StepResult, float]:
        """One optimisation step; with the seconds that its batch was waited for."""

    @abstractmethod
    def validate(self, *, counts: bool = True) -> None:
        """Validates, and marks it; the untrained network (`counts=False`) enters no moving average."""

    @abstractmethod
    def release(self, folder: str) -> None:
        """Writes the weights for use, on worker 0."""

    @abstractmethod
    def draw(self) -> None:
        """Draws the run's figures, on worker 0."""

    @abstractmethod
    def result(self) -> R:
        """What the finished run tells."""

    @abstractmethod
    def last_report(self) -> dict[str, Any]:
        """The metrics of the finished run."""

    # When to validate

    def validation_due(self) -> bool:
        """Whether the current step is to be validated and has not been, by this attempt or by one before."""
        progress = self.session.progress
        due = progress.step % self.session.config.validation.every_steps == 0
        return bool(due and progress.validated_at != progress.step)

    def validated_now(self) -> bool:
        """Whether this attempt has validated the network as it is."""
        return self.has_validated and self.session.progress.validated_at == self.session.progress.step

    def mark_validated(self) -> None:
        """Notes that the network as it is has been validated."""
        self.has_validated = True
        self.session.progress.validated_at = self.session.progress.step

    def run(self) -> R:
        """Trains to the end.

        Raises:
            Preempted: asked to stop; a checkpoint has been written.
            NonFiniteLoss: too many steps in a row had a non-finite gradient.
        """
        session, config = self.session, self.session.config
        progress = session.progress
        if progress.step:
            log.info("resumed at step %d of %d (attempt %d)", progress.step, config.steps, session.attempt)
            if self.validation_due():  # the attempt before ended between this step and its validation
                self.validate()
        elif config.validation.at_start:
            self.validate(counts=False)
        stream = session.batches()
        try:
            for batch in stream:
                self.step(batch)
                session.progress.damaged.update(stream.damaged)
                if progress.step % config.checkpoint.every_steps == 0 and progress.step < config.steps:
                    self.checkpoint()
                if self.validation_due():
                    self.validate()
        finally:
            stream.close()
        return self.finish()

    # One step

    def step(self, batch: Any) -> None:
        """Learns from a batch, logs, and stops the run if it was asked to stop."""
        session, progress = self.session, self.session.progress
        began = time.monotonic()
        lr = session.begin_step()
        # Dropout and drop path, too, must not depend on how often the run was interrupted.
        torch.manual_seed(self.step_seed() + session.world.rank & _SEED_MASK)
        result, wait_s = self.update(batch)
        stop = self.watch is not None and self.watch.should_stop(self._stop_requested)
        shared = session.world.sum(
            torch.stack([result.loss.double(), result.loss.new_tensor(float(stop)).double()])
        )
        progress.step += 1
        progress.trained_s += time.monotonic() - began
        self.check_finite(result.skipped, float(shared[0]))
        loss = float(shared[0]) / session.world.size
        self.log_step(loss, lr, float(result.grad_norm), wait_s, time.monotonic() - began)
        if shared[1] > 0:
            self.stop()

    def step_seed(self) -> int:
        """Of the current step, the same on all workers; unbounded, to be cut to the bits that a generator takes."""
        return int((self.session.config.seed * 1_000_003 + self.session.progress.step) * 4099)

    def share(self, samples: int) -> float:
        """Weight of this worker's loss, such that the mean over workers is that over the global batch."""
        return samples * self.session.world.size / float(self.session.config.global_batch_size)

    def further_than_checkpoint(self) -> bool:
        """Whether this attempt has come past the checkpoint after its start."""
        every = self.session.config.checkpoint.every_steps
        return bool(self.session.progress.step // every > self.first_step // every)

    def _stop_requested(self) -> bool:
        if self.session.world.rank != 0:
            return False
        try:
            return self.session.run.stop_requested(retry=storage.RetryPolicy(deadline_s=0))
        except FedvoxError as error:  # a store out of reach has not asked anybody to stop
            log.debug("cannot look for a stop request: %s", error)
            return False

    def check_finite(self, skipped: Tensor, loss: float) -> None:
        """Counts skipped steps.

        Raises:
            NonFiniteLoss: too many in a row.
        """
        progress, limit = self.session.progress, self.session.config.max_nonfinite_steps
        progress.nonfinite_in_a_row = progress.nonfinite_in_a_row + 1 if bool(skipped) else 0
        if progress.nonfinite_in_a_row:
            log.warning("step %d skipped: loss %s, gradient not finite", progress.step, loss)
        if progress.nonfinite_in_a_row >= limit:
            raise NonFiniteLoss(
                f"{limit} steps in a row had a non-finite gradient, the last at step {progress.step}",
                "Lower optimizer.lr or lengthen optimizer.warmup_steps; the newest checkpoint is from before.",
            )

    def stop(self) -> None:
        """Writes a checkpoint while there is still time, then leaves."""
        written = self.everywhere(self.checkpoint(wait=True))
        self.status("stopped")
        raise Preempted(
            f"stopped on request after step {self.session.progress.step}; "
            + (
                "a checkpoint was written"
                if written
                else "its checkpoint was NOT written: see the warning above"
            ),
            "Start the same run again to go on from there.",
        )

    # Checkpoints, end

    def checkpoint(self, *, wait: bool = False) -> bool:
        """Writes the state of the run; see `CheckpointStore.save`."""
        if self.session.metrics is not None:
            self.session.metrics.flush()
        return self.session.checkpoints.save(self.session.snapshot(), wait=wait)

    def finish(self) -> R:
        """Validates, writes the last checkpoint, releases the weights and draws the figures.

        Raises:
            CheckpointNotWritten: there was no room for the last checkpoint.
        """
        session, progress = self.session, self.session.progress
        progress.damaged = session.world.merge(progress.damaged)
        if not self.validated_now():
            self.validate(counts=progress.validated_at != progress.step)
        if not self.everywhere(self.checkpoint(wait=True)):
            raise CheckpointNotWritten(
                f"the last checkpoint (step {progress.step}) could not be written to {session.run.checkpoints.uri}",
                "Free space or restore access to the storage, then start the same run again: it resumes.",
            )
        self.release("final")
        if session.world.rank == 0:
            if session.metrics is not None:
                session.metrics.flush()
            self.draw()
        self.status("finished")
        self.report(self.last_report())
        return self.result()

    def everywhere(self, ok: bool) -> bool:
        """Whether all workers say yes, so that they go on, or give up, together."""
        return float(self.session.world.sum(torch.tensor([float(ok)]))[0]) == self.session.world.size

    def tolerate(self, action: Callable[[], None]) -> None:
        """Runs what training can do without, should the storage be full or out of reach."""
        try:
            action()
        except (StorageError, OSError) as error:
            log.warning("not written, training goes on: %s", error)

    # Telling

    def log_step(self, loss: float, lr: float, grad_norm: float, wait_s: float, step_s: float) -> None:
        """Adds a line to the metrics every `log_every` steps, and refreshes the status."""
        session, progress = self.session, self.session.progress
        if session.metrics is None:
            return
        last = progress.step == session.config.steps
        if progress.step % session.config.log_every == 0 or last:
            session.metrics.write("train", progress.step, {
                "loss": loss, "lr": lr, "grad_norm": grad_norm, "data_wait_s": round(wait_s, 4),
                "step_s": round(step_s, 4), "attempt": session.attempt, "workers": session.world.size,
                "damaged_cases": len(progress.damaged),
            })  # fmt: skip
        if time.monotonic() >= self.next_status or last:
            self.status("training", loss=loss, lr=lr)

    def status(self, phase: str, **values: float) -> None:
        """Rewrites `status.json`, on worker 0."""
        session, progress = self.session, self.session.progress
        if session.metrics is None:
            return
        self.next_status = time.monotonic() + STATUS_S
        done = progress.step - self.first_step
        pace = (time.monotonic() - self.started) / done if done else None
        status = {
            "phase": phase, "step": progress.step, "steps": session.config.steps, "attempt": session.attempt,
            "seconds_per_step": pace, "seconds_left": pace and pace * (session.config.steps - progress.step),
            "ema_dice": progress.ema_dice, "damaged_cases": len(progress.damaged), "updated": time.time(), **values,
        }  # fmt: skip
        self.tolerate(
            lambda: storage.write_atomic(
                session.run.child("status.json"),
                json.dumps(without_nan(status)).encode(),
                retry=storage.RetryPolicy(deadline_s=0),
            )
        )
