"""Checkpoints of nnU-Net, Primus, MedNeXt and MONAI, made with the original packages and read by name mapping."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.networks.nets.mednext import create_mednext
from safetensors.torch import save_file
from torch import Tensor, nn

from fedvox.errors import CheckpointError
from fedvox.models.recognition import config_of
from fedvox.models.registry import build_from_config, build_model
from fedvox.models.upstream import read_weights, translate


def nnunet_network(kind: type[nn.Module], blocks: str) -> nn.Module:
    return kind(
        2,
        3,
        (8, 16, 16),
        nn.Conv3d,
        ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        num_classes=3,
        n_conv_per_stage_decoder=(2, 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
        **{blocks: (2, 3, 1)},
    )


def nnunet_checkpoint(network: nn.Module, path: Path) -> None:
    """What nnU-Net's trainer saves, with its plans, device and numpy numbers."""
    torch.save(
        {
            "network_weights": network.state_dict(),
            "optimizer_state": torch.optim.SGD(network.parameters(), 0.01, momentum=0.9).state_dict(),
            "grad_scaler_state": None,
            "logging": {"ema_fg_dice": [np.float64(0.8), np.float32(0.7)], "dice": [np.array([0.1, 0.2])]},
            "_best_ema": np.float64(0.8),
            "current_epoch": 1000,
            "init_args": {"plans": {"spacing": [1.0, 1.0]}, "device": torch.device("cuda"), "fold": 0},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        path,
    )


def randomised(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.2)
    return network.eval()


def assert_reads_as(
    network: nn.Module, path: Path, source: str, size: tuple[int, ...], **known: Any
) -> nn.Module:
    """Read a file, recognise the network and compare logits with the original."""
    weights = translate(read_weights(path))
    assert weights.source == source
    config = config_of(weights.tensors, **known)
    model = build_from_config(config).eval()
    model.load_state_dict(weights.tensors)
    image = torch.randn(1, config.in_channels, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(image), network(image), rtol=1e-3, atol=1e-3)
    return model


@pytest.mark.parametrize(
    ("kind", "blocks"), [(ResidualEncoderUNet, "n_blocks_per_stage"), (PlainConvUNet, "n_conv_per_stage")]
)
def test_an_nnunet_checkpoint_gives_nnunets_logits(
    kind: type[nn.Module], blocks: str, tmp_path: Path
) -> None:
    network = randomised(nnunet_network(kind, blocks))
    nnunet_checkpoint(network, tmp_path / "checkpoint_final.pth")
    model = assert_reads_as(network, tmp_path / "checkpoint_final.pth", "nnunet", (8, 16, 16))
    assert model.config.kernels[0] == (1, 3, 3)
    assert model.config.strides == ((1, 2, 2), (2, 2, 2))


@pytest.mark.parametrize("version", ["Primus", "PrimusV2"])
def test_a_primus_checkpoint_gives_the_originals_logits(
    version: str, tmp_path: Path, primus_peer: Any
) -> None:
    network = getattr(primus_peer, version)(
        2, 132, (8, 8, 8), 3, 2, 2, (16, 16, 16), init_values=0.1, scale_attn_inner=True
    ).eval()
    nnunet_checkpoint(network, tmp_path / "checkpoint_final.pth")
    assert_reads_as(network, tmp_path / "checkpoint_final.pth", "primus", (16, 16, 16))


def test_a_primus_of_an_oblong_patch_needs_its_size(tmp_path: Path, primus_peer: Any) -> None:
    network = primus_peer.Primus(
        1, 132, (8, 8, 8), 2, 1, 2, (8, 16, 24), init_values=0.1, scale_attn_inner=True
    ).eval()
    nnunet_checkpoint(network, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="6 tokens, which is no cube") as refusal:
        config_of(translate(read_weights(tmp_path / "checkpoint.pth")).tensors)
    assert "patch_size" in refusal.value.remedy
    assert_reads_as(network, tmp_path / "checkpoint.pth", "primus", (8, 16, 24), patch_size=(8, 16, 24))


def test_the_third_primus_is_refused_by_its_names(tmp_path: Path, primus_peer: Any) -> None:
    network = primus_peer.PrimusV3(1, 132, (8, 8, 8), 2, 1, 2, (16, 16, 16))
    with pytest.raises(CheckpointError, match="down_projection"):
        translate(network.state_dict())


@pytest.mark.parametrize("supervised", [True, False])
def test_monais_mednext_gives_monais_logits(supervised: bool, tmp_path: Path) -> None:
    network = create_mednext("B", in_channels=2, out_channels=3, deep_supervision=supervised).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "model.pt")
    model = assert_reads_as(network, tmp_path / "model.pt", "monai-mednext", (16, 16, 32))
    assert model.config.down_expansions == (2, 3, 4, 4)
    assert model.config.deep_supervision is supervised


