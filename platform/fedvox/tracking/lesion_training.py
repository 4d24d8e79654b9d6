"""Training a promptable network: what is its own, for the loop and the Ray shell that all trainings share.

from fedvox.training.ray_shell import run
run(config, fedvox.tracking.lesion_training)      over Ray
train(config, World())                            in this process, without Ray
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from fedvox.errors import CheckpointError, ConfigError, StorageError
from fedvox.models.backbone import Backbone
from fedvox.tracking.config import LesionConfig
from fedvox.tracking.examples import ExampleSource
from fedvox.tracking.held_out import held_out_dice
from fedvox.tracking.network import (
    STRUCTURES,
    NetworkSegmenter,
    load_image_weights,
    promptable,
    write_segmenter,
)
from fedvox.tracking.patches import PatchPlan
from fedvox.tracking.pool import open_pool
from fedvox.tracking.prompts import PromptEncoding
from fedvox.tracking.training import (
    FollowUpSample,
    Sample,
    corrected_samples,
    draw_follow_up,
    draw_sample,
    follow_up_loss,
    prompt_loss,
    stream,
)
from fedvox.training.checkpoint import CheckpointStore, Snapshot, Writer, newest_meta
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.optimizer import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.pretrained import read_pretrained
from fedvox.training.run_directory import MetricsLog, RunDirectory
from fedvox.training.session import Progress, distributed, restore_newest
from fedvox.training.state import state_tensors
from fedvox.training.step import StepResult
from fedvox.training.training_loop import Report, TrainingLoop
from fedvox.training.world import World

log = logging.getLogger(__name__)

_FOLLOW_UP, _CORRECTED, _CLICKS = 2, 3, 4  # purposes of a step's random numbers


@dataclass
class LesionSession:
    """One worker's training: lesions, network, optimiser, files. `model` is `network`, perhaps wrapped in DDP."""

    config: LesionConfig
    world: World
    run: RunDirectory
    source: ExampleSource
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    checkpoints: CheckpointStore
    progress: Progress
    attempt: int
    metrics: MetricsLog | None

    @property
    def plan(self) -> PatchPlan:
        """Of patches."""
        return plan_of(self.config)

    def begin_step(self) -> float:
        """Sets the learning rate of the current step, which is returned."""
        lr = learning_rate(self.config.optimizer, self.progress.step, self.config.steps)
        set_learning_rate(self.optimizer, lr)
        return lr

    def batches(self) -> LesionStream:
        """This worker's samples from the current step to the end of the run."""
        return LesionStream(self.source, self.config, self.world, self.progress.step)

    def snapshot(self) -> Snapshot:
        """The state to write into a checkpoint."""
        meta = {"progress": asdict(self.progress), **identity(self.config, self.source)}
        return Snapshot(self.progress.step, state_tensors(self.network, self.optimizer), meta)

    def close(self) -> None:
        """Ends background threads and stores what is still in memory."""
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()


Samples = list[Sample] | list[FollowUpSample]


class LesionStream:
    """Samples of one worker: rank r of w takes r, r + w, … of each global batch.

    In one step, all workers learn from one scan a lesion, or all from two.
    """

    def __init__(self, source: ExampleSource, config: LesionConfig, world: World, start: int) -> None:
        self.damaged: dict[str, str] = {}
        self._source, self._config, self._world, self._start = source, config, world, start

    def __iter__(self) -> Iterator[tuple[Samples, float]]:
        size, world = self._config.global_batch_size, self._world
        for step in range(self._start, self._config.steps):
            began = time.monotonic()
            found = self._draw(step, range(step * size + world.rank, (step + 1) * size, world.size))
            yield found, time.monotonic() - began

    def _draw(self, step: int, indices: range) -> Samples:
        config, plan = self._config, plan_of(self._config)
        given = (self._source, config.prompts, plan, config.seed)
        if config.data.follow_ups:
            coin = stream(config.seed, step, _FOLLOW_UP).random()
            if coin < config.prompts.follow_up_share:
                pairs = [draw_follow_up(*given, index) for index in indices]
                known = [pair for pair in pairs if pair is not None]
                if len(known) == len(pairs):
                    return known
        return [draw_sample(*given, index) for index in indices]

    def close(self) -> None:
        """Nothing runs in the background."""


