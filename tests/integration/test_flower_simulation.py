"""The command `flower-simulation`, with Flower's real simulation and a Ray of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load

from fedvox.training.release import load_release
from fedvox_federation.privacy.ledger import verify

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_store, write_weights):
    """A store of eight cases, and untrained weights for it."""
    folder = tmp_path_factory.mktemp("simulation")
    write_store(folder / "store", cases=8)
    write_weights(folder / "weights")
    return folder


def simulate(folder, *arguments, timeout=200, **sections):
    values = {
        "name": "simulated", "rounds": 2, "pretrained": str(folder / "weights"), "output": str(folder / "runs"),
        "task": {"patches_per_patient": 1},
        "training": {"steps": 2, "device": "cpu", "evaluate": "never"},
        "server": {"min_clinics": 2},
        "clinics": {
            "store": str(folder / "store"), "folder": str(folder / "clinics"), "partition": {"hospitals": 3},
            "profiles": [{"name": "good", "score": 1.0, "tier": 4}, {"name": "none", "attested": False}],
        },
        **sections,
    }  # fmt: skip
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fedvox_federation.cli_simulation", "--app", str(ROOT), "--config", str(path),
         *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment, cwd=folder,
    )  # fmt: skip


def test_a_federation_runs_to_its_end_and_leaves_a_model_and_ledgers(folder):
    done = simulate(folder, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["outcome"] for row in result["rounds"]] == ["aggregated"] * 2
    assert 0 < result["rounds"][-1]["epsilon"] <= 8
    verdicts = {row["clinic"]: (row["verdict"], row["reason"]) for row in result["clinics"]}
    assert verdicts["hospital_02"] == ("declined", "not-admitted")
    assert [verdicts[name][0] for name in ("hospital_01", "hospital_03")] == ["accepted"] * 2
    for name in ("hospital_01", "hospital_03"):
        verify(folder / "clinics" / "simulated" / "clinics" / name / "ledger", recompute=True)
    trained, _ = load_release(str(folder / "runs" / "simulated" / "final"))
    before, _ = load_release(str(folder / "weights"))
    moved = [not np.array_equal(a.numpy(), b.numpy()) for a, b in
             zip(trained.state_dict().values(), before.state_dict().values(), strict=True)]  # fmt: skip
    assert any(moved)
    assert not all(moved)


@pytest.mark.slow
def test_a_round_without_enough_clinics_ends_in_one_line_and_code_1(folder):
    done = simulate(folder, name="alone", rounds=1, server={"min_clinics": 3})
    assert done.returncode == 1
    assert "2 updates can be used, and 3 are needed; hospital_02 declined (not-admitted)" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_started_for_a_run_that_could_never_begin(folder):
    done = simulate(folder, name="never", server={"min_clinics": 4})
    assert done.returncode == 2
    assert "would wait for ever" in done.stderr


def test_any_other_flower_app_runs_too(tmp_path):
    """One of the kind that Flower's own templates make: its run configuration reaches both of its apps."""
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname = 'other'\nversion = '1.0.0'\n[tool.flwr.app.components]\nserverapp = 'other.app:server'\n"
        "clientapp = 'other.app:client'\n[tool.flwr.app.config]\nadd = 1\n"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "app.py").write_text(
        """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@client.query()
def query(message, context):
    value = context.node_config["partition-id"] + context.run_config["add"]
    return Message(content=RecordDict({"c": ConfigRecord({"value": value})}), reply_to=message)


@server.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(0.1)
    messages = [
        Message(content=RecordDict(), message_type="query", dst_node_id=node) for node in grid.get_node_ids()
    ]
    found = sorted(reply.content["c"]["value"] for reply in grid.send_and_receive(messages))
    Path(__file__).with_name("found.txt").write_text(f"{found} {context.run_config['add']}")
"""
    )
    command = [sys.executable, "-m", "fedvox_federation.cli_simulation", "--app", str(tmp_path)]
    done = subprocess.run(
        [*command, "--num-supernodes", "3", "--run-config", "add=10"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other" / "found.txt").read_text() == "[10, 11, 12] 10"


def test_scaffold_goes_on_with_the_same_corrections_although_its_clinics_are_other_nodes(folder):
    """Clinics send their last answer again only to the very same order, correction included."""
    sections = {
        "name": "scaffold", "rounds": 3, "strategy": {"name": "scaffold", "weighting": "equal"},
        "training": {"steps": 2, "device": "cpu", "evaluate": "never", "optimizer": "sgd", "lr": 0.01},
    }  # fmt: skip
    done = simulate(folder, "--json", **sections)
    assert done.returncode == 0, done.stderr
    state = folder / "runs" / "scaffold" / "state"
    first = (state / "round-0003.safetensors").read_bytes()
    known = {key.split("/")[2] for key in load(first) if key.startswith("strategy/control/")}
    assert known == {"hospital_01", "hospital_03"}  # the other is not admitted
    for file in state.glob("round-0003.*"):
        file.unlink()  # as if the server had been killed before it was written
    again = simulate(folder, "--json", **sections)
    assert again.returncode == 0, again.stderr
    last = [row for row in json.loads(again.stdout)["clinics"] if row["round"] == 3]
    assert {(row["clinic"], row["verdict"], row.get("replayed")) for row in last if row["weight"]} == {
        (name, "accepted", True) for name in ("hospital_01", "hospital_03")
    }
    assert (state / "round-0003.safetensors").read_bytes() == first
