"""A federation of real processes on loopback: SuperLink, SuperNodes, TLS, node authentication, approved code."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fedvox.local_cluster import free_ports
from fedvox_federation.bundle import approve, bundle_sha256
from fedvox_federation.credentials import make_certificates, make_node_key
from fedvox_federation.privacy.ledger import PrivacyLedger, verify

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
WAIT_S = 240


class Processes:
    """Started in groups of their own, and ended with everything that they started."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self.running = []

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=subprocess.STDOUT, env=self.environment,
            cwd=self.folder, start_new_session=True,
        )  # fmt: skip
        process.log = self.folder / f"{name}.log"
        self.running.append(process)
        return process

    def run(self, *command, timeout=WAIT_S):
        return subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, env=self.environment, cwd=self.folder,
            timeout=timeout,
        )  # fmt: skip

    def stop(self):
        for process in reversed(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def wait_for(condition, what, timeout=WAIT_S):
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_store, write_weights):
    """A coordinator's app with a study in it, weights, and two clinics' stores."""
    folder = tmp_path_factory.mktemp("study")
    app = folder / "app"
    app.mkdir()
    shutil.copy(ROOT / "pyproject.toml", app)
    for root in ("platform", "federation", "compliance", "jobs/configs"):
        shutil.copytree(ROOT / root, app / root, ignore=shutil.ignore_patterns("__pycache__"))
    write_weights(folder / "weights")
    values = {
        "name": "loopback", "rounds": 1, "pretrained": str(folder / "weights"), "output": str(folder / "runs"),
        "task": {"patches_per_patient": 1}, "privacy": {"admit_unattested": True},
        "training": {"steps": 2, "device": "cpu", "evaluate": "never"},
        "server": {"min_clinics": 2, "deadline_s": WAIT_S, "connect_timeout_s": WAIT_S},
    }  # fmt: skip
    (app / "jobs" / "configs" / "loopback.yaml").write_text(yaml.safe_dump(values))
    for name in ("nord", "sued"):
        write_store(folder / name / "store", cases=4)
    return SimpleNamespace(folder=folder, app=app)


