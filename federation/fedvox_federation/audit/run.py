"""One audit: train with canaries by the real trainer and ledger, watch the updates, guess, and compare with the ledger.

    result = audit(target, AuditPlan(epsilon=2.0, delta=1e-5), ledger_folder)
    result.bound.epsilon <= result.ledger_epsilon      # or the ledger is refuted

An audit that never finds anything proves nothing about itself. The controls are the same training with one thing
broken, which an audit that works must find, and one in which there is nothing to be found:

    no-noise      the noise is left out
    no-clipping   the clipping norm is taken a hundred times larger for clipping than for noise
    placebo       the coins decide nothing: no canary takes part
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from fedvox.errors import ConfigError
from fedvox_federation.audit.bound import FloatArray, LowerBound, best_bound
from fedvox_federation.audit.canaries import Canaries, flat_weights, loss_with_canaries
from fedvox_federation.audit.scores import log_likelihood_ratio
from fedvox_federation.dp_sgd.local_round import train_round
from fedvox_federation.dp_sgd.training import Loss, Patient, PrivacySettings, PrivateTrainer
from fedvox_federation.privacy.accountant import Phase, noise_multiplier
from fedvox_federation.privacy.ledger import PrivacyLedger, Terms

Control = Literal["none", "no-noise", "no-clipping", "placebo"]
CONTROLS: tuple[Control, ...] = get_args(Control)
_RUN = "audit"
_TOO_LARGE = 100.0
_ROUNDING = 1.001  # of the search for the noise, in the budget


@dataclass(frozen=True)
class AuditTarget:
    """What is trained.

    Attributes:
        model: its parameters that require gradients are trained.
        loss: of the model and a patient's tensors, the mean over the first axis.
        patients: real ones, who train beside the canaries.
    """

    model: nn.Module
    loss: Loss
    patients: Sequence[Patient]


@dataclass(frozen=True)
class AuditPlan:
    """How to train and how to guess.

    Attributes:
        epsilon: the promise, from which the noise follows.
        delta: δ.
        canaries: m; without noise at most about ln(m / 3) can be proven.
        sample_rate: probability with which each patient takes part in a step.
        rounds: after each of which the attacker sees the weights.
        steps_per_round: in between.
        clipping_norm: C.
        learning_rate: of plain SGD, through which the attacker sees the noisy gradients themselves.
        control: see the module.
        confidence: of the bound.
        seed: of the coins and of where canaries pull; the training's randomness has none.
    """

    epsilon: float = 2.0
    delta: float = 1e-5
    canaries: int = 1000
    sample_rate: float = 0.25
    rounds: int = 20
    steps_per_round: int = 1
    clipping_norm: float = 1.0
    learning_rate: float = 0.1
    control: Control = "none"
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise ConfigError(f"there is no control {self.control!r}", f"Use {', '.join(CONTROLS)}.")
        if self.rounds < 1 or self.steps_per_round < 1 or self.learning_rate <= 0:
            raise ConfigError("rounds, steps_per_round and learning_rate must be above 0")
        if self.canaries < 20:
            raise ConfigError(f"{self.canaries} canaries prove nothing", "Take at least 20; 1000 is usual.")

    @property
    def steps(self) -> int:
        """Of all rounds."""
        return self.rounds * self.steps_per_round

    @property
    def guesses_each_side(self) -> tuple[int, ...]:
        """Numbers of guesses to try, fixed beforehand: with much noise many weak ones, with little a few sure ones."""
        m = self.canaries
        return tuple(sorted({max(1, m // 20), m // 8, m // 4, m // 2}))


@dataclass(frozen=True)
class AuditResult:
    """What came out.

    Attributes:
        bound: what the attack proves.
        ledger_epsilon: what the ledger says was spent (or, for a control, what one would believe).
        noise_multiplier: that was believed to be in use.
        plan: what was done.
        scores: `(m,)`.
        included: `(m,)`.
    """

    bound: LowerBound
    ledger_epsilon: float
    noise_multiplier: float
    plan: AuditPlan
    scores: FloatArray
    included: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def refuted(self) -> bool:
        """Whether more was spent than the ledger says."""
        return self.bound.epsilon > self.ledger_epsilon

    def summary(self) -> dict[str, Any]:
        """For tables and JSON."""
        return {
            **dataclasses.asdict(self.plan),
            "noise_multiplier": self.noise_multiplier,
            "ledger_epsilon": self.ledger_epsilon,
            "epsilon_lower_bound": self.bound.epsilon,
            "guesses": self.bound.guesses.made,
            "right": self.bound.guesses.right,
            "refuted": self.refuted,
        }


def audit(
    target: AuditTarget,
    plan: AuditPlan,
    ledger_folder: Path,
    *,
    on_round: Callable[[int], None] = lambda _: None,
) -> AuditResult:
    """Train once, attack once.

    Args:
        target: see `AuditTarget`; its model is trained in place.
        plan: see `AuditPlan`.
        ledger_folder: for a new ledger of this audit.
        on_round: called after each round, with its number from 1.

    Raises:
        ConfigError: too few trained weights, or a plan without meaning.
        StorageError: there is a ledger in that folder already.
    """
    trained = [p for p in target.model.parameters() if p.requires_grad]
    rng = np.random.Generator(np.random.Philox(plan.seed))
    canaries = Canaries.toss(plan.canaries, sum(p.numel() for p in trained), rng)
    phase = Phase(
        noise_multiplier(plan.epsilon, plan.delta, plan.sample_rate, plan.steps),
        plan.sample_rate,
        plan.steps_per_round,
    )
    takes_part = np.zeros(plan.canaries, bool) if plan.control == "placebo" else canaries.included
    everybody = [*target.patients, *Canaries(canaries.weights, takes_part).patients()]
    trainer = _trainer(target, trained, plan, phase, len(everybody))
    ledger = PrivacyLedger.create(
        ledger_folder, Terms("audit", f"canaries-{plan.seed}", plan.epsilon * _ROUNDING, plan.delta)
    )
    scores = np.zeros(plan.canaries)
    for number in range(1, plan.rounds + 1):
        before = flat_weights(trained)
        _round(trainer, everybody, ledger, phase, number)
        change = (before - flat_weights(trained)).numpy()[canaries.weights]
        scores += log_likelihood_ratio(
            change * trainer.settings.expected_batch_size / (plan.learning_rate * plan.clipping_norm),
            noise_multiplier=0.0 if plan.control == "no-noise" else phase.noise_multiplier,
            sample_rate=plan.sample_rate,
            steps=plan.steps_per_round,
        )
        on_round(number)
    bound = best_bound(
        scores,
        canaries.included,
        plan.delta,
        each_side=plan.guesses_each_side,
        confidence=plan.confidence,
    )
    return AuditResult(
        bound, ledger.account().epsilon, phase.noise_multiplier, plan, scores, canaries.included
    )


def _trainer(
    target: AuditTarget, trained: list[nn.Parameter], plan: AuditPlan, phase: Phase, patients: int
) -> PrivateTrainer:
    """The real trainer, with one setting wrong if a control says so."""
    noise, clipping_norm = phase.noise_multiplier, plan.clipping_norm
    if plan.control == "no-noise":
        noise = 0.0
    elif plan.control == "no-clipping":  # the noise stays what it was, in absolute terms
        noise, clipping_norm = noise / _TOO_LARGE, clipping_norm * _TOO_LARGE
    return PrivateTrainer(
        target.model,
        torch.optim.SGD(trained, lr=plan.learning_rate),
        loss_with_canaries(target.loss, trained, plan.clipping_norm),
        PrivacySettings(noise, clipping_norm, phase.sample_rate, patients),
    )


def _round(
    trainer: PrivateTrainer, everybody: Sequence[Patient], ledger: PrivacyLedger, phase: Phase, number: int
) -> None:
    """As a clinic does it. A broken trainer would not be let near a ledger: its round is booked as if it were whole."""
    if trainer.settings.phase(phase.steps) == phase:
        train_round(trainer, everybody, ledger, run=_RUN, round_number=number, steps=phase.steps)
        return
    booked = ledger.reserve(run=_RUN, round_number=number, phase=phase)
    trainer.train(everybody, phase.steps)
    ledger.commit(booked, update_sha256="0" * 64)
