"""A Ray of our own on this machine, which never touches another one.

`ray stop` ends every Ray process on a host, whoever started it. So the head started here is a child in a
session of its own, on free ports and with its own temporary folder, and stopping it signals that session
alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedvox.errors import RunError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}  # time for a stopped job's last checkpoint; Ray gives 3 s


@dataclass(frozen=True)
class LocalCluster:
    """A running head node.

    Attributes:
        jobs_address: for `ray job submit --address`.
        gcs_address: for further nodes, `ray start --address`.
    """

    jobs_address: str
    gcs_address: str


@contextmanager
def local_cluster(
    num_cpus: int, *, environment: Mapping[str, str] | None = None, start_timeout_s: float = 120.0
) -> Iterator[LocalCluster]:
    """Starts a Ray head, yields its addresses and ends exactly what was started.

    Args:
        num_cpus: CPUs that Ray may hand out.
        environment: further variables for Ray and all its workers.
        start_timeout_s: how long the head may take to answer.

    Raises:
        RunError: Ray did not start; its last words are part of the message.
    """
    # Ray's socket paths must stay under 107 bytes: a short folder, not the user's TMPDIR.
    folder = Path(tempfile.mkdtemp(prefix="fvray-", dir="/tmp" if Path("/tmp").is_dir() else None))
    gcs, dashboard, client = free_ports(3)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        f"--num-cpus={num_cpus}", f"--port={gcs}", f"--dashboard-port={dashboard}", "--include-dashboard=true",
        f"--ray-client-server-port={client}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1",
        *_agent_ports(),
    ]  # fmt: skip
    output = (folder / "start.log").open("wb")
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    # A job's `python` is looked up on the node's PATH: it must be the interpreter that has the packages.
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    process = subprocess.Popen(
        command, env={**inherited, **QUIET, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _await_jobs_api(address, process, folder / "start.log", start_timeout_s)
        yield LocalCluster(address, f"127.0.0.1:{gcs}")
    finally:
        end_session(process)
        output.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_node(cluster: LocalCluster, num_cpus: int) -> Iterator[subprocess.Popen[bytes]]:
    """Adds a node to a local cluster, for trying what a run does when nodes come and go.

    Yields:
        The node's process, which leads a session of its own: `end_session` ends the node.
    """
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.gcs_address}",
        f"--num-cpus={num_cpus}", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *_agent_ports(),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        end_session(process)


def _agent_ports() -> list[str]:
    """Free ports for a node's agents: with the defaults, a second node on a host ends with its agent."""
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    return [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def end_session(process: subprocess.Popen[bytes], grace_s: float = 15.0) -> None:
    """Ends a child and everything in its session: SIGTERM, then SIGKILL for what is left."""
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        members = _session_members(process.pid)
        for pid in members:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while _session_members(process.pid) and time.monotonic() < deadline:
            process.poll()  # reaps it, so that it stops counting as a member
            time.sleep(0.1)
    process.wait(timeout=5)


def _session_members(session: int) -> list[int]:
    """Living processes of a session; Ray's children stay in it whoever their parent became."""
    done = subprocess.run(["ps", "-eo", "pid=,sess=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(pid) for pid, sess, state in rows if int(sess) == session and not state.startswith("Z")]


def _await_jobs_api(address: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    words = log.read_text(errors="replace")[-2000:]
    raise RunError(
        f"Ray did not start within {timeout_s:.0f} s. Its last words:\n{words}", "See whether /tmp has room."
    )
