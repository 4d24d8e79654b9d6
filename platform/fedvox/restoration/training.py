"""Training a diffusion prior: what is its own, for the loop and the Ray shell that all trainings share.

from fedvox.training.ray_shell import run
run(config, fedvox.restoration.training)      over Ray
train(config, World())                        in this process, without Ray
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from fedvox.errors import ConfigError
from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.restoration.prior import AveragedPrior, DiffusionPrior
from fedvox.restoration.release import PriorInfo, write_release
from fedvox.restoration.volumes import Patches, PatchSource, read_volumes
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.run_directory import RunDirectory
from fedvox.training.session import autocast_dtype
from fedvox.training.step import StepResult, descend
from fedvox.training.task_session import ScoredLoop, ScoredResult, TaskSession
from fedvox.training.training_loop import Report
from fedvox.training.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class PriorSession(TaskSession[DiffusionPriorConfig, PatchSource]):
    """One worker's training of a prior. `network` holds the weights and their average."""

    @staticmethod
    def identity(config: DiffusionPriorConfig, source: PatchSource) -> dict[str, Any]:
        """See `TaskSession.identity`."""
        plain = {
            "network": config.network.model_dump(mode="json"),
            "noise": config.noise.model_dump(mode="json"),
            "patch_size": list(config.data.patch_size),
        }
        return {"architecture": plain, "images": source.digest}

    def draw(self, step: int, indices: range) -> Patches:  # noqa: ARG002 - a sample is a function of its index
        """See `TaskSession.draw`."""
        return self.source.patches(indices).to(self.world.device)


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
    PriorSession.check_newest(config, source, directory)


def train(
    config: DiffusionPriorConfig,
    world: World,
    *,
    report: Report | None = None,
    watch: PreemptionWatch | None = None,
) -> ScoredResult:
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
    source = PatchSource(read_volumes(config.data), config)
    return PriorSession.open(config, world, source, AveragedPrior(new_prior(config, source)))


def new_prior(config: DiffusionPriorConfig, source: PatchSource) -> DiffusionPrior:
    """The untrained prior with the scale of the data."""
    torch.manual_seed(config.seed)
    prior = DiffusionPrior(config.network, config.noise, config.data.patch_size)
    prior.sigma_data.fill_(max(1e-3, source.sigma_data))
    return prior


# ---- the loop -----------------------------------------------------------------------------------------------


class _PriorTraining(ScoredLoop[PriorSession]):
    """What is particular to diffusion priors."""

    def update(self, batch: tuple[Patches, float]) -> tuple[StepResult, float]:
        patches, wait_s = batch
        session, config = self.session, self.session.config
        session.optimizer.zero_grad(set_to_none=True)
        device = session.world.device
        half = autocast_dtype(config, device)
        with torch.autocast(device.type, half, enabled=half is not None):
            losses = session.model(patches.clean, patches.noise, patches.sigma, patches.where)
        loss = losses.mean() * self.share(len(patches))
        result = descend(loss, session.model, session.optimizer, grad_clip=config.optimizer.grad_clip)
        if not result.skipped:
            cast(AveragedPrior, session.network).follow(config.ema, session.progress.step)
        return result, wait_s

    @torch.no_grad()
    def score(self) -> dict[str, float]:
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
                "training": [v.name for v in session.source.training][:1000], **(self.scores or {}),
            },
        )  # fmt: skip
        write_release(cast(AveragedPrior, session.network).average, info, session.run.child(folder))

    def curves(self) -> Figure:
        from fedvox.restoration.figures import training_curves  # matplotlib, worker 0 only

        return training_curves(self.session.run.metrics(), self.session.config.name)
