"""The engine against federated averaging written out by hand, and against the noise that there must be."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvox_federation.experiment.engine import LocalTraining, Participant, federate, read_trained


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def make_data(sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, generator=generator), torch.randint(0, 2, (n,), generator=generator))
        for n in sizes
    ]


def patients_of(inputs, targets):
    return [lambda x=x, y=y: (x[None], y[None]) for x, y in zip(inputs, targets, strict=True)]


def always(patients):
    return Participant(lambda _: patients, 0.0)


def classify(model, tensors):
    return F.cross_entropy(model(tensors[0]), tensors[1])


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_without_noise_it_is_federated_averaging(mode):
    data = make_data([4, 9])
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    weight = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        trained = []
        for inputs, targets in data:
            w, b = (weight[name].clone().requires_grad_() for name in ("weight", "bias"))
            for _ in range(2):
                loss = F.cross_entropy(inputs @ w.T + b, targets)
                gw, gb = torch.autograd.grad(loss, (w, b))
                w, b = (p.detach().sub(0.5 * g).requires_grad_() for p, g in ((w, gw), (b, gb)))
            trained.append({"weight": w.detach(), "bias": b.detach()})
        weight = {name: (4 * trained[0][name] + 9 * trained[1][name]) / 13 for name in weight}
    parts = {f"clinic_{n}": always(patients_of(*held)) for n, held in enumerate(data)}
    federate(model, parts, LocalTraining(classify, sgd(0.5), 2, 1.0, 1.0, mode, 64), rounds=3)
    for name, value in read_trained(model).items():
        assert value == pytest.approx(weight[name].numpy(), abs=1e-6)


@pytest.mark.parametrize("weighting", ["size", "inverse-noise"])
def test_noise_reaches_the_average_as_theory_says(weighting):
    """Nothing to learn: what moves is noise, of known variance."""
    sigmas, count, steps, lr, clip = (1.0, 3.0), 4, 5, 0.1, 2.0
    model = nn.Linear(20000, 1, bias=False)
    nn.init.zeros_(model.weight)
    parts = {
        f"c{n}": Participant(lambda _: [lambda: (torch.zeros(1, 1),)] * count, sigma)
        for n, sigma in enumerate(sigmas)
    }
    local = LocalTraining(lambda m, _: 0 * m.weight.sum(), sgd(lr), steps, 0.5, clip)
    federate(model, parts, local, rounds=1, weighting=weighting)
    each = [lr * sigma * clip / (0.5 * count) * math.sqrt(steps) for sigma in sigmas]
    weights = (0.5, 0.5) if weighting == "size" else (0.9, 0.1)
    deviation = math.sqrt(sum((w * e) ** 2 for w, e in zip(weights, each, strict=True)))
    assert float(model.weight.detach().std()) == pytest.approx(deviation, rel=0.03)


def test_what_is_frozen_stays_and_rounds_are_told():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    (inputs, targets), told, asked = make_data([5])[0], [], []

    def patients(number):
        asked.append(number)
        return patients_of(inputs, targets)

    local = LocalTraining(classify, sgd(0.5), 1, 1.0, 1.0)
    federate(model, {"a": Participant(patients, 0.5)}, local, rounds=3, on_round=told.append)
    assert told == asked == [1, 2, 3]
    assert torch.equal(model[0].weight, before)
    assert set(read_trained(model)) == {"1.weight", "1.bias"}
    assert all(np.isfinite(value).all() for value in read_trained(model).values())
