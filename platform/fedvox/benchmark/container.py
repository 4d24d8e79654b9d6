"""Runs a submitted container: docker, podman or apptainer, without network, on the images and nothing else.

    docker run --rm --pull never --network none --read-only --cap-drop ALL …
        --volume IMAGES:/images:ro --volume OUTPUT:/output:rw IMAGE /images /output

Only what is mounted exists inside: copies of the images under opaque names (read-only), an empty folder for the label
maps, and what `read_paths` names (read-only, under its own path). References are never among them; if a mounted folder
held them, or lay among them, nothing would run. The engine itself is trusted, and so is who built it into the system.
The image must be there already (`docker load`, `docker pull`, a .sif file): it is not fetched while a test set is open.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedvox.benchmark.sandbox import SandboxResult, check_hidden, run_and_watch
from fedvox.config import Config
from fedvox.errors import RunError

Engine = Literal["docker", "podman", "apptainer"]
ENGINES: tuple[Engine, ...] = ("docker", "podman", "apptainer")
IMAGES, OUTPUT = "/images", "/output"
_ENGINE_FAILED = 125
"""Exit status of docker and podman when they, and not the program inside, have failed."""
_STOP_S = 60.0
_KEPT_VARIABLES = (
    "PATH", "HOME", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CONTAINER_HOST",
    "APPTAINER_CACHEDIR", "APPTAINER_TMPDIR", "LANG", "LC_ALL",
)  # fmt: skip


class Container(Config):
    """A container that predicts a folder.

    Attributes:
        image: name and tag or digest, or the path of a .sif file.
        engine: that runs it; `auto` takes the first one which is installed, and apptainer for a .sif file.
        arguments: after the image; `{images}` and `{output}` are the folders inside. An image without an entrypoint
            needs the program here, too.
        gpus: whether it sees the GPUs.
        memory_gib: limit of its memory (docker and podman).
        shared_memory_gib: of /dev/shm, which data loaders need (docker and podman).
    """

    image: str = Field(min_length=1)
    engine: Literal["auto", "docker", "podman", "apptainer"] = "auto"
    arguments: tuple[str, ...] = ("{images}", "{output}")
    gpus: bool = False
    memory_gib: float | None = Field(None, gt=0)
    shared_memory_gib: float = Field(1.0, gt=0)

    def located(self, folder: Path) -> Container:
        """With the path of a .sif file relative to a folder made absolute."""
        if not self.image.endswith(".sif"):
            return self
        return self.model_copy(update={"image": str((folder / self.image).resolve())})


@dataclass(frozen=True)
class Mounts:
    """What a container sees of this machine.

    Attributes:
        images: read-only, as `/images`.
        output: as `/output`.
        read: read-only, each under its own path.
    """

    images: Path
    output: Path
    read: tuple[Path, ...] = ()


def find_engine(container: Container) -> tuple[Engine, str]:
    """The engine that a container asks for and its program.

    Raises:
        RunError: it is not installed.
    """
    wanted: tuple[Engine, ...] = ENGINES if container.engine == "auto" else (container.engine,)
    if container.engine == "auto" and container.image.endswith(".sif"):
        wanted = ("apptainer",)
    for engine in wanted:
        if (program := shutil.which(engine)) is not None:
            return engine, program
    raise RunError(
        f"container {container.image} cannot be run: {' and '.join(wanted)} "
        f"{'is' if len(wanted) == 1 else 'are'} not on PATH",
        "Install it, name another `engine`, or submit a `command` or predictions.",
    )


def command_line(
    container: Container, mounts: Mounts, *, engine: Engine, program: str, name: str
) -> list[str]:
    """The whole command; see the top of this module.

    Args:
        container: what to run.
        mounts: what it sees.
        engine: whose language is spoken.
        program: its path.
        name: of this run, by which docker and podman stop it.
    """
    options = (
        _apptainer(container, mounts) if engine == "apptainer" else _docker(container, mounts, engine, name)
    )
    inside = [a.replace("{images}", IMAGES).replace("{output}", OUTPUT) for a in container.arguments]
    return [program, *options, container.image, *inside]


def _docker(container: Container, mounts: Mounts, engine: Engine, name: str) -> list[str]:
    words = [
        "run", "--rm", "--name", name, "--pull", "never", "--network", "none", "--read-only",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "4096",
        "--user", f"{os.getuid()}:{os.getgid()}", "--tmpfs", "/tmp:rw,exec", "--env", "HOME=/tmp",
        "--shm-size", f"{container.shared_memory_gib * 1024:.0f}m", "--workdir", "/tmp",
    ]  # fmt: skip
    if engine == "podman":
        words += [
            "--userns",
            "keep-id",
        ]  # else the files in the output belong to a user of the container alone
    if container.memory_gib is not None:
        words += ["--memory", f"{container.memory_gib * 1024:.0f}m"]
    if container.gpus:
        words += ["--device", "nvidia.com/gpu=all"] if engine == "podman" else ["--gpus", "all"]
    for source, inside, mode in _volumes(mounts):
        words += ["--volume", f"{source}:{inside}:{mode}"]
    return words


def _apptainer(container: Container, mounts: Mounts) -> list[str]:
    words = ["run", "--containall", "--no-home", "--cleanenv", "--net", "--network", "none", "--no-privs"]
    words += ["--writable-tmpfs", "--pwd", "/tmp"]
    if container.gpus:
        words.append("--nv")
    for source, inside, mode in _volumes(mounts):
        words += ["--bind", f"{source}:{inside}:{mode}"]
    return words


def _volumes(mounts: Mounts) -> list[tuple[Path, str, str]]:
    own = [(path, str(path), "ro") for path in mounts.read]
    return [(mounts.images, IMAGES, "ro"), (mounts.output, OUTPUT, "rw"), *own]


def run_container(
    container: Container,
    mounts: Mounts,
    *,
    hidden: Iterable[Path],
    scratch: Path,
    timeout_s: float | None = None,
) -> SandboxResult:
    """Run a container to its end.

    Args:
        container: what to run.
        mounts: what it sees.
        hidden: folders that must not be mounted; only checked.
        scratch: takes the log; not mounted.
        timeout_s: after which it is killed.

    Raises:
        ConfigError: a mounted folder holds hidden ones, or lies in one.
        RunError: no engine, or the engine failed before the program started.
    """
    check_hidden(hidden, [mounts.images, mounts.output, *mounts.read])
    engine, program = find_engine(container)
    name = f"fedvox-{secrets.token_hex(6)}"
    line = command_line(container, mounts, engine=engine, program=program, name=name)
    environment = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    ended = run_and_watch(line, environment, scratch, timeout_s)
    if ended.timed_out and engine != "apptainer":  # the client was killed; what it had started runs on
        stop = [program, "rm", "--force", name]
        subprocess.run(stop, env=environment, capture_output=True, timeout=_STOP_S, check=False)
    if ended.returncode == _ENGINE_FAILED and engine != "apptainer":
        raise RunError(
            f"{engine} could not start container {container.image}: {_last_line(ended.log)}",
            f"See that the engine runs and that it has the image: {engine} image inspect {container.image}",
        )
    return SandboxResult(ended.returncode, ended.seconds, None, ended.log, ended.timed_out)


def _last_line(log: str) -> str:
    lines: Sequence[str] = [line for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "rror" in line), lines[0] if lines else "no message")
