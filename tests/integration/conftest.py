"""A small real brick store, a Ray of our own, and ways to run and to harm a pretraining."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.local_cluster import free_ports, local_cluster
from fedvox.models.registry import build_model
from fedvox.storage import list_files, locate, read_bytes
from fedvox.training.release import ModelInfo, write_release

ROOT = Path(__file__).resolve().parents[2]
TOKEN = f"fedvox-test-{uuid.uuid4()}"
CLUSTER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "FEDVOX_TEST_CLUSTER": TOKEN}


def volume(seed, shape=(40, 44, 48)):
    """A ball and a box on a noisy background: something that a small net learns quickly."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    centre = np.array([rng.integers(12, n - 12) for n in shape]).reshape(3, 1, 1, 1)
    label = np.zeros(shape, np.uint8)
    label[(np.abs(grid - centre[::-1] % np.array(shape).reshape(3, 1, 1, 1)) < 6).all(0)] = 2
    label[((grid - centre) ** 2).sum(0) < 64] = 1
    image = (label.astype(float) * 300 + rng.normal(0, 60, shape)).astype(np.int16)
    return image[None], label


@pytest.fixture(scope="session")
def write_store():
    """Writes a store of `cases` volumes to a folder or S3."""

    def write(uri, cases=6):
        meta = StoreMeta(
            name="shapes", channel_names=("CT",), modality="CT", structures=("background", "ball", "box"),
            label_sets={"all": (0, 1, 2)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
        )  # fmt: skip
        writer = StoreWriter.create(str(uri), meta)
        for i in range(cases):
            image, label = volume(i)
            writer.add_case(
                f"case_{i:02d}",
                image,
                label,
                source=f"source{i % 2}",
                label_set="all",
                spacing_mm=(1.0, 1.0, 1.0),
            )
        writer.finish()
        return str(uri)

    return write


@pytest.fixture(scope="session")
def write_weights():
    """Writes untrained weights that fit the store's volumes to a folder."""

    def write(folder):
        torch.manual_seed(7)
        network = build_model("mednext-v2-nano", in_channels=1, classes=3, deep_supervision=False)
        info = ModelInfo(
            name="mednext-v2-nano", options={"deep_supervision": False}, structures=("background", "ball", "box"),
            channel_names=("CT",), patch_size=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), normalization="zscore",
            intensity=None, provenance={}, modality="CT",
        )  # fmt: skip
        write_release(network, info, locate(str(folder)))

    return write


@pytest.fixture(scope="module")
def cluster():
    """One Ray head for a module's tests, ended with all that belongs to it."""
    with local_cluster(4, environment=CLUSTER_ENVIRONMENT) as started:
        yield started


@pytest.fixture(scope="session")
def cluster_environment():
    """Variables by which this session's clusters are known."""
    return CLUSTER_ENVIRONMENT


class Pretraining:
    """A pretraining (or another training: see `job`) as a user runs it, in a process of its own."""

    job = "jobs/pretrain.py"

    def __init__(self, folder, store, cluster, **values):
        self.folder = Path(folder)
        self.config = {
            "name": "run", "storage": str(self.folder / "runs"), "steps": 24, "global_batch_size": 2, "log_every": 1,
            "data": {"store": store, "patch_size": [32, 32, 32], "validation_cases": ["case_05"], "augment_on": "cpu",
                     "loader_threads": 1, "prefetch_batches": 1},
            "model": {"name": "mednext-v2-nano"},
            "optimizer": {"lr": 1e-2, "warmup_steps": 2},
            "validation": {"every_steps": 12, "overlays": 1},
            "checkpoint": {"every_steps": 6},
            "compute": {"num_workers": 2, "cpus_per_worker": 1, "torch_threads": 1},
        }  # fmt: skip
        for dotted, value in values.items():
            *path, last = dotted.split("__")
            node = self.config
            for key in path:
                node = node.setdefault(key, {})
            node[last] = value
        self.environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        if cluster is not None:
            self.environment["RAY_ADDRESS"] = cluster.gcs_address
        self.process = None

    @property
    def directory(self):
        return Path(self.config["storage"]) / self.config["name"]

    @property
    def location(self):
        return locate(self.config["storage"]).child(self.config["name"])

    def command(self, *more):
        path = self.folder / f"{self.config['name']}.yaml"
        path.write_text(yaml.safe_dump(self.config))
        return [sys.executable, self.job, "--config", str(path), *more]

    def run(self, *more, expect=0, timeout=300):
        done = subprocess.run(
            self.command(*more), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def start(self):
        self.output = (self.folder / f"{self.config['name']}.log").open("w+")
        self.process = subprocess.Popen(
            self.command(), cwd=ROOT, env=self.environment, stdout=self.output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        return self

    def wait_for_step(self, step, timeout=180):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if any(line["step"] >= step for line in self.lines("train")):
                return
            assert self.process.poll() is None, self.log()
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached:\n{self.log()}")

    def finish(self, expect=0, timeout=300):
        code = self.process.wait(timeout)
        assert code == expect, self.log()
        return self.log()

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def log(self):
        return Path(self.output.name).read_text()[-8000:]

    def lines(self, kind):
        """The run as it counts: for every step, what the last attempt that reached it logged."""
        found = {}
        for location in list_files(self.location.child("metrics")):
            for text in read_bytes(location).decode().splitlines():
                line = json.loads(text)
                if line["kind"] == kind:
                    found[line["step"]] = line
        return [found[step] for step in sorted(found)]

    def losses(self):
        return [line["loss"] for line in self.lines("train")]

    def attempts(self):
        return sorted({line["attempt"] for line in self.lines("train")})


class RefusingProxy:
    """Forwards one port to another until `refuse()`, which closes the port and resets what is open."""

    def __init__(self, target_port):
        self.target_port = target_port
        self._connections = []
        self._listener = None
        self._lock = threading.Lock()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.allow()

    def allow(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self):
        """From now on the port refuses, as if no server were there."""
        listener, self._listener = self._listener, None
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which would otherwise keep the port open
        listener.close()
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def close(self):
        if self._listener is not None:
            self.refuse()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                return
            with self._lock:
                self._connections += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def s3_proxy():
    """A real S3 server (moto's) behind a proxy that can refuse; AWS_* variables point to the proxy."""
    port = free_ports(1)[0]
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    proxy = RefusingProxy(port)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline, "moto did not start"
                time.sleep(0.2)
        # moto keeps its buckets in memory, so only a proxy in front can be "down" and come back with the data
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/fedvox-test", method="PUT"), timeout=10
        )
        yield proxy
    proxy.close()
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="session")
def worker_pids():
    """Tells the processes that are Ray Train workers of our own cluster; other Rays of the host are left alone."""

    def find():
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = TOKEN.encode() in (folder / "environ").read_bytes()
                if ours and b"RayTrainWorker" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile
                continue
        return sorted(found)

    return find


@pytest.fixture(scope="module")
def pretraining_in(cluster):
    """Builds a `Pretraining` in a folder; what it started is ended with the module."""
    started = []

    def build(folder, store, **values):
        started.append(Pretraining(folder, store, cluster, **values))
        return started[-1]

    yield build
    for one in started:
        if one.process is not None and one.process.poll() is None:
            one.kill()


@pytest.fixture
def pretraining(tmp_path, pretraining_in):
    """Builds a `Pretraining` in the test's own folder."""
    return lambda store, folder=tmp_path, **values: pretraining_in(folder, store, **values)
