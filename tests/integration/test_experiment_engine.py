"""The experiment's engine, which has no Flower in it, against Flower's real simulation of the same federation."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fedvox.config import load_config
from fedvox.training.release import load_release
from fedvox_federation.client.sites import simulated_clinic
from fedvox_federation.config import FederationConfig
from fedvox_federation.experiment.engine import LocalTraining, Participant, federate
from fedvox_federation.privacy.noise_policy import NO_PRIVACY

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path, write_store, write_weights):
    """Eight cases at three hospitals, everybody in every step, no noise: nothing is left to chance."""
    write_store(tmp_path / "store", cases=8)
    write_weights(tmp_path / "weights")
    values = {
        "name": "same", "rounds": 2, "pretrained": str(tmp_path / "weights"), "output": str(tmp_path / "runs"),
        "task": {"patches_per_patient": 1},
        "training": {"steps": 2, "optimizer": "sgd", "lr": 0.05, "device": "cpu", "evaluate": "never"},
        "privacy": {
            "expected_batch": 8.0, "largest_sample_rate": 1.0,
            "policy": {"name": "none", "options": {"acknowledge": NO_PRIVACY}},
        },
        "clinics": {
            "store": str(tmp_path / "store"), "folder": str(tmp_path / "clinics"), "held_out_fraction": 0,
            "partition": {"kind": "sizes", "hospitals": 3, "seed": 1},
        },
    }  # fmt: skip
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_without_noise_the_engine_comes_to_the_model_of_a_flower_simulation(config, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedvox_federation.cli_simulation", "--app", str(ROOT), "--config", str(config)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    simulated, _ = load_release(str(tmp_path / "runs" / "same" / "final"))

    settings = load_config(FederationConfig, config, [])
    tasks = [simulated_clinic(settings, number).task for number in range(3)]
    sizes = {f"hospital_{n:02}": len(task.patients(1)) for n, task in enumerate(tasks, start=1)}
    assert len(set(sizes.values())) > 1  # so that weights matter
    model = tasks[0].model.network
    federate(
        model,
        {name: Participant(task.patients, 0.0) for name, task in zip(sizes, tasks, strict=True)},
        LocalTraining(
            tasks[0].loss, lambda p: torch.optim.SGD(p, lr=0.05), 2, 1.0, settings.privacy.clipping_norm
        ),
        rounds=2,
        weighting="size",
    )
    start, _ = load_release(str(tmp_path / "weights"))
    before, expected, found = (net.state_dict() for net in (start, simulated, model))
    moved = max(float((expected[name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-3
    for name, value in expected.items():
        assert np.allclose(found[name].numpy(), value.numpy(), atol=1e-6), name
