"""MedNeXt against the published parameter counts, the original's activations and MONAI's implementation."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from monai.networks.blocks.mednext_block import MedNeXtDownBlock
from monai.networks.nets.mednext import MedNeXt as MonaiMedNeXt
from monai.networks.nets.mednext import create_mednext
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.models.mednext import SIZES, MedNeXt, MedNeXtBlock, MedNeXtConfig
from fedvox.models.registry import build_model

COUNTS = json.loads((Path(__file__).parent / "data" / "param_counts.json").read_text())
PUBLISHED = [key for key in COUNTS if re.fullmatch(r"mednext_v\d_\w+_k\d_in1_cls\d+_ds[01](_nodummy)?", key)]
ORIGINAL_NAMES = {"conv1": "depthwise", "conv2": "expand", "conv3": "compress", "res_conv": "shortcut"}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("key", PUBLISHED)
def test_parameter_counts_are_the_published_ones(key: str) -> None:
    _, version, size, kernel, _, classes, supervised, *no_dummy = key.split("_")
    with torch.device("meta"):
        model = build_model(
            f"mednext-{version}-{size.lower()}",
            in_channels=1,
            classes=int(classes.removeprefix("cls")),
            kernel=int(kernel.removeprefix("k")),
            deep_supervision=supervised == "ds1",
        )
    dummy = 0 if no_dummy else 1  # the original of version 1 registers one number that it never uses
    assert parameters(model) == COUNTS[key] - dummy


def test_every_published_size_was_counted() -> None:
    assert len(PUBLISHED) == 40
    counted = {tuple(key.split("_")[1:3]) for key in PUBLISHED}
    assert counted == {("v1", s) for s in "SBML"} | {("v2", "base"), ("v2", "wide")}


def ours_from_original(name: str) -> str:
    if name.startswith("grn_"):
        return name.replace("_", ".")
    part, kind = name.rsplit(".", 1)
    return f"{ORIGINAL_NAMES.get(part, part)}.{kind}"


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("mednext/block_c4_r2_k3", lambda: MedNeXtBlock(4, 4, 2, (3, 3, 3))),
        ("mednext/block_c4_r2_k3_grn(mean)", lambda: MedNeXtBlock(4, 4, 2, (3, 3, 3), grn="mean")),
        (
            "mednext/up_c4_2_r2_k3_res(leftpad)",
            lambda: MedNeXtBlock(4, 2, 2, (3, 3, 3), resample="up", stride=(2, 2, 2)),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_reproduce_the_originals_activations(
    key, block, dtype, reference, fill, formula_input, assert_activation
) -> None:
    entry = reference[key]
    module = block().double()
    fill(module, entry["params"], {name: ours_from_original(name) for name, _ in entry["params"]})
    x = formula_input(entry["input"])
    if dtype == torch.float64:
        assert_activation(module(x), entry)
    else:  # the CPU's fast kernels take float32 in channels-last memory
        fast = module.float()(x.float().contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(fast.double(), module.double()(x), rtol=1e-5, atol=1e-5)


def monai_weights(monai: nn.Module, ours: MedNeXt) -> dict[str, Tensor]:
    """MONAI's weights under our names: its up blocks and stages go from coarse to fine."""
    levels = ours.config.levels
    blocks = {"conv1": "depthwise", "conv2": "expand", "conv3": "compress", "res_conv": "shortcut"}
    blocks |= {"global_resp_gamma": "grn.gamma", "global_resp_beta": "grn.beta"}
    state = {}
    for name, value in monai.state_dict().items():
        parts = [blocks.get(part, part) for part in name.split(".")]
        match parts[0]:
            case "enc_stages":
                parts[:1] = ["encoder", "stages"]
            case "bottleneck":
                parts[:1] = ["encoder", "stages", str(levels - 1)]
            case "down_blocks":
                parts[:1] = ["encoder", "downs"]
            case "dec_stages":
                parts[:2] = ["decoder", "stages", str(levels - 2 - int(parts[1]))]
            case "up_blocks":
                parts[:2] = ["decoder", "ups", str(levels - 2 - int(parts[1]))]
            case "out_0":
                parts[:2] = ["heads", "0"]
            case "out_blocks":
                parts[:3] = ["heads", str(levels - 1 - int(parts[1]))]
        if parts[0] == "heads" and parts[-1] == "weight":
            value = value.transpose(0, 1)  # a transposed convolution there, a convolution here
        key = ".".join(parts)
        state[key] = value.reshape(ours.state_dict()[key].shape)
    return state


