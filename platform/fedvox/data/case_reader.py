"""Read patches out of one case file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from fedvox.data.block_codec import Target, address_of, thread_decoder
from fedvox.data.brick_index import BlockTable, Triple
from fedvox.data.case_header import CaseHeader, CaseIndex, CaseLayout, read_index
from fedvox.data.patch_plan import Plan, Sink, as_rows, overlaps
from fedvox.data.ranges import ByteRange, ByteSource, MappedFile, RemoteFile
from fedvox.errors import DamagedCase
from fedvox.storage import DEFAULT_RETRY, Location, RetryPolicy, call_with_retry

Array = np.ndarray[Any, Any]

# The table of a 300×512×512 volume takes about 50 KiB, its foreground sample at most as much again.
TAIL_BYTES = 128 << 10
_TRAILER_BYTES = 10  # the footer's length (int32), and the magic
_MAGIC = b"ARROW1"
_REMEDY = "Delete the file and run the ingest again."


class CaseReader:
    """A case file, open for reading patches from many threads.

    Args:
        location: of the file.
        index: the file's index.
        source: where its bytes come from.
    """

    def __init__(self, location: Location, index: CaseIndex, source: ByteSource) -> None:
        self.location = location
        self._index = index
        self._source = source
        self._dtypes = {"image": index.layout.dtype, "label": index.layout.label_dtype or ""}
        # One byte a block, set by the first read that checked it. Racing threads would only check twice.
        self._checked = {name: np.zeros(index.layout.grid.blocks, bool) for name in index.tables}

    @classmethod
    def open(
        cls,
        location: Location,
        *,
        source: ByteSource | None = None,
        size: int | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> CaseReader:
        """Read the index from the file's tail.

        Args:
            location: of the file.
            source: where the bytes come from (a cache, say); by default a memory map, or range reads where
                the location is not local.
            size: bytes in the file where they are known.
            retry: for range reads.

        Raises:
            DamagedCase: the file is truncated, or is not a case file.
            StorageError: missing, forbidden, or unreachable.
        """
        opened = source or _open_source(location, size, retry)
        return cls(location, _read_index(location, opened), opened)

    @property
    def header(self) -> CaseHeader:
        """What the case is."""
        return self._index.header

    @property
    def layout(self) -> CaseLayout:
        """How it is stored: shape, channels, dtypes, codec."""
        return self._index.layout

    @property
    def shape(self) -> Triple:
        """Voxels, (D, H, W)."""
        return self._index.layout.shape

    @property
    def channels(self) -> int:
        """C."""
        return self._index.layout.channels

    @property
    def foreground(self) -> dict[int, Array]:
        """Structure index -> voxel coordinates (n, 3) as (z, y, x), a bounded sample."""
        return self._index.foreground

    def read_patch(
        self,
        start: Sequence[int],
        size: Sequence[int],
        *,
        pad_value: float | Sequence[float] | None = None,
        threads: int = 1,
    ) -> tuple[Array, Array | None]:
        """The voxels of a box, which may reach beyond the volume.

        Args:
            start: first voxel, (z, y, x); may be negative.
            size: voxels, (d, h, w).
            pad_value: what lies outside the volume, for all channels or for each; by default each channel's
                minimum. Labels are padded with 0.
            threads: that read and decode. A loader whose threads each read their own patch wants 1.

        Returns:
            The image (C, d, h, w) in the stored dtype, and the label (d, h, w) or None.

        Raises:
            DamagedCase: a block does not match its checksum.
            StorageError: unreachable beyond the retry deadline.
        """
        layout = self._index.layout
        axes = [
            overlaps(first, extent, edge, layout.block)
            for first, extent, edge in zip(start, size, layout.shape, strict=True)
        ]
        outputs = {"image": np.empty((layout.channels, *size), layout.dtype)}
        if layout.label_dtype is not None:
            outputs["label"] = np.zeros(tuple(size), layout.label_dtype)
        if any(s < 0 or s + n > edge for s, n, edge in zip(start, size, layout.shape, strict=True)):
            padding = layout.minimum if pad_value is None else pad_value
            outputs["image"][...] = np.asarray(padding, layout.dtype).reshape(-1, 1, 1, 1)
        if all(axes):
            plan = Plan()
            for name, output in outputs.items():
                plan.add(Sink(name, self._index.tables[name], self._checked[name], output), axes)
            self._decode_with(threads, plan)
        return outputs["image"], outputs.get("label")

    def prefetch(self, start: Sequence[int], size: Sequence[int]) -> None:
        """Bring what `read_patch` will need to where it is quick to read: the cache, or the page cache."""
        shape = self._index.layout.shape
        axes = [overlaps(*one, self._index.layout.block) for one in zip(start, size, shape, strict=True)]
        if not all(axes):
            return
        box = tuple(slice(axis[0].block, axis[-1].block + 1) for axis in axes)
        ranges = [
            ByteRange(offset, count)
            for table in self._index.tables.values()
            for offset, count in zip(
                table.offset[box].ravel().tolist(), table.size[box].ravel().tolist(), strict=True
            )
            if count
        ]
        self._source.bring(ranges)

    def read_all(self, *, threads: int = 1) -> tuple[Array, Array | None]:
        """The whole volume: image (C, D, H, W) and label (D, H, W) or None."""
        return self.read_patch((0, 0, 0), self.shape, threads=threads)

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def _decode_with(self, threads: int, plan: Plan) -> None:
        if threads <= 1 or len(plan) <= 1:
            self._decode(plan)
        else:
            list(_decode_pool().map(self._decode, plan.parts(threads)))

    def _decode(self, plan: Plan) -> None:
        """Read, check and decode blocks into their rows."""
        decoder = thread_decoder()
        kept: dict[tuple[Any, ...], tuple[Target, Array]] = {}
        for part in self._source.read(plan.ranges()):
            begin = address_of(part.data) - part.offset
            end = part.offset + part.data.size
            for position in part.positions:
                sink, cell = plan.sinks[position], plan.cells[position]
                offset, size = plan.offsets[position], plan.sizes[position]
                address = begin + offset
                if not plan.checked[position]:
                    data = self._check(plan, position, part.cut(plan.range(position)))
                    address = address_of(data)
                elif offset + size > end:
                    raise self._damaged(plan, position, "is cut off: the file has shrunk since it was opened")
                z, y, x = cell
                key = sink.name, z.kind, y.kind, x.kind
                found = kept.get(key)
                if found is None:
                    target = decoder.target(sink.shape(cell), self._dtypes[sink.name], z.inside)
                    found = kept[key] = target, as_rows(target.voxels[..., z.inside, y.inside, x.inside])
                try:
                    decoder.decode(address, size, found[0], plan.bases[position])
                except ValueError as error:
                    raise self._damaged(plan, position, str(error)) from error
                sink.rows(cell)[...] = found[1]

    def _check(self, plan: Plan, position: int, data: Array) -> Array:
        """The bytes of a block that match its checksum: these, or those of a second read past any cache."""
        sink, block = plan.sinks[position], plan.block(position)
        expected = sink.table.crc[block]
        if zlib.crc32(data.data) != expected:
            again = self._source.refresh(plan.range(position))
            if again is None or zlib.crc32(again.data) != expected:
                raise self._damaged(plan, position, "does not match its checksum")
            data = again
        sink.checked[block] = True
        return data

    def _damaged(self, plan: Plan, position: int, what: str) -> DamagedCase:
        brick = self._index.layout.grid.brick_of(plan.block(position))
        name = plan.sinks[position].name
        return DamagedCase(
            f"{self.location.uri}: brick {brick} of case {self.header.case_id!r}: the {name} {what}", _REMEDY
        )


def _open_source(location: Location, size: int | None, retry: RetryPolicy) -> ByteSource:
    if not location.is_local:
        return RemoteFile(location, size=size, retry=retry)
    path = location.local_path
    if path.is_file() and path.stat().st_size == 0:
        raise DamagedCase(f"{location.uri}: the file is empty", _REMEDY)
    return call_with_retry(lambda: MappedFile(path), location.uri, retry)


def _read_index(location: Location, source: ByteSource) -> CaseIndex:
    """The index, with one read of the file's tail in almost all cases."""
    try:
        return _parse_tail(location, source.size(), lambda last: _read_range(source, last))
    except DamagedCase:
        if source.refresh(ByteRange(0, 1)) is None:
            raise
        return _parse_tail(location, source.size(), lambda last: _refreshed(source, last))


