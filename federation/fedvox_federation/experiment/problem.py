"""What is learned, and at which sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fedvox_federation.dp_sgd.training import Loss, Mode, Patient, Tensors

Scenario = Literal["alike", "labels", "scanners"]
"""Sites with the same kind of patients; with other patients each; with the same patients on other scanners."""


@dataclass(frozen=True)
class Training:
    """The same for every arm of an experiment.

    Attributes:
        rounds: of federated averaging.
        steps: of DP-SGD in a round.
        sample_rate: probability with which each patient takes part in a step, at every site.
        clipping_norm: of a patient's gradient.
        lr: of SGD.
        lr_open: of SGD without noise, where nothing is clipped.
        mode: see `PrivacySettings`.
        at_once: largest physical batch.
        judged_every: rounds between two points of the learning curve.
    """

    rounds: int
    steps: int
    sample_rate: float
    lr: float
    lr_open: float
    clipping_norm: float = 1.0
    mode: Mode = "loop"
    at_once: int = 1
    judged_every: int = 5

    @property
    def total_steps(self) -> int:
        """That the accountant counts."""
        return self.rounds * self.steps


@dataclass(frozen=True)
class Site:
    """A clinic's patients.

    Attributes:
        patients: who are trained on.
        tests: tensors of patients who never are.
    """

    patients: Sequence[Patient]
    tests: Sequence[Tensors]


@dataclass(frozen=True)
class Problem:
    """One task in one scenario, with everything random drawn.

    Attributes:
        build_model: the same model at every call; what requires gradients is trained.
        loss: see `PrivateTrainer`.
        score: of the model, one number per test patient, more is better.
        sites: by clinic.
        training: see `Training`.
    """

    build_model: Callable[[], nn.Module]
    loss: Loss
    score: Callable[[nn.Module, Sequence[Tensors]], list[float]]
    sites: Mapping[str, Site]
    training: Training
