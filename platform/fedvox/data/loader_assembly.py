"""Puts the samples of one batch together, whichever thread finishes which of them first."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from fedvox.data.augment import Augmenter
from fedvox.data.ignore import BATCH_IGNORE
from fedvox.data.loader_samples import Sample, SampleSource, Voxels


class Pending:
    """A batch under way.

    Attributes:
        indices: its samples.
        samples: what they turned out to be, by position; None until read.
        image, label, annotated: the batch, valid when `done` is set without `error`.
        done: set when nothing is left to do.
        error: why the batch cannot be made: of several failures the one of the first position.
        ready: on GPUs, when the copies and kernels that make the batch have run.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.samples: list[Sample | None] = [None] * len(indices)
        self.voxels: list[Voxels | None] = [None] * len(indices)
        self.image: Tensor = torch.empty(0)
        self.label: Tensor = torch.empty(0)
        self.annotated: Tensor = torch.empty(0)
        self.done = threading.Event()
        self.ready: torch.cuda.Event | None = None
        self._errors: dict[int, Exception] = {}
        self._left = len(indices)
        self._lock = threading.Lock()

    @property
    def error(self) -> Exception | None:
        """See the class."""
        return self._errors[min(self._errors)] if self._errors else None

    def fail(self, position: int, error: Exception) -> None:
        """Notes a failure."""
        with self._lock:
            self._errors[position] = error

    def finish_one(self) -> bool:
        """Counts down; True for the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0


class Assembler:
    """Makes batches out of samples.

    Args:
        source: reads samples.
        device: where batches go.
        on_device: augment whole batches there, rather than single samples in the threads.
    """

    def __init__(self, source: SampleSource, device: torch.device, *, on_device: bool) -> None:
        self.source = source
        self.device = device
        self.on_device = on_device
        self.augmenter = Augmenter(source.patch_size)
        # A stream of its own lets copies and augmentation overlap with the network's kernels.
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, indices: Sequence[int]) -> Pending:
        """A batch to be filled by `load`."""
        pending = Pending(indices)
        if not self.on_device:
            shape = (len(indices), self.source.channels, *self.source.patch_size)
            pinned = self.device.type == "cuda"
            pending.image = torch.empty(shape, dtype=torch.float32, pin_memory=pinned)
            pending.label = torch.empty((shape[0], 1, *shape[2:]), dtype=torch.int16, pin_memory=pinned)
        return pending

    def load(self, pending: Pending, position: int) -> None:
        """Reads one sample; the call that reads the last one completes the batch. Never raises."""
        try:
            sample, voxels = self.source.read(pending.indices[position])
            pending.samples[position] = sample
            if self.on_device:
                pending.voxels[position] = voxels
            else:
                image, label = self.source.normalized(sample, voxels)
                own = slice(position, position + 1)
                self.augmenter.into(pending.image[own], pending.label[own], [image], [label], sample.params)
        except Exception as error:  # noqa: BLE001 - raised in the consumer's thread
            pending.fail(position, error)
        if pending.finish_one():
            self._complete(pending)

    def receive(self, pending: Pending) -> None:
        """Makes a completed batch safe to use on the caller's CUDA stream."""
        if pending.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(pending.ready)
            for tensor in (pending.image, pending.label, pending.annotated):
                tensor.record_stream(stream)

    def _complete(self, pending: Pending) -> None:
        try:
            if pending.error is None:
                with torch.cuda.stream(self.stream):  # does nothing without a stream
                    self._finish(pending)
        except Exception as error:  # noqa: BLE001 - raised in the consumer's thread
            pending.fail(len(pending.indices), error)
        finally:
            pending.voxels.clear()
            pending.done.set()

    def _finish(self, pending: Pending) -> None:
        samples = [sample for sample in pending.samples if sample is not None]
        if self.on_device:
            voxels = [part for part in pending.voxels if part is not None]
            parts = [self.source.normalized(s, v, self.device) for s, v in zip(samples, voxels, strict=True)]
            images, labels = zip(*parts, strict=True)
            params = self.source.parameters(pending.indices)
            pending.image, pending.label = self.augmenter(images, labels, params)
        else:
            pending.image = pending.image.to(self.device, non_blocking=True)
            pending.label = pending.label.to(self.device, non_blocking=True)
        # only here, because the augmentation knows no negative labels
        pending.label.masked_fill_(pending.label == self.source.store.meta.ignore_index, BATCH_IGNORE)
        annotated = [torch.from_numpy(self.source.store.annotated(sample.row)) for sample in samples]
        pending.annotated = torch.stack(annotated).to(self.device)
        if self.stream is not None:
            pending.ready = self.stream.record_event()
