"""Secrets stay where they are: a canary in every variable that holds one, looked for in all that a run leaves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter

ROOT = Path(__file__).resolve().parents[2]
CANARY = "c4n4ry-d0-n0t-l0g"
SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FEDVOX_KEY_PASSPHRASE", "AWS_ACCESS_KEY_ID",
)  # fmt: skip


@pytest.fixture(scope="module")
def environment():
    values = dict.fromkeys(SECRETS, CANARY)
    return {**os.environ, **values, "OMP_NUM_THREADS": "1", "AWS_EC2_METADATA_DISABLED": "true"}


def fedvox(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "fedvox", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def leaks(folder):
    found = [file for file in folder.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    return [str(file.relative_to(folder)) for file in found]


def test_nothing_that_a_run_writes_or_says_holds_a_secret(tmp_path, environment):
    meta = StoreMeta(
        name="small", channel_names=("T1",), modality="MR", structures=("background", "cube"),
        label_sets={"all": (0, 1)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    writer = StoreWriter.create(str(tmp_path / "store"), meta)
    label = np.zeros((24, 24, 24), np.uint8)
    label[8:16, 8:16, 8:16] = 1
    for i in range(2):
        image = np.random.default_rng(i).normal(0, 30, (1, 24, 24, 24)).astype(np.int16)
        writer.add_case(f"c{i}", image, label, source="a", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
    writer.finish()
    values = {
        "name": "run", "storage": str(tmp_path / "runs"), "steps": 2,
        "data": {"store": str(tmp_path / "store"), "patch_size": [16, 16, 16], "validation_cases": ["c1"]},
        "model": {"name": "mednext-v2-nano"}, "compute": {"num_workers": 0, "torch_threads": 1},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    done = fedvox(environment, "pretrain", "--config", tmp_path / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert len(list((tmp_path / "runs").rglob("*"))) > 10
    assert leaks(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor", "--json"),
        ("pretrain", "--config", "jobs/configs/mednext_v2_18k.yaml", "--dry-run", "--debug"),
    ],
)
def test_reports_and_errors_hold_no_secret(arguments, environment):
    # nobody listens at this port, so that the error of the S3 client is told as well
    done = fedvox(
        {**environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "FEDVOX_S3_PATIENCE_S": "1"}, *arguments
    )
    assert done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr
