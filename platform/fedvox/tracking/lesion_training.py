"""Training a promptable network: what is its own, for the loop and the Ray shell that all trainings share.

from fedvox.training.ray_shell import run
run(config, fedvox.tracking.lesion_training)      over Ray
train(config, World())                            in this process, without Ray
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from fedvox.errors import ConfigError
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
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.pretrained import read_pretrained
from fedvox.training.run_directory import RunDirectory
from fedvox.training.step import StepResult, descend
from fedvox.training.task_session import ScoredLoop, ScoredResult, TaskSession
from fedvox.training.training_loop import Report
from fedvox.training.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_FOLLOW_UP, _CORRECTED, _CLICKS = 2, 3, 4  # purposes of a step's random numbers


Samples = list[Sample] | list[FollowUpSample]


class LesionSession(TaskSession[LesionConfig, ExampleSource]):
    """One worker's training of a promptable network."""

    @property
    def plan(self) -> PatchPlan:
        """Of patches."""
        return plan_of(self.config)

    @staticmethod
    def identity(config: LesionConfig, source: ExampleSource) -> dict[str, Any]:
        """See `TaskSession.identity`."""
        return {"architecture": config.model.model_dump(mode="json"), "cases": source.digest}

    def draw(self, step: int, indices: range) -> Samples:
        """In one step, all workers learn from one scan a lesion, or all from two."""
        config = self.config
        given = (self.source, config.prompts, self.plan, config.seed)
        if config.data.follow_ups:
            coin = stream(config.seed, step, _FOLLOW_UP).random()
            if coin < config.prompts.follow_up_share:
                pairs = [draw_follow_up(*given, index) for index in indices]
                known = [pair for pair in pairs if pair is not None]
                if len(known) == len(pairs):
                    return known
        return [draw_sample(*given, index) for index in indices]


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
    LesionSession.check_newest(config, source, directory)


def train(
    config: LesionConfig,
    world: World,
    *,
    report: Report | None = None,
    watch: PreemptionWatch | None = None,
    source: ExampleSource | None = None,
) -> ScoredResult:
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
    source = source or open_pool(config)
    torch.manual_seed(config.seed)
    return LesionSession.open(config, world, source, new_network(config))


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


# ---- the loop -----------------------------------------------------------------------------------------------


class _LesionLoop(ScoredLoop[LesionSession]):
    """What is particular to lesions."""

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
        return descend(loss, session.model, session.optimizer, grad_clip=config.optimizer.grad_clip), wait_s

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

    def scores_to_log(self, counts: bool) -> dict[str, Any]:
        progress, scores = self.session.progress, self.scores or {}
        if counts:
            share, dice = self.session.config.validation.ema, scores["dice"]
            before = dice if progress.ema_dice is None else progress.ema_dice
            progress.ema_dice = share * before + (1 - share) * dice
        return {**scores, "ema_dice": progress.ema_dice}

    def score(self) -> dict[str, float]:
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

    def curves(self) -> Figure:
        from fedvox.training.figures import curves  # matplotlib, worker 0 only

        return curves(self.session.run.metrics(), self.session.config.name)
