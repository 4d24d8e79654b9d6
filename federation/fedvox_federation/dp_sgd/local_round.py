"""One clinic's part of one round: booked, trained, settled, and only then allowed to leave.

    update = train_round(trainer, patients, ledger, run="mama-mia-2027", round_number=3, steps=20)
    send(update.parameters)

The order is the point. Steps are on the ledger's disk before the first gradient, the update's hash before the
first byte is sent. A process that dies in between has spent what it booked, and sent nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvox_federation.dp_sgd.training import Patient, PrivateTrainer
from fedvox_federation.privacy.ledger import PrivacyLedger, Reservation
from fedvox_federation.privacy.units import check_delta


@dataclass(frozen=True)
class LocalUpdate:
    """All that may leave the clinic.

    Attributes:
        parameters: the trained ones by name, on the CPU; frozen ones are the server's already.
        sha256: of them, as in the ledger.
        reservation: under which they were trained.
    """

    parameters: Mapping[str, Tensor]
    sha256: str
    reservation: Reservation


def train_round(
    trainer: PrivateTrainer,
    patients: Sequence[Patient],
    ledger: PrivacyLedger,
    *,
    run: str,
    round_number: int,
    steps: int,
    keep: Collection[str] = (),
    before_commit: Callable[[LocalUpdate], None] | None = None,
) -> LocalUpdate:
    """Reserve, train, commit.

    Args:
        trainer: on the round's model.
        patients: all of the clinic's.
        ledger: of exactly these patients.
        run: name of the federated run.
        round_number: of that run.
        steps: to train, empty ones included.
        keep: names of trained parameters that stay in the clinic.
        before_commit: is given the update before it counts as sent, to put it on disk: what is committed can then
            be sent again after a crash.

    Raises:
        BudgetExhausted: the ledger refuses; nothing was trained.
        PrivacyError: no noise, or the ledger's δ promises nothing to so few patients.
    """
    check_delta(ledger.account().terms.delta, trainer.settings.patients)
    booked = ledger.reserve(run=run, round_number=round_number, phase=trainer.settings.phase(steps))
    trainer.train(patients, steps)
    parameters = {
        name: parameter.detach().cpu().clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad and name not in keep
    }
    update = LocalUpdate(parameters, hash_of(parameters), booked)
    if before_commit is not None:
        before_commit(update)
    ledger.commit(booked, update_sha256=update.sha256)
    return update


def hash_of(parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        value = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
