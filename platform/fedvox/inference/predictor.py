"""One case from its files to its label map, with a record of what was done.

    read -> prepare -> windows -> labels in the original grid -> postprocessing -> NIfTI -> record

The record (OUTPUT/cases/CASE.json) is written last: a case with one is done, and passed over by a second run, unless
its files, the weights or the settings have changed since.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from fedvox.data.case_volumes import CaseVolumes
from fedvox.data.ingest_case import file_state
from fedvox.data.raw_dataset import RawCase
from fedvox.errors import FedvoxError, InputError, StorageError
from fedvox.inference.config import PredictConfig
from fedvox.inference.device import (
    accumulation_device,
    autocast,
    band_bytes,
    choose_device,
    explained_memory_errors,
    logits_dtype,
)
from fedvox.inference.ensemble import Ensemble, Member
from fedvox.inference.labels import LogitStream, decode_labels
from fedvox.inference.nifti_out import source_header, write_labels, write_share
from fedvox.inference.postprocessing import Postprocessing
from fedvox.inference.prepare import PreparedCase, prepare, read_images
from fedvox.inference.sliding_window import SlidingWindow, stream_logits
from fedvox.storage import Location, exists, locate, read_bytes, write_atomic

log = logging.getLogger(__name__)

_VERSION = 1  # of what is computed here: a change makes a second run do finished cases again
_BEARING = ("mirror", "overlap", "patch_size", "precision", "logits", "uncertainty", "modality", "tolerate")

Status = Literal["done", "skipped", "rejected", "failed", "stopped"]


@dataclass(frozen=True)
class CaseOutcome:
    """What became of a case.

    Attributes:
        case_id: which one.
        status: "done"; "skipped": it was done before; "rejected": its files are at fault; "failed": the work is;
            "stopped": the output cannot be written, and so no other case can.
        output: the label map.
        message: why not, where it is not done.
        remedy: what to do about that.
        shape: (D, H, W) of the original grid.
        spacing_mm: (D, H, W).
        windows: evaluated, over all models.
        voxels: of each structure that was found.
        seconds: by step.
    """

    case_id: str
    status: Status
    output: str = ""
    message: str = ""
    remedy: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    windows: int = 0
    voxels: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with volumes in millilitres."""
        voxel_ml = float(np.prod(self.spacing_mm)) / 1000 if self.spacing_mm else 0.0
        volumes = {name: round(count * voxel_ml, 3) for name, count in self.voxels.items()}
        return {**asdict(self), "volume_ml": volumes}


@dataclass(frozen=True)
class Prediction:
    """The maps of a case in the original grid.

    Attributes:
        labels: (D, H, W) structure indices.
        entropy: (D, H, W) float32 in [0, 1], where it was asked for.
        windows: evaluated.
    """

    labels: np.ndarray
    entropy: np.ndarray | None
    windows: int


