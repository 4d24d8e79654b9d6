"""From a sample's number to its voxels: draw, read, replace damaged cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.data.augment import AugmentConfig, AugmentParameters, draw, read_box
from fedvox.data.normalize import normalize
from fedvox.data.sampler import CounterSampler, SamplerConfig
from fedvox.data.store import BrickStore
from fedvox.errors import DamagedCase, FedvoxError, RunError

Array = np.ndarray[Any, Any]

MAX_ATTEMPTS = 16
"""Damaged cases in a row, for one sample, before the store as a whole is held to be damaged."""


@dataclass(frozen=True)
class Sample:
    """What a sample turned out to be.

    Attributes:
        index: in the run.
        row: of the store, after damaged cases were replaced.
        case_id: of the row.
        params: its augmentation, a batch of one.
        damaged: case id -> reason, of the cases that this one replaces.
    """

    index: int
    row: int
    case_id: str
    params: AugmentParameters
    damaged: dict[str, str]


@dataclass(frozen=True)
class Voxels:
    """What was read for a sample: `read_box` of it, in the store's units.

    Attributes:
        image: (C, d, h, w) in the store's dtype.
        label: (d, h, w) uint8 or int16; all background where the case has none.
    """

    image: Array
    label: Array


class SampleSource:
    """Reads any sample of a run, from any thread.

    Args:
        store: where the cases are.
        sampler: how samples are drawn.
        augment: how they are augmented.
        rows: rows of the store to draw from; None for all.
    """

    def __init__(
        self,
        store: BrickStore,
        sampler: SamplerConfig,
        augment: AugmentConfig,
        rows: Sequence[int] | Array | None = None,
    ) -> None:
        self.store = store
        self.sampler = CounterSampler(store, sampler, rows)
        self.augment = augment
        self.patch_size = sampler.patch_size
        self.channels = len(store.meta.channel_names)

    def parameters(self, indices: Sequence[int]) -> AugmentParameters:
        """The augmentation of some samples, in their order."""
        return draw(self.augment, self.sampler.config.seed, indices, self.patch_size, self.channels)

    def read(self, index: int) -> tuple[Sample, Voxels]:
        """Reads sample `index`.

        A damaged case is replaced by another that (seed, index) alone decides. Nothing is remembered: whether a
        sample is replaced must not depend on which samples were read before, or on the number of threads.

        Raises:
            DamagedCase: `MAX_ATTEMPTS` cases in a row are damaged.
            FedvoxError: the case cannot be read; the message names sample and case.
        """
        params = self.parameters([index])
        damaged: dict[str, str] = {}
        for attempt in range(MAX_ATTEMPTS):
            row = self.sampler.case(index, attempt=attempt)
            case_id = self.store.case_ids[row]
            try:
                voxels = self._voxels(index, row, attempt, params)
            except DamagedCase as error:
                damaged[case_id] = error.message
            except Exception as error:
                raise _named(error, index, case_id) from error
            else:
                return Sample(index, row, case_id, params, damaged), voxels
        raise DamagedCase(
            f"sample {index}: {MAX_ATTEMPTS} cases in a row are damaged: {', '.join(damaged)}",
            "Check the storage, then run the ingest again for these cases.",
        )

    def bring(self, index: int) -> None:
        """Brings what `read` will need of sample `index` to this node, without decoding it.

        Raises:
            FedvoxError: the case is damaged or cannot be read; `read` will meet that too, and tell it.
        """
        size = read_box(self.parameters([index]), self.patch_size)
        reader = self.store.reader(self.sampler.case(index))
        reader.prefetch(self.sampler.start(index, size), size)

    def normalized(
        self, sample: Sample, voxels: Voxels, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image (C, d, h, w) float32 and label (d, h, w) of a sample, on a device (None: where they are).

        To a GPU the voxels travel in the store's dtype, half or a quarter of what they take as float32.
        """
        image, label = _tensor(voxels.image), _tensor(voxels.label)
        if device is not None and device.type == "cuda":
            image, label = image.pin_memory(), label.pin_memory()
        if device is not None:
            image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
        return normalize(image, self.store.intensity(sample.row), self.store.meta), label

    def _voxels(self, index: int, row: int, attempt: int, params: AugmentParameters) -> Voxels:
        size = read_box(params, self.patch_size)
        start = self.sampler.start(index, size, attempt=attempt)
        image, label = self.store.read_patch(row, start, size)
        if label is None:
            label = np.zeros(size, np.uint8)
        return Voxels(image, label)


def _tensor(array: Array) -> Tensor:
    """Torch hardly knows the wider unsigned integers; labels among them stay below 2^15."""
    if array.dtype == np.uint16 and array.ndim == 3:
        array = array.astype(np.int16)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float32)
    return torch.from_numpy(array)


def _named(error: Exception, index: int, case_id: str) -> Exception:
    """The error, naming the sample and the case."""
    where = f"sample {index} (case {case_id!r})"
    if isinstance(error, FedvoxError):
        error.message = f"{where}: {error.message}"
        return error
    return RunError(
        f"{where}: {type(error).__name__}: {error}",
        f"Read it alone to see more: fedvox.data.loader.replay(…, {index}).",
    )
