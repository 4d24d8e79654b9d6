"""Prediction over a real Ray: many cases, a worker that is killed, models that cannot be loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
NUM_CASES = 4
# The command, with workers that SIGKILL themselves when they get to case2: once, or every time.
MORTAL = """
import os, signal, sys
sys.path[:0] = sys.argv.pop(1).split(":")
from fedvox.cli import run_command
from fedvox.commands.predict import predict
from fedvox.inference import ray_shell

FLAG, ALWAYS = sys.argv.pop(1), sys.argv.pop(1) == "always"

class Mortal(ray_shell._Worker):
    def predict(self, case):
        if case.case_id == "case2" and (ALWAYS or not os.path.exists(FLAG)):
            with open(FLAG, "a") as flag:
                flag.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(case)

ray_shell._Worker = Mortal
run_command(predict)
"""


@pytest.fixture
def study(tmp_path):
    """Four small images and a released model; returns the folder."""
    (tmp_path / "images").mkdir()
    for number in range(NUM_CASES):
        values = np.random.default_rng(number).normal(0, 1, (20, 22, 24)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "images" / f"case{number}_0000.nii.gz")
    torch.manual_seed(0)
    model = build_model("mednext-v2-nano", in_channels=1, classes=3)
    info = ModelInfo(
        "mednext-v2-nano",
        {},
        ("background", "a", "b"),
        ("MR",),
        (16, 16, 16),
        None,
        "zscore",
        (),
        modality="MR",
    )
    write_release(model, info, locate(tmp_path / "run" / "final"))
    return tmp_path


def predict(study: Path, output: str, *arguments: str, mortal: str = "") -> subprocess.CompletedProcess[str]:
    """Runs jobs/predict.py, or with `mortal` ("once", "always") the same command with workers that die."""
    roots = ":".join(str(ROOT / name) for name in ("platform", "compliance"))
    script = study / "mortal.py"
    script.write_text(MORTAL)
    program = [str(script), roots, str(study / "killed"), mortal] if mortal else ["jobs/predict.py"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [
            sys.executable, *program, "-i", str(study / "images"), "-o", str(study / output), "-m", str(study / "run"),
            "--no-mirror", "--device", "cpu", "--set", "torch_threads=1", "--json", *arguments,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip


def statuses(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {
        case["case_id"]: case["status"] for case in json.loads(done.stdout.strip().splitlines()[-1])["cases"]
    }


def test_ray_writes_the_label_maps_that_one_process_writes(study):
    alone, over_ray = predict(study, "alone"), predict(study, "ray", "--workers", "2")
    assert alone.returncode == over_ray.returncode == 0, over_ray.stderr
    assert set(statuses(over_ray).values()) == {"done"}
    for number in range(NUM_CASES):
        ours, theirs = (nib.load(study / folder / f"case{number}.nii.gz") for folder in ("ray", "alone"))
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert set(statuses(predict(study, "ray", "--workers", "2")).values()) == {"skipped"}


def test_a_killed_worker_costs_nothing_but_time(study):
    done = predict(study, "out", "--workers", "1", mortal="once")
    assert (study / "killed").exists(), "the worker was never killed: the test shows nothing"
    assert done.returncode == 0, done.stderr
    assert statuses(done) == {f"case{number}": "done" for number in range(NUM_CASES)}


def test_a_case_that_kills_every_worker_is_given_up_and_the_others_are_done(study):
    done = predict(study, "out", "--workers", "1", "--set", "retries=1", mortal="always")
    assert done.returncode == 1, done.stderr
    assert (study / "killed").read_text() == "xx"  # once, and one retry
    assert statuses(done) == {"case0": "done", "case1": "done", "case2": "failed", "case3": "done"}
    assert "its worker died, once too often" in done.stderr


def test_a_model_that_a_worker_cannot_load_is_told_as_in_one_process(study):
    (study / "run" / "final" / "model.safetensors").write_bytes(b"broken")
    done = predict(study, "out", "--workers", "1")
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
