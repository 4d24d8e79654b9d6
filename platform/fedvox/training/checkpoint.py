"""Sharded, asynchronous checkpoints with an atomic commit, on any pyarrow filesystem.

    checkpoints/step-00001000/
        0002-00000-of-00004.safetensors         one shard a worker: a disjoint part of all tensors
        0002-00000-of-00004.safetensors.json    its size and SHA-256, written after it
        COMMIT.json                             written last, by worker 0, once every shard is there

A folder without COMMIT.json is not a checkpoint. Shards carry the number of the attempt that wrote them
(0002), so that leftovers of a killed attempt can never be committed together with new ones. Shards hold
tensors by name, not by worker: a run may resume with another number of workers. Nothing is pickled.

Taking a snapshot copies the worker's share of the tensors to memory; serialising, hashing and uploading
happen in a background thread while training goes on. A full disk or an unreachable store costs a checkpoint,
with a warning, never the run; the newest committed checkpoint stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedvox import storage
from fedvox.errors import CheckpointError, FedvoxError, RunError
from fedvox.storage import Location

log = logging.getLogger(__name__)

COMMIT = "COMMIT.json"
SCHEMA = "fedvox.checkpoint/1"


@dataclass(frozen=True)
class Snapshot:
    """State of a run at the end of a step.

    Attributes:
        step: optimiser steps done.
        tensors: every tensor of model and optimiser by a unique name.
        meta: JSON-able values: architecture, scalars of the run's state, configuration.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Writer:
    """Who writes: the worker's rank, the number of workers, and the attempt (restart count) of the run."""

    rank: int
    world_size: int
    attempt: int

    def shard_name(self, rank: int) -> str:
        """File name of the shard of `rank` in this attempt."""
        return f"{self.attempt:04d}-{rank:05d}-of-{self.world_size:05d}.safetensors"


