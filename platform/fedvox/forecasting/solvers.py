"""Integration of a flow from t = 0 to 1.

What is integrated is the displacement from the source, not the image: where the velocity is zero the result is the
source to the last bit, whatever the solver.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedvox.errors import ConfigError
from fedvox.forecasting.config import SolverSection

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`(state, t ()) -> velocity`, of the state's shape."""


def integrate(velocity: Velocity, source: Tensor, solver: SolverSection) -> Tensor:
    """The state at t = 1 of the flow that starts at `source`; see `displacement`."""
    return source + displacement(velocity, source, solver)


def displacement(velocity: Velocity, source: Tensor, solver: SolverSection) -> Tensor:
    """How far the flow that starts at `source` comes by t = 1.

    Args:
        velocity: of the flow.
        source: the state at t = 0.
        solver: which one, and how fine.

    Raises:
        ConfigError: the adaptive solver is asked for, and torchdiffeq is not installed.
    """

    def moved(t: Tensor, displacement: Tensor) -> Tensor:
        return velocity(source + displacement, t)

    start = torch.zeros_like(source)
    if solver.name == "adaptive":
        return _adaptive(moved, start, solver.tolerance)
    travelled, h = start, 1.0 / solver.steps
    for step in range(solver.steps):
        t = source.new_tensor(step * h)
        slope = moved(t, travelled)
        if solver.name == "midpoint":
            slope = moved(t + h / 2, travelled + slope * (h / 2))
        travelled = travelled + slope * h
    return travelled


def _adaptive(moved: Callable[[Tensor, Tensor], Tensor], start: Tensor, tolerance: float) -> Tensor:
    try:
        from torchdiffeq import odeint  # optional
    except ImportError:
        raise ConfigError(
            "solver.name is 'adaptive', which needs torchdiffeq, and that is not installed",
            "pip install 'fedvox[forecast]', or use --set solver.name=midpoint.",
        ) from None
    ends = torch.tensor([0.0, 1.0], device=start.device, dtype=start.dtype)
    result: Tensor = odeint(moved, start, ends, method="dopri5", atol=tolerance, rtol=tolerance)[-1]
    return result
