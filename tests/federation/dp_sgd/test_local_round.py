"""Booked before training, settled before sending."""

import os
import signal

import pytest
import torch
from torch import nn

from fedvox_federation.dp_sgd.local_round import hash_of, train_round
from fedvox_federation.dp_sgd.training import PrivacySettings, PrivateTrainer
from fedvox_federation.errors import BudgetExhausted, PrivacyError
from fedvox_federation.privacy.ledger import PrivacyLedger, Terms, verify

TERMS = Terms(site="Nord", dataset="toy", epsilon=4.0, delta=1e-3, accountant="rdp")
PATIENTS = [lambda i=i: (torch.full((1, 6), float(i)), torch.zeros(1, 2)) for i in range(8)]


@pytest.fixture
def ledger(tmp_path):
    return PrivacyLedger.create(tmp_path / "ledger", TERMS)


def trainer(noise=2.0, patients=8):
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)

    def loss(net, tensors):
        return (net(tensors[0]) - tensors[1]).square().flatten(1).mean(1).mean()

    settings = PrivacySettings(noise, 1.0, 0.25, patients)
    return PrivateTrainer(model, torch.optim.SGD(model[2].parameters(), lr=0.1), loss, settings)


def test_what_leaves_is_what_was_trained_and_its_hash_is_in_the_ledger(ledger):
    mine = trainer()
    update = train_round(mine, PATIENTS, ledger, run="study", round_number=1, steps=3)
    assert set(update.parameters) == {"2.weight", "2.bias"}
    booked = ledger.committed("study", 1)
    assert (booked.update_sha256, booked.phase) == (hash_of(update.parameters), mine.settings.phase(3))
    mine.model[2].weight.data.zero_()  # what has been handed over no longer changes
    assert hash_of(update.parameters) == update.sha256


def test_a_refused_round_trains_nothing(ledger):
    mine = trainer(noise=0.8)
    before = hash_of(dict(mine.model.named_parameters()))
    with pytest.raises(BudgetExhausted):
        train_round(mine, PATIENTS, ledger, run="study", round_number=1, steps=500)
    assert hash_of(dict(mine.model.named_parameters())) == before
    assert not ledger.account().reservations


def test_training_without_noise_is_not_booked_as_if_it_were_private(ledger):
    with pytest.raises(PrivacyError):
        train_round(trainer(noise=0.0), PATIENTS, ledger, run="study", round_number=1, steps=1)


def test_a_delta_that_promises_nothing_to_so_many_patients_is_refused(tmp_path):
    terms = Terms(site="Nord", dataset="toy", epsilon=4.0, delta=0.2)
    ledger = PrivacyLedger.create(tmp_path / "weak", terms)
    with pytest.raises(PrivacyError, match="delta"):
        train_round(trainer(), PATIENTS, ledger, run="study", round_number=1, steps=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_while_training_the_booked_steps_stay_counted_and_nothing_is_sent(ledger, tmp_path):
    ledger.account().recompute()

    def deadly():
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        mine = trainer()
        patients = [*PATIENTS[:7], deadly]
        for number in range(1, 1000):
            train_round(mine, patients, ledger, run="study", round_number=number, steps=1)
            (tmp_path / f"sent-{number}").touch()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    sent = len(list(tmp_path.glob("sent-*")))
    account = ledger.account()
    assert len(account.reservations) == sent + 1
    assert len(account.left_open) == 1
    assert account.epsilon == account.recompute()
    assert verify(ledger.folder)


def test_the_hash_tells_names_types_shapes_and_values_apart():
    value = torch.arange(4.0)
    different = [
        {"a": value}, {"b": value}, {"a": value.double()}, {"a": value.view(2, 2)}, {"a": value + 1},
        {"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}, {},
    ]  # fmt: skip
    assert len({hash_of(one) for one in different}) == len(different)
    assert hash_of({"a": value, "b": value}) == hash_of({"b": value, "a": value})
    assert hash_of({"a": value.to(torch.bfloat16)})
