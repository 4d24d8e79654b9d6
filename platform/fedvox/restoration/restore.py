"""One restoration: samples of the image, their mean and spread, and what of the data they leave unexplained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.errors import ConfigError, RunError
from fedvox.restoration.metrics import data_consistency
from fedvox.restoration.problem import Problem
from fedvox.restoration.solvers import SAMPLERS, SolverOptions, solve
from fedvox.restoration.tiling import TiledPrior

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Restored:
    """What comes out.

    Attributes:
        image: `(D, H, W)` float32 in the units of the input: the mean of the samples.
        spread: standard deviation over samples, or None for one sample.
        residual: `|Aᵀ(A x - y)|` on the image's grid, in the same units.
        consistency: `‖A x - y‖ / ‖y‖`.
        expected: what noise of the stated level alone would leave of it.
        explained: `(y, A x)` as arrays of the measurement, for the figure.
        notes: what a reader should know.
    """

    image: np.ndarray
    spread: np.ndarray | None
    residual: np.ndarray
    consistency: float
    expected: float
    explained: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...] = field(default_factory=tuple)


class SliceStack(torch.nn.Module):
    """A prior of several slices for a batch of slices `(S, 1, H, W)`, which it sees as one volume.

    Args:
        tiled: the prior.
    """

    def __init__(self, tiled: TiledPrior) -> None:
        super().__init__()
        self.tiled = tiled

    def forward(self, x: Tensor, sigma: Any, **_: object) -> Tensor:
        """Denoise; one noise level for all slices."""
        level = torch.as_tensor(sigma).flatten()[:1]
        found: Tensor = self.tiled(x.movedim(0, 2), level)
        return found.movedim(2, 0)


def restore(
    problem: Problem, tiled: TiledPrior, solver: str, options: SolverOptions, *, samples: int = 1, seed: int = 0,
    on_step: OnStep | None = None,
) -> Restored:  # fmt: skip
    """Restores an image.

    Args:
        problem: operator and measurements.
        tiled: the prior; its device computes.
        solver: see `fedvox.restoration.solvers`.
        options: of the solver.
        samples: runs of the solver with seeds of their own.
        seed: of the first.
        on_step: told how many steps of all samples are done, and how many there are.

    Raises:
        ConfigError: several samples of a solver that has no randomness.
        RunError: the solver diverged.
    """
    if samples > 1 and solver not in SAMPLERS:
        raise ConfigError(
            f"solver {solver} has no randomness: {samples} runs of it show no uncertainty",
            f"Use one of {', '.join(SAMPLERS)} for --samples.",
        )
    device = next(tiled.parameters()).device
    physics, y = problem.physics.to(device), problem.y.to(device)
    several = problem.slices and tiled.prior.divisor[0] > 1
    denoiser = SliceStack(tiled) if several else tiled
    total, squares = torch.zeros(()), torch.zeros(())
    for number in range(samples):
        drawn = solve(
            solver, denoiser, physics, y, options=options, seed=seed + number,
            on_step=_counted(on_step, number, samples),
        ).cpu()  # fmt: skip
        if not torch.isfinite(drawn).all() or float(drawn.abs().max()) > 100:
            raise RunError(f"solver {solver} diverged", "Lower --weight, or use another solver.")
        total, squares = total + drawn, squares + drawn.square()
    mean = total / samples
    variance = (squares / samples - mean.square()).clamp_min(0) * samples / max(1, samples - 1)
    return _judged(problem, physics, y, mean, variance.sqrt() if samples > 1 else None)


def _counted(on_step: OnStep | None, number: int, samples: int) -> OnStep | None:
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, samples * steps)


def _judged(problem: Problem, physics: Any, y: Tensor, mean: Tensor, spread: Tensor | None) -> Restored:
    with torch.no_grad():
        image = mean.to(y.device)
        predicted = physics.A(image)
        residual = physics.A_adjoint(predicted - y).abs()
    measured = int((y != 0).sum())
    noise = float(getattr(physics.noise_model, "sigma", 0.0))
    notes = list(problem.notes)
    consistency = data_consistency(physics, image, y)
    expected = noise * measured**0.5 / max(float(y.norm()), 1e-12)
    if consistency > 3 * expected:
        notes.append(
            f"the image leaves {consistency:.3g} of the data unexplained, noise alone would leave {expected:.3g}: look "
            "at the residual map"
        )
    return Restored(
        _volume(mean, problem), None if spread is None else _volume(spread, problem), _volume(residual.cpu(), problem),
        consistency, expected, (_shown(y), _shown(predicted)), tuple(notes),
    )  # fmt: skip


def _volume(image: Tensor, problem: Problem) -> np.ndarray:
    found = image[:, 0] if problem.slices else image[0, 0]
    return np.asarray(found.numpy() * problem.scale, np.float32)


def _shown(y: Tensor) -> np.ndarray:
    """The middle of the measurements as one 2D picture: modulus of k-space (of its first coil), or a slice."""
    values = y.detach().cpu()
    if values.shape[1] == 2:
        values = values.square().sum(dim=1).sqrt()
        middle = values[len(values) // 2]
        return np.asarray(middle[0] if middle.ndim == 3 else middle)
    volume = values[0, 0]
    return np.asarray(volume[len(volume) // 2] if volume.ndim == 3 else volume)
