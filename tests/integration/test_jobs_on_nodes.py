"""The jobs by `ray job submit` on three Ray nodes that share no disk, with everything that lasts on S3.

Each node is a session of processes with mounts of its own: the same path is another, empty folder on each, and the
checkout is hidden from all. So a job that leans on a file of the submitting machine, or of another node, fails here.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml

from fedvox.local_cluster import QUIET, end_session, free_ports
from fedvox.storage import list_files, locate, read_bytes, upload_file

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SOURCES = ("platform", "federation", "compliance", "jobs")
BUCKET = "s3://fedvox-test"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
        reason="needs the right to make mounts",
    ),
]


class Nodes:
    """Ray nodes with private disks, at addresses of their own on loopback."""

    def __init__(self, folder):
        self.folder = folder  # the same path on each node, and another folder
        self.gcs, self.dashboard = free_ports(2)
        self.running = {}

    @property
    def address(self):
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, number, cpus):
        host = f"127.0.0.{number}"
        first = [
            "--head", f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", "--include-dashboard=true",
            f"--temp-dir={self.folder}/ray", f"--ray-client-server-port={free_ports(1)[0]}",
        ]  # fmt: skip
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
                 "metrics-export-port", "node-manager-port", "object-manager-port")  # fmt: skip
        ray = [
            str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={host}",
            "--disable-usage-stats", *(first if number == 1 else [f"--address=127.0.0.1:{self.gcs}"]),
            *(f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)),
        ]  # fmt: skip
        mounts = [
            f"mount -t tmpfs tmpfs {path}" for path in (self.folder, *(ROOT / name for name in SOURCES))
        ]
        script = " && ".join([*mounts, f"cd {self.folder}", 'exec "$@"'])
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}, **QUIET,
            "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(self.folder),
            "FEDVOX_HOME": f"{self.folder}/home",
        }  # fmt: skip
        log = Path(tempfile.gettempdir()) / f"{Path(self.folder).name}-{number}.log"
        with log.open("w") as output:
            self.running[number] = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *ray],
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def wait(self, count):
        deadline = time.monotonic() + 180
        while self.alive() != count:
            assert time.monotonic() < deadline, f"{self.alive()} of {count} nodes"
            time.sleep(0.5)

    def alive(self):
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{self.address}/nodes?view=summary", timeout=5) as answer:
                summary = json.loads(answer.read())["data"]["summary"]
            return sum(node["raylet"]["state"] == "ALIVE" for node in summary)
        return 0

    def kill(self, number):
        """As a power cut: no process of the node gets to say goodbye."""
        process = self.running.pop(number)
        done = subprocess.run(["ps", "-eo", "pid=,sess="], capture_output=True, text=True, check=True)
        for pid, session in (line.split() for line in done.stdout.splitlines()):
            if int(session) == process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        process.wait(30)

    def stop(self):
        for process in self.running.values():
            end_session(process)


@pytest.fixture(scope="module")
def nodes(s3_proxy):
    folder = tempfile.mkdtemp(prefix="fvn-", dir="/tmp")
    found = Nodes(folder)
    try:
        found.start(1, 1)
        found.wait(1)
        for number in (2, 3):
            found.start(number, 2)
        found.wait(3)
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def submit(nodes, tmp_path_factory):
    """Submits a job with the checkout's code and a configuration in the working directory that is uploaded."""
    folder = tmp_path_factory.mktemp("submitted")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(script, *arguments, config=None, wait=True):
        if config is not None:
            (folder / f"{config['name']}.yaml").write_text(yaml.safe_dump(config))
            arguments = ("--config", f"{config['name']}.yaml", *arguments)
        command = [
            BIN / "ray", "job", "submit", "--address", nodes.address, "--working-dir", folder, "--", "python",
            f"jobs/{script}.py", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, **QUIET}
        process = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if not wait:
            return process
        told, _ = process.communicate(timeout=900)
        assert process.returncode == 0, told[-6000:]
        return told

    return run


