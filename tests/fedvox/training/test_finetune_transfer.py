"""Where weights come from, how they are adapted, and what is said when they cannot be used."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from safetensors.torch import save_file
from torch import nn

from fedvox.config import validate
from fedvox.data.store import BrickStore
from fedvox.errors import CheckpointError, ConfigError, OutOfMemory
from fedvox.models.registry import build_from_config, build_model, list_models, model_config, nearest_size
from fedvox.storage import locate, write_atomic
from fedvox.training import loop, ray_shell
from fedvox.training.finetune import initialise, resolve
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.pretrained import read_pretrained
from fedvox.training.run_directory import RunDirectory
from fedvox.training.session import new_network

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (16, 16, 16)
PLANS = Path(__file__).parents[1] / "planning" / "data" / "reference_plans.json.gz"


@pytest.fixture(scope="module")
def store(shapes_store):
    return shapes_store()


@pytest.fixture(scope="module")
def two_channels(shapes_store):
    """Two channels, and the structures in another order, one of them new."""
    return shapes_store(channels=2, structures=("background", "box", "cyst", "ball"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    found = build_model("mednext-v2-nano", in_channels=1, classes=3)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, release_weights, network):
    return release_weights(tmp_path_factory.mktemp("weights"), network, "mednext-v2-nano")


@pytest.fixture
def configure(tmp_path, store):
    """A configuration that leaves backbone and patch to the weights, with some values changed."""

    def make(init_from, *, in_store=store, **values):
        data = {"store": in_store, "validation_cases": ["c3"], "augment_on": "cpu", "loader_threads": 1}
        base = {
            "name": "run", "storage": str(tmp_path / "runs"), "init_from": str(init_from), "steps": 3,
            "optimizer": {"warmup_steps": 1}, "validation": {"overlays": 0}, "compute": {"num_workers": 0},
        }  # fmt: skip
        data |= values.pop("data", {})
        return validate(FinetuneConfig, {**base, **values, "data": data}, source="test")

    return make


def filled(config):
    """The network of a configuration with its weights in place, and the report."""
    config = resolve(config)
    store = BrickStore.open(config.data.store)
    network = new_network(config, len(store.meta.channel_names), len(store.meta.structures))
    return network.eval(), initialise(config, network, store.meta)


# Sources


def test_backbone_and_patch_are_those_of_the_weights(configure, weights):
    config = resolve(configure(weights))
    assert (config.model.name, config.data.patch_size) == ("mednext-v2-nano", PATCH)
    assert resolve(config) == config
    chosen = resolve(configure(weights, data={"patch_size": [24, 16, 32]}, model={"options": {"kernel": 5}}))
    assert chosen.model.name == "mednext-v2-nano"
    assert (chosen.model.options["kernel"], chosen.data.patch_size) == (5, (24, 16, 32))


def test_a_run_gives_its_final_weights_or_its_newest_or_a_named_checkpoint(configure, weights, tmp_path):
    config = resolve(configure(weights, checkpoint={"every_steps": 1, "keep": 9}))
    ray_shell.run(config)
    run = RunDirectory.of(config).location
    final = read_pretrained(run.uri)
    assert (final.kind, final.structures, final.patch_size) == (
        "release",
        ("background", "ball", "box"),
        PATCH,
    )
    assert final.origin()["run"] == "run"
    first, last = (read_pretrained(run.child("checkpoints", f"step-0000000{n}").uri) for n in (1, 3))
    assert (first.kind, first.model, first.patch_size) == ("checkpoint", "mednext-v2-nano", PATCH)
    for name, tensor in final.tensors.items():
        assert torch.equal(tensor, last.tensors[name]), name
    assert any(not torch.equal(first.tensors[name], tensor) for name, tensor in final.tensors.items())
    (run.local_path / "final" / "model.json").rename(run.local_path / "final" / "gone.json")
    newest = read_pretrained(str(run.local_path))
    assert newest.kind == "checkpoint"
    assert all(torch.equal(newest.tensors[name], tensor) for name, tensor in final.tensors.items())


def test_naming_the_weights_file_of_a_release_is_naming_the_release(weights):
    assert read_pretrained(f"{weights}/model.safetensors").kind == "release"


def upstream_unet(classes=3):
    torch.manual_seed(2)
    return ResidualEncoderUNet(
        1, 3, (8, 16, 16), nn.Conv3d, 3, ((1, 1, 1), (2, 2, 2), (2, 2, 2)), n_blocks_per_stage=(1, 2, 1),
        num_classes=classes, n_conv_per_stage_decoder=(1, 1), conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )  # fmt: skip


def test_a_checkpoint_of_nnu_net_is_taken_with_its_own_topology(configure, tmp_path):
    theirs = upstream_unet().eval()
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": theirs.state_dict(), "current_epoch": 1000}, path)
    with pytest.raises(ConfigError, match="does not say with which patch"):
        resolve(configure(path))
    network, report = filled(configure(path, data={"patch_size": [16, 16, 16]}, transfer={"heads": "keep"}))
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.allclose(network(image), theirs(image), atol=1e-5)
    assert report.origin["kind"] == "nnunet"
    _, report = filled(configure(path, data={"patch_size": [16, 16, 16]}))
    assert {entry.part for entry in report.report.entries if entry.action == "new"} == {"heads"}


def test_weights_may_lie_on_s3(configure, bucket, tmp_path):
    path = tmp_path / "network.safetensors"
    save_file({name: tensor.clone() for name, tensor in upstream_unet().state_dict().items()}, path)
    write_atomic(locate(f"{bucket}/network.safetensors"), path.read_bytes())
    found = read_pretrained(f"{bucket}/network.safetensors")
    config = model_config(found.model, in_channels=1, classes=3, **found.options)
    assert (config.features, config.blocks) == ((8, 16, 16), (1, 2, 1))


@pytest.mark.parametrize("name", list_models())
def test_a_config_is_told_by_the_nearest_named_size(name):
    config = model_config(name, in_channels=2, classes=5)
    found, options = nearest_size(config)
    assert model_config(found, in_channels=2, classes=5, **options) == config


def test_a_recognised_topology_is_built_again_from_name_and_options():
    config = model_config("mednext-v2-tiny", in_channels=1, classes=2, kernel=(1, 3, 3), width=8, grn="sum")
    name, options = nearest_size(config)
    assert options == {"kernel": (1, 3, 3), "width": 8, "grn": "sum"}
    again = build_model(name, in_channels=1, classes=2, **options)
    assert again.config == build_from_config(config).config


# Adaptation


def test_other_channels_and_structures_give_the_old_answer_where_they_are_the_same(
    configure, weights, network, two_channels
):
    adapted, _ = filled(configure(weights, in_store=two_channels))
    image = torch.randn(2, 1, 16, 16, 16)
    old, new = network(image), adapted(image.expand(-1, 2, -1, -1, -1))
    background, box, _, ball = range(4)
    assert torch.allclose(new[:, [background, ball, box]], old, atol=1e-5)


def test_a_primus_takes_another_patch_with_resized_positions(configure, release_weights, tmp_path):
    torch.manual_seed(0)
    shape = {"patch_size": 16, "width": 36, "depth": 2, "attention_heads": 2}
    old = build_model("primus-v2-tiny", in_channels=1, classes=3, **shape)
    folder = release_weights(tmp_path / "primus", old, "primus-v2-tiny", options=shape)
    new, report = filled(configure(folder, data={"patch_size": [24, 16, 16]}))
    assert new.config.patch == (24, 16, 16)
    assert report.report.names("resized") == ["encoder.position.weight"]
    assert new(torch.randn(1, 1, 24, 16, 16)).shape == (1, 3, 24, 16, 16)


def test_larger_kernels_start_from_the_smaller_ones(configure, weights):
    network, report = filled(configure(weights, model={"options": {"kernel": 5}}))
    resized = report.report.names("resized")
    assert resized
    assert all(name.endswith("depthwise.weight") for name in resized)
    assert network.encoder.stages[0][0].depthwise.weight.shape[2:] == (5, 5, 5)


def test_the_report_lies_in_the_run_directory(configure, weights, two_channels):
    config = resolve(configure(weights, in_store=two_channels))
    ray_shell.run(config)
    folder = RunDirectory.of(config).location.local_path
    told = json.loads((folder / "transfer.json").read_text())
    assert told["origin"]["uri"].endswith(weights)
    assert len(told["origin"]["sha256"]) == 64
    assert told["share"]["encoder"] == 1.0
    assert "channels: ('C0',) -> ('C0', 'C1')" in told["differences"]
    assert {entry["name"]: entry["action"] for entry in told["changed"]}["stem.weight"] == "inflated"
    released = json.loads((folder / "final" / "model.json").read_text())
    assert released["provenance"]["init_from"] == weights
    assert released["structures"] == ["background", "box", "cyst", "ball"]


def test_a_run_goes_on_when_its_weights_are_gone(configure, release_weights, network, tmp_path, stop_at):
    folder = release_weights(tmp_path / "soon_gone", network, "mednext-v2-nano")
    ray_shell.run(resolve(configure(folder)))
    (Path(folder) / "model.json").unlink()
    longer = resolve(configure(folder, steps=5))
    assert (longer.model.name, longer.data.patch_size) == ("mednext-v2-nano", PATCH)
    assert ray_shell.run(longer)["step"] == 5


# Wrong input


def test_weights_of_another_network_are_refused_with_what_differs(configure, weights):
    config = configure(weights, model={"name": "mednext-v2-tiny"})
    with pytest.raises(
        CheckpointError, match=r"fit only \d+% of the encoder.*encoder\.stages\.0\.0"
    ) as caught:
        filled(config)
    assert "mednext-v2-nano" in caught.value.message
    assert "Leave `model` out" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.pth", b"not a checkpoint", "cannot be read as a checkpoint"),
        ("model.pth", b"", "cannot be read as a checkpoint"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "damaged"),
        ("missing.pth", None, "does not exist"),
        ("folder", None, "holds no weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name(configure, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        resolve(configure(path))
    assert name in caught.value.message
    assert caught.value.remedy


def test_a_damaged_release_is_refused(configure, release_weights, network, tmp_path):
    folder = Path(release_weights(tmp_path / "damaged", network, "mednext-v2-nano"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        resolve(configure(folder))


def test_a_patch_that_the_network_cannot_halve_is_refused(configure, weights):
    config = resolve(configure(weights, data={"patch_size": [18, 16, 16]}))
    with pytest.raises(ConfigError, match="not divisible") as caught:
        ray_shell.run(config)
    assert "[16, 16, 16]" in caught.value.remedy


def test_plans_for_other_channels_are_refused(configure, weights, tmp_path):
    reference = json.loads(gzip.decompress(PLANS.read_bytes()))
    entry = next(e for e in reference if len(e["dataset"]["channel_names"]) > 1)
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(entry["plans"][0]["plan"]))
    with pytest.raises(ConfigError, match="channels"):
        ray_shell.run(resolve(configure(weights, plans=str(path))))


def test_a_frozen_encoder_must_not_stay_random(configure, weights, two_channels):
    filled(
        configure(weights, in_store=two_channels, schedule={"kind": "decoder"})
    )  # an inflated stem is none
    deeper = {"options": {"blocks": (2, 2, 1, 1, 1)}}
    filled(configure(weights, model=deeper))
    with pytest.raises(ConfigError, match=r"never trains stem and encoder.*encoder\.stages\.0\.1"):
        filled(configure(weights, model=deeper, schedule={"kind": "decoder"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(configure, weights):
    config = resolve(configure(weights, compute={"num_workers": 0, "use_gpu": "yes"}))
    with pytest.raises(ConfigError, match="use_gpu") as caught:
        ray_shell.run(config)
    assert "auto" in caught.value.remedy


def test_out_of_memory_names_the_knobs(configure, weights, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: torch.empty(1 << 60))
    with pytest.raises(OutOfMemory, match="main memory is too small") as caught:
        ray_shell.run(resolve(configure(weights)))
    assert "2 patches of 16×16×16" in caught.value.message
    for knob in ("global_batch_size (now 2)", "checkpoint_blocks=true", "data.patch_size=[8, 8, 8]"):
        assert knob in caught.value.remedy
    assert not caught.value.restart


def test_resuming_with_another_schedule_or_other_weights_is_refused(
    configure, weights, release_weights, network, tmp_path
):
    ray_shell.run(resolve(configure(weights)))
    with pytest.raises(ConfigError, match=r"schedule\.kind: 'full' -> 'decoder'"):
        ray_shell.run(resolve(configure(weights, steps=5, schedule={"kind": "decoder"})))
    other = release_weights(tmp_path / "other", network, "mednext-v2-nano")
    with pytest.raises(ConfigError, match="init_from"):
        ray_shell.run(resolve(configure(other, steps=5)))
