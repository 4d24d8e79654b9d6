import itertools

import pytest
import torch
from torch import nn

from fedvox.training.config import OptimizerSection
from fedvox.training.optimizer import build_optimizer, learning_rate, set_learning_rate


def test_warm_up_is_linear_and_the_decay_polynomial_to_zero():
    config = OptimizerSection(lr=1.0, warmup_steps=10, power=0.9)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5**0.9)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.02


def test_without_warm_up_it_is_nnunets_poly_schedule():
    config = OptimizerSection(name="sgd", lr=1e-2)
    module = nn.Linear(1, 1)
    theirs = torch.optim.lr_scheduler.PolynomialLR(
        torch.optim.SGD(module.parameters(), lr=1e-2), 100, power=0.9
    )
    for step in range(100):
        assert learning_rate(config, step, 100) == pytest.approx(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()


def test_weight_decay_spares_biases_norms_and_grn():
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.GroupNorm(4, 4))
    model.register_parameter("gamma", nn.Parameter(torch.zeros(1, 4, 1, 1, 1)))
    groups = build_optimizer(OptimizerSection(weight_decay=0.1), model).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 4)]


def test_the_rate_of_a_group_follows_its_scale():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimizerSection(), model)
    optimizer.param_groups[0]["lr_scale"] = 0.1
    set_learning_rate(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
