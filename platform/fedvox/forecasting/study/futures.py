"""Two possible futures: whether a method's forecasts are both of them, one, or what lies between.

The patients' lesions shrink or grow with equal probability, and nothing before tells which. Both futures are known.
With A the one and B the other, and distances as root mean squares in units of the distance from A to B:

    place       of a forecast between the futures: 0 is A, 1 is B, 0.5 is their mean
    energy      mean over y = A and y = B of `E|X - y| - E|X - X'| / 2` over draws X, X' (energy score): 0.5 is a
                forecast that is always the mean, 0.25 one that is A as often as B
    spread      rank correlation over voxels of the standard deviation of the draws and of the two futures
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedvox.forecasting.baselines import Baseline
from fedvox.forecasting.examples import Examples
from fedvox.forecasting.flow import Forecaster
from fedvox.forecasting.simulation import TEST, Simulated
from fedvox.forecasting.simulation.response import DONE, futures

DRAWS = 16
REACHED = 0.25
"""A future is reached by a place no further from it."""


def asked(base: Simulated, patients: int) -> tuple[Examples, Tensor]:
    """Patients under treatment, asked for times when it has acted, and their futures `(2, B, 1, D, H, W)`."""
    simulated = replace(base, static=0.0)
    numbers = range(TEST, TEST + patients)
    found = simulated.examples(numbers)
    duration, horizon = simulated.simulation.duration, simulated.schedule.horizon
    times = torch.linspace(DONE, horizon, patients) * duration
    both = futures(simulated.subjects(numbers), times[:, None], simulated.size)
    return replace(found, target_time=times), both


def ensemble(forecast: Baseline, examples: Examples, draws: int = DRAWS) -> Tensor:
    """Draws of a flow, `(N, B, C, D, H, W)`; the one forecast of anything else."""
    given = examples.scans, examples.times, examples.valid, examples.target_time
    if isinstance(forecast, Forecaster) and forecast.flow.objective == "flow":
        return forecast.draws(*given, count=draws, seed=0)
    return forecast(*given)[None]


def judged_futures(drawn: Tensor, both: Tensor) -> dict[str, list[float]]:
    """A number per patient of each measure.

    Args:
        drawn: `(N, B, C, D, H, W)`.
        both: `(2, B, C, D, H, W)`, A and B.
    """
    gap = _distance(both[0], both[1])
    place = ((drawn - both[0]) * (both[1] - both[0])).flatten(2).mean(dim=2) / gap.square()
    first, second = place <= REACHED, place >= 1 - REACHED
    to_truth = torch.stack([_distance(drawn, y) for y in both]).mean(dim=(0, 1))
    among = torch.stack([_distance(drawn, other) for other in drawn]).sum(dim=(0, 1))
    pairs = max(1, len(drawn) * (len(drawn) - 1))
    found = {
        "a": first.float().mean(dim=0), "b": second.float().mean(dim=0),
        "both": (first.any(dim=0) & second.any(dim=0)).float(), "energy": (to_truth - among / pairs / 2) / gap,
        "distance": torch.stack([_distance(drawn, y) for y in both]).min(dim=0).values.mean(dim=0) / gap,
    }  # fmt: skip
    if len(drawn) > 1:
        found["spread"] = torch.stack(
            [_ranked(d, b) for d, b in zip(drawn.std(dim=0), both.std(dim=0), strict=True)]
        )
    return {name: [round(float(v), 6) for v in values] for name, values in found.items()}


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Root mean square over all but the leading axes up to the patient's, `(…, B)`."""
    return (one - other).square().flatten(-4).mean(dim=-1).sqrt()


def _ranked(one: Tensor, other: Tensor) -> Tensor:
    """Rank correlation over voxels."""
    ranks = torch.stack([one.flatten(), other.flatten()]).argsort(dim=1).argsort(dim=1).double()
    return torch.corrcoef(ranks)[0, 1]