@pytest.fixture(scope="module")
def federation(study):
    """A SuperLink with TLS that lets in registered SuperNodes alone, and the means to start some."""
    folder = study.folder
    home = folder / "flwr"
    home.mkdir()
    authority, certificate, key = make_certificates(folder / "tls", ["localhost", "127.0.0.1"], days=1)
    (port,) = free_ports(1)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{authority}"\n'
    )
    environment = {
        **os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    processes = Processes(folder, environment)
    superlink = processes.start(
        "superlink", BIN / "flower-superlink", "--host", "127.0.0.1", "--port", port, "--ssl-ca-certfile", authority,
        "--ssl-certfile", certificate, "--ssl-keyfile", key, "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    )  # fmt: skip

    def register(public):
        wait_for(
            lambda: processes.run(BIN / "flwr", "supernode", "register", public, "test").returncode == 0,
            f"the SuperLink ({superlink.log.read_text()[-2000:]})",
        )

    def supernode(name, private, *options):
        (own,) = free_ports(1)
        return processes.start(
            f"supernode-{name}", BIN / "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", own,
            "--root-certificates", authority, "--auth-supernode-private-key", private, *options,
        )  # fmt: skip

    yield SimpleNamespace(
        processes=processes, register=register, supernode=supernode, superlink=superlink, port=port
    )
    processes.stop()


def guarded(federation, study, name, private):
    """A SuperNode that opens nothing but what its clinic approved."""
    (own,) = free_ports(1)
    return federation.processes.start(
        f"guarded-{name}", sys.executable, "-m", "fedvox_federation", "supernode", "--clinic", own_file(study, name),
        "--superlink", f"127.0.0.1:{federation.port}", "--port", own,
        "--root-certificates", study.folder / "tls" / "ca.pem", "--auth-supernode-private-key", private,
    )  # fmt: skip


def own_file(study, name):
    values = {
        "name": name, "store": str(study.folder / name / "store"), "folder": str(study.folder / name / "own"),
        "budget_epsilon": 8.0, "budget_delta": 1e-3,
    }  # fmt: skip
    path = study.folder / name / "clinic.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_two_clinics_train_over_tls_under_code_that_they_approved(study, federation):
    for name in ("nord", "sued"):
        approve(study.folder / name / "own" / "approved-bundles.json", study.app, by="test")
        federation.register(make_node_key(study.folder / name / "node"))
    guarded(federation, study, "nord", study.folder / "nord" / "node")
    plain = f'clinic="{own_file(study, "sued")}"'
    federation.supernode("sued", study.folder / "sued" / "node", "--node-config", plain)
    begun = federation.processes.run(
        BIN / "flwr", "run", study.app, "test", "--run-config", 'config="jobs/configs/loopback.yaml"'
    )
    assert begun.returncode == 0, begun.stdout + begun.stderr
    status = study.folder / "runs" / "loopback" / "status.json"

    def phase():
        return status.is_file() and json.loads(status.read_text())["phase"]

    wait_for(lambda: phase() in ("finished", "stopped"), "the run's end")
    assert phase() == "finished", status.read_text() + federation.superlink.log.read_text()[-3000:]
    rows = [json.loads(line) for line in (status.parent / "clinics.jsonl").read_text().splitlines()]
    assert {row["clinic"]: row["verdict"] for row in rows} == {"nord": "accepted", "sued": "accepted"}
    assert {row["bundle_sha256"] for row in rows} == {bundle_sha256(study.app)}
    assert (status.parent / "final" / "model.json").is_file()
    for row in rows:
        ledger = study.folder / row["clinic"] / "own" / "ledger"
        verify(ledger)
        (booked,) = PrivacyLedger(ledger).account().reservations.values()
        assert booked.update_sha256 == row["update_sha256"]


def test_a_guarded_supernode_opens_no_other_code(study, federation):
    """One comment more is another version; a SuperNode without the guard refuses it too, once it is unpacked."""
    changed = study.folder / "changed"
    shutil.copytree(study.app, changed)
    with (changed / "federation" / "flower_entry.py").open("a") as entry:
        entry.write("# one line more\n")
    federation.processes.run(BIN / "flwr", "run", changed, "test", "--run-config",
                             'config="jobs/configs/loopback.yaml" set="name=changed server.deadline_s=60"')  # fmt: skip
    log = study.folder / "guarded-nord.log"
    wait_for(lambda: "refused before it was opened" in log.read_text(), "the guard")
    status = study.folder / "runs" / "changed" / "status.json"
    wait_for(
        lambda: status.is_file() and json.loads(status.read_text())["phase"] == "stopped", "the run's end"
    )
    told = json.loads(status.read_text())["error"]
    assert "sued declined (bundle-not-approved)" in told
    assert "failed (flower-7)" in told  # Flower's code for an app that could not be verified


def test_a_supernode_with_an_unregistered_key_is_refused(study, federation):
    private = study.folder / "stranger"
    make_node_key(private)
    process = federation.supernode(
        "stranger", private, "--max-retries", "2", "--node-config", 'clinic="/none"'
    )
    assert process.wait(60) != 0
    told = process.log.read_text()
    assert "Failed to activate SuperNode" in told
    assert "SuperNode ID" not in told


def test_a_supernode_does_not_talk_to_a_superlink_of_another_authority(study, federation):
    authority, _, _ = make_certificates(study.folder / "other-tls", ["127.0.0.1"], days=1)
    make_node_key(study.folder / "careful")
    process = federation.supernode(
        "careful", study.folder / "careful", "--root-certificates", authority, "--max-retries", "1"
    )
    assert process.wait(60) != 0
    assert "SuperNode ID" not in process.log.read_text()
