"""What SCAFFOLD asks of a clinic: a shift of every gradient after its noise, and doubts about what the shift is."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fedvox_federation.client.clinic import take_part
from fedvox_federation.client.corrections import LONGEST_CORRECTION, add_correction
from fedvox_federation.dp_sgd.training import PrivacySettings, PrivateTrainer
from fedvox_federation.protocol import Refusal, with_correction

SGD = {"optimizer": "sgd", "steps": 2, "lr": 0.01, "device": "cpu", "evaluate": "never"}
SCAFFOLD = {"name": "scaffold"}


class Recorded:
    """Draws from a seed, and remembers what it drew."""

    def __init__(self):
        self.generator, self.drawn = torch.Generator().manual_seed(0), []

    def normal(self, shape):
        self.drawn.append(torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64))
        return self.drawn[-1]

    def bernoulli(self, rate, count):
        self.drawn.append(torch.rand(count, generator=self.generator))
        return (self.drawn[-1] < rate).tolist()


def train(correction, *, steps=3, lr=0.1):
    """Private training of a layer whose gradients do not depend on where it is."""
    torch.manual_seed(1)
    model = nn.Linear(4, 2)
    patients = [lambda n=n: (torch.full((1, 4), n + 1.0),) for n in range(6)]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    randomness = Recorded()
    settings = PrivacySettings(1.5, 0.01, 0.5, 6)
    trainer = PrivateTrainer(
        model, optimizer, lambda net, t: net(t[0]).mean(), settings, randomness=randomness
    )
    add_correction(optimizer, model, correction)
    reports = trainer.train(patients, steps)
    return {n: p.detach().numpy() for n, p in model.named_parameters()}, randomness.drawn, reports


def test_a_correction_shifts_every_step_and_touches_neither_clipping_nor_noise():
    rng = np.random.default_rng(2)
    correction = {"weight": rng.normal(size=(2, 4)).astype(np.float32)}
    plain, drawn, reports = train({})
    shifted, drawn_too, reports_too = train(correction)
    assert len(drawn) == len(drawn_too) == 3 * 3  # who takes part, and noise for two parameters, in each step
    assert all(torch.equal(one, two) for one, two in zip(drawn, drawn_too, strict=True))
    assert reports == reports_too
    assert shifted["weight"] - plain["weight"] == pytest.approx(-3 * 0.1 * correction["weight"], abs=1e-5)
    assert (shifted["bias"] == plain["bias"]).all()  # as a parameter that stays in the clinic


def test_a_correction_that_no_server_of_ours_sends_is_refused_before_anything_is_booked(open_hospital):
    site = open_hospital(training=SGD, strategy=SCAFFOLD)
    zero = {name: np.zeros_like(value) for name, value in site.arrays.items()}
    name = next(iter(zero))
    bad = [
        {k: v for k, v in zero.items() if k != name},
        {**zero, "more": np.zeros(1, np.float32)},
        {**zero, name: zero[name][:1]},
        {**zero, name: zero[name].astype(np.float64)},
        {**zero, name: np.full_like(zero[name], np.nan)},
        {**zero, name: np.full_like(zero[name], -np.inf)},
        {**zero, name: np.full_like(zero[name], 2 * LONGEST_CORRECTION)},
    ]
    answers = [take_part(with_correction(site.arrays, one), site.order, site.clinic) for one in bad]
    assert [one.refusal for one in answers] == [Refusal.BAD_ORDER] * len(bad)
    other = open_hospital(name="other", training=SGD)
    orders = with_correction(other.arrays, zero)
    assert take_part(orders, other.order, other.clinic).refusal is Refusal.BAD_ORDER
    assert site.clinic.ledger().account().reservations == {}


@pytest.mark.parametrize("local_norms", [False, True])
def test_a_corrected_round_moves_by_the_correction_and_is_replayed_only_for_the_same_one(
    open_hospital, local_norms
):
    training = {**SGD, "local_norms": local_norms}
    site = open_hospital(training=training, strategy=SCAFFOLD)
    correction = {name: np.full_like(value, 1e4) for name, value in site.arrays.items()}
    norms = site.clinic.task.model.local_arrays()
    asked = with_correction(site.arrays, correction)
    reply = take_part(asked, site.order, site.clinic)
    assert reply.refusal is None
    for name, value in site.arrays.items():  # beside 10⁴, gradients and noise are nothing
        assert reply.arrays[name] - value == pytest.approx(-2 * 0.01 * correction[name], rel=0.1)
    after = site.clinic.task.model.local_arrays()
    assert bool(norms) is local_norms
    assert all(np.abs(after[name] - value).max() < 10 for name, value in norms.items())
    again = open_hospital(training=training, strategy=SCAFFOLD)
    assert take_part(asked, site.order, again.clinic).replayed
    changed = with_correction(site.arrays, {name: value * 2 for name, value in correction.items()})
    assert take_part(changed, site.order, again.clinic).refusal is Refusal.ALREADY_ANSWERED
    assert take_part(site.arrays, site.order, again.clinic).refusal is Refusal.ALREADY_ANSWERED


def test_a_corrected_round_costs_what_any_round_costs(open_hospital):
    plain = open_hospital(training=SGD, strategy=SCAFFOLD)
    spent = take_part(plain.arrays, plain.order, plain.clinic).epsilon_spent
    moved = {name: np.ones_like(value) for name, value in plain.arrays.items()}
    site = open_hospital(name="again", training=SGD, strategy=SCAFFOLD)
    clinic = dataclasses.replace(site.clinic, folder=site.clinic.folder / "elsewhere")
    assert take_part(with_correction(site.arrays, moved), site.order, clinic).epsilon_spent == spent
