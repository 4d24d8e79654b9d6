"""From a plan to a training: the networks that nnU-Net would build, and others fitted by the same rule."""

from __future__ import annotations

import math

import pytest
import torch

from fedvox.config import validate
from fedvox.errors import ConfigError
from fedvox.models.registry import build_model
from fedvox.planning.backbones import plan_backbone
from fedvox.planning.facts import DatasetFacts, IntensityProperties
from fedvox.planning.planner import plan_experiment
from fedvox.planning.presets import PRESETS
from fedvox.training.config import PretrainConfig
from fedvox.training.estimate import GIB, cost_of

INTENSITY = IntensityProperties(3000.0, 100.0, 99.0, -1000.0, -18.0, 201.0, 41.0)


def plan(spacing, shape, preset="resenc-l", channels=("CT",)):
    facts = DatasetFacts(
        "example", (spacing,) * 20, (shape,) * 20, 1.0, channels, 3, (INTENSITY,) * len(channels)
    )
    return plan_experiment(facts, PRESETS[preset])


ISO = ((1.0, 1.0, 1.0), (180, 200, 190))
THICK = ((5.0, 0.8, 0.8), (30, 400, 380))
SAGITTAL = ((0.8, 0.8, 5.0), (400, 380, 30))


@pytest.mark.parametrize("data", [ISO, THICK, SAGITTAL])
@pytest.mark.parametrize(
    ("preset", "model"),
    [("unet", "plain-unet"), ("resenc-m", "resenc-unet-m"), ("resenc-l", "resenc-unet-l")],
)
def test_the_network_that_is_trained_is_the_one_that_was_planned(data, preset, model):
    found = plan(*data, preset=preset)
    trained = plan_backbone(found, classes=3, memory_gib=24)
    assert trained.model == model
    with torch.device("meta"):
        network = build_model(trained.model, in_channels=1, classes=3, **trained.options)
    full = found.configurations["3d_fullres"]
    assert network.divisor == found.in_volume_order(full.topology.divisor)
    assert trained.patch_size == found.in_volume_order(full.patch_size)
    assert trained.batch_size == full.batch_size
    assert tuple(network.config.features) == full.features
    assert [k[found.transpose[0]] for k in network.config.kernels] == [k[0] for k in full.topology.kernels]
    out = network.eval()(torch.empty(1, 1, *trained.patch_size, device="meta"))
    assert out.shape == (1, 3, *trained.patch_size)


@pytest.mark.parametrize("data", [ISO, THICK, SAGITTAL])
def test_a_plan_has_the_parameters_that_nnunets_network_has(data):
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    found = plan(*data)
    full = found.configurations["3d_fullres"]
    with torch.device("meta"):
        theirs = unet.ResidualEncoderUNet(
            1, full.topology.num_stages, full.features, torch.nn.Conv3d, full.topology.kernels, full.topology.strides,
            full.encoder_blocks, 3, full.decoder_blocks, True, torch.nn.InstanceNorm3d, {"eps": 1e-5, "affine": True},
            None, None, torch.nn.LeakyReLU, {"inplace": True}, True,
        )  # fmt: skip
        trained = plan_backbone(found, classes=3, memory_gib=24)
        ours = build_model(trained.model, in_channels=1, classes=3, **trained.options)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert full.feature_map_elements(3) == unet.ResidualEncoderUNet.compute_conv_feature_map_size(
        theirs, full.patch_size
    ) - _deep_supervision(full, 3)


