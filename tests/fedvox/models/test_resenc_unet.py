"""nnU-Net's networks against the published parameter counts and the original code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.models.registry import build_model
from fedvox.models.resenc_unet import ResEncUNet, ResEncUNetConfig

COUNTS = json.loads((Path(__file__).parent / "data" / "param_counts.json").read_text())
SEVEN_STAGES: dict[str, Any] = {
    "resenc": {
        "features": (32, 64, 128, 256, 320, 320, 320),
        "blocks": (1, 3, 4, 6, 6, 6, 6),
        "decoder_convs": (1,) * 6,
    },
}


def ours_from_original(name: str, levels: int) -> str:
    """Our name of a parameter of `dynamic-network-architectures`, whose decoder counts from coarse to fine."""
    parts = name.split(".")
    fine = {"stages": "stages", "transpconvs": "ups"}
    if parts[0] == "encoder" and parts[1] == "stem":
        return ".".join(["stem", *parts[4:]])
    if parts[0] == "encoder":
        parts = [part for part in parts if part not in ("blocks", "convs")]
        return ".".join(parts).replace("skip.0.", "project.").replace("skip.1.", "project.")
    level = str(levels - 2 - int(parts[2]))
    if parts[1] == "seg_layers":
        return ".".join(["heads", level, *parts[3:]])
    return ".".join(["decoder", fine[parts[1]], level, *[part for part in parts[3:] if part != "convs"]])


def original_weights(original: nn.Module, ours: ResEncUNet) -> dict[str, Tensor]:
    """The original's weights under our names; it registers each of them several times."""
    named = dict(original.named_parameters())  # without the repetitions
    plain = not ours.config.residual
    state = {}
    for name, value in named.items():
        mine = ours_from_original(name, ours.config.levels)
        if plain and mine.startswith("encoder.stages."):
            _, _, stage, _, index, *rest = mine.split(".")
            first = stage == "0" and index == "0"
            place = str(int(index) - 1) if stage == "0" else index
            mine = ".".join(["stem", *rest] if first else ["encoder", "stages", stage, place, *rest])
        state[mine] = value
    return state


