"""Training a forecasting model: what is its own, for the loop and the Ray shell that all trainings share.

from fedvox.training.ray_shell import run
run(config, fedvox.forecasting.training)      over Ray
train(config, World())                        in this process, without Ray
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedvox.errors import CheckpointError, ConfigError, StorageError
from fedvox.forecasting.config import ForecastConfig
from fedvox.forecasting.examples import Examples
from fedvox.forecasting.flow import Forecaster, flow_loss, path_point, slots_of, velocity_rms
from fedvox.forecasting.metrics import mean_squared_error
from fedvox.forecasting.release import ForecastInfo, Network, build_network, write_release
from fedvox.forecasting.schedule import forecast_learning_rate
from fedvox.forecasting.sources import ExampleSource, open_source
from fedvox.forecasting.trust import Held, Trust, fit_prior
from fedvox.models.transfer import load_pretrained
from fedvox.training.checkpoint import (
    CheckpointStore,
    Snapshot,
    Writer,
    newest_meta,
)
from fedvox.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.pretrained import read_pretrained
from fedvox.training.run_directory import MetricsLog, RunDirectory
from fedvox.training.session import Progress, distributed, restore_newest
from fedvox.training.state import state_tensors
from fedvox.training.step import StepResult
from fedvox.training.training_loop import Report, TrainingLoop
from fedvox.training.world import World

log = logging.getLogger(__name__)

_SEED_MASK = 2**63 - 1
_SCALE_EXAMPLES = 64
"""From which the scale of velocities is measured before the first step."""


@dataclass
class ForecastSession:
    """One worker's training: data, network, optimiser, files. `model` is `network`, perhaps wrapped in DDP."""

    config: ForecastConfig
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

    def begin_step(self) -> float:
        """Sets the learning rate of the current step, which is returned."""
        lr = forecast_learning_rate(self.config, self.progress.step)
        set_learning_rate(self.optimizer, lr)
        return lr

    def batches(self) -> ExampleStream:
        """This worker's batches from the current step to the end of the run."""
        return ExampleStream(self.source, self.config, self.world, self.progress.step)

    def snapshot(self) -> Snapshot:
        """The state to write into a checkpoint."""
        meta = {"progress": asdict(self.progress), **identity(self.config, self.source)}
        return Snapshot(self.progress.step, state_tensors(self.network, self.optimizer), meta)

    def close(self) -> None:
        """Ends background threads and stores what is still in memory."""
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()


class ExampleStream:
    """Batches of one worker: rank r of w takes the samples r, r + w, … of each global batch."""

    def __init__(self, source: ExampleSource, config: ForecastConfig, world: World, start: int) -> None:
        self.damaged: dict[str, str] = {}
        self._source, self._config, self._world, self._start = source, config, world, start

    def __iter__(self) -> Iterator[tuple[Examples, float]]:
        size, world = self._config.global_batch_size, self._world
        for step in range(self._start, self._config.steps):
            began = time.monotonic()
            drawn = self._source.examples(range(step * size + world.rank, (step + 1) * size, world.size))
            yield drawn.to(world.device), time.monotonic() - began

    def close(self) -> None:
        """Nothing runs in the background."""


@dataclass(frozen=True)
class ForecastResult:
    """What a finished training tells.

    Attributes:
        step: optimiser steps done.
        error: mean squared error on held-out targets, and that of the last context image.
    """

    step: int
    error: dict[str, float]

    def outcome(self) -> dict[str, Any]:
        """What `outcome.json` of the run directory holds."""
        return {"step": self.step, **self.error}


# ---- what the Ray shell asks for ----------------------------------------------------------------------------


def anchored(config: ForecastConfig, absolute: Callable[[str], str]) -> ForecastConfig:
    """See `fedvox.training.ray_shell.Task`."""
    data, network = config.data, config.network
    if data.folder is not None:
        data = data.model_copy(update={"folder": absolute(data.folder)})
    if network.init_from is not None:
        network = network.model_copy(update={"init_from": absolute(network.init_from)})
    return config.model_copy(update={"data": data, "network": network})


