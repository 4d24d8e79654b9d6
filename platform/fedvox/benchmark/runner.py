"""Runs a submitted command or container on the images of a test set, and collects its predictions.

    WORK/names.json            opaque name -> case; never shown to the command
    WORK/shards/0003.json      how the command ended on a shard of the cases
    WORK/predictions/          CASE.nii.gz, under the true names

The command sees copies of the images under opaque names in a random order, so that a file's name tells it nothing. A
shard whose command fails leaves its cases without predictions, which then score worst; the other shards go on.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedvox.benchmark.container import Container, Mounts, run_container
from fedvox.benchmark.sandbox import SandboxResult, run_sandboxed
from fedvox.benchmark.volumes import ENDINGS, list_images, write_json
from fedvox.errors import ConfigError

_START_UP_S = 300.0
"""Loading networks does not count against the time per case."""


@dataclass(frozen=True)
class ShardTask:
    """Some cases that one call of the command predicts.

    Attributes:
        number: of the shard.
        images: opaque name -> images by channel.
        cases: opaque name -> case.
        command: with `{images}` and `{output}`.
        read_paths: what the command may read besides.
        hidden: folders that it must not read.
        work: where predictions and the record go.
        timeout_s: time limit.
        container: what is run instead of the command.
    """

    number: int
    images: dict[str, tuple[Path, ...]]
    cases: dict[str, str]
    command: tuple[str, ...]
    read_paths: tuple[Path, ...]
    hidden: tuple[Path, ...]
    work: Path
    timeout_s: float | None
    container: Container | None = None

    @property
    def record(self) -> Path:
        """Where the result is written."""
        return self.work / "shards" / f"{self.number:04d}.json"


@dataclass(frozen=True)
class ShardResult:
    """How a shard ended: see `SandboxResult`; `predicted` of `cases` have a label map."""

    number: int
    cases: int
    predicted: int
    returncode: int
    seconds: float
    peak_mib: float | None
    timed_out: bool
    log: str


def plan_shards(
    images: Path,
    command: Sequence[str],
    work: Path,
    *,
    hidden: Sequence[Path],
    read_paths: Sequence[Path] = (),
    cases_per_shard: int = 50,
    seconds_per_case: float | None = None,
    container: Container | None = None,
) -> list[ShardTask]:
    """Cut a test set into shards, under opaque names that stay the same when the run is resumed.

    Raises:
        ConfigError: the command lacks a placeholder, or an allowed path is missing.
        DataError: the folder of images is missing or empty.
    """
    for path in read_paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist", "Correct `read_paths` of the submission.")
    found = list_images(images)
    names = _names(work / "names.json", list(found))
    order = sorted(names)
    shards = [order[i : i + cases_per_shard] for i in range(0, len(order), cases_per_shard)]
    return [
        ShardTask(
            number,
            {name: tuple(found[names[name]]) for name in shard},
            {name: names[name] for name in shard},
            tuple(command),
            tuple(read_paths),
            tuple(hidden),
            work,
            None if seconds_per_case is None else _START_UP_S + seconds_per_case * len(shard),
            container,
        )
        for number, shard in enumerate(shards)
    ]


def run_shard(task: ShardTask) -> ShardResult:
    """Run the command on one shard, or return what an earlier run recorded.

    Raises:
        ConfigError: references lie where the command may read.
        RunError: this system cannot hide the references, or cannot run containers.
    """
    if task.record.is_file():
        return ShardResult(**json.loads(task.record.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="fedvox-run-") as folder:
        images, output, scratch = (Path(folder) / name for name in ("images", "output", "scratch"))
        for new in (images, output, scratch):
            new.mkdir()
        for name, channels in task.images.items():
            for source in channels:
                shutil.copyfile(source, images / _renamed(source, name))
        ended = _run(task, images, output, scratch)
        predicted = _collect(output, task)
    result = _result(task, ended, predicted)
    write_json(task.record, asdict(result))
    return result


def _run(task: ShardTask, images: Path, output: Path, scratch: Path) -> SandboxResult:
    if task.container is not None:
        mounts = Mounts(images, output, task.read_paths)
        return run_container(
            task.container, mounts, hidden=task.hidden, scratch=scratch, timeout_s=task.timeout_s
        )
    folders = {"{images}": str(images), "{output}": str(output)}
    placed = [_placed(part, folders) for part in task.command]
    return run_sandboxed(
        placed,
        read=[images, *task.read_paths],
        write=[output],
        hidden=task.hidden,
        scratch=scratch,
        timeout_s=task.timeout_s,
    )


def _placed(part: str, folders: Mapping[str, str]) -> str:
    for placeholder, folder in folders.items():
        part = part.replace(placeholder, folder)
    return part


def _names(path: Path, cases: list[str]) -> dict[str, str]:
    """Opaque name -> case, drawn once."""
    if path.is_file():
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        if sorted(names.values()) == sorted(cases):
            return names
        raise ConfigError(
            f"{path.parent} holds a run over other cases", "Give another output folder, or remove this one."
        )
    shuffled = cases[:]
    random.SystemRandom().shuffle(shuffled)
    width = len(str(len(cases)))
    names = {f"case_{i:0{width}d}_{secrets.token_hex(3)}": case for i, case in enumerate(shuffled, 1)}
    write_json(path, names)
    return names


def _renamed(source: Path, name: str) -> str:
    ending = next(e for e in ENDINGS if source.name.endswith(e))
    return f"{name}_{source.name.removesuffix(ending)[-4:]}{ending}"


def _collect(output: Path, task: ShardTask) -> int:
    """Move the label maps of this shard's cases to their true names; anything else is left behind."""
    target = task.work / "predictions"
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, case in task.cases.items():
        for ending in ENDINGS:
            found = output / f"{name}{ending}"
            if found.is_file() and not found.is_symlink():  # a link could name a file that only we may read
                shutil.copyfile(found, target / f".{case}{ending}.part")
                (target / f".{case}{ending}.part").replace(target / f"{case}{ending}")
                count += 1
                break
    return count


def _result(task: ShardTask, ended: SandboxResult, predicted: int) -> ShardResult:
    return ShardResult(
        task.number,
        len(task.cases),
        predicted,
        ended.returncode,
        ended.seconds,
        ended.peak_mib,
        ended.timed_out,
        ended.log,
    )
