"""Plug-and-play solvers: an image from measurements `y = A x + n`, with a denoiser `D(x, σ)` for what images look like.

    diffpir, ddnm, dps    anneal noise from large to small: denoise, agree with the data, add noise again
    pnpdm                 split Gibbs sampling (Wu et al. 2024): posterior samples, in the limit of tight coupling
    reddiff               variational: one image whose noised versions the denoiser leaves alone (Mardani et al. 2023)
    pgd, fista, admm, red deepinv's optimisers with the denoiser in place of a proximal step
    ddrm                  deepinv's, for operators that it can decompose

Where deepinv has a solver that takes any noise levels it is used as it is. Its DiffPIR is bound to one schedule of 1000
steps; `diffpir` is the same recursion on any. All levels are of the images' own scale, [0, 1] or so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from fedvox.errors import ConfigError
from fedvox.restoration.deepinv_loader import deepinv
from fedvox.restoration.schedule import noise_levels

Denoise = Callable[[Tensor, Any], Tensor]
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class SolverOptions:
    """How a solver runs; what it has no use for it ignores.

    Attributes:
        steps: noise levels, or iterations.
        largest: first noise level.
        smallest: last noise level.
        weight: of the data: larger follows it more closely.
        renew: share of the noise that is drawn afresh at each level (ζ of DiffPIR).
        inner: denoising steps in each prior step of pnpdm.
    """

    steps: int = 30
    largest: float = 1.0
    smallest: float = 0.01
    weight: float = 1.0
    renew: float = 1.0
    inner: int = 4


DEFAULTS: dict[str, SolverOptions] = {
    "diffpir": SolverOptions(),
    "ddnm": SolverOptions(),
    "dps": SolverOptions(steps=60),
    "pnpdm": SolverOptions(steps=20, largest=0.5, smallest=0.02),
    "reddiff": SolverOptions(steps=80, largest=0.5, smallest=0.02, weight=1.0),
    "pgd": SolverOptions(steps=30, largest=0.1, smallest=0.02),
    "fista": SolverOptions(steps=30, largest=0.05, smallest=0.02),
    "admm": SolverOptions(steps=20, largest=0.1, smallest=0.02),
    "red": SolverOptions(steps=60, largest=0.1, smallest=0.02, weight=0.2),
    "ddrm": SolverOptions(steps=30),
}
SAMPLERS = ("diffpir", "ddnm", "dps", "pnpdm", "ddrm")
"""Solvers whose result depends on a seed, so that several runs show a spread."""
_FLOOR = 0.003
"""Noise that data are taken to have at least: no operator describes a scan exactly."""


def solve(
    name: str, denoiser: Denoise, physics: Any, y: Tensor, *, options: SolverOptions | None = None, seed: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Restores images.

    Args:
        name: a key of `DEFAULTS`.
        denoiser: `(x, σ) -> expected image`.
        physics: deepinv's operator A, with its noise model.
        y: measurements.
        options: of the solver.
        seed: of its random numbers.
        on_step: told how many steps are done, and how many there are.

    Returns:
        Images of the shape of `Aᵀ y`.

    Raises:
        ConfigError: there is no such solver, or it cannot be used with this operator.
    """
    if name not in DEFAULTS:
        raise ConfigError(f"solver {name!r} does not exist", f"Known: {', '.join(DEFAULTS)}.")
    task = Task(
        denoiser, physics, y, options or DEFAULTS[name], torch.Generator(y.device).manual_seed(seed), on_step
    )
    if name in _OWN:
        if name == "dps":
            return _OWN[name](task)
        with torch.no_grad():
            return _OWN[name](task)
    with torch.no_grad():
        return _ddrm(task, seed) if name == "ddrm" else _optimised(name, task)


