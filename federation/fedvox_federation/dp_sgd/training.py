"""DP-SGD for volumes: per-patient clipping, noise, and steps that count even when nobody takes part.

    settings = PrivacySettings(noise_multiplier=1.1, clipping_norm=1.0, sample_rate=0.1, patients=40)
    trainer = PrivateTrainer(model, torch.optim.AdamW(trainable, lr=1e-3), loss, settings)
    trainer.train(patients, steps=20)

A patient is a function that returns tensors whose first axis runs over that patient's patches, however many. The
loss is a mean over that axis. The gradient of a patient's mean loss is clipped as a whole: ten patches of one
patient weigh no more than one, and protect no less.

Two ways lead to the same gradients. `loop` computes each patient's gradient by an ordinary backward pass: exact
for any layer, in the memory of ordinary training. `hooks` computes those of several patients at once by Opacus:
for small networks and patches, where one patient leaves the device idle; only for layers that `preflight` passes.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox_federation.dp_sgd.randomness import Randomness, SystemRandomness, poisson_sample
from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy.accountant import Phase

log = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...]
Patient = Callable[[], Tensors]
Loss = Callable[[nn.Module, Tensors], Tensor]
Mode = Literal["loop", "hooks"]

TELL_EVERY_S = 10.0
"""Between two lines on progress in the clinic's own log."""
_ROUNDING = 1e-6
"""Clipped norms stay this much (relative) below the bound, so that rounding does not lift them above it."""


@dataclass(frozen=True)
class PrivacySettings:
    """What a step does to gradients.

    Attributes:
        noise_multiplier: standard deviation of the noise, in units of `clipping_norm`; 0 only for comparison.
        clipping_norm: largest L2 norm of one patient's gradient over all trained parameters.
        sample_rate: probability with which each patient takes part in a step.
        patients: how many there are.
        mode: how per-patient gradients are computed.
        patches_at_once: largest physical batch.
    """

    noise_multiplier: float
    clipping_norm: float
    sample_rate: float
    patients: int
    mode: Mode = "loop"
    patches_at_once: int = 1

    def __post_init__(self) -> None:
        self.phase(1)
        if not 0 < self.clipping_norm < math.inf:
            raise PrivacyError(f"clipping_norm is {self.clipping_norm}, not a finite number above 0")
        if self.patients < 1 or self.patches_at_once < 1:
            raise PrivacyError("patients and patches_at_once must be at least 1")
        if self.mode not in ("loop", "hooks"):
            raise PrivacyError(f"there is no mode {self.mode!r}", "Use loop, or hooks.")

    @property
    def expected_batch_size(self) -> float:
        """By which the noisy sum is divided, whoever came; the actual number is private."""
        return self.sample_rate * self.patients

    def phase(self, steps: int) -> Phase:
        """What `steps` steps are to the accountant and the ledger."""
        return Phase(self.noise_multiplier, self.sample_rate, steps)


@dataclass(frozen=True)
class StepReport:
    """What happened in a step. It is about patients: it must not leave the clinic.

    Attributes:
        patients: how many took part.
        clipped: how many gradients were cut.
        discarded: how many were NaN or infinite and counted as zero.
    """

    patients: int
    clipped: int
    discarded: int


