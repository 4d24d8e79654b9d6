"""Training a diffusion prior: what is its own, for the loop and the Ray shell that all trainings share.

from fedvox.training.ray_shell import run
run(config, fedvox.restoration.training)      over Ray
train(config, World())                        in this process, without Ray
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
from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.restoration.prior import AveragedPrior, DiffusionPrior
from fedvox.restoration.release import PriorInfo, write_release
from fedvox.restoration.volumes import Patches, PatchSource, read_volumes
from fedvox.training.checkpoint import CheckpointStore, Snapshot, Writer, newest_meta
from fedvox.training.optimizer import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.run_directory import MetricsLog, RunDirectory
from fedvox.training.session import Progress, distributed, restore_newest
from fedvox.training.state import state_tensors
from fedvox.training.step import StepResult
from fedvox.training.training_loop import Report, TrainingLoop
from fedvox.training.world import World

log = logging.getLogger(__name__)


@dataclass
class PriorSession:
    """One worker's training. `network` holds the weights and their average; `model` is it, perhaps in DDP."""

    config: DiffusionPriorConfig
    world: World
    run: RunDirectory
    source: PatchSource
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    checkpoints: CheckpointStore
    progress: Progress
    attempt: int
    metrics: MetricsLog | None

    def begin_step(self) -> float:
        """Sets the learning rate of the current step, which is returned."""
        lr = learning_rate(self.config.optimizer, self.progress.step, self.config.steps)
        set_learning_rate(self.optimizer, lr)
        return lr

    def batches(self) -> PatchStream:
        """This worker's batches from the current step to the end of the run."""
        return PatchStream(self.source, self.config, self.world, self.progress.step)

    def snapshot(self) -> Snapshot:
        """The state to write into a checkpoint."""
        meta = {"progress": asdict(self.progress), **identity(self.config, self.source)}
        return Snapshot(self.progress.step, state_tensors(self.network, self.optimizer), meta)

    def close(self) -> None:
        """Ends background threads and stores what is still in memory."""
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()


class PatchStream:
    """Batches of one worker: rank r of w takes the patches r, r + w, … of each global batch."""

    def __init__(self, source: PatchSource, config: DiffusionPriorConfig, world: World, start: int) -> None:
        self.damaged: dict[str, str] = {}
        self._source, self._config, self._world, self._start = source, config, world, start

    def __iter__(self) -> Iterator[tuple[Patches, float]]:
        size, world = self._config.global_batch_size, self._world
        for step in range(self._start, self._config.steps):
            began = time.monotonic()
            drawn = self._source.patches(range(step * size + world.rank, (step + 1) * size, world.size))
            yield drawn.to(world.device), time.monotonic() - began

    def close(self) -> None:
        """Nothing runs in the background."""


@dataclass(frozen=True)
class PriorResult:
    """What a finished training tells.

    Attributes:
        step: optimiser steps done.
        psnr: of denoised held-out patches in dB, by noise level; beside that of the noisy ones.
    """

    step: int
    psnr: dict[str, float]

    def outcome(self) -> dict[str, Any]:
        """What `outcome.json` of the run directory holds."""
        return {"step": self.step, **self.psnr}


# ---- what the Ray shell asks for ----------------------------------------------------------------------------


def anchored(config: DiffusionPriorConfig, absolute: Callable[[str], str]) -> DiffusionPriorConfig:
    """See `fedvox.training.ray_shell.Task`."""
    if config.data.folder is None:
        return config
    data = config.data.model_copy(update={"folder": absolute(config.data.folder)})
    return config.model_copy(update={"data": data})


