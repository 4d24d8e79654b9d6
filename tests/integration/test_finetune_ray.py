"""Fine-tuning through Ray: adapted weights, a frozen phase, and a worker that is killed in it."""

import json
import os
import signal

import pytest
import torch

from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture
def weights(tmp_path):
    """A network for two channels and the structures in another order."""
    torch.manual_seed(1)
    network = build_model("mednext-v2-nano", in_channels=2, classes=3)
    info = ModelInfo(
        name="mednext-v2-nano", options={"deep_supervision": True}, structures=("background", "box", "ball"),
        channel_names=("T1", "T2"), patch_size=(32, 32, 32), spacing_mm=None, normalization="zscore", intensity=None,
    )  # fmt: skip
    write_release(network, info, locate(str(tmp_path / "weights")))
    return str(tmp_path / "weights")


def test_a_worker_killed_while_the_encoder_is_frozen_costs_no_sample(
    pretraining, write_store, tmp_path, weights, worker_pids
):
    values = {
        "init_from": weights, "steps": 14, "schedule": {"kind": "unfreeze", "frozen_steps": 9},
        "checkpoint__every_steps": 4, "validation": {"every_steps": 100, "overlays": 0},
    }  # fmt: skip
    store = write_store(tmp_path / "store")
    run = pretraining(store, **values)
    alone = pretraining(store, name="alone", compute__num_workers=0, **values)
    for one in (run, alone):
        one.job = "jobs/finetune.py"
        del one.config["model"]  # the weights' own
    run.start()
    run.wait_for_step(6)
    os.kill(worker_pids()[-1], signal.SIGKILL)
    run.finish()
    alone.run()
    assert run.attempts() == [0, 1]
    assert [line["workers"] for line in run.lines("train")] == [2] * 14
    assert run.losses() == pytest.approx(alone.losses(), rel=2e-3)
    told = json.loads((run.directory / "transfer.json").read_text())
    assert told["share"] == {"stem": 1.0, "encoder": 1.0, "decoder": 1.0, "heads": 1.0}
    assert {"inflated", "matched"} == {entry["action"] for entry in told["changed"]}
    assert json.loads((run.directory / "outcome.json").read_text())["step"] == 14