def original_mednext_names(monai: dict[str, Tensor]) -> dict[str, Tensor]:
    """MONAI's weights as the original code of MedNeXt names them."""
    renamed = {}
    for name, value in monai.items():
        for pattern, replacement in (
            (r"^enc_stages\.(\d)", r"enc_block_\1"),
            (r"^down_blocks\.(\d)", r"down_\1"),
            (r"^dec_stages\.(\d)", lambda m: f"dec_block_{3 - int(m[1])}"),
            (r"^up_blocks\.(\d)", lambda m: f"up_{3 - int(m[1])}"),
            (r"^out_blocks\.(\d)", lambda m: f"out_{4 - int(m[1])}"),
        ):
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return {**renamed, "dummy_tensor": torch.ones(1)}


def test_an_original_mednext_checkpoint_gives_its_logits(tmp_path: Path) -> None:
    network = create_mednext("S", in_channels=1, out_channels=14, kernel_size=5, deep_supervision=True).eval()
    checkpoint = {
        "epoch": 1000,
        "state_dict": original_mednext_names(network.state_dict()),
        "plot_stuff": ([np.float64(0.1)], [np.float64(0.2)]),
        "best_stuff": (np.float64(0.1), np.float64(0.2), 0.3),
    }
    torch.save(checkpoint, tmp_path / "model_final_checkpoint.model")
    model = assert_reads_as(network, tmp_path / "model_final_checkpoint.model", "mednext", (16, 16, 32))
    published = build_model("mednext-v1-s", in_channels=1, classes=14, kernel=5)
    assert {n: v.shape for n, v in model.state_dict().items()} == {
        n: v.shape for n, v in published.state_dict().items()
    }
    assert translate(checkpoint["state_dict"]).ignored == ("dummy_tensor",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_parallel_and_compiled_training_are_removed(prefix: str, tmp_path: Path) -> None:
    model = build_model("mednext-v2-nano", in_channels=1, classes=2)
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / "weights.pt")
    assert translate(read_weights(tmp_path / "weights.pt")).tensors.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["mednext-v2-nano", "resenc-unet-tiny", "plain-unet", "primus-v2-tiny"])
def test_our_own_weights_are_recognised(name: str, tmp_path: Path) -> None:
    model = build_model(name, in_channels=2, classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    weights = translate(read_weights(tmp_path / "model.safetensors"))
    assert weights.source == "fedvox"
    again = build_from_config(config_of(weights.tensors))
    again.load_state_dict(weights.tensors)


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (Path("pwned"),))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"network_weights": {"a": torch.ones(1)}, "extra": RunsCode()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        read_weights(tmp_path / "bad.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["checkpoint.pth", "model.safetensors"])
def test_a_damaged_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} does not exist"):
        read_weights(path)
    weights = build_model("mednext-v2-nano", in_channels=1, classes=2).state_dict()
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(name)):
            read_weights(path)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "notes": "none"}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no named tensors"):
        read_weights(tmp_path / "empty.pth")


def test_weights_of_an_unknown_network_are_refused_with_their_names() -> None:
    with pytest.raises(CheckpointError, match=r"layer1\.conv\.weight"):
        translate({"layer1.conv.weight": torch.ones(1)})


def test_half_a_network_is_not_recognised() -> None:
    weights = build_model("mednext-v2-nano", in_channels=1, classes=2).state_dict()
    del weights["heads.0.weight"]
    with pytest.raises(CheckpointError, match=r"heads\.0\.weight is missing"):
        config_of(weights)