def assert_same_logits(ours: MedNeXt, monai: nn.Module, size: tuple[int, int, int]) -> None:
    """Equal logits at all levels, in float32 (the CPU's fast kernels) and in float64."""
    ours.load_state_dict(monai_weights(monai, ours))
    image = torch.randn(1, ours.config.in_channels, *size)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        with torch.no_grad():
            mine = ours.train().to(dtype)(image.to(dtype))
            theirs = monai.train().to(dtype)(image.to(dtype))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_same_gradients(ours: MedNeXt, monai: nn.Module, size: tuple[int, int, int]) -> None:
    """Equal gradients of every weight: in float64 to its precision, in float32 to that of the largest gradient."""
    ours.load_state_dict(monai_weights(monai, ours))
    image = torch.randn(1, ours.config.in_channels, *size, dtype=torch.float64)
    outs = monai.double().train()(image)
    sum(out.square().mean() for out in outs).backward()
    for parameter in monai.parameters():
        parameter.data = parameter.grad
    expected = monai_weights(monai, ours)
    largest = max(value.abs().max() for value in expected.values())
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        ours.to(dtype).zero_grad()
        sum(out.square().mean() for out in ours(image.to(dtype))).backward()
        for name, parameter in ours.named_parameters():
            difference = (parameter.grad - expected[name]).abs().max()
            assert difference < tolerance * largest, name


@pytest.mark.parametrize(("size", "kernel"), [("s", 3), ("s", 5), ("b", 3), ("m", 3), ("l", 3)])
def test_the_same_weights_give_monais_logits(size: str, kernel: int) -> None:
    monai = create_mednext(size, in_channels=2, out_channels=3, kernel_size=kernel, deep_supervision=True)
    # MONAI's down blocks have the ratio of the stage before them, the original's that of the stage after.
    ratios = SIZES[f"mednext-v1-{size}"].expansions[:4]
    ours = build_model(f"mednext-v1-{size}", in_channels=2, classes=3, kernel=kernel, down_expansions=ratios)
    assert_same_logits(ours, monai, (16, 16, 32))


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_same_weights_give_monais_gradients(kernel: int) -> None:
    monai = create_mednext("s", in_channels=1, out_channels=2, kernel_size=kernel, deep_supervision=True)
    ours = build_model("mednext-v1-s", in_channels=1, classes=2, kernel=kernel)
    assert_same_gradients(ours, monai, (16, 16, 32))


def test_monais_blocks_wired_as_the_original_with_grn_everywhere_are_version_2() -> None:
    config = MedNeXtConfig(1, 2, 8, blocks=(1, 2, 1, 1, 2), expansions=(2, 3, 4, 3, 2), grn="mean")
    monai = MonaiMedNeXt(
        init_filters=8,
        encoder_expansion_ratio=(2, 3),
        bottleneck_expansion_ratio=4,
        decoder_expansion_ratio=(3, 2),
        kernel_size=3,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=(1, 2),
        blocks_bottleneck=1,
        blocks_up=(1, 2),
        global_resp_norm=True,
    )
    monai.down_blocks = nn.ModuleList(
        MedNeXtDownBlock(
            c, 2 * c, ratio, 3, use_residual_connection=True, norm_type="group", global_resp_norm=True
        )
        for c, ratio in ((8, 3), (16, 4))
    )
    for name, parameter in monai.named_parameters():
        if "global_resp" in name:
            nn.init.normal_(parameter, std=0.3)
    ours = MedNeXt(config)
    assert_same_logits(ours, monai, (16, 24, 16))
    assert_same_gradients(MedNeXt(config), monai.float(), (16, 24, 16))


def test_every_block_of_version_2_has_grn_and_none_of_version_1() -> None:
    with torch.device("meta"):
        v2 = build_model("mednext-v2-base", in_channels=1, classes=2)
        v1 = build_model("mednext-v1-l", in_channels=1, classes=2)
    blocks = [m for m in v2.modules() if isinstance(m, MedNeXtBlock)]
    assert len(blocks) == 3 + 4 + 8 + 8 + 8 + 8 + 8 + 4 + 3 + 8
    assert all(hasattr(block.grn, "gamma") for block in blocks)
    assert not any(hasattr(m, "gamma") for m in v1.modules())


def test_version_2_starts_as_version_1() -> None:
    v1 = build_model("mednext-v2-nano", in_channels=1, classes=2, grn=None).eval()
    v2 = build_model("mednext-v2-nano", in_channels=1, classes=2).eval()
    v2.load_state_dict(v1.state_dict(), strict=False)
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(v2(image), v1(image))


def test_deep_supervision_returns_all_levels_in_training_only() -> None:
    model = build_model("mednext-v2-nano", in_channels=1, classes=3)
    image = torch.randn(2, 1, 16, 8, 12)
    assert [tuple(out.shape) for out in model.train()(image)] == [
        (2, 3, 16, 8, 12),
        (2, 3, 8, 4, 6),
        (2, 3, 4, 2, 3),
    ]
    assert model.eval()(image).shape == (2, 3, 16, 8, 12)
    model.train().deep_supervision = False
    assert model(image).shape == (2, 3, 16, 8, 12)


