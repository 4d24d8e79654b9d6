"""Batches ready for the network, in a fixed order, made by background threads.

    step n ──> this worker's samples ──threads──> read ─> decode ─> normalise ─> augment ──> Batch, in order

Which samples a step has, and what they look like, depends on (seed, step) alone: not on threads, prefetching, timing,
restarts or the number of workers (see `fedvox.data.sampler`). At most `prefetch_batches` batches are made ahead.

With `augment_on="cpu"` the threads augment single patches. With `"device"` the thread that reads the last patch of a
batch sends all of them to the GPU in the store's dtype, from pinned memory and on a stream of its own, and normalises
and augments them there together.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from fedvox.data.augment import AugmentConfig
from fedvox.data.loader_assembly import Assembler, Pending
from fedvox.data.loader_samples import SampleSource
from fedvox.data.loader_workers import Workers
from fedvox.data.normalize import normalize
from fedvox.data.sampler import SamplerConfig, worker_indices
from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError

__all__ = ["Batch", "BatchStream", "LoaderConfig", "normalize", "replay"]

Array = np.ndarray[Any, Any]

_LOOK_UP_S = 0.5


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Args:
        global_batch_size: samples of a step over all workers together.
        threads: that read and augment; 0 works in the thread that asks, for debugging.
        prefetch_batches: made ahead at most.
        augment_on: `cpu` augments in the threads, `device` in batches on the training device.

    Raises:
        ConfigError: a value is out of range.
    """

    global_batch_size: int
    threads: int = 2
    prefetch_batches: int = 2
    augment_on: Literal["cpu", "device"] = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("global_batch_size", 1), ("threads", 0), ("prefetch_batches", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}", f"It must be at least {least}.")
        if self.augment_on not in ("cpu", "device"):
            raise ConfigError(f"augment_on is {self.augment_on!r}", "Known are `cpu` and `device`.")


@dataclass
class Batch:
    """One worker's part of a step.

    Attributes:
        image: `(b, C, D, H, W)` float32, normalised and augmented, on the training device.
        label: `(b, 1, D, H, W)` int16, canonical structures.
        annotated: `(b, K)` bool, structures which each sample's source annotates.
        indices: `(b,)` int64 on the CPU, numbers of the samples in the run.
        case_ids: b names.
        wait_s: seconds that the training waited for this batch.
    """

    image: Tensor
    label: Tensor
    annotated: Tensor
    indices: Tensor
    case_ids: list[str]
    wait_s: float = 0.0


class BatchStream:
    """Iterates over the batches of one worker; close it, or use it as a context manager.

    Args:
        store: where the cases are.
        sampler: how samples are drawn.
        augment: how they are augmented.
        loader: how batches are made.
        rows: rows of the store to draw from, such as the training cases of a split; None for all.
        rank: of this worker.
        world_size: number of workers.
        start_step: first step, 0 unless a run is resumed.
        num_steps: how many.
        device: where batches go.

    Attributes:
        damaged: case id -> reason, of the damaged cases met so far.
        skipped: how many samples were replaced because of them.
        waited_s: seconds that the training has waited for data so far.

    Raises:
        ConfigError: a value is out of range, or there are no cases.
    """

    CLOSE_TIMEOUT_S = 10.0

    def __init__(
        self,
        store: BrickStore,
        sampler: SamplerConfig,
        augment: AugmentConfig,
        loader: LoaderConfig,
        *,
        rows: Sequence[int] | Array | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = loader
        self.damaged: dict[str, str] = {}
        self.skipped = 0
        self.waited_s = 0.0
        self._place: dict[str, int] = {
            "global_batch_size": loader.global_batch_size,
            "rank": rank,
            "world_size": world_size,
        }
        worker_indices(0, **self._place)  # refuses a rank that would have no samples
        self._steps = iter(range(start_step, start_step + num_steps))
        self._assembler = Assembler(
            SampleSource(store, sampler, augment, rows),
            torch.device(device),
            on_device=loader.augment_on == "device",
        )
        self._pending: deque[Pending] = deque()
        self._workers = Workers(loader.threads) if loader.threads else None
        self._closed = False
        self._store = store
        self._ended = threading.Event()
        weakref.finalize(self, self._ended.set)
        if self._workers is not None:  # a stream that is dropped must not leave its threads behind
            weakref.finalize(self, self._workers.stop)
            self._prefetch(loader.prefetch_batches)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        pending = self._take()
        if pending is None:
            self.close()
            raise StopIteration
        while not pending.done.wait(_LOOK_UP_S):
            if self._closed:  # by another thread, such as a signal handler's
                raise StopIteration
        if pending.error is not None:
            self.close()
            raise pending.error
        self._assembler.receive(pending)
        wait_s = time.perf_counter() - began
        self._note(pending, wait_s)
        return Batch(
            pending.image,
            pending.label,
            pending.annotated,
            torch.tensor(pending.indices),
            [sample.case_id for sample in pending.samples if sample is not None],
            wait_s,
        )

    def close(self) -> None:
        """Ends the threads; reads in flight are waited for, up to `CLOSE_TIMEOUT_S`. Closing twice is allowed."""
        self._closed = True
        self._ended.set()
        self._pending.clear()
        if self._workers is not None:
            self._workers.close(self.CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Pending | None:
        """The next batch, finished or not; None after the last one."""
        if self._closed:
            return None
        if self._workers is None:
            step = next(self._steps, None)
            return None if step is None else self._begin(step)
        self._prefetch(self.config.prefetch_batches)
        if not self._pending:
            return None
        pending = self._pending.popleft()
        self._prefetch(self.config.prefetch_batches)
        return pending

    def _prefetch(self, batches: int) -> None:
        while len(self._pending) < batches and (step := next(self._steps, None)) is not None:
            self._pending.append(self._begin(step))

    def _begin(self, step: int) -> Pending:
        """Starts the work on a batch, or, without threads, does it."""
        pending = self._assembler.begin(worker_indices(step, **self._place))
        for position in range(len(pending.indices)):
            if self._workers is None:
                self._assembler.load(pending, position)
            else:
                self._workers.submit(partial(self._assembler.load, pending, position))
        if self._workers is not None:
            # The loader's threads decode; samples that wait for one of them are fetched meanwhile.
            for index in pending.indices:
                self._store.ahead(partial(_bring, self._assembler.source, index, self._ended))
        return pending

    def _note(self, pending: Pending, wait_s: float) -> None:
        self.waited_s += wait_s
        for sample in pending.samples:
            if sample is not None and sample.damaged:
                self.damaged.update(sample.damaged)
                self.skipped += 1


def _bring(source: SampleSource, index: int, ended: threading.Event) -> None:
    if not ended.is_set():
        source.bring(index)


def replay(
    store: BrickStore,
    sampler: SamplerConfig,
    augment: AugmentConfig,
    index: int,
    *,
    rows: Sequence[int] | Array | None = None,
) -> Batch:
    """Makes one sample of a run alone, exactly as the run saw it: to look at a loss that stands out, say.

    Args:
        store: of the run.
        sampler: of the run.
        augment: of the run.
        index: of the sample.
        rows: of the run.

    Returns:
        A batch of one, on the CPU.
    """
    one = LoaderConfig(global_batch_size=1, threads=0)
    with BatchStream(store, sampler, augment, one, rows=rows, start_step=index, num_steps=1) as stream:
        return next(stream)
