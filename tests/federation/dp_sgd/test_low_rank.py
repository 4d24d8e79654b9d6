"""Low-rank adapters: nothing at first, few numbers, and gone when merged."""

import pytest
import torch
from torch import nn

from fedvox.errors import ConfigError
from fedvox.models.registry import build_model
from fedvox_federation.dp_sgd.low_rank import LowRank, add_low_rank, merge_low_rank
from fedvox_federation.dp_sgd.preflight import preflight
from fedvox_federation.dp_sgd.trainable import select_trainable

BACKBONES = {
    "mednext-v2": ("mednext-v2-nano", {}),
    "resenc-unet": ("resenc-unet-tiny", {"features": (4, 8, 8, 8)}),
    "primus": ("primus-v1-s", {"patch_size": 16, "width": 12, "depth": 2, "attention_heads": 2, "drop_path": 0.0}),
}  # fmt: skip


@pytest.fixture(params=BACKBONES)
def model(request):
    torch.manual_seed(0)
    name, fields = BACKBONES[request.param]
    return build_model(name, in_channels=1, classes=2, deep_supervision=False, **fields)


def shake(model):
    """Adapters that do something."""
    for module in model.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.up.weight, std=0.1)


def loss(model, tensors):
    return (model(tensors[0]).float() * torch.linspace(-1, 1, 16)).flatten(1).sum(1).mean()


def test_a_fresh_adapter_changes_nothing_and_few_numbers_are_trained(model):
    images = torch.randn(1, 1, 16, 16, 16)
    before, total = model(images), sum(p.numel() for p in model.parameters())
    trained = select_trainable(model, "lora", rank=2)
    torch.testing.assert_close(model(images), before)
    assert 0 < sum(p.numel() for p in trained) < total / 2
    kinds = {name.rsplit(".", 2)[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert {"down", "up"} <= kinds


def test_merging_keeps_the_function_and_restores_every_name(model):
    names = list(model.state_dict())
    images = torch.randn(2, 1, 16, 16, 16)
    select_trainable(model, "lora", rank=2)
    shake(model)
    adapted = model(images)
    merge_low_rank(model)
    torch.testing.assert_close(model(images), adapted, rtol=1e-3, atol=1e-4)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_adapters_are_safe_for_private_training(model, mode):
    select_trainable(model, "lora", rank=2)
    shake(model)
    report = preflight(model, loss, (torch.randn(3, 1, 16, 16, 16),), mode=mode)
    report.require()


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5), nn.Conv3d(4, 6, 3, stride=2, padding=1), nn.Conv3d(4, 6, (1, 3, 3), dilation=2)],
    ids=["linear", "strided", "anisotropic"],
)
def test_a_merged_layer_is_the_layer_and_its_detour(layer):
    adapter = LowRank(layer, rank=2, scale=0.7)
    shake(nn.ModuleList([adapter]))
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 8, 8, 8)
    expected = adapter(x)
    torch.testing.assert_close(adapter.merged()(x), expected, rtol=1e-4, atol=1e-5)


def test_adapters_that_do_not_fit_are_refused(model):
    with pytest.raises(ConfigError, match="smaller rank"):
        select_trainable(model, "lora", rank=1000)
    with pytest.raises(ConfigError, match="at least 1"):
        add_low_rank(model, 0)
    add_low_rank(model, 1)
    with pytest.raises(ConfigError, match="already"):
        add_low_rank(model, 1)
