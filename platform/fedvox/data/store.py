"""A data set as a folder of case files with a manifest, on disk or on S3.

    STORE/
        store.json          what all cases share (`StoreMeta`); written last, so a folder with it is complete
        manifest.parquet    a row a case (`CaseRecord`)
        cases/ID.arrow      the voxels (see `fedvox.data.bricks`)
        records/ID.json     what the manifest is made from

A million rows open in seconds: the manifest stays in Arrow's columns, and no Python object is made for a row
until it is asked for.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedvox.data.bricks import CaseReader
from fedvox.data.cache import CacheConfig, NodeCache, node_cache
from fedvox.data.intensity import CaseIntensity, ChannelIntensity
from fedvox.data.ranges import ByteSource, RemoteFile
from fedvox.data.records import (
    LIGHT_COLUMNS,
    CaseRecord,
    StoreMeta,
    intensity_from_rows,
)
from fedvox.data.store_writer import MANIFEST_FILE, STORE_FILE, StoreWriter, read_meta
from fedvox.errors import DamagedCase, DataError, StorageError
from fedvox.storage import Backend, Location, call_with_retry, exists, locate, open_file

__all__ = ["BrickStore", "CaseIntensity", "CaseRecord", "ChannelIntensity", "StoreMeta", "StoreWriter"]

Array = np.ndarray[Any, Any]

_OPEN_READERS = 64
_KEPT_ROW_GROUPS = 16


class StringColumn(Sequence[str]):
    """Strings in Arrow memory; one becomes a Python object when it is asked for."""

    def __init__(self, values: pa.StringArray) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> StringColumn: ...

    def __getitem__(self, index: int | slice) -> str | StringColumn:
        if isinstance(index, slice):
            return StringColumn(self._values[index])
        text: str = self._values[int(index)].as_py()
        return text


class BrickStore:
    """A finished store, open for reading from many threads. Pickled, it is opened again where it arrives.

    Args:
        location: of the store.
        meta: what all cases share.
        manifest: the light columns, one chunk each.
        cache: keeps what was read from a remote store on this node's disk.
    """

    def __init__(
        self, location: Location, meta: StoreMeta, manifest: pa.Table, *, cache: CacheConfig | None = None
    ) -> None:
        self.location = location
        self.meta = meta
        self._manifest = manifest
        self._cache = cache
        self._readers: OrderedDict[int, CaseReader] = OrderedDict()
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, uri: str, *, cache: CacheConfig | None = None, backend: Backend = "pyarrow") -> BrickStore:
        """Open a store.

        Raises:
            DataError: there is no finished store, or it comes from a newer version.
            StorageError: forbidden, no such bucket, or unreachable.
        """
        location = locate(uri, backend=backend)
        if not exists(location.child(STORE_FILE)):
            raise DataError(
                f"{uri}: holds no finished store ({STORE_FILE} is missing)",
                "Check the path, or run the ingest until it reports that it has finished.",
                code="no_store",
            )
        meta = read_meta(location.child(STORE_FILE))
        manifest = _read_manifest(location.child(MANIFEST_FILE))
        unknown = set(manifest["label_set"].chunk(0).dictionary.to_pylist()) - set(meta.label_sets)
        if unknown:
            raise _damaged_manifest(
                location.child(MANIFEST_FILE), f"label sets {sorted(unknown)} are unknown"
            )
        return cls(location, meta, manifest, cache=cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.location, self.meta, self._manifest, self._cache)

    def __len__(self) -> int:
        return int(self._manifest.num_rows)

    @cached_property
    def case_ids(self) -> StringColumn:
        """The ids in row order; they stay in Arrow memory."""
        return StringColumn(self._manifest["case_id"].combine_chunks())

    @cached_property
    def sources(self) -> Array:
        """The source of each case as an index into `source_names`, (n,) int32."""
        return _codes(self._manifest["source"])

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """The data sets that the cases come from."""
        return tuple(self._manifest["source"].chunk(0).dictionary.to_pylist())

    @cached_property
    def shapes(self) -> Array:
        """Voxels of each case, (n, 3) int32 as (D, H, W)."""
        shapes: Array = self._manifest["shape"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
        return shapes

    @property
    def versions(self) -> Array:
        """A number per case that changes with the content of its file, (n,) int64."""
        versions: Array = self._manifest["version"].combine_chunks().to_numpy()
        return versions

    @cached_property
    def cases_digest(self) -> str:
        """Changes with what decides which samples a run sees: the cases, their order, sources, labels and shapes."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.shapes, "<i4").tobytes(), digest_size=16)
        for name in ("case_id", "source", "label_set"):
            texts = self._manifest[name].combine_chunks().cast(pa.string())
            row = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
            digest.update(pc.binary_join(row, "\0")[0].as_buffer())
        return digest.hexdigest()

    @property
    def total_bytes(self) -> int:
        """Size of all case files together."""
        return int(pc.sum(self._manifest["num_bytes"]).as_py() or 0)

    @property
    def total_voxels(self) -> int:
        """Voxels of all cases together, of one channel."""
        return int(self.shapes.astype(np.int64).prod(axis=1).sum())

    @cached_property
    def _annotated(self) -> tuple[Array, Array]:
        """(n,) codes of the label sets, and which structures each annotates, (label sets, K) bool."""
        column = self._manifest["label_set"]
        names = column.chunk(0).dictionary.to_pylist()
        table = np.zeros((len(names), len(self.meta.structures)), bool)
        for row, name in zip(table, names, strict=True):
            row[list(self.meta.label_sets[name])] = True
        return _codes(column), table

    def annotated(self, i: int) -> Array:
        """Which structures the source of case `i` annotates, (K,) bool."""
        codes, table = self._annotated
        row: Array = table[codes[i]]
        return row

    def intensity(self, i: int) -> CaseIntensity:
        """The intensity statistics of case `i`, from memory."""
        row = self._manifest.slice(i, 1).select(["foreground_intensity", "whole_intensity"]).to_pylist()[0]
        return intensity_from_rows(row["foreground_intensity"], row["whole_intensity"])

    def record(self, i: int) -> CaseRecord:
        """Everything the manifest says of case `i`; reads a part of the manifest at first."""
        group, row = self._find_row(i)
        return CaseRecord.from_row(self._row_group(group).slice(row, 1).to_pylist()[0])

    def reader(self, i: int) -> CaseReader:
        """Case `i`, open for reading; the last ones used stay open."""
        with self._lock:
            reader = self._readers.get(i)
            if reader is not None:
                self._readers.move_to_end(i)
                return reader
        opened = self._open_reader(i)
        with self._lock:
            self._readers[i] = opened
            while len(self._readers) > _OPEN_READERS:
                self._readers.popitem(last=False)  # closed by the last thread that still reads from it
        return opened

    def foreground(self, i: int) -> dict[int, Array]:
        """Structure index -> voxel coordinates (n, 3) as (z, y, x), a bounded sample of case `i`."""
        return self.reader(i).foreground

    def read_patch(self, i: int, start: Sequence[int], size: Sequence[int]) -> tuple[Array, Array | None]:
        """A box of case `i`; see `CaseReader.read_patch`."""
        return self.reader(i).read_patch(start, size)

    def prefetch(self, i: int, start: Sequence[int], size: Sequence[int]) -> None:
        """Start to bring what `read_patch` will need to this node, and return at once.

        A local store is read ahead by the kernel; a remote one without a cache has no place to keep anything.
        """
        if self._node is not None:
            self._node.submit(lambda: self.reader(i).prefetch(start, size))
        elif self.location.is_local:
            self.reader(i).prefetch(start, size)

    def ahead(self, task: Callable[[], None]) -> None:
        """Run a task in the threads that fetch ahead; nothing where there are none (a local store, no cache)."""
        if self._node is not None and self._cache is not None and self._cache.prefetch_threads:
            self._node.submit(task)

    @cached_property
    def _node(self) -> NodeCache | None:
        return None if self._cache is None or self.location.is_local else node_cache(self._cache)

    def _open_reader(self, i: int) -> CaseReader:
        case_id = self.case_ids[i]
        location = self.location.child("cases", f"{case_id}.arrow")
        source: ByteSource | None = None
        if not location.is_local:
            remote = RemoteFile(location, size=int(self._manifest["num_bytes"][i].as_py()))
            version = str(self._manifest["version"][i].as_py())
            source = remote if self._node is None else self._node.open(remote, version)
        reader = CaseReader.open(location, source=source)
        if reader.header.case_id != case_id:
            raise DamagedCase(
                f"{location.uri}: holds case {reader.header.case_id!r} instead of {case_id!r}",
                "Delete the file and run the ingest again.",
            )
        return reader

    @cached_property
    def _group_begins(self) -> Array:
        """First row of each row group of the manifest, and the number of rows."""
        metadata = self._file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(rows)])

    def _find_row(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"case {i} of {len(self)}")
        group = int(np.searchsorted(self._group_begins, i, side="right")) - 1
        return group, i - int(self._group_begins[group])

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return _open_manifest(self.location.child(MANIFEST_FILE))

    def _row_group(self, group: int) -> pa.Table:
        with self._lock:
            table = self._groups.get(group)
            if table is None:
                uri = self.location.child(MANIFEST_FILE).uri
                table = call_with_retry(lambda: self._file.read_row_group(group), uri)
                self._groups[group] = table
                if len(self._groups) > _KEPT_ROW_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
        return table