def check(config: ForecastConfig, directory: RunDirectory) -> None:
    """See `fedvox.training.ray_shell.Task`."""
    directory.check_resumable(config)
    source = open_source(config)
    network = new_network(config, source)
    size = source.held_out(1)[0].target.shape[2:]
    if any(n % d for n, d in zip(size, network.divisor, strict=True)):
        fitting = [-(-n // d) * d for n, d in zip(size, network.divisor, strict=True)]
        raise ConfigError(
            f"volumes of {tuple(size)} voxels are not divisible by {network.divisor}, as the network needs",
            f"Nearest larger size: --set data.size={fitting}",
        )
    meta = newest_meta(directory.checkpoints)
    if meta is not None:
        check_identity(config, source, meta, directory)


def train(
    config: ForecastConfig,
    world: World,
    *,
    report: Report | None = None,
    watch: PreemptionWatch | None = None,
) -> ForecastResult:
    """Trains from the newest checkpoint (or from scratch) to `config.steps`; see `fedvox.training.loop.train`.

    Raises:
        FedvoxError: see there.
    """
    session = open_session(config, world)
    try:
        return _Forecasting(session, report or (lambda _metrics: None), watch).run()
    finally:
        session.close()


# ---- opening ------------------------------------------------------------------------------------------------


def open_session(config: ForecastConfig, world: World) -> ForecastSession:
    """Opens the data, builds or restores the network, and joins the workers.

    Raises:
        FedvoxError: the data, the configuration or a checkpoint cannot be used.
    """
    run = RunDirectory.of(config)
    source = open_source(config)
    torch.manual_seed(config.seed)
    network = new_network(config, source).to(world.device)
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
    return ForecastSession(
        config,
        world,
        run,
        source,
        network,
        model,
        optimizer,
        checkpoints,
        progress or Progress(),
        attempt,
        metrics,
    )


def new_network(config: ForecastConfig, source: ExampleSource) -> Network:
    """The network with the scales of the data and, if wanted, a backbone's pretrained weights.

    Raises:
        CheckpointError: the weights cannot be read, or do not fit.
        ConfigError: there is no such backbone.
    """
    network = build_network(config.flow, config.network, source.channels)
    first = source.examples(range(_SCALE_EXAMPLES))
    network.velocity_scale.fill_(max(1e-6, velocity_rms(config.flow, first)))
    network.time_scale.fill_(source.time_scale)
    if config.network.init_from is not None:
        body = getattr(network, "body", None)
        backbone = getattr(body, "backbone", None)
        if backbone is None:
            raise ConfigError(
                "network.init_from is given, but network.backbone is not", "Name the backbone of the weights."
            )
        weights = read_pretrained(config.network.init_from)
        told = load_pretrained(backbone, weights.tensors, pretrained_config=weights.config)
        for parameter in backbone.heads[0].parameters():
            nn.init.zeros_(parameter)
        log.info("%s", told)
    return network


def identity(config: ForecastConfig, source: ExampleSource) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit."""
    plain = {"flow": config.flow.model_dump(mode="json"), "network": config.network.model_dump(mode="json")}
    return {"architecture": {**plain, "channels": source.channels}, "cases": source.digest}


def check_identity(
    config: ForecastConfig, source: ExampleSource, meta: dict[str, Any], run: RunDirectory
) -> None:
    """Compares a checkpoint's architecture and data with the configuration's.

    Raises:
        CheckpointError: they differ.
    """
    now = identity(config, source)
    different = [key for key, value in now.items() if meta.get(key) != value]
    if different:
        raise CheckpointError(
            f"the checkpoints in {run.checkpoints.uri} are of another {' and '.join(different)}",
            "Resume with the old settings and data, or give the run another name (--set name=…).",
        )


def fitted_trust(session: ForecastSession) -> Trust | None:
    """The trust in predicted changes that held-out patients ask for; see `fedvox.forecasting.trust`."""
    config, network = session.config, cast(Network, session.network)
    if not config.validation.trust_examples:
        return None
    forecaster, past_only = Forecaster(network, config.flow, config.solver), looks_back_only(config)
    network.eval()
    held = []
    for batch in session.source.held_out(config.validation.trust_examples):
        examples = batch.to(session.world.device)
        given = examples.scans, examples.times, examples.valid
        base, change = forecaster.change(*given, examples.target_time)
        held.append(Held(base, change, examples.target, forecaster.evidence(*given, past_only=past_only)))
    network.train()
    prior = fit_prior(held, float(network.velocity_scale))
    return None if prior is None else Trust(prior, past_only)


def looks_back_only(config: ForecastConfig) -> bool:
    """Whether training asks only for scans after those of the context: TFM's slots cannot say anything else."""
    simulated = config.data.simulated
    if simulated is None:
        after = not config.data.interpolate
    else:
        after = simulated.target == "after" or simulated.schedule == "regular"  # the next point of the grid
    return config.flow.method == "tfm" or after


# ---- the loop -----------------------------------------------------------------------------------------------


class _Forecasting(TrainingLoop[ForecastSession, ForecastResult]):
    """What is particular to forecasting."""

    error: dict[str, float] | None = None

    def update(self, batch: tuple[Examples, float]) -> tuple[StepResult, float]:
        examples, wait_s = batch
        session, config = self.session, self.session.config
        generator = torch.Generator().manual_seed(self._draw_seed())
        session.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(examples, generator).mean() * self.share(len(examples))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(session.model.parameters(), config.optimizer.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            session.optimizer.step()
        return StepResult(loss.detach(), norm.detach(), norm.new_tensor(float(not finite))), wait_s

    def _loss(self, examples: Examples, generator: torch.Generator) -> Tensor:
        session = self.session
        world, total = session.world, session.config.global_batch_size
        point = path_point(
            session.config.flow, examples, generator, rank=world.rank, workers=world.size, total=total
        )
        slots = point.slots
        predicted = session.model(point.state, slots.images, slots.times, examples.target_time, point.t)
        scale = cast(Tensor, session.network.velocity_scale)
        return flow_loss(session.config.flow, predicted, point, examples, scale)

    def _draw_seed(self) -> int:
        """Of the step, the same on all workers."""
        return (self.session.config.seed * 1_000_003 + self.session.progress.step) * 4099 & _SEED_MASK

    def validates_at_start(self) -> bool:
        return self.session.config.validation.at_start

    def validated_now(self) -> bool:
        return self.error is not None and self.session.progress.validated_at == self.session.progress.step

    def validation_due(self) -> bool:
        progress = self.session.progress
        due = progress.step % self.session.config.validation.every_steps == 0
        return due and progress.validated_at != progress.step

    def validate(self, *, counts: bool = True) -> None:  # noqa: ARG002 - there is no moving average
        session = self.session
        self.status("validation")
        self.error = self._held_out_error()
        session.progress.validated_at = session.progress.step
        if session.metrics is not None:
            session.metrics.write("validation", session.progress.step, dict(self.error))
        self.report({"step": session.progress.step, **self.error})

    def _held_out_error(self) -> dict[str, float]:
        session, config = self.session, self.session.config
        forecaster = Forecaster(cast(Network, session.network), config.flow, config.solver)
        session.network.eval()
        errors, of_lci = [], []
        for batch in session.source.held_out(config.validation.examples):
            examples = batch.to(session.world.device)
            truth = examples.truth if examples.truth is not None else examples.target
            forecast = forecaster(examples.scans, examples.times, examples.valid, examples.target_time)
            last = slots_of(config.flow, examples.scans, examples.times, examples.valid).images[:, -1]
            errors.append(mean_squared_error(forecast, truth))
            of_lci.append(mean_squared_error(last, truth))
        session.network.train()
        mse, lci = float(torch.cat(errors).mean()), float(torch.cat(of_lci).mean())
        return {"mse": mse, "mse_lci": lci, "relative_mse": mse / max(lci, 1e-12)}

    def release(self, folder: str) -> None:
        session, config = self.session, self.session.config
        if session.world.rank != 0:
            return
        depth, height, width = session.source.held_out(1)[0].target.shape[2:]
        trust = fitted_trust(session)
        info = ForecastInfo(
            flow=config.flow.model_dump(mode="json"), network=config.network.model_dump(mode="json"),
            solver=config.solver.model_dump(mode="json"), channels=session.source.channels, unit=session.source.unit,
            horizon=session.source.horizon, size=(depth, height, width), trust=trust,
            intensities=session.source.intensities,
            provenance={"run": config.name, "step": session.progress.step, "seed": config.seed, **(self.error or {})},
        )  # fmt: skip
        write_release(session.network, info, session.run.child(folder))

    def draw(self) -> None:
        from fedvox.forecasting.figures import training_curves  # matplotlib, worker 0 only
        from fedvox.training.figures import save_figure

        try:
            figure = training_curves(self.session.run.metrics(), self.session.config.name)
            save_figure(figure, self.session.run.child("figures", "curves.png"))
        except StorageError as error:
            log.warning("the curves were not drawn: %s", error)

    def last_report(self) -> dict[str, Any]:
        return {"step": self.session.progress.step, **(self.error or {})}

    def result(self) -> ForecastResult:
        return ForecastResult(self.session.progress.step, dict(self.error or {}))
