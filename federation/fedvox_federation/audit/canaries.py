"""Patients that exist to be found: each pulls at one weight of its own, as hard as clipping lets it.

A canary goes through the same door as everybody: `PrivateTrainer` draws it by the same coin, computes its gradient
by the same backward pass, clips and adds it. Only its loss is its own, a steep line along one weight. After clipping
its gradient is the clipping norm in that coordinate and nothing elsewhere ("Dirac gradient", Nasr et al. 2023, arXiv
2302.07956): the worst patient that the promise covers, and one that leaves no trace on other canaries.

A canary that lost its toss stays in the list with a gradient of zero. So the number of patients, by which sums are
divided, does not tell the coins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox_federation.dp_sgd.training import Loss, Patient, Tensors

_STEEPNESS = 100.0  # times the clipping norm: always clipped


@dataclass(frozen=True)
class Canaries:
    """m of them.

    Attributes:
        weights: `(m,)` the flat index of each one's weight among the trained parameters, no two alike.
        included: `(m,)` the coins.
    """

    weights: npt.NDArray[np.int64]
    included: npt.NDArray[np.bool_]

    @classmethod
    def toss(cls, count: int, trained: int, rng: np.random.Generator) -> Canaries:
        """Choose weights and toss the coins.

        Args:
            count: m.
            trained: number of trained weights.
            rng: of the auditor, who must know the coins; nothing of the training comes from it.

        Raises:
            ConfigError: more canaries than weights.
        """
        if not 1 < count <= trained:
            raise ConfigError(
                f"{count} canaries need as many trained weights; there are {trained}",
                "Take fewer canaries, or a larger model or scope.",
            )
        return cls(rng.choice(trained, count, replace=False), rng.random(count) < 0.5)

    def patients(self) -> list[Patient]:
        """All of them, as the trainer takes patients."""
        return [_patient(int(w), bool(i)) for w, i in zip(self.weights, self.included, strict=True)]


def _patient(weight: int, included: bool) -> Patient:
    tensors = (torch.tensor([[weight, int(included)]]),)
    return lambda: tensors


def loss_with_canaries(loss: Loss, trained: Sequence[nn.Parameter], clipping_norm: float) -> Loss:
    """The loss of real patients, and that of canaries, which are told by their tensors.

    Args:
        loss: of real patients, whose tensors are not one matrix of integers.
        trained: the parameters that the trainer trains, in its order.
        clipping_norm: the trainer's.
    """
    ends = np.cumsum([p.numel() for p in trained])

    def of_canary(weight: int, included: int) -> Tensor:
        which = int(np.searchsorted(ends, weight, side="right"))
        parameter = trained[which]
        place = weight - (int(ends[which]) - parameter.numel())
        return parameter.view(-1)[place] * (included * _STEEPNESS * clipping_norm)

    def total(model: nn.Module, tensors: Tensors) -> Tensor:
        if not _is_canary(tensors):
            return loss(model, tensors)
        return torch.stack([of_canary(*map(int, row)) for row in tensors[0]]).mean()

    return total


def _is_canary(tensors: Tensors) -> bool:
    return len(tensors) == 1 and tensors[0].dtype == torch.int64 and tensors[0].dim() == 2


def flat_weights(trained: Sequence[nn.Parameter]) -> Tensor:
    """All trained weights in one vector, float64, detached: what whoever receives updates sees."""
    return torch.cat([p.detach().reshape(-1).double() for p in trained])
