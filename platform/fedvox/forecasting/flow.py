"""Temporal Flow Matching and CRONOS: a flow from the context images to the scan at the target's time.

    X_t,i = (1 - t) x_i + t y + sigma eps        the path of slot i, from its context image x_i to the target y
    u_i   = y - x_i                              its velocity, which the network learns by mean squared error
    tau_i(t) = (1 - t) tau_i + t tau_target      CRONOS: the time that the slot has reached

Contexts and targets are paired as they are: each patient's own. Nothing in the batch touches a patient's result.

Sources: Temporal Flow Matching (arXiv 2508.21580), CRONOS (arXiv 2512.16577).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedvox.forecasting.config import FlowSection, SolverSection
from fedvox.forecasting.convlstm import ConvLSTM
from fedvox.forecasting.examples import Examples, Slots, fill_forward, keep_valid
from fedvox.forecasting.solvers import Velocity, integrate, integrate_stochastic
from fedvox.forecasting.velocity import VelocityNetwork


@dataclass(frozen=True)
class PathPoint:
    """Where the flow of a batch is at its drawn times, and where it should go.

    Attributes:
        slots: the context.
        state: `(B, K, C, D, H, W)`, X_t.
        velocity: of the same shape, u.
        t: `(B,)`.
    """

    slots: Slots
    state: Tensor
    velocity: Tensor
    t: Tensor


def slots_of(flow: FlowSection, scans: Tensor, times: Tensor, valid: Tensor) -> Slots:
    """The context of a batch as the method fills its slots; shapes as in `Examples`."""
    fill = fill_forward if flow.method == "tfm" else keep_valid
    return fill(scans, times, valid, flow.slots)


def path_point(
    flow: FlowSection,
    examples: Examples,
    generator: torch.Generator,
    *,
    rank: int = 0,
    workers: int = 1,
    total: int | None = None,
) -> PathPoint:
    """Draws flow times and noise for a batch, a time and an image of noise per patient.

    Args:
        flow: objective and sigma.
        examples: B patients.
        generator: on the CPU, so that the draw is the same on every device.
        rank: of the worker whose share of a global batch this is.
        workers: that share it.
        total: patients of the global batch, for whom the draw is made: it does not depend on the number of workers.
    """
    slots = slots_of(flow, examples.scans, examples.times, examples.valid)
    source, target = slots.images, examples.target[:, None]
    device = source.device
    if flow.objective == "regression":
        return PathPoint(slots, source, target - source, torch.zeros(len(source), device=device))
    everyone = len(source) if total is None else total
    mine = slice(rank, None, workers)
    t = torch.rand(everyone, generator=generator)[mine].to(device)
    state = interpolate(source, target, t)
    if flow.sigma > 0:
        noise = torch.randn(everyone, *source.shape[1:], generator=generator)[mine]
        state = state + flow.sigma * noise.to(device)
    return PathPoint(slots, state, target - source, t)


def interpolate(source: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """`(1 - t) source + t target`, one t a patient; `(B, K, …)`, `(B, 1, …)`, `(B,)`."""
    share = t.reshape(-1, *(1,) * (source.ndim - 1))
    return (1 - share) * source + share * target


def flow_loss(
    flow: FlowSection, predicted: Tensor, point: PathPoint, examples: Examples, scale: Tensor
) -> Tensor:
    """Mean squared error of each patient's velocity in units of `scale`, `(B,)`.

    Args:
        flow: weights of the region of interest and of filled slots.
        predicted: `(B, K, C, D, H, W)`, in units of `scale`.
        point: what was shown to the network.
        examples: the batch.
        scale: root mean square of the velocities in training.
    """
    error = (predicted - point.velocity / scale).square()
    if flow.roi_weight > 0 and examples.roi is not None:
        error = error * (1 + flow.roi_weight * examples.roi[:, None])
    per_slot = error.flatten(2).mean(dim=2)
    if flow.mask_missing and flow.method == "tfm" and examples.valid.shape[1] == flow.slots:
        kept = examples.valid.to(per_slot.dtype)
        return (per_slot * kept).sum(dim=1) / kept.sum(dim=1)
    return per_slot.mean(dim=1)


def velocity_rms(flow: FlowSection, examples: Examples) -> float:
    """Root mean square of the velocities of a batch."""
    slots = slots_of(flow, examples.scans, examples.times, examples.valid)
    return float((examples.target[:, None] - slots.images).square().mean().sqrt())


class Forecaster:
    """Forecasts with a velocity network.

    Args:
        network: trained, or fresh: then every forecast is the last scan, or the mean of the slots.
        flow: how it was trained.
        solver: how the flow is integrated.
    """

    def __init__(self, network: VelocityNetwork | ConvLSTM, flow: FlowSection, solver: SolverSection) -> None:
        self.network, self.flow = network, flow
        one_step = flow.objective == "regression"
        self.solver = solver.model_copy(update={"name": "euler", "steps": 1}) if one_step else solver

    @torch.no_grad()
    def __call__(self, scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor) -> Tensor:
        """The forecast scans, `(B, C, D, H, W)`; arguments as in `Examples`."""
        slots = slots_of(self.flow, scans, times, valid)
        arrived = integrate(self._velocity(slots, target_time), slots.images, self.solver)
        return self._aggregate(arrived)

    @torch.no_grad()
    def draws(
        self, scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor, *, count: int, seed: int,
        steps: int = 10, sigma: float | None = None,
    ) -> Tensor:  # fmt: skip
        """Forecasts of the stochastic flow, `(count, B, C, D, H, W)`; their spread tells how sure the model is.

        Args:
            scans: as in `Examples`, like `times`, `valid` and `target_time`.
            times: see there.
            valid: see there.
            target_time: see there.
            count: number of draws.
            seed: of the draws.
            steps: of Euler's method.
            sigma: of the noise; None takes that of training.
        """
        slots = slots_of(self.flow, scans, times, valid)
        velocity = self._velocity(slots, target_time)
        generator = torch.Generator(scans.device).manual_seed(seed)
        level = self.flow.sigma if sigma is None else sigma
        drawn = [
            self._aggregate(integrate_stochastic(velocity, slots.images, steps, level, generator))
            for _ in range(count)
        ]
        return torch.stack(drawn)

    def _velocity(self, slots: Slots, target_time: Tensor) -> Velocity:
        network = cast(nn.Module, self.network)

        def velocity(state: Tensor, t: Tensor) -> Tensor:
            everywhere = t.expand(len(state))
            predicted: Tensor = network(state, slots.images, slots.times, target_time, everywhere)
            return predicted * self.network.velocity_scale

        return velocity

    def _aggregate(self, arrived: Tensor) -> Tensor:
        return arrived.mean(dim=1) if self.solver.aggregate == "mean" else arrived[:, -1]
