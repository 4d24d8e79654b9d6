"""Byte ranges of one file, from a memory map or from an object store.

A patch touches some hundred blocks. On a local disk they are slices of a memory map; nothing is copied. On an
object store each request costs a round trip, so ranges with small gaps between them are merged and the merged
ones are read at the same time.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from fedvox.storage import DEFAULT_RETRY, Location, RangeReader, RetryPolicy

# A gap of 256 KiB costs a millisecond or two at 150–300 MB/s; a request costs 10–30 ms.
MERGE_GAP_BYTES = 256 << 10
# Longer merged ranges are cut, so that one patch uses several connections.
MAX_RANGE_BYTES = 4 << 20
_REQUEST_THREADS = 32


class ByteRange(NamedTuple):
    """`size` bytes from `offset`."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after the range."""
        return self.offset + self.size


class ByteSource(Protocol):
    """What a case file is read through."""

    def size(self) -> int:
        """Bytes in the file."""
        ...

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """The bytes of each range, in the order asked for."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def merge_ranges(
    ranges: Sequence[ByteRange], *, gap: int = MERGE_GAP_BYTES, limit: int = MAX_RANGE_BYTES
) -> list[ByteRange]:
    """The fewest ranges that cover `ranges`, bridging at most `gap` unwanted bytes, up to `limit` bytes.

    A single range longer than `limit` stays whole. The result is sorted and free of overlaps in its wanted
    parts.
    """
    merged: list[ByteRange] = []
    for one in sorted(ranges):
        if merged and one.offset - merged[-1].end <= gap and one.end - merged[-1].offset <= limit:
            last = merged[-1]
            merged[-1] = ByteRange(last.offset, max(last.end, one.end) - last.offset)
        else:
            merged.append(one)
    return merged


class MappedFile:
    """A local file through a memory map: its ranges are views, not copies."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def size(self) -> int:
        """Bytes in the file."""
        return len(self._view)

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """Views of the ranges; shorter where the file ends before."""
        view = self._view
        return [view[offset : offset + size] for offset, size in ranges]

    def close(self) -> None:
        """Release the map, or leave that to the last view of it."""
        self._view = memoryview(b"")


class RemoteFile:
    """A file of an object store: merged ranges, read at the same time, each retried by itself."""

    def __init__(
        self, location: Location, *, size: int | None = None, retry: RetryPolicy = DEFAULT_RETRY
    ) -> None:
        self._reader = RangeReader(location, retry=retry)
        self._size = size

    def size(self) -> int:
        """Bytes in the file."""
        if self._size is None:
            self._size = self._reader.size()
        return self._size

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview]:
        """The ranges, cut out of the merged ones."""
        merged = merge_ranges(ranges)
        if len(merged) <= 1:
            parts = [self._reader.read_at(*one) for one in merged]
        else:
            parts = list(_request_pool().map(lambda one: self._reader.read_at(*one), merged))
        return cut_out(ranges, merged, parts)

    def close(self) -> None:
        """Let go of the handle."""
        self._reader.close()


def cut_out(
    ranges: Sequence[ByteRange], merged: Sequence[ByteRange], parts: Sequence[memoryview]
) -> list[memoryview]:
    """The wanted ranges out of the merged ones that were read."""
    order = sorted(range(len(ranges)), key=lambda i: ranges[i])
    out: list[memoryview] = [memoryview(b"")] * len(ranges)
    holder = 0
    for i in order:
        offset, size = ranges[i]
        while offset + size > merged[holder].end:
            holder += 1
        begin = offset - merged[holder].offset
        out[i] = parts[holder][begin : begin + size]
    return out


@cache
def _request_pool() -> ThreadPoolExecutor:
    """Shared by all files of the process, which bounds its open requests."""
    return ThreadPoolExecutor(_REQUEST_THREADS, thread_name_prefix="fedvox-range")
