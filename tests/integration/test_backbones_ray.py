"""A comparison of backbones over Ray Tune, as `ray job submit` would run it: killed in the middle, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def command(tmp_path, write_store):
    config = {
        "name": "two", "storage": str(tmp_path / "results"), "seeds": [0, 1],
        "budget": {"unit": "steps", "amount": 3}, "validation_overlap": 0.0,
        "backbones": [
            {"name": "mednext-v2-nano"}, {"name": "mednext-v2-nano", "label": "no-grn", "options": {"grn": None}},
        ],
        "recipe": {
            "global_batch_size": 1, "augment": {"enabled": False},
            "data": {
                "store": write_store(tmp_path / "store"), "patch_size": [32, 32, 32],
                "validation_cases": ["case_04", "case_05"], "augment_on": "cpu", "loader_threads": 1,
            },
        },
        "compute": {"concurrent": 1, "profile_steps": 1},
    }  # fmt: skip
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "jobs/benchmark_backbones.py", "--config", str(path), "--json"]


def test_a_killed_driver_goes_on_without_repeating_a_finished_trial(command, tmp_path):
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    trials = tmp_path / "results" / "two" / "trials"

    def finished():
        return {path.parent.name: path.stat().st_mtime_ns for path in trials.glob("*/result.json")}

    driver = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not finished() and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = finished()
    assert 1 <= len(before) < 4

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    after = finished()
    assert len(after) == 4
    assert before.items() <= after.items()
    assert not any(name in done.stderr for name in before)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["label"] for row in found["standings"]] in (
        ["mednext-v2-nano", "no-grn"],
        ["no-grn", "mednext-v2-nano"],
    )
    assert (Path(found["folder"].removeprefix("file://")) / "report.html").is_file()
