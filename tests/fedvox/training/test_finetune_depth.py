"""Layer-wise learning rates: a parameter's distance from the heads, and what follows for its update."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from fedvox.models.depth import layer_distance
from fedvox.models.registry import build_model
from fedvox.training.config import OptimizerSection
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.optimizer import build_optimizer, set_learning_rate
from fedvox.training.session import layer_scales
from fedvox.training.step import train_step

NETWORKS = {
    "mednext-v2-tiny": {},
    "resenc-unet-tiny": {},
    "plain-unet": {"features": (4, 8, 8), "blocks": (2, 2, 2), "decoder_convs": (2, 2)},
    "primus-v1-s": {"patch_size": 16, "width": 36, "depth": 3, "attention_heads": 2},
    "primus-v2-tiny": {"patch_size": 16, "width": 36, "depth": 3, "attention_heads": 2},
}


def build(name):
    torch.manual_seed(0)
    return build_model(name, in_channels=1, classes=3, **NETWORKS[name])


def in_order_of_execution(model):
    """The parameters' names, module by module as the forward pass comes to them."""
    order = []
    for name, module in model.named_modules():
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        module.register_forward_pre_hook(lambda *_, own=own: order.extend(n for n in own if n not in order))
    model.eval()(torch.randn(1, 1, 16, 16, 16))
    return order


@pytest.mark.parametrize("name", NETWORKS)
def test_the_distance_from_the_heads_falls_along_the_way_of_the_data(name):
    model = build(name)
    distance = layer_distance(model)
    order = in_order_of_execution(model)
    along = [distance[parameter] for parameter in order]
    assert all(one >= two for one, two in itertools.pairwise(along))
    assert distance.keys() == dict(model.named_parameters()).keys()
    assert {distance[n] for n in distance if n.startswith("heads.")} == {0}
    assert all(distance[n] == max(distance.values()) for n in distance if n.startswith("stem."))
    assert set(distance.values()) == set(range(max(along) + 1))


def test_layers_are_levels_of_a_u_net_and_blocks_of_a_transformer():
    assert max(layer_distance(build("mednext-v2-tiny")).values()) == 1 + 4 + 3  # stem, 4 levels down, 3 up
    assert max(layer_distance(build("resenc-unet-tiny")).values()) == 1 + 4 + 3
    assert max(layer_distance(build("primus-v1-s")).values()) == 1 + 3 + 2  # stem, 3 blocks, 2 upsamplings


@pytest.mark.parametrize("name", ["mednext-v2-tiny", "resenc-unet-tiny", "primus-v2-tiny"])
def test_a_step_of_gradient_descent_moves_each_layer_by_its_own_rate(name):
    model = build(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = OptimizerSection(name="sgd", momentum=0.0, weight_decay=0.0)
    optimizer = build_optimizer(config, model, layer_scales(model, 0.5))
    set_learning_rate(optimizer, 0.25)
    batch = SimpleNamespace(
        image=torch.randn(2, 1, 16, 16, 16),
        label=torch.randint(0, 3, (2, 1, 16, 16, 16)),
        annotated=torch.ones(2, 3, dtype=torch.bool),
    )
    train_step(model, batch, DeepSupervision(DiceCrossEntropy()), optimizer, grad_clip=1e9)
    distance = layer_distance(model)
    for parameter, value in model.named_parameters():
        expected = before[parameter] - 0.25 * 0.5 ** distance[parameter] * value.grad
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-8), parameter


def test_without_decay_the_optimiser_has_the_groups_of_pretraining():
    model = build("mednext-v2-tiny")
    assert layer_scales(model, 1.0) == {}
    assert [g["lr_scale"] for g in build_optimizer(OptimizerSection(), model).param_groups] == [1.0, 1.0]
    decayed = build_optimizer(OptimizerSection(), model, layer_scales(model, 0.5)).param_groups
    counted = [parameter for group in decayed for parameter in group["params"]]
    assert len(counted) == len(set(map(id, counted))) == len(list(model.parameters()))