class Predictor:
    """Networks on a device, ready for cases.

    Args:
        ensemble: the networks.
        config: how they are used.

    Raises:
        ConfigError: the device is not there.
        DataError: the postprocessing does not fit the structures.
    """

    def __init__(self, ensemble: Ensemble, config: PredictConfig) -> None:
        if config.torch_threads is not None:
            torch.set_num_threads(config.torch_threads)
        self.device = choose_device(config.device)
        self.ensemble, self.config = ensemble.to(self.device), config
        self._computing = (
            threading.Lock()
        )  # one case on the device at a time, while others are read and written
        self.output = locate(config.output) if config.output else None
        self.postprocessing = (
            None
            if config.postprocessing is None
            else Postprocessing.read(config.postprocessing, ensemble.structures)
        )

    def __call__(self, case: RawCase, on_windows: Callable[[int, int], None] | None = None) -> CaseOutcome:
        """Predicts a case and writes its maps; what goes wrong is part of the outcome.

        Args:
            case: its files.
            on_windows: told how many windows are done, and of how many.
        """
        try:
            return self._predict_and_write(case, on_windows)
        except StorageError as error:
            return CaseOutcome(case.case_id, "stopped", message=error.message, remedy=error.remedy)
        except InputError as error:
            return CaseOutcome(case.case_id, "rejected", message=error.message, remedy=error.remedy)
        except FedvoxError as error:
            return CaseOutcome(case.case_id, "failed", message=error.message, remedy=error.remedy)
        except Exception as error:  # one case never stops the others; the outcome tells of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = (
                f"case {case.case_id}: {type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            )
            log.debug("%s", message, exc_info=True)
            return CaseOutcome(
                case.case_id,
                "failed",
                message=message,
                remedy="This is a fault of the program: report this line.",
            )

    def predict(
        self, volumes: CaseVolumes, case: RawCase, *, on_windows: Callable[[int, int], None] | None = None
    ) -> Prediction:
        """The maps of a case in memory.

        Args:
            volumes: its channels.
            case: whose they are.
            on_windows: told how many windows are done, and of how many.

        Raises:
            RunError: out of memory, or logits that are not finite.
        """
        return self._predict(self._prepare(volumes, case), volumes.full_shape, case, on_windows)

    # ---- steps -----------------------------------------------------------------------------------------------

    def _predict_and_write(self, case: RawCase, on_windows: Callable[[int, int], None] | None) -> CaseOutcome:
        record = self._record(case)
        signature = self._signature(case)
        finished = None if self.config.overwrite else _finished(record, signature, self._maps(case))
        if finished is not None:
            return finished
        clock = _Clock()
        with clock.step("read"):
            volumes = read_images(case, tolerate=self.config.tolerate)
        with clock.step("prepare"):
            prepared = self._prepare(volumes, case)
        geometry, full_size = volumes.geometry, volumes.full_shape
        del volumes  # the image as read is not needed any more, and may be the largest thing in memory
        with self._computing, clock.step("predict"):
            found = self._predict(prepared, full_size, case, on_windows)
        labels = found.labels
        with clock.step("postprocess"):
            if self.postprocessing is not None:
                labels = self.postprocessing.apply(labels)
        with clock.step("write"):
            header = source_header(case.images[0], geometry)
            maps = self._maps(case)
            write_labels(labels, geometry, header, maps[0])
            if found.entropy is not None:
                write_share(found.entropy, geometry, header, maps[1])
        counts = np.bincount(labels.reshape(-1), minlength=len(self.ensemble.structures))
        outcome = CaseOutcome(
            case_id=case.case_id,
            status="done",
            output=maps[0].uri,
            shape=geometry.shape,
            spacing_mm=geometry.spacing_mm,
            windows=found.windows,
            voxels={n: int(c) for n, c in zip(self.ensemble.structures, counts, strict=True) if c},
            seconds=clock.seconds,
        )
        kept = {"signature": signature, "outcome": asdict(outcome)}
        write_atomic(record, (json.dumps(kept, indent=1) + "\n").encode())
        return outcome

    def _prepare(self, volumes: CaseVolumes, case: RawCase) -> list[PreparedCase]:
        """A network input for each group of members."""
        return [prepare(volumes, case, group[0].recipe) for group in self.ensemble.groups]

    def _predict(
        self,
        prepared: list[PreparedCase],
        full_size: tuple[int, int, int],
        case: RawCase,
        on_windows: Callable[[int, int], None] | None,
    ) -> Prediction:
        grids = [self._window(group).grid(image.size) for group, image in self._grouped(prepared)]
        count = _Count(sum(grid.num_windows for grid in grids), on_windows)
        size, box = prepared[0].original_size, prepared[0].box
        with (
            explained_memory_errors(case.case_id, grids, len(self.ensemble.structures), self.config),
            autocast(self.config, self.device),
        ):
            entropy = np.zeros(size, np.float32) if self.config.uncertainty else None
            streams = [self._stream(group, image, count) for group, image in self._grouped(prepared)]
            labels = decode_labels(streams, size, entropy=entropy)
            uncertainty = None if entropy is None else _pasted(entropy, box, full_size)
            return Prediction(_pasted(labels, box, full_size), uncertainty, count.total)

    def _stream(self, group: tuple[Member, ...], image: PreparedCase, on_windows: _Count) -> LogitStream:
        window = self._window(group)
        num_bytes = band_bytes(window.grid(image.size), len(self.ensemble.structures), self.config)
        planes = stream_logits(
            [member.network for member in group],
            image.image,
            window,
            device=self.device,
            accumulate_on=accumulation_device(self.config, self.device, num_bytes),
            dtype=logits_dtype(self.config),
            pad_value=group[0].recipe.pad_value,
            on_windows=on_windows,
        )
        return LogitStream(planes, image.size, image.slice_axis)

    def _grouped(self, prepared: list[PreparedCase]) -> Iterable[tuple[tuple[Member, ...], PreparedCase]]:
        return zip(self.ensemble.groups, prepared, strict=True)

    def _window(self, group: tuple[Member, ...]) -> SlidingWindow:
        config = self.config
        return SlidingWindow(group[0].recipe.patch_size, config.overlap, config.mirror, config.batch_size)

    # ---- what is done ----------------------------------------------------------------------------------------

    def _folder(self) -> Location:
        if self.output is None:
            raise ValueError("a Predictor without `output` has no folder to write to")
        return self.output

    def _maps(self, case: RawCase) -> list[Location]:
        names = [f"{case.case_id}.nii.gz"] + [f"{case.case_id}_uncertainty.nii.gz"] * self.config.uncertainty
        return [self._folder().child(name) for name in names]

    def _record(self, case: RawCase) -> Location:
        return self._folder().child("cases", f"{case.case_id}.json")

    def _signature(self, case: RawCase) -> str:
        """Of everything that bears on the maps: the files, the weights, the settings."""
        parts = (
            _VERSION,
            [(uri, *file_state(uri)) for uri in case.images],
            [(member.sha256, member.recipe.to_dict()) for member in self.ensemble.members],
            {name: getattr(self.config, name) for name in _BEARING},
            None if self.postprocessing is None else asdict(self.postprocessing),
        )
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


class _Count:
    """Counts windows for whoever watches."""

    def __init__(self, total: int, told: Callable[[int, int], None] | None) -> None:
        self.total, self._done, self._told = total, 0, told

    def __call__(self, windows: int) -> None:
        self._done += windows
        if self._told is not None:
            self._told(self._done, self.total)


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begin, 3)


def _finished(record: Location, signature: str, maps: list[Location]) -> CaseOutcome | None:
    """The outcome of an earlier run whose maps are still there and still right."""
    if not exists(record):
        return None
    kept = json.loads(read_bytes(record))
    if kept.get("signature") != signature or not all(exists(location) for location in maps):
        return None
    return CaseOutcome(**{**kept["outcome"], "status": "skipped"})


def _pasted(part: np.ndarray, box: tuple[slice, slice, slice], size: tuple[int, int, int]) -> np.ndarray:
    """A cropped map in the full grid, 0 outside."""
    if part.shape == size:
        return part
    full = np.zeros(size, dtype=part.dtype)
    full[box] = part
    return full