@dataclass(frozen=True)
class LesionResult:
    """What a finished training tells.

    Attributes:
        step: optimiser steps done.
        scores: Dice on held-out lesions, a prompt kind each, and together (`dice`).
    """

    step: int
    scores: dict[str, float]

    def outcome(self) -> dict[str, Any]:
        """What `outcome.json` of the run directory holds."""
        return {"step": self.step, **self.scores}


# ---- what the Ray shell asks for ----------------------------------------------------------------------------


def anchored(config: LesionConfig, absolute: Callable[[str], str]) -> LesionConfig:
    """See `fedvox.training.ray_shell.Task`."""
    stores = tuple(s.model_copy(update={"uri": absolute(s.uri)}) for s in config.data.stores)
    start = None if config.init_from is None else absolute(config.init_from)
    data = config.data.model_copy(update={"stores": stores})
    return config.model_copy(update={"data": data, "init_from": start})


def check(config: LesionConfig, directory: RunDirectory) -> None:
    """See `fedvox.training.ray_shell.Task`."""
    directory.check_resumable(config)
    source = open_pool(config)
    new_network(config)
    source.held_out(0)
    meta = newest_meta(directory.checkpoints)
    if meta is not None:
        check_identity(config, source, meta, directory)


def train(
    config: LesionConfig,
    world: World,
    *,
    report: Report | None = None,
    watch: PreemptionWatch | None = None,
    source: ExampleSource | None = None,
) -> LesionResult:
    """Trains from the newest checkpoint (or from scratch) to `config.steps`; see `fedvox.training.loop.train`.

    Args:
        config: of the run.
        world: this worker's place.
        report: told metrics.
        watch: tells when to stop early.
        source: of lesions, instead of those that the configuration names (such as
            `fedvox.tracking.examples.ArraySource`, of scans in memory).

    Raises:
        FedvoxError: see there.
    """
    session = open_session(config, world, source)
    try:
        return _LesionLoop(session, report or (lambda _metrics: None), watch).run()
    finally:
        session.close()


# ---- opening ------------------------------------------------------------------------------------------------


def plan_of(config: LesionConfig) -> PatchPlan:
    """How patches of a run are made."""
    prompts = config.prompts
    encoding = PromptEncoding(radius_mm=prompts.radius_mm, dense=prompts.dense, prior=prompts.prior)
    return PatchPlan(config.patch_size, config.spacing_mm, encoding)


def open_session(config: LesionConfig, world: World, source: ExampleSource | None = None) -> LesionSession:
    """Opens the data, builds or restores the network, and joins the workers.

    Raises:
        FedvoxError: the data, the configuration or a checkpoint cannot be used.
    """
    run = RunDirectory.of(config)
    source = source or open_pool(config)
    torch.manual_seed(config.seed)
    network = new_network(config).to(world.device)
    optimizer = build_optimizer(config.optimizer, network)
    progress = restore_newest(
        run, network, optimizer, world, lambda meta: check_identity(config, source, meta, run)
    )
    attempt = world.from_first(run.next_attempt() if world.rank == 0 else 0)
    checkpoints = CheckpointStore(
        run.checkpoints, Writer(world.rank, world.size, attempt), keep=config.checkpoint.keep,
        commit_timeout_s=config.checkpoint.commit_timeout_s,
    )  # fmt: skip
    metrics = MetricsLog(run, attempt) if world.rank == 0 else None
    model = distributed(network, world)
    return LesionSession(
        config, world, run, source, network, model, optimizer, checkpoints, progress or Progress(), attempt,
        metrics,
    )  # fmt: skip


def new_network(config: LesionConfig) -> Backbone:
    """The network, with pretrained weights if wanted.

    Raises:
        CheckpointError: the weights cannot be read, or do not fit.
        ConfigError: there is no such backbone, or the patch does not fit its strides.
    """
    model = config.model
    network = promptable(model.name, deep_supervision=model.deep_supervision, **model.options)
    if any(n % d for n, d in zip(config.patch_size, network.divisor, strict=True)):
        fitting = [-(-n // d) * d for n, d in zip(config.patch_size, network.divisor, strict=True)]
        raise ConfigError(
            f"patch_size {config.patch_size} is not divisible by {network.divisor}, as {model.name} needs",
            f"Nearest larger size: --set patch_size={fitting}",
        )
    if config.init_from is not None:
        log.info("%s", load_image_weights(network, read_pretrained(config.init_from)))
    return network


def identity(config: LesionConfig, source: ExampleSource) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit."""
    return {"architecture": config.model.model_dump(mode="json"), "cases": source.digest}


def check_identity(
    config: LesionConfig, source: ExampleSource, meta: dict[str, Any], run: RunDirectory
) -> None:
    """Compares a checkpoint's architecture and data with the configuration's.

    Raises:
        CheckpointError: they differ.
    """
    different = [key for key, value in identity(config, source).items() if meta.get(key) != value]
    if different:
        raise CheckpointError(
            f"the checkpoints in {run.checkpoints.uri} are of another {' and '.join(different)}",
            "Resume with the old settings and data, or give the run another name (--set name=…).",
        )


# ---- the loop -----------------------------------------------------------------------------------------------


class _LesionLoop(TrainingLoop[LesionSession, LesionResult]):
    """What is particular to lesions."""

    scores: dict[str, float] | None = None

    def update(self, batch: tuple[Samples, float]) -> tuple[StepResult, float]:
        samples, wait_s = batch
        session, config = self.session, self.session.config
        loss_fn = DeepSupervision(DiceCrossEntropy())
        session.optimizer.zero_grad(set_to_none=True)
        if isinstance(samples[0], FollowUpSample):
            pairs = [s for s in samples if isinstance(s, FollowUpSample)]
            loss = follow_up_loss(session.model, pairs, loss_fn)
        else:
            single = [s for s in samples if isinstance(s, Sample)]
            loss = prompt_loss(session.model, self._corrected(single), loss_fn)
        loss = loss * self.share(len(samples))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(session.model.parameters(), config.optimizer.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            session.optimizer.step()
        return StepResult(loss.detach(), norm.detach(), norm.new_tensor(float(not finite))), wait_s

    def _corrected(self, samples: list[Sample]) -> list[Sample]:
        """In part of the steps, with clicks of a reader who sees what the network says."""
        prompts, seed = self.session.config.prompts, self.session.config.seed
        step, rank = self.session.progress.step, self.session.world.rank
        if prompts.target == "all" or not prompts.dense:
            return samples
        if stream(seed, step, _CORRECTED).random() >= prompts.corrected_share:
            return samples
        rng = stream(seed, step * self.session.world.size + rank, _CLICKS)
        return corrected_samples(self.session.network, samples, prompts.corrections, rng)

    def validates_at_start(self) -> bool:
        return self.session.config.validation.at_start

    def validated_now(self) -> bool:
        return self.scores is not None and self.session.progress.validated_at == self.session.progress.step

    def validation_due(self) -> bool:
        progress = self.session.progress
        due = progress.step % self.session.config.validation.every_steps == 0
        return due and progress.validated_at != progress.step

    def validate(self, *, counts: bool = True) -> None:
        session, progress = self.session, self.session.progress
        self.status("validation")
        self.scores = self._held_out_dice()
        progress.validated_at = progress.step
        if counts:
            share, dice = session.config.validation.ema, self.scores["dice"]
            before = dice if progress.ema_dice is None else progress.ema_dice
            progress.ema_dice = share * before + (1 - share) * dice
        if session.metrics is not None:
            session.metrics.write("validation", progress.step, {**self.scores, "ema_dice": progress.ema_dice})
        self.report({"step": progress.step, **self.scores})

    def _held_out_dice(self) -> dict[str, float]:
        session, config = self.session, self.session.config
        segment = NetworkSegmenter(session.network, session.plan, session.world.device, mirror=False)
        session.network.eval()
        found = held_out_dice(segment, session.source, config.prompts, config.validation.lesions)
        session.network.train()
        return found

    def release(self, folder: str) -> None:
        session, config = self.session, self.session.config
        if session.world.rank != 0:
            return
        write_segmenter(
            cast(Backbone, session.network), session.plan, session.run.child(folder).uri, model=config.model.name,
            options=config.model.options, run=config.name, step=session.progress.step, seed=config.seed,
            target=config.prompts.target, scores=self.scores or {}, dice={STRUCTURES[1]: (self.scores or {})["dice"]},
        )  # fmt: skip

    def draw(self) -> None:
        from fedvox.training.figures import curves, save_figure  # matplotlib, worker 0 only

        try:
            figure = curves(self.session.run.metrics(), self.session.config.name)
            save_figure(figure, self.session.run.child("figures", "curves.png"))
        except StorageError as error:
            log.warning("the curves were not drawn: %s", error)

    def last_report(self) -> dict[str, Any]:
        return {"step": self.session.progress.step, **(self.scores or {})}

    def result(self) -> LesionResult:
        return LesionResult(self.session.progress.step, self.scores or {})
