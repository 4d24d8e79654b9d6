"""Fine-tuning as it runs: frozen parts stay, every phase resumes exactly, several workers do what one does."""

import os
import subprocess
import sys

import pytest
import torch

from fedvox.config import to_yaml, validate
from fedvox.errors import Preempted
from fedvox.models.registry import build_model
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.freezing import Freezer
from fedvox.training.loop import train
from fedvox.training.pretrained import read_pretrained
from fedvox.training.run_directory import RunDirectory
from fedvox.training.session import open_session
from fedvox.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = {
    "full": {"kind": "full"},
    "unfreeze": {"kind": "unfreeze", "frozen_steps": 4},
    "decoder": {"kind": "decoder"},
    "layerwise": {"kind": "layerwise", "layer_decay": 0.7},
}


@pytest.fixture(scope="module")
def store(shapes_store):
    return shapes_store()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, release_weights):
    torch.manual_seed(1)
    network = build_model("mednext-v2-nano", in_channels=1, classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return release_weights(tmp_path_factory.mktemp("weights"), network, "mednext-v2-nano")


@pytest.fixture
def finetuning(tmp_path, store, weights):
    """Configures eight steps of fine-tuning."""

    def configure(schedule="unfreeze", name="run", **values):
        return validate(
            FinetuneConfig,
            {
                "name": name, "storage": str(tmp_path), "init_from": weights, "steps": 8, "log_every": 1, "seed": 3,
                "schedule": SCHEDULES[schedule],
                "data": {"store": store, "patch_size": [16, 16, 16], "validation_cases": ["c3"],
                         "augment_on": "cpu", "loader_threads": 1},
                "model": {"name": "mednext-v2-nano"},
                "optimizer": {"lr": 1e-2, "warmup_steps": 2, "weight_decay": 0.5},
                "validation": {"every_steps": 3, "overlap": 0.0, "overlays": 0},
                "compute": {"num_workers": 0}, **values,
            },
            source="test",
        )  # fmt: skip

    return configure


def after(config, steps, stop_at):
    """The network's tensors after some steps of a run."""
    with pytest.raises(Preempted):
        train(config, World(), watch=stop_at(steps))
    return read_pretrained(RunDirectory.of(config).location.uri).tensors


def changed(before, now):
    """The parts of the network in which any tensor differs, bit for bit."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])}


@pytest.mark.parametrize(
    ("schedule", "optimizer", "stops"),
    [
        ("full", "adamw", [3]),
        ("unfreeze", "adamw", [2, 2, 1, 2]),
        ("unfreeze", "sgd", [3, 3]),
        ("decoder", "sgd", [5]),
        ("layerwise", "adamw", [4]),
    ],
)
def test_a_run_that_is_stopped_in_any_phase_goes_on_exactly(
    finetuning, logged, stop_at, schedule, optimizer, stops
):
    section = {"name": optimizer, "lr": 1e-2, "warmup_steps": 2, "weight_decay": 0.5}
    whole = finetuning(schedule, "whole", optimizer=section)
    train(whole, World())
    parts = finetuning(schedule, "parts", optimizer=section)
    for steps in stops:
        after(parts, steps, stop_at)
    train(parts, World())
    one, two = (logged(RunDirectory.of(config).location.local_path) for config in (whole, parts))
    assert [line["step"] for line in two] == list(range(1, 9))
    assert {line["attempt"] for line in two} == set(range(len(stops) + 1))
    for key in ("loss", "grad_norm", "lr"):
        assert [line[key] for line in two] == [line[key] for line in one]
    final = [read_pretrained(RunDirectory.of(config).location.uri).tensors for config in (whole, parts)]
    assert changed(*final) == set()


def test_frozen_parts_stay_bit_for_bit_until_they_are_trained(finetuning, weights, stop_at):
    config = finetuning("unfreeze")
    start = read_pretrained(weights).tensors
    frozen = after(config, 4, stop_at)
    assert changed(start, frozen) == {"decoder", "heads"}
    assert changed(frozen, after(config, 1, stop_at)) == {"stem", "encoder", "decoder", "heads"}


def test_weight_decay_and_momentum_do_not_reach_what_is_frozen(finetuning, weights, stop_at):
    for name, optimizer in (
        ("adamw", {"weight_decay": 0.9}),
        ("sgd", {"weight_decay": 0.9, "momentum": 0.9}),
    ):
        section = {"name": name, "lr": 1e-2, "warmup_steps": 0, **optimizer}
        config = finetuning("decoder", name, optimizer=section)
        assert changed(read_pretrained(weights).tensors, after(config, 5, stop_at)) == {"decoder", "heads"}


def test_the_frozen_phase_computes_no_gradient_for_the_encoder(finetuning):
    session = open_session(finetuning("unfreeze"), World())
    try:
        stream = session.batches()
        batch = next(iter(stream))
        session.begin_step()
        session.loss_fn(session.model(batch.image), batch.label, batch.annotated).backward()
        stream.close()
        got = {name.split(".")[0] for name, p in session.network.named_parameters() if p.grad is not None}
        assert got == {"decoder", "heads"}
        session.progress.step = 4
        session.begin_step()
        assert all(p.requires_grad for p in session.network.parameters())
    finally:
        session.close()


def test_a_frozen_encoder_computes_as_in_evaluation_also_after_a_validation():
    torch.manual_seed(0)
    network = build_model(
        "primus-v2-tiny", in_channels=1, classes=2, patch_size=16, width=36, depth=4, drop_path=0.9
    )
    freezer = Freezer(network)
    tokens = torch.randn(2, 36, 2, 2, 2)
    assert not torch.equal(network.encoder(tokens), network.encoder(tokens))
    assert freezer.train_only(("decoder", "heads"))
    assert torch.equal(network.encoder(tokens), network.encoder(tokens))
    network.train()  # what a validation does at its end
    assert not freezer.train_only(("decoder", "heads"))
    assert torch.equal(network.encoder(tokens), network.encoder(tokens))
    assert not any(p.requires_grad for part in (network.stem, network.encoder) for p in part.parameters())


def test_unfreezing_leaves_alone_what_the_network_itself_does_not_train():
    network = build_model("resenc-unet-tiny", in_channels=1, classes=2, deep_supervision=False)
    freezer = Freezer(network)
    freezer.train_only(("heads",))
    freezer.train_only(("stem", "encoder", "decoder", "heads"))
    untrained = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert untrained == {f"heads.{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


WORKER = """
import os, sys
import torch
import torch.distributed as dist
from fedvox.config import load_config
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.loop import train
from fedvox.training.world import World

rank, folder, config = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
train(load_config(FinetuneConfig, config), World(rank, 2))
dist.barrier()
os._exit(0)  # gloo's threads may outlive the interpreter's teardown, where C++ aborts the process
"""


def test_two_workers_freeze_and_unfreeze_as_one_does(finetuning, logged, tmp_path):
    alone, shared = finetuning("unfreeze", "alone"), finetuning("unfreeze", "shared")
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "shared.yaml").write_text(to_yaml(shared))
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "worker.py", str(rank), tmp_path, tmp_path / "shared.yaml"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    train(alone, World())
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors.decode()[-3000:]
    one, two = (logged(RunDirectory.of(config).location.local_path) for config in (alone, shared))
    assert [line["workers"] for line in two] == [2] * 8
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert [line["lr"] for line in two] == [line["lr"] for line in one]