def _reopen(location: Location, meta: StoreMeta, manifest: pa.Table, cache: CacheConfig | None) -> BrickStore:
    return BrickStore(location, meta, manifest, cache=cache)


def _open_manifest(location: Location) -> pq.ParquetFile:
    return call_with_retry(
        lambda: pq.ParquetFile(
            open_file(location),
            read_dictionary=["source", "label_set"],
            pre_buffer=not location.is_local,
        ),
        location.uri,
    )


def _read_manifest(location: Location) -> pa.Table:
    """The light columns, one chunk each."""
    try:
        file = _open_manifest(location)
        table = call_with_retry(lambda: file.read(columns=list(LIGHT_COLUMNS)), location.uri)
    except pa.ArrowInvalid as error:
        raise _damaged_manifest(location, str(error)) from error
    except StorageError as error:
        # pyarrow tells of damage inside a Parquet file as it tells of a server that fails: as an OSError
        if isinstance(error.__cause__, FileNotFoundError) or _PARQUET_DAMAGE.search(error.message):
            raise _damaged_manifest(location, str(error.__cause__)) from error
        raise
    lacking = [name for name in LIGHT_COLUMNS if name not in table.column_names]
    if lacking or not table.num_rows:
        raise _damaged_manifest(location, f"it lacks {', '.join(lacking)}" if lacking else "it has no rows")
    return table.unify_dictionaries().combine_chunks()


_PARQUET_DAMAGE = re.compile(r"thrift|page header|[Dd]ecompress|ZSTD|[Cc]orrupt|Unexpected end")


def _damaged_manifest(location: Location, found: str) -> DataError:
    return DataError(
        f"{location.uri}: is missing or not a readable Parquet manifest ({' '.join(found.split())})",
        "Run the ingest again to rewrite it; it keeps the cases that are done.",
        code="damaged_store",
    )


def _codes(column: pa.ChunkedArray) -> Array:
    codes: Array = column.combine_chunks().indices.to_numpy()
    return codes
