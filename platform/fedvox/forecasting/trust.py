"""How far a predicted change is trusted: as far as the model predicts the patient's own scans from each other.

    w = (sum_i <p_i, o_i> + prior) / (sum_i <p_i, p_i> + prior), kept within [0, 1]

p_i is the change that the model predicts for scan i of the context from the other scans (or those before it, if the
model was not trained to look back), o_i the change that took place, both from where a velocity of zero would have led.
w is the regression of what was seen on what was predicted, drawn to 1 by the prior: a model that predicts change for a
patient who did not change is contradicted by the context itself, and w falls towards 0. Where the context can
contradict nothing (one scan, or scans so close together that no change is predicted between them) w stays near 1.

The prior is fitted on held-out patients after training, and released with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvox.forecasting.metrics import mean_squared_error

Change = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of `(scans, times, valid, target_time)`: where no change leads, `(B, C, D, H, W)`, and the change to be added."""

CANDIDATES = tuple(2.0**n for n in range(-10, 4))
"""Priors that are tried, in units of the mean square of the velocities in training."""
TOLERANCE = 0.01


@dataclass(frozen=True)
class Evidence:
    """What the context says about predicted changes, per patient.

    Attributes:
        agreement: `(B,)`, sum over scans of the mean over voxels of predicted times observed change.
        predicted: `(B,)`, of the square of the predicted change.
    """

    agreement: Tensor
    predicted: Tensor

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.agreement + other.agreement, self.predicted + other.predicted)

    def over(self, tiles: int) -> Evidence:
        """The mean of the evidence of so many tiles, of their sum."""
        return Evidence(self.agreement / tiles, self.predicted / tiles)

    def cpu(self) -> Evidence:
        """The same in main memory."""
        return Evidence(self.agreement.cpu(), self.predicted.cpu())

    def weight(self, prior: float) -> Tensor:
        """w, `(B,)`."""
        return ((self.agreement + prior) / (self.predicted + prior)).clamp(0, 1)


def evidence(
    change: Change, scans: Tensor, times: Tensor, valid: Tensor, *, past_only: bool = False
) -> Evidence:
    """Predicts every scan of the context from the others, and compares; shapes as in `Examples`.

    Args:
        change: of the model.
        scans: see `Examples`.
        times: see there.
        valid: see there.
        past_only: predict from the scans before only.
    """
    found = Evidence(scans.new_zeros(len(scans)), scans.new_zeros(len(scans)))
    for visit in range(valid.shape[1]):
        others, seen = valid.clone(), visit if past_only else valid.shape[1]
        others[:, visit] = False
        rows = (valid[:, visit] & others[:, :seen].any(dim=1)).nonzero().flatten()
        if not len(rows):
            continue
        context = scans[rows, :seen], times[rows, :seen], others[rows, :seen]
        base, predicted = change(*context, times[rows, visit])
        observed = scans[rows, visit] - base
        found.agreement[rows] += (predicted * observed).flatten(1).mean(dim=1)
        found.predicted[rows] += predicted.square().flatten(1).mean(dim=1)
    return found


@dataclass(frozen=True)
class Trust:
    """How a model's predicted changes are trusted.

    Attributes:
        prior: of the weight, in normalised units squared.
        past_only: scans are predicted from those before them only.
    """

    prior: float
    past_only: bool


@dataclass(frozen=True)
class Held:
    """A held-out patient's forecast, taken apart, and the target.

    Attributes:
        base: `(B, C, D, H, W)`, where no change leads.
        change: of the same shape.
        target: of the same shape.
        found: what the context says.
    """

    base: Tensor
    change: Tensor
    target: Tensor
    found: Evidence

    def error(self, prior: float) -> float:
        """Sum over the patients of the error of the forecast with trust; an infinite prior trusts in full."""
        weight = self.found.weight(prior) if prior < float("inf") else torch.ones_like(self.found.predicted)
        forecast = self.base + weighed(weight, self.change)
        return float(mean_squared_error(forecast, self.target).sum())


def fit_prior(held: Iterable[Held], scale: float) -> float | None:
    """The smallest prior, thus the least trust, whose error is within 1 % of the best; None: trust in full.

    Args:
        held: forecasts of held-out patients.
        scale: root mean square of the velocities in training.
    """
    batches = list(held)
    tried = {c: sum(batch.error(c * scale**2) for batch in batches) for c in (*CANDIDATES, float("inf"))}
    # Forecasts that are no numbers are worse than any, and those of a model that makes no others are not trusted.
    tried = {c: error if math.isfinite(error) else math.inf for c, error in tried.items()}
    limit = (1 + TOLERANCE) * min(tried.values())
    chosen = min(c for c, error in tried.items() if error <= limit)
    return chosen * scale**2 if chosen < float("inf") else None


def weighed(weight: Tensor, change: Tensor) -> Tensor:
    """`(B,)` times `(B, C, D, H, W)`."""
    return weight.reshape(-1, *(1,) * (change.ndim - 1)) * change