@dataclass(frozen=True)
class Task:
    """What a solver works on."""

    denoiser: Denoise
    physics: Any
    y: Tensor
    options: SolverOptions
    generator: torch.Generator
    on_step: OnStep | None = None

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of the data."""
        return max(float(getattr(self.physics.noise_model, "sigma", 0.0)), _FLOOR)

    def levels(self) -> Tensor:
        """The noise levels."""
        return noise_levels(self.options.steps, self.options.largest, self.options.smallest)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def done(self, step: int) -> None:
        """Reports that a step, counted from 0, is done."""
        if self.on_step is not None:
            self.on_step(step + 1, self.options.steps)


def anneal(task: Task, levels: Tensor, agree: Callable[[Tensor, float], Tensor], start: Tensor) -> Tensor:
    """Denoise, agree with the data, add noise again, from the first level to the last.

    Args:
        task: supplies random numbers and `renew`.
        levels: decreasing noise levels.
        agree: from the noisy image and its level, the estimate of the clean one that agrees with the data.
        start: the noisy image at the first level.

    Returns:
        The estimate at the last level.
    """
    x, renew = start, task.options.renew
    for step, level in enumerate(levels.tolist()):
        clean = agree(x, level)
        task.done(step)
        if step + 1 == len(levels):
            break
        direction = (x - clean) / level
        x = clean + float(levels[step + 1]) * ((1 - renew) ** 0.5 * direction + renew**0.5 * task.normal(x))
    return clean


def diffpir_levels(task: Task) -> tuple[Tensor, Callable[[Tensor, float], Tensor]]:
    """Levels and data step of DiffPIR (Zhu et al. 2023): a proximal step whose strength follows the noise."""

    def agree(x: Tensor, level: float) -> Tensor:
        gamma = task.options.weight * (level / task.noise) ** 2
        return cast(Tensor, task.physics.prox_l2(task.denoiser(x, level), task.y, gamma))

    return task.levels(), agree


def _diffpir(task: Task) -> Tensor:
    levels, agree = diffpir_levels(task)
    return anneal(task, levels, agree, _start(task, levels))


def _ddnm(task: Task) -> Tensor:
    """DDNM+ (Wang et al. 2023): replace what A sees, less so where the data's noise exceeds the level."""

    def agree(x: Tensor, level: float) -> Tensor:
        clean = task.denoiser(x, level)
        trust = min(1.0, task.options.weight * level / task.noise)
        return clean + trust * cast(Tensor, task.physics.A_dagger(task.y - task.physics.A(clean)))

    levels = task.levels()
    return anneal(task, levels, agree, _start(task, levels))


