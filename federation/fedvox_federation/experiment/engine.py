"""A federation in one process: the clinics' own private training and the server's own aggregation, without Flower.

Thousands of small federations are too many for processes and messages. What is left out is what does not touch the
result: transport, ledgers (the noise of all rounds is planned beforehand, and its ε computed once) and checks of
updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedvox_federation.dp_sgd.training import Loss, Mode, Patient, PrivacySettings, PrivateTrainer
from fedvox_federation.privacy.federation import Contribution, Weighting
from fedvox_federation.protocol import Arrays
from fedvox_federation.server.strategies import Update, build_aggregator

UNCLIPPED = 1e30
"""Without noise there is nothing that clipping would be for."""


@dataclass(frozen=True)
class Participant:
    """A clinic that takes part.

    Attributes:
        patients: of a round, from 1.
        noise_multiplier: 0 for none.
        score: for weighting by score.
    """

    patients: Callable[[int], Sequence[Patient]]
    noise_multiplier: float
    score: float = 1.0


@dataclass(frozen=True)
class LocalTraining:
    """What a clinic does in a round.

    Attributes:
        loss: see `PrivateTrainer`.
        optimizer: made anew in every round, as clinics do.
        steps: of a round.
        sample_rate: of every clinic.
        clipping_norm: where there is noise.
        mode: see `PrivacySettings`.
        at_once: largest physical batch.
    """

    loss: Loss
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    steps: int
    sample_rate: float
    clipping_norm: float
    mode: Mode = "loop"
    at_once: int = 1


def federate(
    model: nn.Module,
    participants: Mapping[str, Participant],
    local: LocalTraining,
    *,
    rounds: int,
    weighting: Weighting = "size",
    on_round: Callable[[int], None] = lambda _: None,
) -> None:
    """Train a model by federated averaging, in place.

    Args:
        model: what requires gradients is trained; the rest is everybody's already.
        participants: by name.
        local: what each does.
        rounds: of averaging.
        weighting: of updates.
        on_round: called after each round, when the model holds the average.
    """
    aggregator = build_aggregator("FedAvg", weighting=weighting)
    arrays = read_trained(model)
    for number in range(1, rounds + 1):
        aggregator.begin_round(number, arrays)
        updates = {}
        for name, participant in participants.items():
            load_trained(model, arrays)
            updates[name] = _take_part(model, participant, local, number)
        arrays = aggregator.aggregate(number, arrays, updates)
        load_trained(model, arrays)
        on_round(number)


def _take_part(model: nn.Module, participant: Participant, local: LocalTraining, number: int) -> Update:
    patients = participant.patients(number)
    noise = participant.noise_multiplier
    settings = PrivacySettings(
        noise_multiplier=noise,
        clipping_norm=local.clipping_norm if noise else UNCLIPPED,
        sample_rate=local.sample_rate,
        patients=len(patients),
        mode=local.mode,
        patches_at_once=local.at_once,
    )
    optimizer = local.optimizer([p for p in model.parameters() if p.requires_grad])
    PrivateTrainer(model, optimizer, local.loss, settings).train(patients, local.steps)
    contribution = Contribution(len(patients), settings.expected_batch_size, noise, participant.score)
    return Update(read_trained(model), contribution)


def read_trained(model: nn.Module) -> Arrays:
    """A copy of what is trained, by name."""
    return {
        name: np.array(parameter.detach().cpu().numpy())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trained(model: nn.Module, arrays: Arrays) -> None:
    """The inverse of `read_trained`."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in arrays.items():
            parameters[name].copy_(torch.from_numpy(value))
