"""The training loop: a plain function over one worker, with or without a process group, and without Ray.

    open session -> [ batch -> step -> log -> checkpoint? -> validate? ]* -> final checkpoint, release,
    figures

Sample i of step n is a pure function of the seed, so a resumed run sees what the uninterrupted one would
have seen.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from fedvox.data.loader import Batch
from fedvox.training.config import PretrainConfig
from fedvox.training.memory import explained_out_of_memory
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.release import write_release
from fedvox.training.session import Session, model_info, open_session
from fedvox.training.step import StepResult, train_step
from fedvox.training.training_loop import Report, TrainingLoop
from fedvox.training.validation import ValidationResult, validate
from fedvox.training.world import World

log = logging.getLogger(__name__)


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

    def outcome(self) -> dict[str, Any]:
        """What `outcome.json` of the run directory holds."""
        dice = self.dice
        return {
            "step": self.step,
            "mean_foreground_dice": dice and dice.mean_foreground,
            "dice": dice and dice.per_structure,
            "damaged_cases": self.damaged,
        }


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
        return _Segmentation(session, report or (lambda _metrics: None), watch).run()
    finally:
        session.close()


class _Segmentation(TrainingLoop[Session, TrainResult]):
    """What is particular to segmentation: Dice, partial labels, released backbones."""

    validated: ValidationResult | None = None

    def update(self, batch: Batch) -> tuple[StepResult, float]:
        session, config = self.session, self.session.config
        further = self.further_than_checkpoint()
        with explained_out_of_memory(config, session.network, session.world, restart=further):
            result = train_step(
                session.model, batch, session.loss_fn, session.optimizer, grad_clip=config.optimizer.grad_clip,
                weight=self.share(batch.image.shape[0]), autocast=session.autocast,
            )  # fmt: skip
        return result, batch.wait_s

    def validate(self, *, counts: bool = True) -> None:
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
        self.mark_validated()
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

    def draw(self) -> None:
        from fedvox.training.figures import draw_run  # matplotlib, worker 0 only

        draw_run(self.session)

    def last_report(self) -> dict[str, Any]:
        return {
            "step": self.session.progress.step,
            "dice": self.validated and self.validated.mean_foreground,
        }

    def result(self) -> TrainResult:
        progress = self.session.progress
        return TrainResult(progress.step, self.validated, dict(progress.damaged))
