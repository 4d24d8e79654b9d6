"""Starting from weights of another network: what is kept, and that it means the same."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.errors import CheckpointError
from fedvox.models.backbone import Backbone
from fedvox.models.registry import build_model
from fedvox.models.transfer import inflate_channels, load_pretrained, resize_kernel, resize_positions

SMALL: dict[str, dict[str, Any]] = {
    "mednext-v2-nano": {},
    "resenc-unet-tiny": {"features": (4, 8, 8, 8)},
    "plain-unet": {"features": (4, 8), "blocks": (2, 2), "decoder_convs": (2,)},
    "primus-v1-s": {"patch_size": 16, "width": 12, "depth": 2, "attention_heads": 2},
    "primus-v2-tiny": {"patch_size": 16, "width": 12, "depth": 2},
}


def small(name: str, in_channels: int = 1, classes: int = 3, **fields: Any) -> Backbone:
    model = build_model(name, in_channels=in_channels, classes=classes, **{**SMALL[name], **fields})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_the_same_network_is_loaded_whole(name: str) -> None:
    old, new = small(name), small(name)
    report = load_pretrained(new, old.state_dict(), keep_heads=True)
    assert {entry.action for entry in report.entries} == {"loaded"}
    assert report.share() == 1
    assert not report.unused
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(new(image), old(image))


@pytest.mark.parametrize("name", SMALL)
def test_heads_of_another_task_start_anew_and_all_else_is_kept(name: str) -> None:
    old, new = small(name), small(name)
    before = {n: p.clone() for n, p in new.named_parameters()}
    report = load_pretrained(new, old.state_dict())
    assert set(report.names("new")) == {n for n in before if n.startswith("heads.")}
    for parameter_name, parameter in new.named_parameters():
        source = before if parameter_name.startswith("heads.") else dict(old.named_parameters())
        assert torch.equal(parameter, source[parameter_name])


@pytest.mark.parametrize("channels", [(1, 3), (4, 1), (2, 3)])
@pytest.mark.parametrize("name", SMALL)
def test_equal_image_channels_give_the_old_response(name: str, channels: tuple[int, int]) -> None:
    before, after = channels
    old, new = small(name, before), small(name, after)
    report = load_pretrained(new, old.state_dict(), keep_heads=True)
    assert all(n.startswith("stem.") for n in report.names("inflated"))
    assert report.names("inflated")
    assert not report.names("new")
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            new(image.expand(-1, after, -1, -1, -1)),
            old(image.expand(-1, before, -1, -1, -1)),
            rtol=1e-3,
            atol=1e-3,
        )


@pytest.mark.parametrize("name", ["mednext-v2-nano", "resenc-unet-tiny"])
def test_head_rows_go_to_the_structures_of_the_same_name(name: str) -> None:
    old, new = small(name, classes=3), small(name, classes=4)
    fresh = new.heads[0].weight.detach().clone()
    report = load_pretrained(
        new,
        old.state_dict(),
        structures=("background", "spleen", "Left Kidney", "liver"),
        pretrained_structures=("background", "liver", "left_kidney"),
    )
    assert "heads.0.weight" in report.names("matched")
    assert "new: spleen" in str(report)
    for head_new, head_old in zip(new.heads, old.heads, strict=True):
        assert torch.equal(head_new.weight[[0, 3, 2]], head_old.weight)
        assert torch.equal(head_new.bias[[0, 3, 2]], head_old.bias)
    assert torch.equal(new.heads[0].weight[1], fresh[1])
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(new(image)[:, [0, 3, 2]], old(image))


def test_head_rows_of_a_transposed_convolution_are_its_second_axis() -> None:
    old, new = small("primus-v1-s"), small("primus-v1-s")
    load_pretrained(
        new,
        old.state_dict(),
        structures=("background", "b", "a"),
        pretrained_structures=("background", "a", "b"),
    )
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(new(image)[:, [0, 2, 1]], old(image))


def test_names_that_do_not_fit_the_head_are_refused() -> None:
    old, new = small("mednext-v2-nano"), small("mednext-v2-nano")
    with pytest.raises(CheckpointError, match="structures names 2 structures, but the head has 3"):
        load_pretrained(
            new,
            old.state_dict(),
            structures=("background", "a"),
            pretrained_structures=("background", "a", "b"),
        )


def test_a_larger_patch_resizes_the_positions_and_keeps_the_rest() -> None:
    old = small("primus-v2-tiny")
    new = small("primus-v2-tiny", patch_size=(24, 16, 32))
    report = load_pretrained(new, old.state_dict(), keep_heads=True)
    assert report.names("resized") == ["encoder.position.weight"]
    expected = F.interpolate(
        old.encoder.position.weight.reshape(2, 2, 2, 12).permute(3, 0, 1, 2)[None],
        size=(3, 2, 4),
        mode="trilinear",
    )
    torch.testing.assert_close(new.encoder.position.weight, expected.flatten(2).transpose(1, 2))
    assert new(torch.randn(1, 1, 24, 16, 32)).isfinite().all()


def test_positions_of_an_oblong_patch_need_the_old_config() -> None:
    old = small("primus-v2-tiny", patch_size=(8, 16, 24))
    new = small("primus-v2-tiny", patch_size=(16, 32, 48))
    with pytest.raises(CheckpointError, match="no cube") as refusal:
        load_pretrained(new, old.state_dict())
    assert "pretrained_config" in refusal.value.remedy
    load_pretrained(new, old.state_dict(), pretrained_config=old.config)
    torch.testing.assert_close(
        new.encoder.position.weight.mean(1), old.encoder.position.weight.mean(1), rtol=0, atol=0.1
    )


def test_positions_that_grow_linearly_still_do_so_in_the_middle() -> None:
    x = torch.arange(6.0)
    old = (x[:, None, None] + 10 * x[None, :, None] + 100 * x[None, None, :]).reshape(1, -1, 1)
    new = resize_positions(old, (6, 6, 6), (12, 12, 12)).reshape(12, 12, 12)[1:-1, 1:-1, 1:-1]
    centres = (torch.arange(12.0) + 0.5) / 2 - 0.5
    c = centres[1:-1]
    torch.testing.assert_close(new, c[:, None, None] + 10 * c[None, :, None] + 100 * c[None, None, :])


def test_upkern_interpolates_every_depthwise_kernel_and_keeps_the_rest() -> None:
    old, new = small("mednext-v2-nano"), small("mednext-v2-nano", kernel=5)
    report = load_pretrained(new, old.state_dict(), keep_heads=True)
    assert set(report.names("resized")) == {n for n in new.state_dict() if n.endswith("depthwise.weight")}
    assert not report.names("new")
    weights = old.state_dict()
    for name in report.names("resized"):
        published = F.interpolate(weights[name], size=(5, 5, 5), mode="trilinear")
        torch.testing.assert_close(new.state_dict()[name], published)


def test_an_isotropic_mednext_becomes_an_anisotropic_one() -> None:
    old = small("mednext-v2-nano")
    new = small("mednext-v2-nano", kernel=((1, 3, 3), (3, 3, 3), (3, 3, 3)), stride=((1, 2, 2), (2, 2, 2)))
    report = load_pretrained(new, old.state_dict())
    assert report.share("encoder") == 1
    resized = report.names("resized")
    assert resized
    assert all(n.split(".")[1:3] in (["stages", "0"], ["downs", "0"], ["ups", "0"]) for n in resized)
    name = "encoder.stages.0.0.depthwise.weight"
    torch.testing.assert_close(new.state_dict()[name], old.state_dict()[name].sum(2, keepdim=True))


edges = st.sampled_from([1, 3, 5])


@settings(deadline=None, max_examples=30)
@given(st.tuples(edges, edges, edges), st.tuples(edges, edges, edges))
def test_a_constant_image_keeps_its_response_along_axes_that_become_or_were_flat(old, new) -> None:
    weight = torch.randn(2, 3, *old)
    resized = resize_kernel(weight, new)
    assert resized.shape[2:] == new
    unflattened = [a for a, (m, n) in enumerate(zip(old, new, strict=True)) if m != n and 1 not in (m, n)]
    if not unflattened:  # UpKern itself changes the sum, which a normalisation follows
        torch.testing.assert_close(resized.sum((2, 3, 4)), weight.sum((2, 3, 4)))


def test_a_flat_kernel_stays_what_it_was_in_three_dimensions() -> None:
    flat = nn.Conv3d(2, 2, (1, 3, 3), padding=(0, 1, 1), bias=False)
    full = nn.Conv3d(2, 2, 3, padding=1, bias=False)
    full.weight.data = resize_kernel(flat.weight.data, (3, 3, 3))
    image = torch.randn(1, 2, 4, 5, 6)
    torch.testing.assert_close(full(image), flat(image))


@pytest.mark.parametrize(("old", "new"), [((2, 2, 2), (1, 2, 2)), ((1, 2, 2), (2, 2, 2))])
def test_upsampling_blocks_keep_the_mean_of_what_they_write(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    before = nn.ConvTranspose3d(3, 2, old, old)
    after = nn.ConvTranspose3d(3, 2, new, new)
    after.bias = before.bias
    after.weight.data = resize_kernel(before.weight.data, new, blocks=True)
    image = torch.randn(1, 3, 4, 4, 4)
    torch.testing.assert_close(after(image).mean((2, 3, 4)), before(image).mean((2, 3, 4)))


def test_an_isotropic_resenc_becomes_an_anisotropic_one_whole() -> None:
    old = small("resenc-unet-tiny")
    new = small(
        "resenc-unet-tiny",
        kernel=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        stride=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    )
    report = load_pretrained(new, old.state_dict(), keep_heads=True)
    assert not report.names("new")
    assert "decoder.ups.0.weight" in report.names("resized")


@pytest.mark.parametrize(("before", "after"), [("mean", "sum"), ("sum", "mean")])
def test_grn_by_mean_and_by_sum_are_translated_into_each_other(before: str, after: str) -> None:
    old, new = small("mednext-v2-nano", grn=before), small("mednext-v2-nano", grn=after)
    load_pretrained(new, old.state_dict(), pretrained_config=old.config, keep_heads=True)
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(new(image), old(image), rtol=1e-3, atol=1e-3)


def test_weights_of_another_width_are_refused_with_what_differs() -> None:
    old, new = small("mednext-v2-nano", width=4), small("mednext-v2-nano")
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(CheckpointError, match="fit only 0% of the encoder") as refusal:
        load_pretrained(new, old.state_dict())
    assert (
        "encoder.stages.0.0.depthwise.weight (shape (4, 1, 3, 3, 3) to (8, 1, 3, 3, 3))"
        in refusal.value.message
    )
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())


def test_weights_of_another_architecture_are_refused_with_their_names() -> None:
    with pytest.raises(CheckpointError, match=r"not in this model: decoder\.norms"):
        load_pretrained(small("mednext-v2-nano"), small("primus-v1-s").state_dict())


def test_a_deeper_network_keeps_what_the_shallower_one_has() -> None:
    old, new = small("mednext-v2-nano"), small("mednext-v2-nano", blocks=(2, 1, 1, 1, 1))
    report = load_pretrained(new, old.state_dict())
    assert all(n.startswith(("encoder.stages.0.1.", "heads.")) for n in report.names("new"))
    assert 0.5 < report.share("encoder") < 1


def test_the_report_is_plain_data_and_readable() -> None:
    old, new = small("mednext-v2-nano"), small("mednext-v2-nano", in_channels=2)
    weights: dict[str, Tensor] = {**old.state_dict(), "mask_token": torch.ones(1)}
    report = load_pretrained(new, weights)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["share"] == {"stem": 1.0, "encoder": 1.0, "decoder": 1.0, "heads": 0.0}
    assert data["unused"] == ["mask_token"]
    lines = str(report).splitlines()
    assert "encoder: 100.0% from the pretrained weights" in lines
    assert "  inflated stem.weight: image channels, (8, 1, 1, 1, 1) to (8, 2, 1, 1, 1)" in lines
    assert "  unused mask_token" in lines


def test_half_precision_weights_are_loaded_in_the_models_precision() -> None:
    old, new = small("mednext-v2-nano"), small("mednext-v2-nano", kernel=5)
    load_pretrained(new, {name: value.bfloat16() for name, value in old.state_dict().items()})
    assert {value.dtype for value in new.state_dict().values()} == {torch.float32}


def test_inflated_channels_share_the_sum() -> None:
    weight = torch.randn(4, 3, 3, 3, 3)
    inflated = inflate_channels(weight, 5)
    assert inflated.shape == (4, 5, 3, 3, 3)
    torch.testing.assert_close(inflated.sum(1), weight.sum(1))
