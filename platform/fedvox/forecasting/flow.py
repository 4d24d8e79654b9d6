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
from fedvox.forecasting.solvers import Velocity, displacement
from fedvox.forecasting.trust import Evidence, Trust, evidence, weighed
from fedvox.forecasting.velocity import VelocityNetwork

EVIDENCE_STEPS = 2
"""Of the solver, at most, where the context's own scans are predicted."""


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
        trust: in predicted changes; None trusts them in full. See `fedvox.forecasting.trust`.
    """

    def __init__(
        self,
        network: VelocityNetwork | ConvLSTM,
        flow: FlowSection,
        solver: SolverSection,
        trust: Trust | None = None,
    ) -> None:
        self.network, self.flow, self.trust = network, flow, trust
        one_step = flow.objective == "regression"
        self.solver = solver.model_copy(update={"name": "euler", "steps": 1}) if one_step else solver

    @torch.no_grad()
    def __call__(
        self,
        scans: Tensor,
        times: Tensor,
        valid: Tensor,
        target_time: Tensor,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The forecast scans, `(B, C, D, H, W)`.

        Args:
            scans: as in `Examples`, like `times`, `valid` and `target_time`.
            times: see there.
            valid: see there.
            target_time: see there.
            weight: `(B,)` of the predicted changes; None takes what `weight` finds.
        """
        base, change = self.change(scans, times, valid, target_time)
        weight = self.weight(scans, times, valid) if weight is None else weight
        return base + (change if weight is None else weighed(weight, change))

    @torch.no_grad()
    def change(
        self, scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Where a velocity of zero leads, and the change that is predicted, `(B, C, D, H, W)` each.

        Args:
            scans: as in `Examples`, like `times`, `valid` and `target_time`.
            times: see there.
            valid: see there.
            target_time: see there.
            noise: `(B, K, C, D, H, W)` on the path of the slots; None: none.
        """
        if self.solver.name == "adaptive" and len(scans) > 1:
            return self._one_by_one(scans, times, valid, target_time, noise)
        slots = slots_of(self.flow, scans, times, valid)
        velocity = self._velocity(slots, target_time, noise)
        base = self._aggregate(slots.images)
        return base, self._aggregate(displacement(velocity, slots.images, self.solver))

    def _one_by_one(
        self, scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`change`, each patient alone: an adaptive solver's steps are those that all of a batch together need."""
        parts = [
            self.change(
                *(part[row : row + 1] for part in (scans, times, valid, target_time)),
                noise=None if noise is None else noise[row : row + 1],
            )
            for row in range(len(scans))
        ]
        return torch.cat([base for base, _ in parts]), torch.cat([change for _, change in parts])

    @torch.no_grad()
    def evidence(self, scans: Tensor, times: Tensor, valid: Tensor, *, past_only: bool) -> Evidence:
        """What the context says about predicted changes; with no more than two steps of the solver, for speed."""
        solver = self.solver
        if solver.name == "adaptive" or solver.steps > EVIDENCE_STEPS:
            name = "euler" if solver.name == "euler" else "midpoint"
            solver = solver.model_copy(update={"name": name, "steps": EVIDENCE_STEPS})
        change = Forecaster(self.network, self.flow, solver).change
        return evidence(change, scans, times, valid, past_only=past_only)

    def weight(self, scans: Tensor, times: Tensor, valid: Tensor) -> Tensor | None:
        """The share of the predicted changes that is believed, `(B,)`; None where they are trusted in full."""
        if self.trust is None:
            return None
        found = self.evidence(scans, times, valid, past_only=self.trust.past_only)
        return found.weight(self.trust.prior)

    @torch.no_grad()
    def draws(
        self, scans: Tensor, times: Tensor, valid: Tensor, target_time: Tensor, *, count: int, seed: int
    ) -> Tensor:  # fmt: skip
        """Forecasts of the flow under noise, `(count, B, C, D, H, W)`: possible futures, if sigma allows to tell them.

        The path of training leads from the context with noise to the target with the same noise. A draw follows it
        from another noise, which is left out of the result. Trust is not applied: it draws a forecast towards the mean
        of what may be, and draws are to show what may be.

        Args:
            scans: as in `Examples`, like `times`, `valid` and `target_time`.
            times: see there.
            valid: see there.
            target_time: see there.
            count: number of draws.
            seed: of the draws.
        """
        generator = torch.Generator(scans.device).manual_seed(seed)
        shape = (len(scans), self.flow.slots, *scans.shape[2:])
        drawn = []
        for _ in range(count):
            noise = self.flow.sigma * torch.randn(shape, generator=generator, device=scans.device)
            base, change = self.change(scans, times, valid, target_time, noise=noise)
            drawn.append(base + change)
        return torch.stack(drawn)

    def _velocity(self, slots: Slots, target_time: Tensor, noise: Tensor | None) -> Velocity:
        network = cast(nn.Module, self.network)

        def velocity(state: Tensor, t: Tensor) -> Tensor:
            everywhere = t.expand(len(state))
            seen = state if noise is None else state + noise
            predicted: Tensor = network(seen, slots.images, slots.times, target_time, everywhere)
            return predicted * self.network.velocity_scale

        return velocity

    def _aggregate(self, slots: Tensor) -> Tensor:
        return slots.mean(dim=1) if self.solver.aggregate == "mean" else slots[:, -1]
