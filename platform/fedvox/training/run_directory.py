"""The run directory: everything a run leaves behind, on any pyarrow filesystem.

    NAME/
        config.resolved.yaml          every value, defaults included
        transfer.json                 fine-tuning: what became of every tensor of the given weights
        environment.json              versions, git commit, host, devices, and which fedvox ran
        status.json                   where the run is: step, loss, Dice, seconds left; rewritten every few seconds
        metrics/attempt-0000.jsonl    one line per logged step; a new file per restart
        tensorboard/attempt-0000/     the same, as TensorBoard events
        checkpoints/step-…            see `fedvox.training.checkpoint`
        validation/step-….json        Dice per structure and case
        figures/*.png                 curves, overlays
        best/, final/                 released weights: model.safetensors + model.json
        outcome.json                  how it ended, with the Dice
    control/stop                  its presence asks the run to write a checkpoint and stop

S3 has no append, so lines are gathered and each attempt's file is rewritten whole, atomically, every few
seconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import fedvox
from fedvox import errors, storage
from fedvox.errors import ConfigError, DataError, FedvoxError, RunError
from fedvox.storage import Location
from fedvox.training.config import TrainingConfig, expand


class Finished(Protocol):
    """What a finished run tells."""

    def outcome(self) -> dict[str, Any]:
        """Plain data: the step that was reached, and how good the result is."""


log = logging.getLogger(__name__)

FLUSH_S = {True: 0.2, False: 2.0}
"""Seconds between two writes of the metrics, on a local disk (True) and elsewhere (False)."""
SHORT = storage.RetryPolicy(deadline_s=5.0)
"""For what can wait until next time: training must not stand still for its own log."""
_LARGE_LOG_BYTES = 64 << 10
SCHEMA = "fedvox.run/1"


class RunDirectory:
    """Reads and writes one run's directory. Only worker 0 writes.

    Args:
        location: the directory itself.
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    @classmethod
    def of(cls, config: TrainingConfig) -> RunDirectory:
        """The directory of a run: `config.storage` / `config.name`."""
        return cls(storage.locate(expand(config.storage)).child(config.name))

    @property
    def checkpoints(self) -> Location:
        """Where checkpoints lie."""
        return self.location.child("checkpoints")

    def child(self, *parts: str) -> Location:
        """A file or folder of the run."""
        return self.location.child(*parts)

    def write_json(self, value: Any, *parts: str) -> None:
        """Writes a JSON file atomically."""
        text = json.dumps(without_nan(value), indent=1, default=str)
        storage.write_atomic(self.child(*parts), f"{text}\n".encode())

    def read_json(self, *parts: str) -> Any:
        """Reads a JSON file of the run; None if it is not there.

        Raises:
            DataError: it is damaged.
        """
        location = self.child(*parts)
        if not storage.exists(location):
            return None
        try:
            return json.loads(storage.read_bytes(location))
        except ValueError as error:
            raise _damaged(location, error) from error

    # The stop signal

    def request_stop(self) -> None:
        """Asks the run to write a checkpoint and stop; works from any machine that reaches the storage."""
        storage.write_atomic(self.child("control", "stop"), b"stop\n")

    def stop_requested(self, *, retry: storage.RetryPolicy = storage.DEFAULT_RETRY) -> bool:
        """Whether somebody asked the run to stop."""
        return storage.exists(self.child("control", "stop"), retry=retry)

    def clear_stop(self) -> None:
        """Forgets an earlier request, at the start of a run."""
        if self.stop_requested():
            storage.delete(self.child("control", "stop"))

    # How it ended

    def clear_outcome(self) -> None:
        """Forgets how an earlier attempt ended."""
        if storage.exists(self.child("outcome.json")):
            storage.delete(self.child("outcome.json"))

    def finish(self, result: Finished) -> None:
        """Writes down that the run is complete, and how good it is."""
        self.write_json({"state": "finished", **result.outcome()}, "outcome.json")

    def fail(self, error: FedvoxError) -> None:
        """Writes down why the run ended, for the driver to tell."""
        value = {
            "state": "failed",
            "error": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
        }
        self.write_json(value, "outcome.json")

    def failed(self) -> bool:
        """Whether an attempt has written down that a restart would not help."""
        outcome = self.read_json("outcome.json")
        return outcome is not None and outcome["state"] == "failed"

    def outcome(self) -> dict[str, Any]:
        """How the run ended.

        Raises:
            FedvoxError: it failed or was stopped; the worker's own error.
        """
        outcome: dict[str, Any] | None = self.read_json("outcome.json")
        if outcome is None:
            raise RunError(
                f"the workers ended without an outcome in {self.location.uri}", "Read the workers' logs."
            )
        if outcome["state"] == "failed":
            kind: type[FedvoxError] = getattr(errors, outcome["error"])
            raise kind(outcome["message"], outcome["remedy"])
        return outcome

    # Metrics

    def next_attempt(self) -> int:
        """Number of the attempt that starts now: 0 at first, 1 after the first restart."""
        return len(self._attempt_files())

    def metrics(self) -> list[dict[str, Any]]:
        """The logged lines of the run as it counts, ascending by step.

        Steps that were run twice, because an attempt was killed after its last checkpoint, appear once, as
        the last attempt ran them.
        """
        by_step: dict[tuple[str, int], dict[str, Any]] = {}
        for location in self._attempt_files():
            for line in _lines(storage.read_bytes(location)):
                by_step[line["kind"], line["step"]] = line
        return sorted(by_step.values(), key=lambda line: (line["step"], line["kind"]))

    def _attempt_files(self) -> list[Location]:
        files = storage.list_files(self.child("metrics"))
        return sorted((f for f in files if f.path.endswith(".jsonl")), key=lambda f: f.path)

    # Configuration

    def check_resumable(self, config: TrainingConfig) -> None:
        """Refuses to resume with another model, data, seed or optimiser than the run began with.

        Raises:
            ConfigError: naming the fields that differ.
        """
        location = self.child("config.resolved.yaml")
        if not storage.exists(location):
            return
        import yaml  # only here

        try:
            before = yaml.safe_load(storage.read_bytes(location))
        except yaml.YAMLError as error:
            raise _damaged(location, error) from error
        now = json.loads(config.model_dump_json())
        different = [
            f"{path}: {old!r} -> {new!r}"
            for path, old, new in _differences(before, now)
            if path.split(".")[0] in config.resume_invariant and not path.startswith(_FREE)
        ]
        if different:
            raise ConfigError(
                f"run {config.name!r} in {self.location.uri} began with other settings: "
                + "; ".join(different),
                "Resume with the old settings, or give the run another name (--set name=…).",
            )


