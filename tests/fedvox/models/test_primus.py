"""Primus against the published parameter counts and the original code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.models.primus import DropPath, Primus, PrimusConfig
from fedvox.models.registry import build_model
from fedvox.models.rotary import rotary_table, rotate

COUNTS = json.loads((Path(__file__).parent / "data" / "param_counts.json").read_text())
PUBLISHED = [key for key in COUNTS if re.fullmatch(r"primus_v[12]_[SBML]_p8_in1_cls2_shape\d+", key)]

RULES = (
    (r"down_projection\.proj\.", "stem.project."),
    (r"down_projection\.final_proj\.", "stem.project."),
    (r"down_projection\.stem\.blocks\.0\.", "stem.blocks.0."),
    (r"up_projection\.decode\.2\.", "heads.0."),
    (r"up_projection\.decode\.(\d)\.0\.", r"decoder.ups.\1."),
    (r"up_projection\.decode\.(\d)\.1\.", r"decoder.norms.\1."),
    (r"eva\.pos_embed", "encoder.position.weight"),
    (r"eva\.", "encoder."),
    (r"\.gamma_(\d)", r".scale\1.gamma"),
    (
        r"\.attn\.([qkv])_proj\.",
        lambda m: ".attention." + {"q": "query", "k": "key", "v": "value"}[m[1]] + ".",
    ),
    (r"\.attn\.proj\.", ".attention.project."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1_g\.", ".mlp.gate."),
    (r"\.mlp\.fc1_x\.", ".mlp.value."),
    (r"\.mlp\.fc2\.", ".mlp.project."),
    (r"\.skip\.[01]\.", ".project."),
)


def ours_from_original(name: str) -> str:
    stage = re.match(r"down_projection\.stages\.(\d)\.blocks\.0\.", name)
    if stage:
        name = f"stem.blocks.{int(stage[1]) + 1}.{name[stage.end() :]}"
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("key", PUBLISHED)
def test_parameter_counts_are_the_published_ones(key: str) -> None:
    _, version, size, *_, shape = key.split("_")
    with torch.device("meta"):
        model = build_model(
            f"primus-{version}-{size.lower()}",
            in_channels=1,
            classes=2,
            patch_size=int(shape.removeprefix("shape")),
        )
    assert sum(p.numel() for p in model.parameters()) == COUNTS[key]


def test_every_published_size_was_counted() -> None:
    assert len(PUBLISHED) == 2 * 4 * 5


@pytest.mark.parametrize("part", ["down_projection", "eva", "up_projection", "pos_embed"])
@pytest.mark.parametrize("size", ["s", "l"])
def test_each_part_has_its_published_count(size: str, part: str) -> None:
    with torch.device("meta"):
        model = build_model(f"primus-v2-{size}", in_channels=1, classes=2, patch_size=160)
    count = {
        "down_projection": [model.stem],
        "eva": [model.encoder],
        "up_projection": [model.decoder, model.heads],
        "pos_embed": [model.encoder.position],
    }[part]
    published = COUNTS[f"primus_v2_{size.upper()}_p8_shape160_parts.{part}"]
    assert sum(p.numel() for module in count for p in module.parameters()) == published


def original_network(peer: Any, config: PrimusConfig) -> nn.Module:
    return (peer.Primus if config.tokenizer == "patch" else peer.PrimusV2)(
        config.in_channels,
        config.width,
        (8, 8, 8),
        config.classes,
        config.depth,
        config.attention_heads,
        config.patch,
        init_values=config.layer_scale,
        scale_attn_inner=True,
        drop_path_rate=config.drop_path,
    )


CONFIGS = {
    "v1": PrimusConfig(2, 3, (16, 24, 32), 132, 3, 2, "patch", drop_path=0.0),
    "v2": PrimusConfig(1, 14, (24, 16, 32), 132, 2, 2, "residual", drop_path=0.0),
    "v1-s": PrimusConfig(1, 2, 32, drop_path=0.0),
    "v2-b": PrimusConfig(1, 2, 32, 792, 12, 12, "residual", drop_path=0.0),
}


def transferred(original: nn.Module) -> dict[str, Tensor]:
    return {ours_from_original(name): value for name, value in original.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_give_the_originals_logits(name: str, dtype: torch.dtype, primus_peer: Any) -> None:
    config = CONFIGS[name]
    original, ours = original_network(primus_peer, config).to(dtype), Primus(config).to(dtype)
    ours.load_state_dict(transferred(original))
    image = torch.randn(2, config.in_channels, *config.patch, dtype=dtype)
    # The rotary table is float32 in both, in float64 too.
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours(image), original(image), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_the_same_weights_give_the_originals_gradients(name: str, primus_peer: Any) -> None:
    config = CONFIGS[name]
    original, ours = original_network(primus_peer, config).double(), Primus(config).double()
    ours.load_state_dict(transferred(original))
    image = torch.randn(2, config.in_channels, *config.patch, dtype=torch.float64)
    for model in (original, ours):
        model(image).square().mean().backward()
    expected = {ours_from_original(n): p.grad for n, p in original.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for parameter_name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[parameter_name]).abs().max() < 1e-6 * largest, parameter_name


def test_it_reproduces_the_originals_activations(reference, fill, formula_input, assert_activation) -> None:
    entry = reference["primus/dim132_d2_h2_p8_cls2_16x24x32"]
    model = Primus(PrimusConfig(1, 2, (16, 24, 32), 132, 2, 2)).double().eval()
    fill(model, entry["params"], {name: ours_from_original(name) for name, _ in entry["params"]})
    assert_activation(model(formula_input([1, 1, 16, 24, 32])), entry)


def test_rotary_positions_are_the_originals(reference, primus_peer) -> None:
    entry = reference["primus/rope_embed_2x3x4_headdim66(RotaryEmbeddingCat dim44)"]
    table = rotary_table((2, 3, 4), 66)
    ours = torch.cat([table[0], table[1]], dim=1)
    original = primus_peer.RotaryEmbeddingCat(
        44, in_pixels=False, feat_shape=[2, 3, 4], ref_feat_shape=[2, 3, 4]
    )
    torch.testing.assert_close(ours, original.get_embed())
    assert list(ours.shape) == entry["shape"]
    ends = torch.cat([ours.flatten()[:8], ours.flatten()[-8:]])
    torch.testing.assert_close(ends, torch.tensor(entry["first8"] + entry["last8"]))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    grid = (3, 4, 5)
    query, key = torch.randn(2, 1, 1, 1, 66, dtype=torch.float64).expand(2, 1, 1, 60, 66)
    table = rotary_table(grid, 66, torch.float64)
    products = (rotate(query, table) @ rotate(key, table).transpose(2, 3)).view(*grid, *grid)
    torch.testing.assert_close(products[0, 0, 0, 1, 2, 1], products[1, 1, 2, 2, 3, 3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products[2, 1, 4, 0, 0, 2], products[2, 3, 3, 0, 2, 1], rtol=1e-5, atol=1e-5)
    assert (products[0, 0, 0, 1, 0, 0] - products[0, 0, 0, 0, 1, 0]).abs() > 1e-3


def test_it_starts_as_the_original_does(primus_peer) -> None:
    config = PrimusConfig(1, 2, 64, 396, 4, 6, "residual")
    torch.manual_seed(1)
    ours = {name: value.std().item() for name, value in Primus(config).named_parameters() if value.ndim > 1}
    original = original_network(primus_peer, config)
    for name, value in original.named_parameters():
        if value.ndim > 1 and value.numel() > 5000:
            assert ours[ours_from_original(name)] == pytest.approx(value.std().item(), rel=0.1), name


def test_dropped_paths_keep_the_mean_and_whole_samples() -> None:
    x = torch.ones(20_000, 2, 3)
    out = DropPath(0.2).train()(x)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2)))
    assert torch.equal(DropPath(0.2).eval()(x), x)


def test_the_probability_of_dropping_grows_with_depth() -> None:
    with torch.device("meta"):
        model = build_model("primus-v1-s", in_channels=1, classes=2)
    probabilities = [block.drop_path.probability for block in model.encoder.blocks]
    torch.testing.assert_close(torch.tensor(probabilities), torch.linspace(0, 0.2, 12))


def test_checkpointed_blocks_give_the_same_gradients_also_with_dropped_paths() -> None:
    plain = build_model("primus-v2-tiny", in_channels=1, classes=2, patch_size=16, drop_path=0.5)
    frugal = build_model(
        "primus-v2-tiny", in_channels=1, classes=2, patch_size=16, drop_path=0.5, checkpoint_blocks=True
    )
    frugal.load_state_dict(plain.state_dict())
    image = torch.randn(4, 1, 16, 16, 16)
    for model in (plain, frugal):
        torch.manual_seed(3)
        model(image).square().mean().backward()
    for a, b in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_another_patch_than_the_positions_were_learned_for_is_refused() -> None:
    model = build_model("primus-v2-tiny", in_channels=1, classes=2)
    with pytest.raises(ConfigError, match=r"patches of \(64, 64, 64\), got \(64, 64, 32\)") as refusal:
        model(torch.zeros(1, 1, 64, 64, 32))
    assert "load_pretrained" in refusal.value.remedy


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"patch_size": 100}, "patch_size"),
        ({"width": 400}, "width"),
        ({"tokenizer": "words"}, "tokenizer"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"depth": 0}, "depth"),
    ],
)
def test_a_config_that_makes_no_network_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PrimusConfig(**fields)
