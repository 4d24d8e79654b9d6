"""Fill a store from many processes at once, and stop and resume at any point."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fedvox
from fedvox.data.bricks import CaseFileInfo, CaseHeader, Codec, write_case
from fedvox.data.foreground import count_structures
from fedvox.data.intensity import CaseIntensity, measure_intensity
from fedvox.data.records import MANIFEST_SCHEMA, SCHEMA_VERSION, CaseRecord, StoreMeta
from fedvox.errors import DataError
from fedvox.storage import (
    Backend,
    Location,
    exists,
    list_files,
    locate,
    read_bytes,
    upload_file,
    write_atomic,
)

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

STORE_FILE = "store.json"
DRAFT_FILE = "store.draft.json"
MANIFEST_FILE = "manifest.parquet"
ROW_GROUP_ROWS = 2048
_READ_THREADS = 16


@dataclass(frozen=True)
class StoreWriter:
    """Adds cases to a store; any number of processes may, each with other cases.

    A case is done when its record (`records/ID.json`) is there, which is written after its file
    (`cases/ID.arrow`). `finish` gathers the records into the manifest. All writes are atomic, so a killed
    process leaves nothing to repair.

    Args:
        location: of the store.
        meta: what all cases share.
        codec: of the blocks.
        threads: that compress one case.
    """

    location: Location
    meta: StoreMeta
    codec: Codec = "zstd"
    threads: int = 1

    @classmethod
    def create(
        cls,
        uri: str,
        meta: StoreMeta,
        *,
        codec: Codec = "zstd",
        threads: int = 1,
        backend: Backend = "pyarrow",
    ) -> StoreWriter:
        """Start a store, or go on with one.

        Raises:
            DataError: the folder holds a store of other channels or structures.
            StorageError: the folder or bucket is missing, forbidden or full.
        """
        location = locate(uri, backend=backend)
        draft = location.child(DRAFT_FILE)
        if exists(draft):
            found = read_meta(draft)
            if found.identity != meta.identity:
                raise DataError(
                    f"{uri}: holds a store of other channels, modality or structures ({found.name!r})",
                    "Name another folder, or delete this one.",
                    code="other_store",
                )
        else:
            write_atomic(draft, meta.to_json())
        return cls(location, meta, codec, threads)

    def finished(self, case_id: str, *, origin: str | None = None) -> CaseRecord | None:
        """The record of a case that is done, or None.

        Args:
            case_id: which case.
            origin: where given, a case made from something else counts as not done.
        """
        location = self._record(case_id)
        if not exists(location):
            return None
        try:
            record = CaseRecord.from_json(read_bytes(location))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: is damaged (%r); the case is done again", location.uri, error)
            return None
        return record if origin is None or record.origin == origin else None

    def add_case(
        self,
        case_id: str,
        image: Array,
        label: Array | None,
        *,
        source: str,
        label_set: str,
        spacing_mm: tuple[float, float, float],
        affine: tuple[tuple[float, ...], ...] = (),
        origin: str = "",
        intensity: CaseIntensity | None = None,
    ) -> CaseRecord:
        """Write a case, unless it is done already.

        Args:
            case_id: unique in the store; letters, digits, `.`, `_`, `-`.
            image: (C, D, H, W).
            label: canonical structure indices (D, H, W), `meta.ignore_index` where nobody judged, or None.
            source: the data set it comes from.
            label_set: a key of `meta.label_sets`.
            spacing_mm: (D, H, W).
            affine: voxel (D, H, W, 1) -> RAS+ mm, row by row.
            origin: what it was made from; another origin than that of the finished case writes it again.
            intensity: its statistics, measured here where not given.

        Raises:
            DataError: the case does not fit the store.
            StorageError: no space, forbidden, or unreachable.
        """
        done = self.finished(case_id, origin=origin)
        if done is not None:
            return done
        self._check(case_id, image, label, label_set)
        header = CaseHeader(case_id, spacing_mm, self.meta.channel_names, affine, origin)
        relative = f"cases/{case_id}.arrow"
        info = self._write(relative, image, label, header)
        record = CaseRecord(
            case_id=case_id,
            source=source,
            uri=relative,
            shape=(image.shape[1], image.shape[2], image.shape[3]),
            spacing_mm=spacing_mm,
            channels=image.shape[0],
            label_set=label_set,
            class_voxels={} if label is None else count_structures(label),
            intensity=intensity or measure_intensity(image, label),
            sha256=info.sha256,
            num_bytes=info.num_bytes,
            origin=origin,
        )
        write_atomic(self._record(case_id), record.to_json())
        return record

    def finish(self, meta: StoreMeta | None = None, *, case_ids: Iterable[str] | None = None) -> StoreMeta:
        """Write the manifest, then `store.json`: from then on the store can be opened.

        Args:
            meta: the final description (with the data set's intensities, say).
            case_ids: the cases to list; by default all that are done.

        Raises:
            DataError: there is no case, or one of `case_ids` is not done.
        """
        records = self._records(case_ids)
        if not records:
            raise DataError(
                f"{self.location.uri}: no case has been written", "Ingest at least one case.", code="empty"
            )
        write_atomic(self.location.child(MANIFEST_FILE), manifest_bytes(records))
        final = replace(
            meta or self.meta,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            fedvox_version=fedvox.__version__,
        )
        write_atomic(self.location.child(STORE_FILE), final.to_json())
        return final

    def _record(self, case_id: str) -> Location:
        return self.location.child("records", f"{case_id}.json")

    def _write(self, relative: str, image: Array, label: Array | None, header: CaseHeader) -> CaseFileInfo:
        target = self.location.child(relative)
        if target.is_local:
            return write_case(
                target.local_path, image, label, header=header, codec=self.codec, threads=self.threads
            )
        with tempfile.TemporaryDirectory(prefix="fedvox-case-") as folder:
            path = Path(folder) / "case.arrow"
            info = write_case(path, image, label, header=header, codec=self.codec, threads=self.threads)
            upload_file(path, target)
        return info

    def _records(self, case_ids: Iterable[str] | None) -> list[CaseRecord]:
        """Sorted by case id, so that the same cases make the same manifest."""
        found = {
            one.name.removesuffix(".json"): one
            for one in list_files(self.location.child("records"), recursive=False)
            if one.name.endswith(".json") and not one.name.startswith(".")
        }
        wanted = sorted(found) if case_ids is None else sorted(set(case_ids))
        missing = [case_id for case_id in wanted if case_id not in found]
        if missing:
            raise DataError(
                f"{self.location.uri}: {len(missing)} cases are not written, the first {missing[0]!r}",
                "Run the ingest again; it goes on where it stopped.",
                code="unfinished",
            )
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            return list(pool.map(lambda case_id: CaseRecord.from_json(read_bytes(found[case_id])), wanted))

    def _check(self, case_id: str, image: Array, label: Array | None, label_set: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", case_id):
            raise DataError(
                f"case id {case_id!r} cannot be a file name",
                "Use letters, digits, '.', '_' and '-', starting with a letter or digit.",
                code="case_id",
            )
        if label_set not in self.meta.label_sets:
            known = ", ".join(sorted(self.meta.label_sets))
            raise DataError(f"case {case_id!r}: unknown label set {label_set!r}", f"Use one of: {known}.")
        if image.ndim == 4 and image.shape[0] != len(self.meta.channel_names):
            raise DataError(
                f"case {case_id!r}: {image.shape[0]} channels in a store of {len(self.meta.channel_names)}",
                f"Give the channels {', '.join(self.meta.channel_names)}.",
                code="channels",
            )
        if label is not None and label.size and (found := self._beyond(label)) is not None:
            raise DataError(
                f"case {case_id!r}: label {found} in a store of {len(self.meta.structures)} structures",
                "Map the labels to canonical structures first.",
                code="label_value",
            )

    def _beyond(self, label: Array) -> int | None:
        """A value that is neither a structure nor to be ignored."""
        if int(label.max()) < len(self.meta.structures):
            return None
        beyond = label[(label >= len(self.meta.structures)) & (label != self.meta.ignore_index)]
        return int(beyond.max()) if beyond.size else None


def read_meta(location: Location) -> StoreMeta:
    """What a store says of itself.

    Args:
        location: of its `store.json`, or of the draft of it.

    Raises:
        DataError: the file is damaged, or comes from a newer version.
        StorageError: missing, forbidden, or unreachable.
    """
    data = read_bytes(location)
    try:
        version = int(json.loads(data)["schema_version"])
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{location.uri}: has schema version {version}, newer than {SCHEMA_VERSION}",
                "Upgrade fedvox.",
            )
        return StoreMeta.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{location.uri}: is damaged ({error!r})",
            "Delete this file and run the ingest again; it keeps the cases that are done.",
            code="damaged_store",
        ) from error


def manifest_bytes(records: Iterable[CaseRecord]) -> bytes:
    """The manifest as a Parquet file."""
    table = pa.Table.from_pylist([record.to_row() for record in records], schema=MANIFEST_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
