"""Training a forecasting model: what is its own, for the loop and the Ray shell that all trainings share.

from fedvox.training.ray_shell import run
run(config, fedvox.forecasting.training)      over Ray
train(config, World())                        in this process, without Ray
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.forecasting.config import ForecastConfig
from fedvox.forecasting.examples import Examples
from fedvox.forecasting.flow import Forecaster, flow_loss, path_point, slots_of, velocity_rms
from fedvox.forecasting.metrics import mean_squared_error
from fedvox.forecasting.release import ForecastInfo, Network, build_network, write_release
from fedvox.forecasting.schedule import forecast_learning_rate
from fedvox.forecasting.sources import ExampleSource, open_source
from fedvox.forecasting.trust import Held, Trust, fit_prior
from fedvox.models.transfer import load_pretrained
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

_SEED_MASK = 2**63 - 1
_SCALE_EXAMPLES = 64
"""From which the scale of velocities is measured before the first step."""


class ForecastSession(TaskSession[ForecastConfig, ExampleSource]):
    """One worker's training of a forecasting model."""

    @staticmethod
    def identity(config: ForecastConfig, source: ExampleSource) -> dict[str, Any]:
        """See `TaskSession.identity`."""
        plain = {
            "flow": config.flow.model_dump(mode="json"),
            "network": config.network.model_dump(mode="json"),
        }
        return {"architecture": {**plain, "channels": source.channels}, "cases": source.digest}

    def learning_rate(self) -> float:
        """Of the current step."""
        return forecast_learning_rate(self.config, self.progress.step)

    def draw(self, step: int, indices: range) -> Examples:  # noqa: ARG002 - a sample is a function of its index
        """See `TaskSession.draw`."""
        return self.source.examples(indices).to(self.world.device)


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
    ForecastSession.check_newest(config, source, directory)


def train(
    config: ForecastConfig,
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
        return _Forecasting(session, report or (lambda _metrics: None), watch).run()
    finally:
        session.close()


# ---- opening ------------------------------------------------------------------------------------------------


def open_session(config: ForecastConfig, world: World) -> ForecastSession:
    """Opens the data, builds or restores the network, and joins the workers.

    Raises:
        FedvoxError: the data, the configuration or a checkpoint cannot be used.
    """
    source = open_source(config)
    torch.manual_seed(config.seed)
    return ForecastSession.open(config, world, source, new_network(config, source))


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


class _Forecasting(ScoredLoop[ForecastSession]):
    """What is particular to forecasting."""

    def update(self, batch: tuple[Examples, float]) -> tuple[StepResult, float]:
        examples, wait_s = batch
        session, config = self.session, self.session.config
        generator = torch.Generator().manual_seed(self.step_seed() & _SEED_MASK)
        session.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(examples, generator).mean() * self.share(len(examples))
        return descend(loss, session.model, session.optimizer, grad_clip=config.optimizer.grad_clip), wait_s

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

    def score(self) -> dict[str, float]:
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
            provenance={"run": config.name, "step": session.progress.step, "seed": config.seed, **(self.scores or {})},
        )  # fmt: skip
        write_release(session.network, info, session.run.child(folder))

    def curves(self) -> Figure:
        from fedvox.forecasting.figures import training_curves  # matplotlib, worker 0 only

        return training_curves(self.session.run.metrics(), self.session.config.name)