def _deep_supervision(configuration, classes: int) -> int:
    """Logits of the coarser heads, which nnU-Net's planner leaves out."""
    edges, total = list(configuration.patch_size), 0
    for stride in configuration.topology.strides[:-1]:
        edges = [n // s for n, s in zip(edges, stride, strict=True)]
        total += classes * math.prod(edges)
    return total - classes * math.prod(configuration.patch_size)


@pytest.mark.parametrize("data", [ISO, THICK, SAGITTAL])
@pytest.mark.parametrize("model", ["mednext-v1-s", "mednext-v2-tiny"])
def test_a_mednext_takes_kernels_and_strides_from_the_spacing_and_fits_the_memory(data, model):
    found = plan(*data)
    trained = plan_backbone(found, model=model, classes=3, memory_gib=10)
    with torch.device("meta"):
        network = build_model(model, in_channels=1, classes=3, **trained.options)
    cost = cost_of(network, 1, trained.patch_size, bf16=True)
    used = (16 * cost.parameters + trained.batch_size * cost.activation_bytes) / GIB
    larger = (16 * cost.parameters + (trained.batch_size + 1) * cost.activation_bytes) / GIB
    assert used <= 10 * 1.02
    assert larger > 10 * 0.98  # one more patch would not fit
    coarse = max(range(3), key=lambda axis: data[0][axis])
    if max(data[0]) > 2 * min(data[0]):
        assert network.config.kernels[0][coarse] == 1
        assert network.config.strides[0][coarse] == 1
        assert trained.patch_size[coarse] < min(
            n for axis, n in enumerate(trained.patch_size) if axis != coarse
        )


@pytest.mark.parametrize("data", [ISO, THICK, SAGITTAL])
@pytest.mark.parametrize("model", ["primus-v1-s", "primus-v2-tiny"])
def test_a_primus_is_planned_in_whole_tokens_and_fits_the_memory(data, model):
    memory_gib = 10
    found = plan_backbone(plan(*data), model=model, classes=3, memory_gib=memory_gib)
    assert all(n % 8 == 0 for n in found.patch_size)
    with torch.device("meta"):
        network = build_model(model, in_channels=1, classes=3, **found.options)
    assert tuple(network.config.patch) == tuple(found.patch_size)
    cost = cost_of(network, 1, found.patch_size, bf16=True)
    # Weights, gradients and two moments in float32; activations as counted for this very network.
    held = 16 * cost.parameters + found.batch_size * cost.activation_bytes
    assert held <= 1.02 * memory_gib * GIB
    assert held + cost.activation_bytes > 0.98 * memory_gib * GIB  # one more patch would not fit
    assert found.optimizer["lr"] == 3e-4
    assert found.optimizer["warmup_steps"] == 12_500


def test_more_memory_gives_more_voxels():
    found = plan(*ISO)
    voxels = []
    for memory_gib in (4, 8, 16, 40):
        trained = plan_backbone(found, model="mednext-v1-s", classes=3, memory_gib=memory_gib)
        voxels.append(trained.batch_size * math.prod(trained.patch_size))
    assert voxels == sorted(voxels)
    assert voxels[-1] > 2 * voxels[0]


def test_a_small_patch_keeps_the_published_depth():
    trained = plan_backbone(
        plan((1.0, 1.0, 1.0), (24, 24, 24)), model="mednext-v2-tiny", classes=3, memory_gib=4
    )
    network = build_model("mednext-v2-tiny", in_channels=1, classes=3, **trained.options)
    assert network.config.levels == 4
    assert any("share a resolution" in decision.reason for decision in trained.decisions)
    assert network.eval()(torch.zeros(1, 1, *trained.patch_size)).shape[2:] == trained.patch_size


def test_the_values_are_a_valid_training_configuration():
    for model in (None, "mednext-v1-s"):
        trained = plan_backbone(plan(*THICK), model=model, classes=3, memory_gib=16)
        config = validate(PretrainConfig, trained.training_values(), source="plan")
        assert config.data.patch_size == trained.patch_size
        assert config.optimizer.name == ("sgd" if model is None else "adamw")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"configuration": "2d"}, "is 2D"),
        ({"configuration": "4d"}, "no configuration '4d'"),
        ({"model": "mednext-v9"}, "no model named"),
        ({"model": "mednext-v2-base", "memory_gib": 0.5}, "hold no patch"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        plan_backbone(plan(*ISO), **{"classes": 3, "memory_gib": 24, **options})
