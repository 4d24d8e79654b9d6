"""The training loop: a plain function over one worker, with or without a process group, and without Ray.

    open session -> [ batch -> step -> log -> checkpoint? -> validate? ]* -> final checkpoint, release,
    figures

Sample i of step n is a pure function of the seed, so a resumed run sees what the uninterrupted one would
have seen.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedvox import storage
from fedvox.data.loader import Batch
from fedvox.errors import CheckpointNotWritten, FedvoxError, NonFiniteLoss, Preempted, StorageError
from fedvox.training.config import PretrainConfig
from fedvox.training.memory import explained_out_of_memory
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.release import write_release
from fedvox.training.run_directory import without_nan
from fedvox.training.session import Session, model_info, open_session
from fedvox.training.step import train_step
from fedvox.training.validation import ValidationResult, validate
from fedvox.training.world import World

log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any]], None]
"""Told metrics after every validation and at the end, at the same steps on all workers."""

STATUS_S = 2.0
_SEED_MASK = 2**64 - 1


@dataclass(frozen=True)
class TrainResult:
    """What a finished run tells.

    Attributes:
        step: optimiser steps done.
        dice: the last validation's result; None without validation cases.
        damaged: cases that were skipped because their file is damaged, with the reason.
    """

    step: int
    dice: ValidationResult | None
    damaged: dict[str, str]


def train(
    config: PretrainConfig,
    world: World,
    *,
    report: Report | None = None,
    watch: PreemptionWatch | None = None,
) -> TrainResult:
    """Trains from the newest checkpoint (or from scratch) to `config.steps`.

    Args:
        config: the run.
        world: this worker's place; with `size > 1` the process group must exist.
        report: see `Report`.
        watch: tells when to stop early; None never stops.

    Raises:
        Preempted: asked to stop; a checkpoint has been written.
        NonFiniteLoss: too many steps in a row had a non-finite gradient.
        FedvoxError: the data, a checkpoint or the storage cannot be used.
    """
    session = open_session(config, world)
    try:
        return _Loop(session, report or (lambda _metrics: None), watch).run()
    finally:
        session.close()


class _Loop:
    """The moving parts of `train`."""

    def __init__(self, session: Session, report: Report, watch: PreemptionWatch | None) -> None:
        self.session = session
        self.report = report
        self.watch = watch
        self.validated: ValidationResult | None = None
        self.started = time.monotonic()
        self.first_step = session.progress.step
        self.next_status = 0.0

    def run(self) -> TrainResult:
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

    def step(self, batch: Batch) -> None:
        session, config, progress = self.session, self.session.config, self.session.progress
        began = time.monotonic()
        lr = session.begin_step()
        # Dropout and drop path, too, must not depend on how often the run was interrupted.
        torch.manual_seed((config.seed * 1_000_003 + progress.step) * 4099 + session.world.rank & _SEED_MASK)
        weight = batch.image.shape[0] * session.world.size / config.global_batch_size
        every = config.checkpoint.every_steps
        further = progress.step // every > self.first_step // every
        with explained_out_of_memory(config, session.network, session.world, restart=further):
            result = train_step(
                session.model, batch, session.loss_fn, session.optimizer,
                grad_clip=config.optimizer.grad_clip, weight=weight, autocast=session.autocast,
            )  # fmt: skip
        stop = self.watch is not None and self.watch.should_stop(self._stop_requested)
        shared = session.world.sum(
            torch.stack([result.loss.double(), result.loss.new_tensor(float(stop)).double()])
        )
        progress.step += 1
        progress.trained_s += time.monotonic() - began
        self.check_finite(result.skipped, float(shared[0]))
        loss = float(shared[0]) / session.world.size
        self.log_step(loss, lr, float(result.grad_norm), batch.wait_s, time.monotonic() - began)
        if shared[1] > 0:
            self.stop()

    def _stop_requested(self) -> bool:
        if self.session.world.rank != 0:
            return False
        try:
            return self.session.run.stop_requested(retry=storage.RetryPolicy(deadline_s=0))
        except FedvoxError as error:  # a store out of reach has not asked anybody to stop
            log.debug("cannot look for a stop request: %s", error)
            return False

    def check_finite(self, skipped: Tensor, loss: float) -> None:
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

    # Checkpoints, validation, end

    def checkpoint(self, *, wait: bool = False) -> bool:
        if self.session.metrics is not None:
            self.session.metrics.flush()
        return self.session.checkpoints.save(self.session.snapshot(), wait=wait)

    def validation_due(self) -> bool:
        """Whether the current step is to be validated and has not been, by this attempt or by one before."""
        progress = self.session.progress
        due = progress.step % self.session.config.validation.every_steps == 0
        return due and progress.validated_at != progress.step

    def validate(self, *, counts: bool = True) -> None:
        """Validates; the untrained network (`counts=False`) enters neither the moving average nor `best`."""
        session, progress = self.session, self.session.progress
        if len(session.split.validation) == 0:
            return
        self.status("validation")
        result = validate(
            session.network, session.store, [int(row) for row in session.split.validation], session.window,
            session.world, autocast=session.autocast,
        )  # fmt: skip
        self.validated = result
        progress.damaged.update(result.damaged)
        progress.validated_at = progress.step
        dice = result.mean_foreground
        if counts and not math.isnan(dice):
            keep = session.config.validation.ema
            progress.ema_dice = (
                dice if progress.ema_dice is None else keep * progress.ema_dice + (1 - keep) * dice
            )
        if session.metrics is not None:
            structures = {f"dice/{name}": value for name, value in result.per_structure.items()}
            line = {"dice": dice, "ema_dice": progress.ema_dice, **structures}
            session.metrics.write(
                "validation", progress.step, {k: v for k, v in line.items() if v is not None}
            )
            self.tolerate(
                lambda: session.run.write_json(
                    result.to_json(), "validation", f"step-{progress.step:08d}.json"
                )
            )
        if progress.ema_dice is not None and progress.ema_dice > (progress.best_ema_dice or -1.0):
            progress.best_ema_dice = progress.ema_dice
            self.tolerate(lambda: self.release("best"))
        self.report({"step": progress.step, "dice": dice, "ema_dice": progress.ema_dice})

    def release(self, folder: str) -> None:
        session, progress = self.session, self.session.progress
        if session.world.rank != 0:
            return
        provenance = {
            "run": session.config.name, "step": progress.step, "seed": session.config.seed,
            "store": session.store.meta.name, "ema_dice": progress.ema_dice, "init_from": session.config.init_from,
            "dice": self.validated.per_structure if self.validated else None,
        }  # fmt: skip
        info = model_info(session.config, session.store, session.split, provenance)
        write_release(session.network, info, session.run.child(folder))

    def finish(self) -> TrainResult:
        session, progress = self.session, self.session.progress
        progress.damaged = session.world.merge(progress.damaged)
        counted = progress.validated_at == progress.step
        if self.validated is None or not counted:
            self.validate(counts=not counted)
        if not self.everywhere(self.checkpoint(wait=True)):
            raise CheckpointNotWritten(
                f"the last checkpoint (step {progress.step}) could not be written to {session.run.checkpoints.uri}",
                "Free space or restore access to the storage, then start the same run again: it resumes.",
            )
        self.release("final")
        if session.world.rank == 0:
            from fedvox.training.figures import draw_run  # matplotlib, worker 0 only

            if session.metrics is not None:
                session.metrics.flush()
            draw_run(session)
        self.status("finished")
        self.report({"step": progress.step, "dice": self.validated and self.validated.mean_foreground})
        return TrainResult(progress.step, self.validated, dict(progress.damaged))

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