def test_kernels_and_strides_may_differ_by_axis_and_level() -> None:
    model = build_model(
        "mednext-v2-nano",
        in_channels=1,
        classes=2,
        kernel=[[1, 3, 3], [3, 3, 3], [3, 5, 5]],
        stride=[[1, 2, 2], [2, 2, 2]],
    )
    assert model.divisor == (2, 4, 4)
    outs = model(torch.randn(1, 1, 6, 16, 20))
    assert [tuple(out.shape[2:]) for out in outs] == [(6, 16, 20), (6, 8, 10), (3, 4, 5)]
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    shapes = {tuple(m.depthwise.weight.shape[2:]) for m in model.modules() if isinstance(m, MedNeXtBlock)}
    assert shapes == {(1, 3, 3), (3, 3, 3), (3, 5, 5)}


def test_a_flat_kernel_never_mixes_slices() -> None:
    model = build_model(
        "mednext-v2-nano", in_channels=1, classes=2, kernel=[1, 3, 3], stride=[1, 2, 2], grn=None
    )
    for norm in (m for m in model.modules() if isinstance(m, nn.GroupNorm)):
        norm.forward = lambda x: x  # instance norm sees the whole volume
    image = torch.randn(1, 1, 4, 8, 8)
    changed = image.clone()
    changed[:, :, 2] += 1
    difference = (model.eval()(image) - model(changed)).abs().amax((0, 1, 3, 4))
    assert difference[2] > 1e-3
    assert difference[[0, 1, 3]].max() == 0


def kept_for_backward(model: nn.Module, image: Tensor) -> tuple[int, Tensor]:
    """Bytes of distinct tensors kept by a forward pass, and its loss."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = sum(out.square().mean() for out in model(image))
    return sum(kept.values()), loss


@pytest.mark.parametrize(
    ("version", "option", "at_most"),
    [
        ({"grn": None}, "recompute_activations", 0.85),
        ({"grn": "mean"}, "recompute_activations", 0.65),
        ({"grn": "mean"}, "checkpoint_blocks", 0.35),
    ],
)
def test_recomputing_gives_the_same_gradients_from_less_memory(
    version: dict, option: str, at_most: float
) -> None:
    def build(**options: bool) -> MedNeXt:
        return build_model("mednext-v2-tiny", in_channels=1, classes=2, **version, **options)

    plain = build(recompute_activations=False)
    frugal = build(**{option: True})
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    frugal.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 16, 16, 16)
    weights = sum(p.numel() * p.element_size() for p in plain.parameters())
    (plain_bytes, plain_loss), (frugal_bytes, frugal_loss) = (
        kept_for_backward(m, image) for m in (plain, frugal)
    )
    assert frugal_bytes - weights < at_most * (plain_bytes - weights)
    plain_loss.backward()
    frugal_loss.backward()
    for a, b in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"blocks": (1, 1), "expansions": (2, 2)}, "blocks"),
        ({"blocks": (1, 1, 1)}, "expansions"),
        ({"down_expansions": (2,)}, "down_expansions"),
        ({"kernel": 4}, "kernel"),
        ({"kernel": (3, 3)}, "kernel"),
        ({"kernel": "three"}, "kernel"),
        ({"stride": 0}, "stride"),
        ({"grn": "median"}, "grn"),
        ({"width": 0}, "width"),
        ({"classes": True}, "classes"),
        ({"in_channels": -1}, "in_channels"),
    ],
)
def test_a_config_that_makes_no_network_is_refused_by_field(fields: dict, named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        dataclasses.replace(MedNeXtConfig(), **fields)
    assert named in refusal.value.message
    assert refusal.value.remedy


def test_a_patch_that_cannot_be_halved_is_refused_with_the_next_larger() -> None:
    model = build_model("mednext-v2-nano", in_channels=1, classes=2)
    with pytest.raises(ConfigError, match=r"\(30, 32, 32\) is not divisible") as refusal:
        model(torch.zeros(1, 1, 30, 32, 32))
    assert "(32, 32, 32)" in refusal.value.remedy


def test_a_patch_that_ends_in_a_single_voxel_is_refused() -> None:
    model = build_model("mednext-v2-nano", in_channels=1, classes=2)
    with pytest.raises(ConfigError, match="a single voxel") as refusal:
        model(torch.zeros(2, 1, 4, 4, 4))
    assert "larger than (4, 4, 4)" in refusal.value.remedy
    assert model.eval()(torch.zeros(1, 1, 4, 4, 8)).shape == (1, 2, 4, 4, 8)


def test_a_batch_of_another_channel_count_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(B, 1, D, H, W\), got \(1, 2, 8, 8, 8\)"):
        build_model("mednext-v2-nano", in_channels=1, classes=2)(torch.zeros(1, 2, 8, 8, 8))