@pytest.fixture(scope="module")
def store(submit):
    """Raw volumes on S3, ingested over the nodes."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch)
        for number in range(4):
            rng = np.random.default_rng(number)
            image = rng.normal(0, 300, (40, 44, 48)).astype(np.int16)
            label = np.zeros(image.shape, np.uint8)
            label[10:24, 8 + number : 22 + number, 12:30] = 1
            image[label == 1] += 400
            for part, array, name in (
                ("imagesTr", image, f"c{number}_0000"),
                ("labelsTr", label, f"c{number}"),
            ):
                (raw / part).mkdir(exist_ok=True)
                nib.save(nib.Nifti1Image(array, np.eye(4)), raw / part / f"{name}.nii.gz")
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "a": 1},
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        for path in raw.rglob("*.*"):
            upload_file(
                path, locate(f"{BUCKET}/raw/Dataset002_Nodes").child(path.relative_to(raw).as_posix())
            )
    told = submit(
        "ingest", "-i", f"{BUCKET}/raw/Dataset002_Nodes", "-o", f"{BUCKET}/stores/nodes", "--spacing", "1,1,1", "--set",
        "memory_gib=0.5", "--set", "contact_sheet_cases=0", "--workers", "auto",
    )  # fmt: skip
    assert "4 of 4 cases" in told
    return f"{BUCKET}/stores/nodes"


def training(name, store, **more):
    return {
        "name": name, "storage": f"{BUCKET}/runs", "steps": 6, "global_batch_size": 2, "log_every": 1,
        "data": {"store": store, "patch_size": [32, 32, 32], "validation_cases": ["c3"], "augment_on": "cpu",
                 "loader_threads": 1, "prefetch_batches": 1},
        "optimizer": {"lr": 1e-2, "warmup_steps": 2}, "validation": {"every_steps": 100, "overlays": 0},
        "checkpoint": {"every_steps": 3},
        "compute": {"num_workers": 2, "cpus_per_worker": 1, "torch_threads": 1}, **more,
    }  # fmt: skip


def metrics(name):
    """Step -> what the last attempt that reached it logged."""
    found = {}
    for location in list_files(locate(f"{BUCKET}/runs/{name}/metrics")):
        for line in map(json.loads, read_bytes(location).decode().splitlines()):
            if line["kind"] == "train":
                found[line["step"]] = line
    return found


@pytest.fixture(scope="module")
def pretrained(submit, nodes, store):
    """A run in which one of two nodes is lost, with all that was on it."""
    config = training("nodes", store, steps=60, model={"name": "mednext-v2-nano"})
    config["checkpoint"], config["compute"]["num_workers"] = {"every_steps": 10}, [1, 2]
    config["compute"]["cpus_per_worker"] = 2  # one worker a node
    process = submit("pretrain", config=config, wait=False)
    deadline = time.monotonic() + 400
    while not (seen := [step for step in _steps("nodes") if step >= 12]):
        assert time.monotonic() < deadline, _said(process)
        assert process.poll() is None, _said(process)
        time.sleep(0.5)
    nodes.kill(3)
    told, _ = process.communicate(timeout=900)
    return SimpleNamespace(uri=f"{BUCKET}/runs/nodes", told=told, code=process.returncode, lost_at=max(seen))


def _steps(name):
    with contextlib.suppress(Exception):
        return sorted(metrics(name))
    return []


def _said(process):
    process.kill()
    return process.communicate()[0]


def test_pretraining_loses_a_node_and_reaches_its_end_with_the_other(pretrained):
    assert pretrained.code == 0, pretrained.told[-6000:]
    lines = metrics("nodes")
    assert sorted(lines) == list(range(1, 61))
    assert (lines[1]["workers"], lines[60]["workers"]) == (2, 1)
    assert json.loads(read_bytes(locate(f"{pretrained.uri}/outcome.json")))["state"] == "finished"


@pytest.fixture(scope="module")
def whole_again(nodes, pretrained):
    """A new node takes the lost one's place."""
    nodes.start(4, 2)
    nodes.wait(3)


def test_fine_tuning_takes_its_weights_from_s3(submit, whole_again, store, pretrained):
    submit("finetune", config=training("tuned", store, init_from=pretrained.uri))
    assert sorted(metrics("tuned")) == list(range(1, 7))
    assert {line["workers"] for line in metrics("tuned").values()} == {2}


def test_prediction_reads_images_and_models_from_s3_and_writes_there(submit, whole_again, pretrained):
    submit(
        "predict", "-i", f"{BUCKET}/raw/Dataset002_Nodes/imagesTr", "-o", f"{BUCKET}/predictions", "-m", pretrained.uri,
        "--workers", "2", "--no-mirror", "--device", "cpu",
    )  # fmt: skip
    names = {location.name for location in list_files(locate(f"{BUCKET}/predictions"))}
    assert {f"c{number}.nii.gz" for number in range(4)} <= names


def test_forecasting_trains_onto_s3(submit, whole_again):
    config = training("forecast", "", data={"simulated": {"kind": "heart", "size": 16}})
    config["validation"] = {"every_steps": 100, "examples": 2}
    submit("forecast", config=config)
    assert sorted(metrics("forecast")) == list(range(1, 7))


def test_nothing_is_left_on_the_submitting_machine(nodes, pretrained):
    """What the nodes wrote lies on their own disks, which go with them."""
    assert list(Path(nodes.folder).iterdir()) == []
