"""One case of an ingest: read, check, measure, resample, write. Plain functions, for any process of any machine.

    measure_case   files -> fingerprint, kept in STORE/ingest/ID.json
    write_case     files -> (fingerprint) -> the case in the store

Both are idempotent. What they wrote carries a signature of the files (names, sizes, times) and of the settings that
bear on it, so that a second run passes over what is done and does again what has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow.fs

from fedvox.data.case_volumes import CaseRejected, CaseVolumes, read_case
from fedvox.data.fingerprint import CaseFingerprint, case_intensity, sample_case
from fedvox.data.ignore import is_foreground
from fedvox.data.label_space import LabelSpace, SourceLabels
from fedvox.data.raw_dataset import RawCase
from fedvox.data.records import StoreMeta
from fedvox.data.resample import coarse_axis, resample_image, resample_label, resampled_shape
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import DataError, StorageError
from fedvox.storage import Location, call_with_retry, exists, locate, read_bytes, write_atomic
from fedvox.storage.retry import DEFAULT_RETRY

log = logging.getLogger(__name__)

UNLABELLED = "unlabelled"
_VERSION = 1  # of what the functions here compute: a change makes them do finished cases again
_INT16 = np.iinfo(np.int16)

Status = Literal["accepted", "rejected", "failed", "stopped"]


@dataclass(frozen=True)
class CasePlan:
    """What all cases of an ingest share.

    Args:
        output: URI of the store.
        meta: of the store.
        space: the joined labels.
        label_sets: label set -> meaning of its values.
        spacing_mm: (D, H, W) to resample to; None keeps each case's own.
        crop_to_nonzero: cut off the margin where all channels are 0.
        dtype: "auto", "int16" or "float32".
        codec: of the store.
        tolerate: reasons for a rejection that are overruled.
    """

    output: str
    meta: StoreMeta
    space: LabelSpace
    label_sets: Mapping[str, SourceLabels]
    spacing_mm: tuple[float, float, float] | None
    crop_to_nonzero: bool
    dtype: str
    codec: Literal["lz4", "zstd"]
    tolerate: tuple[str, ...]


@dataclass(frozen=True)
class CaseOutcome:
    """What became of a case.

    Args:
        case_id: which one.
        source: where it comes from.
        status: "accepted"; "rejected": its files are at fault; "failed": the program is; "stopped": the store
            cannot be written, and so no other case can.
        errors: every reason.
        warnings: reasons that were overruled.
        fingerprint: of an accepted case.
        spacing_mm: (D, H, W) as stored.
        shape: (D, H, W) as stored.
        num_bytes: in the store.
        was_done: nothing had to be done.
        seconds: that it took.
    """

    case_id: str
    source: str
    status: Status
    errors: tuple[DataError | StorageError, ...] = ()
    warnings: tuple[DataError, ...] = ()
    fingerprint: CaseFingerprint | None = None
    spacing_mm: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    num_bytes: int = 0
    was_done: bool = False
    seconds: float = field(default=0.0, compare=False)


CaseFunction = Callable[[RawCase, CasePlan], CaseOutcome]


def measure_case(case: RawCase, plan: CasePlan) -> CaseOutcome:
    """Checks a case and takes its fingerprint; writes nothing but that.

    Never raises: what goes wrong is the outcome.
    """
    return _guarded(_measure, case, plan)


def write_case(case: RawCase, plan: CasePlan) -> CaseOutcome:
    """Checks a case, resamples it and writes it to the store.

    Never raises: what goes wrong is the outcome.
    """
    return _guarded(_write, case, plan)


def _guarded(step: CaseFunction, case: RawCase, plan: CasePlan) -> CaseOutcome:
    begin = time.monotonic()
    try:
        outcome = step(case, plan)
    except CaseRejected as rejected:
        outcome = CaseOutcome(case.case_id, case.source, "rejected", rejected.errors)
    except StorageError as error:  # reading errors are `CaseRejected`: this one is about the store
        outcome = CaseOutcome(case.case_id, case.source, "stopped", (error,))
    except Exception as error:  # noqa: BLE001 - a fault of ours in one case must not stop the others
        outcome = CaseOutcome(case.case_id, case.source, "failed", (_our_fault(case, error),))
    return _timed(outcome, time.monotonic() - begin)


def _timed(outcome: CaseOutcome, seconds: float) -> CaseOutcome:
    return CaseOutcome(**{**vars(outcome), "seconds": round(seconds, 3)})


def _our_fault(case: RawCase, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    where = traceback.format_exception(error)[-1].strip()
    origin = traceback.extract_tb(error.__traceback__)[-1]
    remedy = (
        "Give a case more memory (memory_gib), or fewer cases at a time (workers)."
        if isinstance(error, MemoryError)
        else "This is a fault of the program: report it with this line and the file's header."
    )
    message = f"case {case.case_id} ({case.images[0]}): {where} ({origin.name}, line {origin.lineno})"
    return DataError(message, remedy, code="failed", file=case.images[0])


# ---- the two steps -----------------------------------------------------------------------------------------


def _measure(case: RawCase, plan: CasePlan) -> CaseOutcome:
    note = _Note.of(case, plan)
    kept = note.read()
    if kept is not None:
        return _accepted(case, *kept, was_done=True)
    volumes = read_case(case, plan)
    fingerprint = _fingerprint(case, volumes)
    note.write(fingerprint, volumes.warnings)
    return _accepted(case, fingerprint, volumes.warnings)


def _write(case: RawCase, plan: CasePlan) -> CaseOutcome:
    note = _Note.of(case, plan)
    kept = note.read()
    writer = StoreWriter(locate(plan.output), plan.meta, plan.codec)
    origin = _origin(case, plan, note.signature)
    record = writer.finished(case.case_id, origin=origin)
    was_done = record is not None and kept is not None
    if record is None or kept is None:
        volumes = read_case(case, plan)
        if kept is None:
            kept = _fingerprint(case, volumes), volumes.warnings
            note.write(*kept)
        record = record or _add(case, volumes, plan, writer, origin)
    fingerprint, warnings = kept
    return CaseOutcome(
        **{
            **vars(_accepted(case, fingerprint, warnings, was_done=was_done)),
            "spacing_mm": record.spacing_mm,
            "shape": record.shape,
            "num_bytes": record.num_bytes,
        }
    )


def _accepted(
    case: RawCase, fingerprint: CaseFingerprint, warnings: tuple[DataError, ...], *, was_done: bool = False
) -> CaseOutcome:
    return CaseOutcome(
        case.case_id,
        case.source,
        "accepted",
        warnings=warnings,
        fingerprint=fingerprint,
        spacing_mm=fingerprint.spacing_mm,
        shape=fingerprint.shape,
        was_done=was_done,
    )


def _fingerprint(case: RawCase, volumes: CaseVolumes) -> CaseFingerprint:
    foreground, whole = sample_case(volumes.image, _inside(volumes.label))
    return CaseFingerprint(
        case_id=case.case_id,
        shape=volumes.geometry.shape,
        full_shape=volumes.full_shape,
        spacing_mm=volumes.geometry.spacing_mm,
        foreground=foreground,
        whole=() if foreground else whole,
    )


def _inside(label: np.ndarray | None) -> np.ndarray | None:
    return None if label is None else is_foreground(label)


def _add(case: RawCase, volumes: CaseVolumes, plan: CasePlan, writer: StoreWriter, origin: str) -> Any:
    image, label, geometry = volumes.image, volumes.label, volumes.geometry
    spacing = geometry.spacing_mm
    shape = (
        geometry.shape
        if plan.spacing_mm is None
        else resampled_shape(geometry.shape, spacing, plan.spacing_mm)
    )
    dtype = stored_dtype(image, case, plan.dtype, is_resampled=shape != geometry.shape)
    if dtype != image.dtype or shape != geometry.shape:
        axis = coarse_axis(spacing, plan.spacing_mm)
        image = np.stack([resample_image(c, shape, slice_axis=axis, dtype=dtype) for c in volumes.image])
        label = None if label is None else resample_label(label, shape, slice_axis=axis)
        geometry = geometry.resampled(shape)
    return writer.add_case(
        case.case_id,
        image,
        label,
        source=case.source,
        label_set=UNLABELLED if label is None else case.label_set,
        spacing_mm=geometry.spacing_mm,
        affine=geometry.array_affine,
        origin=origin,
        intensity=case_intensity(*sample_case(image, _inside(label))),
    )


def stored_dtype(image: np.ndarray, case: RawCase, wanted: str, *, is_resampled: bool) -> np.dtype[Any]:
    """The type in which an image is stored.

    `auto` keeps whole numbers as integers where they are not interpolated, and CT as int16 always: half a
    Hounsfield unit is far below its noise. Everything else is float32.

    Args:
        image: (C, D, H, W) as read.
        case: whose image it is.
        wanted: "auto", "int16" or "float32".
        is_resampled: whether its values will be interpolated.

    Raises:
        CaseRejected: beyond_int16, where int16 is wanted and does not hold the values.
    """
    low, high = float(image.min()), float(image.max())
    fits = low >= _INT16.min and high <= _INT16.max
    if wanted == "int16" and not fits:
        found = f"{case.images[0]} holds values from {low:g} to {high:g}, which do not fit int16"
        remedy = "Set dtype to auto or float32."
        raise CaseRejected([DataError(found, remedy, code="beyond_int16", file=case.images[0])])
    if wanted == "float32" or (wanted == "auto" and not fits):
        return np.dtype(np.float32)
    if wanted == "int16" or case.modality == "CT":
        return np.dtype(np.int16)
    if is_resampled or (image.dtype.kind == "f" and not _is_whole(image)):
        return np.dtype(np.float32)
    return np.dtype(np.uint8 if image.dtype == np.uint8 else np.int16)


def _is_whole(image: np.ndarray) -> bool:
    return all(bool((plane == np.rint(plane)).all()) for channel in image for plane in channel)


# ---- what is done ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Note:
    """The fingerprint of a case on file, with the signature of what it was taken from."""

    location: Location
    signature: str

    @classmethod
    def of(cls, case: RawCase, plan: CasePlan) -> _Note:
        return cls(
            locate(plan.output).child("ingest", "cases", f"{case.case_id}.json"), _signature(case, plan)
        )

    def read(self) -> tuple[CaseFingerprint, tuple[DataError, ...]] | None:
        if not exists(self.location):
            return None
        try:
            kept = json.loads(read_bytes(self.location))
            if kept["signature"] != self.signature:
                return None
            warnings = tuple(
                DataError(w["message"], code=w["code"], file=w["file"]) for w in kept["warnings"]
            )
            return CaseFingerprint.from_dict(kept["fingerprint"]), warnings
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: is damaged (%r); the case is measured again", self.location.uri, error)
            return None

    def write(self, fingerprint: CaseFingerprint, warnings: tuple[DataError, ...]) -> None:
        kept = {
            "signature": self.signature,
            "fingerprint": fingerprint.to_dict(),
            "warnings": [{"message": w.message, "code": w.code, "file": w.file} for w in warnings],
        }
        write_atomic(self.location, json.dumps(kept).encode())


def _signature(case: RawCase, plan: CasePlan) -> str:
    """Of everything that bears on the fingerprint: the files, how they are read, and what their labels mean."""
    labels = plan.label_sets.get(case.label_set)
    kept = {str(value): index for value, index in plan.space.values.get(case.label_set, {}).items()}
    parts = (
        _VERSION,
        [(uri, *file_state(uri)) for uri in case.files],
        [case.masks, case.series_uid, case.modality, case.num_channels, case.channels],
        [repr(labels), kept, plan.crop_to_nonzero, sorted(plan.tolerate)],
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _origin(case: RawCase, plan: CasePlan, signature: str) -> str:
    """What the stored case was made from: the signature, and the settings that bear on its voxels alone."""
    settings = json.dumps([signature, plan.spacing_mm, plan.dtype, plan.codec, plan.space.structures])
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:32]} {case.images[0]}"


def file_state(uri: str) -> list[Any]:
    """Size and time of a file, or of each file of a folder."""
    location = locate(uri)
    info = call_with_retry(
        lambda: location.filesystem.get_file_info(location.path), location.uri, DEFAULT_RETRY
    )
    if info.type != pyarrow.fs.FileType.Directory:
        return [info.size, str(info.mtime_ns)]
    selector = pyarrow.fs.FileSelector(location.path)
    found = call_with_retry(lambda: location.filesystem.get_file_info(selector), location.uri, DEFAULT_RETRY)
    return sorted([one.base_name, one.size, str(one.mtime_ns)] for one in found)