class PrivateTrainer:
    """Trains the parameters of `optimizer`; the others must not require gradients.

    Args:
        model: in training mode when trained; run `preflight` on it first.
        optimizer: any; momentum, weight decay and schedules only see noisy gradients.
        loss: of the model and a batch of patches, the mean over the first axis.
        settings: see `PrivacySettings`.
        randomness: for tests; the default cannot be replayed.

    Raises:
        ConfigError: the model has trainable parameters that the optimizer does not hold: they would leave the
            clinic without noise if anything else trained them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        settings: PrivacySettings,
        *,
        randomness: Randomness | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.settings = settings
        self.parameters = _trained(model, optimizer)
        self._randomness = randomness or SystemRandomness()

    def train(self, patients: Sequence[Patient], steps: int) -> list[StepReport]:
        """Exactly `steps` steps, whoever is drawn.

        Raises:
            ConfigError: another number of patients than in the settings, on which the sample rate rests.
        """
        if len(patients) != self.settings.patients:
            raise ConfigError(
                f"{len(patients)} patients, but the settings say {self.settings.patients}",
                "The sample rate and the accountant rest on that number.",
            )
        self.model.train()
        reports = []
        told = time.monotonic()
        for number in range(1, steps + 1):
            drawn = poisson_sample(self._randomness, len(patients), self.settings.sample_rate)
            reports.append(self.step([patients[index] for index in drawn]))
            if (now := time.monotonic()) - told >= TELL_EVERY_S:
                told = now
                log.info("step %d of %d", number, steps)
        return reports

    def step(self, drawn: Sequence[Patient]) -> StepReport:
        """One step on those drawn by `poisson_sample`; with nobody, noise alone."""
        total = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        clipped = discarded = 0
        for gradients in self._gradients(drawn):
            norm = _norm(gradients)
            if not math.isfinite(norm):
                discarded += 1
                continue
            scale = min(1.0, self.settings.clipping_norm / (norm * (1 + _ROUNDING)) if norm else 1.0)
            clipped += scale < 1
            for into, gradient in zip(total, gradients, strict=True):
                into.add_(gradient, alpha=scale)
        self._apply(total)
        return StepReport(len(drawn), clipped, discarded)

    def _apply(self, total: Sequence[Tensor]) -> None:
        deviation = self.settings.noise_multiplier * self.settings.clipping_norm
        for parameter, summed in zip(self.parameters, total, strict=True):
            noisy = summed.double()
            if deviation:
                noisy = noisy + deviation * self._randomness.normal(summed.shape).to(summed.device)
            parameter.grad = (noisy / self.settings.expected_batch_size).to(parameter.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self, drawn: Sequence[Patient]) -> Iterator[list[Tensor]]:
        if self.settings.mode == "loop":
            for patient in drawn:
                yield self._looped(patient())
        elif drawn:
            yield from self._hooked(drawn)

    def _looped(self, tensors: Tensors) -> list[Tensor]:
        """One patient's gradient, piece by piece."""
        self.optimizer.zero_grad(set_to_none=True)
        count = tensors[0].shape[0]
        for start in range(0, count, self.settings.patches_at_once):
            piece = tuple(tensor[start : start + self.settings.patches_at_once] for tensor in tensors)
            (self.loss(self.model, piece) * (piece[0].shape[0] / count)).backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]

    def _hooked(self, drawn: Sequence[Patient]) -> Iterator[list[Tensor]]:
        """The gradients of several patients at once, by Opacus."""
        wrapped = per_sample(self.model)
        try:
            for group in _packed(drawn, self.settings.patches_at_once):
                sizes = [patient[0].shape[0] for patient in group]
                tensors = tuple(torch.cat(column) for column in zip(*group, strict=True))
                self.optimizer.zero_grad(set_to_none=True)
                backward_per_sample(self.loss(wrapped, tensors) * sum(sizes))
                split = [torch.split(grad_sample(p), sizes) for p in self.parameters]
                for index in range(len(group)):
                    yield [pieces[index].mean(0) for pieces in split]
        finally:
            wrapped.to_standard_module()


def per_sample(model: nn.Module) -> Any:
    """The model, with Opacus's hooks on it until `to_standard_module()` is called."""
    from opacus.grad_sample import GradSampleModule

    return GradSampleModule(model, loss_reduction="sum", strict=True)


def backward_per_sample(summed_loss: Tensor) -> None:
    """The backward pass of a model under hooks. Frozen first layers make them speak up, for no reason."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        summed_loss.backward()  # type: ignore[no-untyped-call]


def grad_sample(parameter: nn.Parameter) -> Tensor:
    """The per-sample gradients (B, …) that Opacus left on a parameter, taken from it.

    Raises:
        PrivacyError: there are none.
    """
    found = getattr(parameter, "grad_sample", None)
    parameter.grad_sample = None  # type: ignore[attr-defined]
    if not isinstance(found, Tensor):
        raise PrivacyError(
            "a trained parameter got no per-sample gradient", "Run dp-preflight; freeze what is not used."
        )
    return found


def _packed(drawn: Sequence[Patient], limit: int) -> Iterator[list[Tensors]]:
    """Whole patients, as many as fit into one physical batch."""
    group: list[Tensors] = []
    count = 0
    for patient in drawn:
        tensors = patient()
        size = tensors[0].shape[0]
        if size > limit:
            raise ConfigError(
                f"a patient has {size} patches, but patches_at_once is {limit}",
                "Raise it, or use mode loop, which takes patients in pieces.",
            )
        if count + size > limit:
            yield group
            group, count = [], 0
        group.append(tensors)
        count += size
    if group:
        yield group


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise ConfigError(
            f"{len(missing)} trainable parameters are not in the optimizer, such as {missing[0]}",
            "Freeze them (requires_grad_(False)), or give them to the optimizer.",
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("nothing is trainable", "Choose a scope: full, decoder, norm+head or lora.")
    return trained