def assign_shards(sizes: Mapping[str, int], world_size: int) -> list[list[str]]:
    """Spreads tensors over shards of nearly equal size: largest first, to the lightest shard.

    Args:
        sizes: bytes by tensor name.
        world_size: number of shards.
    """
    shards: list[list[str]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        shards[lightest].append(name)
        loads[lightest] += sizes[name]
    return shards


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: folder or S3 prefix that holds the `step-…` folders.
        writer: this worker.
        keep: committed checkpoints to keep; older ones are deleted by worker 0.
        commit_timeout_s: how long worker 0 waits for the other workers' shards.
    """

    def __init__(
        self,
        root: Location,
        writer: Writer,
        *,
        keep: int = 3,
        commit_timeout_s: float = 600.0,
    ) -> None:
        self.root = root
        self.writer = writer
        self.keep = keep
        self.commit_timeout_s = commit_timeout_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[bool] | None = None
        self._closing = threading.Event()

    # Writing

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> bool:
        """Starts writing a checkpoint; blocks only while the previous one is still being written.

        Args:
            snapshot: equal on all workers; each writes its own part.
            wait: return only when it is committed (on worker 0) or its shard is stored (on the others).

        Returns:
            False if `wait` and the checkpoint could not be written; the reason has been logged.
        """
        self.wait()
        sizes = {name: tensor.nbytes for name, tensor in snapshot.tensors.items()}
        mine = assign_shards(sizes, self.writer.world_size)[self.writer.rank]
        # A copy, because the optimiser goes on to change these tensors in place.
        part = {name: snapshot.tensors[name].detach().to("cpu", copy=True).contiguous() for name in mine}
        self._pending = self._pool.submit(self._write, snapshot.step, part, snapshot.meta)
        return self.wait() if wait else True

    def wait(self) -> bool:
        """Waits for the checkpoint being written, if any; False if it failed."""
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else True

    def close(self) -> bool:
        """Waits for the last checkpoint and ends the background thread; False if that checkpoint failed."""
        try:
            return self.wait()
        finally:
            self._closing.set()
            self._pool.shutdown()

    def _write(self, step: int, part: dict[str, Tensor], meta: dict[str, Any]) -> bool:
        folder = self.root.child(step_name(step))
        name = self.writer.shard_name(self.writer.rank)
        try:
            info = _store_tensors(part, folder.child(name))
            storage.write_atomic(folder.child(f"{name}.json"), json.dumps(info).encode())
            if self.writer.rank == 0:
                self._commit(step, folder, meta)
        except (FedvoxError, OSError) as error:
            log.warning("checkpoint at step %d was not written: %s. Training goes on; the one before it stays.",
                        step, error)  # fmt: skip
            self._discard(folder)
            return False
        if self.writer.rank == 0:
            self._prune()
        return True

    def _commit(self, step: int, folder: Location, meta: dict[str, Any]) -> None:
        names = [self.writer.shard_name(rank) for rank in range(self.writer.world_size)]
        shards = {name: self._await_shard(folder.child(f"{name}.json"), step) for name in names}
        commit = {"schema": SCHEMA, "step": step, "shards": shards, "meta": meta}
        storage.write_atomic(folder.child(COMMIT), json.dumps(commit, indent=1).encode())

    def _await_shard(self, sidecar: Location, step: int) -> Any:
        deadline = time.monotonic() + self.commit_timeout_s
        while not storage.exists(sidecar):
            if time.monotonic() > deadline or self._closing.is_set():
                raise RunError(
                    f"{sidecar.uri} did not arrive within {self.commit_timeout_s:.0f} s (step {step})"
                )
            time.sleep(0.05 if self.writer.world_size == 1 else 0.2)
        return json.loads(storage.read_bytes(sidecar))

    def _discard(self, folder: Location) -> None:
        """Frees what a failed attempt left, above all on a full disk; a failure here only costs space."""
        name = self.writer.shard_name(self.writer.rank)
        for leftover in (folder.child(name), folder.child(f"{name}.json")):
            try:
                storage.delete(leftover)
            except (FedvoxError, OSError) as error:
                log.debug("leftover %s stays: %s", leftover.uri, error)

    def _prune(self) -> None:
        """Deletes what is too old; a failure only costs space, above all not the checkpoint just committed."""
        try:
            committed = self.committed_steps()
            for folder in _step_folders(self.root):
                if committed and _step_of(folder) < committed[-self.keep :][0]:
                    # The commit goes first: a half-deleted checkpoint must not look whole.
                    storage.delete(self.root.child(folder, COMMIT))
                    storage.delete_folder(self.root.child(folder))
        except (FedvoxError, OSError) as error:
            log.warning("old checkpoints in %s could not be deleted: %s", self.root.uri, error)

    # Reading

    def committed_steps(self) -> list[int]:
        """Steps that have a committed checkpoint, ascending."""
        return committed_steps(self.root)


def committed_steps(root: Location) -> list[int]:
    """Steps under `root` that have a committed checkpoint, ascending."""
    return sorted(_step_of(name) for name in _step_folders(root) if storage.exists(root.child(name, COMMIT)))


def load_latest(root: Location) -> Snapshot | None:
    """The newest committed checkpoint that is intact, or None if nothing was ever committed.

    A damaged checkpoint is announced and the one before it is taken.

    Raises:
        CheckpointError: checkpoints were committed, but none of them is intact.
    """
    steps = committed_steps(root)
    for step in reversed(steps):
        try:
            return load(root.child(step_name(step)))
        except CheckpointError as error:
            log.warning("%s. The checkpoint before it is tried.", error.message)
    if steps:
        raise _all_damaged(root, len(steps))
    return None


def newest_meta(root: Location) -> dict[str, Any] | None:
    """What the newest readable commit says of its checkpoint, without the tensors; None if there is none.

    Raises:
        CheckpointError: checkpoints were committed, but no commit is readable.
    """
    steps = committed_steps(root)
    for step in reversed(steps):
        try:
            meta: dict[str, Any] = _read_commit(root.child(step_name(step)))["meta"]
        except CheckpointError as error:
            log.warning("%s. The checkpoint before it is tried.", error.message)
        else:
            return meta
    if steps:
        raise _all_damaged(root, len(steps))
    return None


def _all_damaged(root: Location, count: int) -> CheckpointError:
    return CheckpointError(
        f"{root.uri}: all {count} committed checkpoints are damaged",
        "Restore one of them from a backup, or start a run of another name.",
    )


def _read_commit(folder: Location) -> dict[str, Any]:
    location = folder.child(COMMIT)
    try:
        commit: dict[str, Any] = json.loads(storage.read_bytes(location))
        if commit["schema"] != SCHEMA:
            raise CheckpointError(
                f"{location.uri} is of schema {commit['schema']}, not {SCHEMA}",
                "Use the version that wrote it.",
            )
        return {key: commit[key] for key in ("step", "shards", "meta")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{location.uri} is not readable: {error!r}", "Use another checkpoint."
        ) from error


def load(folder: Location) -> Snapshot:
    """Reads one committed checkpoint and checks every shard's size and SHA-256.

    Raises:
        CheckpointError: there is no commit, or a shard is missing or damaged.
    """
    if not storage.exists(folder.child(COMMIT)):
        raise CheckpointError(
            f"{folder.uri} holds no committed checkpoint ({COMMIT} is missing)",
            "Name a folder `…/checkpoints/step-NNNNNNNN` that has one.",
        )
    commit = _read_commit(folder)
    tensors: dict[str, Tensor] = {}
    for name, info in commit["shards"].items():
        tensors.update(load_tensors(folder.child(name), expect_sha256=info["sha256"]))
    return Snapshot(commit["step"], tensors, commit["meta"])


def load_tensors(location: Location, *, expect_sha256: str | None = None) -> dict[str, Tensor]:
    """Reads a safetensors file, on CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or no safetensors file.
    """
    if not storage.exists(location):
        raise CheckpointError(f"{location.uri} is missing", "Use another checkpoint.")
    try:
        with tempfile.TemporaryDirectory(prefix="fedvox-") as scratch:
            path = _local_copy(location, Path(scratch))
            if expect_sha256 is not None and (found := _sha256(path)) != expect_sha256:
                raise CheckpointError(
                    f"{location.uri} is damaged: SHA-256 {found[:12]}…, expected {expect_sha256[:12]}…",
                    "Use another checkpoint.",
                )
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise CheckpointError(f"{location.uri} cannot be read: {error}", "Use another checkpoint.") from error


def save_tensors(tensors: Mapping[str, Tensor], location: Location) -> dict[str, Any]:
    """Writes a safetensors file atomically; returns `{bytes, sha256, tensors}`."""
    return _store_tensors({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, location)


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _step_folders(root: Location) -> list[str]:
    names = {
        location.path.removeprefix(root.path).lstrip("/").split("/")[0]
        for location in storage.list_files(root)
    }
    return sorted(name for name in names if name.startswith("step-") and name[5:].isdigit())


def _store_tensors(tensors: dict[str, Tensor], location: Location) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fedvox-") as scratch:
        path = Path(scratch) / "shard.safetensors"
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        info = {"bytes": path.stat().st_size, "sha256": _sha256(path), "tensors": len(tensors)}
        storage.upload_file(path, location)
    return info


def _local_copy(location: Location, scratch: Path) -> Path:
    if location.is_local:
        return location.local_path
    path = scratch / "shard.safetensors"
    path.write_bytes(storage.read_bytes(location))
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