def _read_range(source: ByteSource, one: ByteRange) -> Array:
    (part,) = source.read([one])
    return part.cut(one)


def _refreshed(source: ByteSource, one: ByteRange) -> Array:
    data = source.refresh(one)
    return np.empty(0, np.uint8) if data is None else data


def _parse_tail(location: Location, size: int, read: Callable[[ByteRange], Array]) -> CaseIndex:
    held = min(size, TAIL_BYTES)
    tail = read(ByteRange(size - held, held))
    if tail.size < _TRAILER_BYTES or tail[-len(_MAGIC) :].tobytes() != _MAGIC:
        raise DamagedCase(
            f"{location.uri}: truncated, or not a case file (it does not end in {_MAGIC.decode()})", _REMEDY
        )
    footer = int.from_bytes(tail[-_TRAILER_BYTES : -len(_MAGIC)].tobytes(), "little")
    needed = footer + _TRAILER_BYTES + len(_MAGIC)
    if not 0 < footer < needed <= size:
        raise DamagedCase(f"{location.uri}: a footer of {footer} bytes in a file of {size}", _REMEDY)
    if needed > held:
        tail = read(ByteRange(size - needed, needed))
    try:
        index = read_index(tail)
        _check_extent(index.tables, size)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DamagedCase(f"{location.uri}: the index cannot be read ({error})", _REMEDY) from error
    return index


@cache
def _decode_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="fedvox-decode")


def _check_extent(tables: dict[str, BlockTable], size: int) -> None:
    for name, table in tables.items():
        end = int((table.offset + table.size).max())
        if end > size:
            raise ValueError(f"the {name} ends at byte {end} of a file of {size}")