def original_network(config: ResEncUNetConfig) -> nn.Module:
    kind, blocks = (
        (ResidualEncoderUNet, "n_blocks_per_stage")
        if config.residual
        else (PlainConvUNet, "n_conv_per_stage")
    )
    return kind(
        config.in_channels,
        config.levels,
        config.features,
        nn.Conv3d,
        config.kernels,
        ((1, 1, 1), *config.strides),
        num_classes=config.classes,
        n_conv_per_stage_decoder=config.decoder_convs[::-1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=config.deep_supervision,
        **{blocks: config.blocks},
    )


CONFIGS = {
    "isotropic": ResEncUNetConfig(2, 3, (8, 16, 32, 32), (1, 3, 2, 2), (1, 1, 1)),
    "anisotropic": ResEncUNetConfig(
        1,
        3,
        (4, 8, 16),
        (1, 2, 2),
        (1, 2),
        kernel=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        stride=((1, 2, 2), (2, 2, 2)),
    ),
    "plain": ResEncUNetConfig(1, 2, (8, 16, 32), (2, 2, 2), (2, 2), residual=False),
}


@pytest.mark.parametrize("supervised", [0, 1])
@pytest.mark.parametrize("classes", [2, 14])
@pytest.mark.parametrize(
    ("key", "name", "fields"),
    [
        ("resenc_unet_6stage", "resenc-unet-m", {}),
        ("resenc_unet_6stage", "resenc-unet-l", {}),
        ("resenc_unet_6stage", "resenc-unet-xl", {}),
        ("resenc_unet_7stage", "resenc-unet-l", SEVEN_STAGES["resenc"]),
        ("plainconv_unet_6stage", "plain-unet", {}),
    ],
)
def test_parameter_counts_are_the_published_ones(
    key: str, name: str, fields: dict[str, Any], classes: int, supervised: int
) -> None:
    with torch.device("meta"):
        model = build_model(name, in_channels=1, classes=classes, deep_supervision=bool(supervised), **fields)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[f"{key}_iso_in1_cls{classes}_ds{supervised}"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_same_weights_give_the_originals_logits_and_gradients(
    config: ResEncUNetConfig, dtype: torch.dtype
) -> None:
    original, ours = original_network(config).to(dtype), ResEncUNet(config).to(dtype)
    for parameter in original.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    ours.load_state_dict(original_weights(original, ours))
    image = torch.randn(2, config.in_channels, 8, 16, 24, dtype=dtype)
    mine, theirs = ours(image), original(image)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

    for outs in (mine, theirs):
        sum(out.square().mean() for out in outs).backward()
    for parameter in original.parameters():
        parameter.data = parameter.grad
    expected = original_weights(original, ours)
    largest = max(value.abs().max() for value in expected.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() < tolerance * largest, name


def test_the_published_size_gives_the_originals_logits() -> None:
    ours = build_model("resenc-unet-l", in_channels=1, classes=2, deep_supervision=False).eval()
    original = original_network(ours.config).eval()
    original.apply(ResidualEncoderUNet.initialize)
    ours.load_state_dict(original_weights(original, ours))
    image = torch.randn(1, 1, 32, 64, 32)
    torch.testing.assert_close(ours(image), original(image), rtol=1e-3, atol=1e-3)


def test_it_reproduces_the_originals_activations(reference, fill, formula_input, assert_activation) -> None:
    entry = reference["resenc/3stage_aniso"]
    config = ResEncUNetConfig(
        1,
        3,
        (4, 8, 16),
        (1, 2, 2),
        (1, 1),
        kernel=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        stride=((1, 2, 2), (2, 2, 2)),
    )
    model = ResEncUNet(config).double()
    fill(model, entry["params"], {name: ours_from_original(name, 3) for name, _ in entry["params"]})
    outs = model.train()(formula_input([1, 1, 8, 16, 16]))
    for out, expected in zip(outs, entry["outs"], strict=True):
        assert_activation(out, expected)


def test_it_starts_as_the_original_does() -> None:
    ours = build_model("resenc-unet-l", in_channels=1, classes=2)
    blocks = [m for m in ours.modules() if type(m).__name__ == "ResidualBlock"]
    assert len(blocks) == 1 + 3 + 4 + 6 + 6 + 6
    assert all(block.conv2.norm.weight.abs().max() == 0 for block in blocks)
    weight = blocks[-1].conv1.conv.weight
    expected = (2 / (1 + 0.01**2) / weight[0].numel()) ** 0.5  # He et al. 2015, for a slope of 0.01
    assert weight.std().item() == pytest.approx(expected, rel=0.01)
    assert all(
        m.bias.abs().max() == 0 for m in ours.modules() if isinstance(m, nn.Conv3d) and m.bias is not None
    )


def test_strides_are_taken_as_nnunet_writes_them() -> None:
    fields: dict[str, Any] = {"features": (4, 8, 16), "blocks": (1, 1, 1), "decoder_convs": (1, 1)}
    with_first = ResEncUNetConfig(**fields, stride=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    without = ResEncUNetConfig(**fields, stride=((1, 2, 2), (2, 2, 2)))
    assert with_first.strides == without.strides == ((1, 2, 2), (2, 2, 2))
    assert ResEncUNet(with_first).divisor == (2, 4, 4)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"features": (32, 64)}, "features"),
        ({"blocks": ()}, "blocks"),
        ({"decoder_convs": (1, 1, 1, 1, 0)}, "decoder_convs"),
        ({"kernel": 2}, "kernel"),
        ({"stride": ((2, 2, 2), (2, 2, 2))}, "stride"),
    ],
)
def test_a_config_that_makes_no_network_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ResEncUNetConfig(**fields)


def test_recomputing_activations_gives_the_same_gradients_from_less_memory() -> None:
    kept: dict[bool, int] = {}
    gradients: dict[bool, list[Tensor]] = {}
    image = torch.randn(1, 1, 16, 16, 16)
    for recompute in (False, True):
        torch.manual_seed(0)
        model = build_model("resenc-unet-tiny", in_channels=1, classes=2, recompute_activations=recompute)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, into: dict[int, int] = storages) -> Tensor:
            into[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(out.square().mean() for out in model(image))
        kept[recompute] = sum(size for place, size in storages.items() if place not in weights)
        loss.backward()
        gradients[recompute] = [p.grad for p in model.parameters()]
    assert kept[True] < 0.9 * kept[False]
    for a, b in zip(gradients[True], gradients[False], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
