"""Runs a submitter's command so that it cannot read what it must not: the hidden references.

The command sees an allow-list and nothing else. On Linux the kernel enforces it (Landlock, since 5.13, no privileges
needed): this module starts itself as a small launcher, which restricts itself for good and becomes the command. So the
command and everything that it starts can

- read the system (programs, libraries, devices), the Python that runs this, the images and what the manifest names;
- write the output folder and a scratch folder of its own;
- not open a TCP connection (kernel 6.7 on): neither to fetch the answers nor to carry the images away;

and its environment holds a handful of harmless variables. References that lie inside an allowed folder are refused
before anything starts. Where the kernel cannot enforce this, `run_sandboxed` refuses to run; use a container then.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvox.errors import ConfigError, RunError

SYSTEM_READ = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/sys",
    "/opt/nvidia",
    "/run/nvidia",
)
PROC_READ = (
    "cpuinfo",
    "meminfo",
    "stat",
    "loadavg",
    "uptime",
    "version",
    "filesystems",
    "sys",
    "driver",
    "self",
)
"""Of /proc only these: the environment of other processes there may hold the keys to the references."""
DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/shm",
    "/dev/nvidia*",
    "/dev/dri",
)
_KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)

_LANDLOCK_CREATE_RULESET = 444
"""System call; the same number on every architecture."""


@dataclass(frozen=True)
class SandboxResult:
    """How a command ended.

    Attributes:
        returncode: its exit status; -9 for a command that was killed at the time limit.
        seconds: that it ran.
        peak_mib: largest resident memory of one of its processes; None in a container, where it is not known.
        log: the end of what it printed.
        timed_out: whether the time limit ended it.
    """

    returncode: int
    seconds: float
    peak_mib: float | None
    log: str
    timed_out: bool


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    found = ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    return max(0, int(found))


def run_sandboxed(
    command: Sequence[str],
    *,
    read: Iterable[Path],
    write: Iterable[Path],
    hidden: Iterable[Path],
    scratch: Path,
    timeout_s: float | None = None,
) -> SandboxResult:
    """Run a command that can read only what is allowed.

    Args:
        command: program and arguments.
        read: folders and files that it may read besides the system.
        write: folders that it may write.
        hidden: folders that it must not be able to read; only checked, never told to the command.
        scratch: an empty folder for its temporary files and as its home; also its working directory.
        timeout_s: after which it is killed with everything that it started.

    Raises:
        ConfigError: a hidden folder lies inside an allowed one.
        RunError: this kernel cannot enforce the restriction.
    """
    if landlock_version() < 1:
        raise RunError(
            "this system cannot keep a command from reading the references (no Landlock)",
            "Run on Linux 5.13 or later with landlock among the security modules, or in a container.",
        )
    system = [*map(Path, SYSTEM_READ), *(Path("/proc") / name for name in PROC_READ)]
    allowed = {"read": [*system, *_python(), *read], "write": [*write, scratch]}
    check_hidden(hidden, [*allowed["read"], *allowed["write"]])
    devices = [str(p) for pattern in DEVICES for p in Path("/").glob(pattern.lstrip("/"))]
    rules = {
        "read": [str(p) for p in allowed["read"]],
        "write": [*(str(p) for p in allowed["write"]), *devices],
    }
    launcher = [
        sys.executable,
        "-I",
        str(Path(__file__).with_name("sandbox_launcher.py")),
        json.dumps(rules),
        *command,
    ]
    environment = {k: os.environ[k] for k in _KEPT_VARIABLES if k in os.environ}
    environment |= {"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    return run_and_watch(launcher, environment, scratch, timeout_s)


def _python() -> list[Path]:
    """Where this Python and its packages lie: commands may be Python programs of the same environment."""
    return [
        Path(p)
        for p in {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)}
    ]


def check_hidden(hidden: Iterable[Path], allowed: Iterable[Path]) -> None:
    """Refuse to run where an allowed path holds hidden ones, or lies among them.

    Raises:
        ConfigError: one does.
    """
    for secret in (p.resolve() for p in hidden):
        for folder in (p.resolve() for p in allowed):
            if secret.is_relative_to(folder) or folder.is_relative_to(secret):
                raise ConfigError(
                    f"the references in {secret} lie inside {folder}, which the command may read"
                    if secret.is_relative_to(folder)
                    else f"{folder}, which the command may read, lies inside the references in {secret}",
                    "Move the references out of it, or do not list it in `read_paths`.",
                )


def run_and_watch(
    command: Sequence[str], environment: dict[str, str], scratch: Path, timeout_s: float | None
) -> SandboxResult:
    """Run a command in a session of its own, and tell what it cost. Whoever calls this sees to what it may read.

    Args:
        command: program and arguments.
        environment: all of its variables.
        scratch: its working directory; takes the log.
        timeout_s: after which it and what it started are killed.
    """
    log = scratch / ".log"
    start = time.perf_counter()
    timed_out = threading.Event()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, cwd=scratch, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

        def expire() -> None:
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nothing that was not started here

        timer = threading.Timer(timeout_s or 0, expire)
        if timeout_s is not None:
            timer.start()
        # wait4 rather than Popen.wait: it tells the memory of this child, not of all that ever ran
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    tail = log.read_bytes()[-8000:].decode(errors="replace")
    return SandboxResult(process.returncode, seconds, usage.ru_maxrss / 1024, tail, timed_out.is_set())