def check(config: DiffusionPriorConfig, directory: RunDirectory) -> None:
    """See `fedvox.training.ray_shell.Task`."""
    directory.check_resumable(config)
    source = PatchSource(read_volumes(config.data), config)
    divisor = new_prior(config, source).divisor
    size = config.data.patch_size
    if any(n % d for n, d in zip(size, divisor, strict=True)):
        fitting = [-(-n // d) * d for n, d in zip(size, divisor, strict=True)]
        raise ConfigError(
            f"data.patch_size {list(size)} is not divisible by {list(divisor)}, as the network needs",
            f"Nearest larger size: --set data.patch_size={fitting}",
        )
    meta = newest_meta(directory.checkpoints)
    if meta is not None:
        check_identity(config, source, meta, directory)


def train(
    config: DiffusionPriorConfig,
    world: World,
    *,
    report: Report | None = None,
    watch: PreemptionWatch | None = None,
) -> PriorResult:
    """Trains from the newest checkpoint (or from scratch) to `config.steps`; see `fedvox.training.loop.train`.

    Raises:
        FedvoxError: see there.
    """
    session = open_session(config, world)
    try:
        return _PriorTraining(session, report or (lambda _metrics: None), watch).run()
    finally:
        session.close()


# ---- opening ------------------------------------------------------------------------------------------------


def open_session(config: DiffusionPriorConfig, world: World) -> PriorSession:
    """Reads the images, builds or restores the network, and joins the workers.

    Raises:
        FedvoxError: the data, the configuration or a checkpoint cannot be used.
    """
    run = RunDirectory.of(config)
    source = PatchSource(read_volumes(config.data), config)
    network = AveragedPrior(new_prior(config, source)).to(world.device)
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
    return PriorSession(
        config, world, run, source, network, model, optimizer, checkpoints, progress or Progress(), attempt, metrics
    )  # fmt: skip


def new_prior(config: DiffusionPriorConfig, source: PatchSource) -> DiffusionPrior:
    """The untrained prior with the scale of the data."""
    torch.manual_seed(config.seed)
    prior = DiffusionPrior(config.network, config.noise, config.data.patch_size)
    prior.sigma_data.fill_(max(1e-3, source.sigma_data))
    return prior


def identity(config: DiffusionPriorConfig, source: PatchSource) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit."""
    plain = {
        "network": config.network.model_dump(mode="json"),
        "noise": config.noise.model_dump(mode="json"),
        "patch_size": list(config.data.patch_size),
    }
    return {"architecture": plain, "images": source.digest}


def check_identity(
    config: DiffusionPriorConfig, source: PatchSource, meta: dict[str, Any], run: RunDirectory
) -> None:
    """Compares a checkpoint's architecture and images with the configuration's.

    Raises:
        CheckpointError: they differ.
    """
    now = identity(config, source)
    different = [key for key, value in now.items() if meta.get(key) != value]
    if different:
        raise CheckpointError(
            f"the checkpoints in {run.checkpoints.uri} are of another {' and of other '.join(different)}",
            "Resume with the old settings and data, or give the run another name (--set name=…).",
        )


# ---- the loop -----------------------------------------------------------------------------------------------


class _PriorTraining(TrainingLoop[PriorSession, PriorResult]):
    """What is particular to diffusion priors."""

    psnr: dict[str, float] | None = None

    def update(self, batch: tuple[Patches, float]) -> tuple[StepResult, float]:
        patches, wait_s = batch
        session, config = self.session, self.session.config
        session.optimizer.zero_grad(set_to_none=True)
        precision, kind = config.compute.precision, session.world.device.type
        half = precision == "bf16" or (precision == "auto" and kind == "cuda")
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            losses = session.model(patches.clean, patches.noise, patches.sigma, patches.where)
        loss = losses.mean() * self.share(len(patches))
        loss.backward()
        norm = clip_gradients(session.model.parameters(), config.optimizer.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            session.optimizer.step()
            cast(AveragedPrior, session.network).follow(config.ema, session.progress.step)
        return StepResult(loss.detach(), norm.detach(), norm.new_tensor(float(not finite))), wait_s

    def validates_at_start(self) -> bool:
        return self.session.config.validation.at_start

    def validated_now(self) -> bool:
        return self.psnr is not None and self.session.progress.validated_at == self.session.progress.step

    def validation_due(self) -> bool:
        progress = self.session.progress
        due = progress.step % self.session.config.validation.every_steps == 0
        return due and progress.validated_at != progress.step

    def validate(self, *, counts: bool = True) -> None:  # noqa: ARG002 - there is no moving average of scores
        session = self.session
        self.status("validation")
        self.psnr = self._held_out_psnr()
        session.progress.validated_at = session.progress.step
        if session.metrics is not None:
            session.metrics.write("validation", session.progress.step, dict(self.psnr))
        self.report({"step": session.progress.step, **self.psnr})

    @torch.no_grad()
    def _held_out_psnr(self) -> dict[str, float]:
        session, found = self.session, {}
        prior = cast(AveragedPrior, session.network).average
        for level in session.config.validation.levels:
            patches = session.source.held_out(level).to(session.world.device)
            noisy = patches.clean + level * patches.noise
            denoised = prior(noisy, patches.sigma, patches.where)
            for name, image in (("psnr", denoised), ("psnr_noisy", noisy)):
                mse = (image - patches.clean).square().mean()
                found[f"{name}_{level:g}"] = float(-10 * torch.log10(mse.clamp_min(1e-12)))
        return found

    def release(self, folder: str) -> None:
        session, config = self.session, self.session.config
        if session.world.rank != 0:
            return
        info = PriorInfo(
            network=config.network.model_dump(mode="json"), noise=config.noise.model_dump(mode="json"),
            patch_size=config.data.patch_size,
            provenance={
                "run": config.name, "step": session.progress.step, "seed": config.seed,
                "held_out": [list(slab) for slab in config.data.held_out],
                "training": [v.name for v in session.source.training][:1000], **(self.psnr or {}),
            },
        )  # fmt: skip
        write_release(cast(AveragedPrior, session.network).average, info, session.run.child(folder))

    def draw(self) -> None:
        from fedvox.restoration.figures import training_curves  # matplotlib, worker 0 only
        from fedvox.training.figures import save_figure

        try:
            figure = training_curves(self.session.run.metrics(), self.session.config.name)
            save_figure(figure, self.session.run.child("figures", "curves.png"))
        except StorageError as error:
            log.warning("the curves were not drawn: %s", error)

    def last_report(self) -> dict[str, Any]:
        return {"step": self.session.progress.step, **(self.psnr or {})}

    def result(self) -> PriorResult:
        return PriorResult(self.session.progress.step, dict(self.psnr or {}))