class MetricsLog:
    """Worker 0's log of one attempt: JSON lines and TensorBoard events.

    Args:
        run: the run's directory.
        attempt: number of this attempt.
    """

    def __init__(self, run: RunDirectory, attempt: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, worker 0 only

        self._run = run
        self._name = f"attempt-{attempt:04d}"
        self._lines: list[bytes] = []
        self._flushed = 0
        self._flush_s = FLUSH_S[run.location.is_local]
        self._pause_s = self._flush_s
        self._last_flush = -self._flush_s
        self._scratch = tempfile.TemporaryDirectory(prefix="fedvox-events-")
        self._events = SummaryWriter(self._scratch.name, flush_secs=3600)
        # The file marks the attempt as taken, even if it is killed before its first step.
        storage.write_atomic(run.child("metrics", f"{self._name}.jsonl"), b"")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds a line; `kind` is `train` or `validation`."""
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._lines.append(json.dumps(without_nan(line)).encode() + b"\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)
        if time.monotonic() - self._last_flush >= self._pause_s:
            self.flush(events=False)

    def flush(self, *, events: bool = True) -> None:
        """Stores what was gathered. TensorBoard's files are larger and go at checkpoints only.

        A store that is full or out of reach must not stop the training: the lines stay in memory and go next
        time.
        """
        try:
            if len(self._lines) > self._flushed:
                self._store_lines()
            if events:
                self._events.flush()
                for file in Path(self._scratch.name).iterdir():
                    storage.upload_file(
                        file, self._run.child("tensorboard", self._name, file.name), retry=SHORT
                    )
        except (FedvoxError, OSError) as error:
            log.warning("metrics could not be stored and stay in memory: %s", error)
        self._last_flush = time.monotonic()

    def _store_lines(self) -> None:
        count = len(self._lines)
        target = self._run.child("metrics", f"{self._name}.jsonl")
        data = b"".join(self._lines[:count])
        storage.write_atomic(target, data, retry=SHORT)
        self._flushed = count
        # A long run's file is written whole each time: the larger it is, the less often.
        self._pause_s = self._flush_s * max(1.0, len(data) / _LARGE_LOG_BYTES)

    def close(self) -> None:
        """Stores everything and releases the scratch folder."""
        self.flush()
        self._events.close()
        self._scratch.cleanup()


def environment(device: str) -> dict[str, Any]:
    """Versions, host and code that a result depends on."""
    import torch  # keeps this module light for readers of runs

    packages = ("torch", "ray", "numpy", "pyarrow", "blosc2", "nibabel", "safetensors")
    return {
        "schema": SCHEMA,
        "fedvox": fedvox.__version__,
        "fedvox_file": fedvox.__file__,
        "git_commit": _git_commit(),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages if _installed(name)},
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git_commit() -> str | None:
    root = Path(fedvox.__file__).parents[2]
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def without_nan(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not know and `jq` refuses."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value


def _damaged(location: Location, error: Exception) -> DataError:
    return DataError(
        f"{location.uri}: is damaged ({' '.join(str(error).split())})",
        "Delete this file; the checkpoints of the run do not depend on it.",
        file=location.uri,
    )


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    for text in data.splitlines():
        line = json.loads(text)
        yield {key: math.nan if value is None else value for key, value in line.items()}


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield path, before, now


# How samples are fetched, not which: free to change between attempts.
_FREE = ("data.cache", "data.expect", "data.loader_threads", "data.prefetch_batches")
