"""Integration of a flow from t = 0 to 1.

What is integrated is the displacement from the source, not the image: where the velocity is zero the result is the
source to the last bit, whatever the solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedvox.errors import ConfigError
from fedvox.forecasting.config import SolverSection

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`(state, t ()) -> velocity`, of the state's shape."""


def integrate(velocity: Velocity, source: Tensor, solver: SolverSection) -> Tensor:
    """The state at t = 1 of the flow that starts at `source`.

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
        return source + _adaptive(moved, start, solver.tolerance)
    displacement, h = start, 1.0 / solver.steps
    for step in range(solver.steps):
        t = source.new_tensor(step * h)
        slope = moved(t, displacement)
        if solver.name == "midpoint":
            slope = moved(t + h / 2, displacement + slope * (h / 2))
        displacement = displacement + slope * h
    return source + displacement


def integrate_stochastic(
    velocity: Velocity, source: Tensor, steps: int, sigma: float, generator: torch.Generator | None
) -> Tensor:
    """One draw of the stochastic flow: Euler and Maruyama with noise that is zero at t = 1.

    The noise enters at the start and after every step but the last; the variance at t is about sigma² (1 - t), so
    that draws differ in what the network makes of the noise, not in noise itself.

    Args:
        velocity: of the flow.
        source: the state at t = 0.
        steps: of Euler's method.
        sigma: standard deviation of the noise at the start.
        generator: of the draw.
    """
    h = 1.0 / steps

    def noise(variance: float) -> Tensor:
        drawn = torch.randn(source.shape, generator=generator, device=source.device, dtype=source.dtype)
        return drawn * (sigma * math.sqrt(variance))

    displacement = noise(1.0)
    for step in range(steps):
        slope = velocity(source + displacement, source.new_tensor(step * h))
        displacement = displacement + slope * h
        if step + 1 < steps:
            displacement = displacement + noise(h * (1 - (step + 1) * h))
    return source + displacement


def evaluations(solver: SolverSection) -> int | None:
    """Evaluations of the network that a forecast costs; None where the solver decides."""
    return {"euler": solver.steps, "midpoint": 2 * solver.steps, "adaptive": None}[solver.name]


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