def _dps(task: Task) -> Tensor:
    """DPS (Chung et al. 2023) with deepinv's gradient, as a step on the denoised image (Tweedie's formula)."""

    class _Denoiser(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            kept.append(task.denoiser(x, sigma))
            return kept[-1]

    kept: list[Tensor] = []
    fidelity = deepinv.sampling.DPSDataFidelity(
        denoiser=_Denoiser(), weight=task.options.weight, guidance="annealed"
    )

    def agree(x: Tensor, level: float) -> Tensor:
        kept.clear()
        with torch.enable_grad():
            gradient = fidelity.grad(x.detach(), task.y, task.physics, sigma=level)
        stepped: Tensor = kept[-1] - level**2 * gradient
        return stepped.detach()

    levels = task.levels()
    return anneal(task, levels, agree, _start(task, levels))


def _pnpdm(task: Task) -> Tensor:
    """Split Gibbs: an image drawn given the data and its twin, its twin drawn from the prior given the image."""
    levels = task.levels()
    twin = _start(task, levels)
    for step, coupling in enumerate(levels.tolist()):
        # Perturb and maximise: exactly a sample of N(y; A z, σ²) N(z; twin, coupling²) in z.
        target = twin + coupling * task.normal(twin)
        perturbed = task.y + _noise_like(task) * task.noise
        z = task.physics.prox_l2(target, perturbed, task.options.weight * (coupling / task.noise) ** 2)
        twin = _prior_sample(task, z, coupling)
        task.done(step)
    return twin


def _noise_like(task: Task) -> Tensor:
    drawn = task.normal(task.y)
    if task.y.ndim > 3 and getattr(task.physics, "inner", None) is not None:
        mask = task.physics.inner.mask
        drawn = drawn * (mask if drawn.ndim == mask.ndim else mask[:, :, None])
    return drawn


def _prior_sample(task: Task, z: Tensor, level: float) -> Tensor:
    """A sample of the prior given that `z` is it with noise: the reverse diffusion from that level on."""
    inner = noise_levels(task.options.inner, level, min(task.options.smallest / 4, level / 10))
    x = z
    for now, after in zip(inner.tolist(), [*inner[1:].tolist(), 0.0], strict=True):
        clean = task.denoiser(x, now)
        if after == 0.0:
            return clean
        # The exact conditional of x at the lower level given x and the clean image.
        mean = clean + (after / now) ** 2 * (x - clean)
        x = mean + after * (1 - (after / now) ** 2) ** 0.5 * task.normal(x)
    return x


def _reddiff(task: Task) -> Tensor:
    """RED-diff: gradient descent (Adam) on data misfit plus the denoiser's residual at falling noise levels."""
    image = _initial(task).clone().requires_grad_()
    adam = torch.optim.Adam([image], lr=0.05, betas=(0.9, 0.99))
    levels = task.levels()
    for step, level in enumerate(levels.tolist()):
        noisy = image.detach() + level * task.normal(image)
        with torch.no_grad():
            pull = image.detach() - task.denoiser(
                noisy, level
            )  # level · (predicted - true noise), up to its mean
            misfit = task.physics.A_adjoint(task.physics.A(image.detach()) - task.y)
        adam.zero_grad()
        image.grad = task.options.weight * misfit + 0.25 * pull
        adam.param_groups[0]["lr"] = 0.05 * (1 - step / len(levels)) + 1e-3
        adam.step()
        task.done(step)
    return image.detach()


def _ddrm(task: Task, seed: int) -> Tensor:
    if not isinstance(task.physics, deepinv.physics.DecomposablePhysics | deepinv.physics.Denoising):
        raise ConfigError(
            "ddrm needs an operator that deepinv can decompose: inpainting or denoising", "Use --solver ddnm."
        )
    levels = noise_levels(task.options.steps, task.options.largest, task.options.smallest).tolist()
    found = deepinv.sampling.DDRM(_module(task.denoiser), sigmas=levels)(task.y, task.physics, seed=seed + 1)
    return cast(Tensor, found)


def _optimised(name: str, task: Task) -> Tensor:
    """Deepinv's proximal gradient, FISTA and ADMM with the denoiser for a prior, or its gradient descent with RED."""
    options = task.options
    sigmas = task.levels().tolist()
    if name == "red":
        prior, algorithm, more = (
            deepinv.optim.RED(_module(task.denoiser)),
            deepinv.optim.GD,
            {"lambda_reg": options.weight},
        )
    else:
        prior = deepinv.optim.PnP(_module(task.denoiser))
        algorithm = {"pgd": deepinv.optim.PGD, "fista": deepinv.optim.FISTA, "admm": deepinv.optim.ADMM}[name]
        more = {}
    model = algorithm(
        data_fidelity=deepinv.optim.L2(), prior=prior, stepsize=_stepsize(name, task), g_param=sigmas,
        max_iter=options.steps, early_stop=False, **more,
    )  # fmt: skip
    start = _initial(task)  # FISTA and ADMM keep a second variable
    found = model(task.y, task.physics, init=(start, start) if name in ("fista", "admm") else start)
    task.done(options.steps - 1)
    return cast(Tensor, found)


def _stepsize(name: str, task: Task) -> float:
    """One over the largest eigenvalue of AᵀA; ADMM's is not bound by it."""
    if name == "admm":
        return task.options.weight * 20.0
    largest = 1.0 / task.physics.voxels if hasattr(task.physics, "voxels") else 1.0
    step = 1.0 / largest
    return step * (1.0 / (1.0 + task.options.weight * largest) if name == "red" else 1.0)


def _module(denoiser: Denoise) -> torch.nn.Module:
    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
            return denoiser(x, sigma)

    return Wrapped()


def _initial(task: Task) -> Tensor:
    return cast(Tensor, task.physics.A_dagger(task.y))


def _start(task: Task, levels: Tensor) -> Tensor:
    first = cast(Tensor, task.physics.A_adjoint(task.y))
    return first + float(levels[0]) * task.normal(first)


_OWN: dict[str, Callable[[Task], Tensor]] = {
    "diffpir": _diffpir, "ddnm": _ddnm, "dps": _dps, "pnpdm": _pnpdm, "reddiff": _reddiff,
}  # fmt: skip


def with_options(name: str, **changes: Any) -> SolverOptions:
    """A solver's options with changes; None leaves a field as it is."""
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(DEFAULTS[name], **given)
