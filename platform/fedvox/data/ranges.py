"""Byte ranges of one file, from a memory map or from an object store.

A patch touches some hundred blocks. On a local disk they are slices of a memory map; nothing is copied. On an
object store each request costs a round trip, so ranges with small gaps between them are merged and the merged
ones are read at the same time.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedvox.storage import DEFAULT_RETRY, Location, RangeReader, RetryPolicy

Array = np.ndarray[Any, Any]

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


class Part(NamedTuple):
    """Bytes of the file, and which of the ranges that were asked for lie in them.

    Args:
        data: uint8.
        offset: of the first of them in the file.
        positions: in the list of ranges.
    """

    data: Array
    offset: int
    positions: Sequence[int]

    def cut(self, one: ByteRange) -> Array:
        """The bytes of one range."""
        begin = one.offset - self.offset
        return self.data[begin : begin + one.size]


class ByteSource(Protocol):
    """What a case file is read through; from many threads."""

    def size(self) -> int:
        """Bytes in the file."""
        ...

    def read(self, ranges: Sequence[ByteRange]) -> Iterator[Part]:
        """Parts of the file that hold the ranges, as they arrive. A part is shorter where the file ends before."""
        ...

    def bring(self, ranges: Sequence[ByteRange]) -> None:
        """Make later reads of these ranges fast, where there is a place to keep them."""
        ...

    def refresh(self, one: ByteRange) -> Array | None:
        """A range once more, past any copy that may be damaged; None where there is none but this."""
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
        # numpy keeps the map open for as long as a view of it lives.
        self._bytes: Array = np.frombuffer(self._map, np.uint8)

    def size(self) -> int:
        """Bytes in the file."""
        return self._bytes.size

    def read(self, ranges: Sequence[ByteRange]) -> Iterator[Part]:
        """The whole file; nothing is read until it is looked at."""
        yield Part(self._bytes, 0, range(len(ranges)))

    def bring(self, ranges: Sequence[ByteRange]) -> None:
        """Ask the kernel to read ahead."""
        for offset, size in merge_ranges(ranges):
            begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)

    def refresh(self, one: ByteRange) -> Array | None:  # noqa: ARG002 - the file is the only copy
        """None: the file is the only copy."""
        return None

    def close(self) -> None:
        """Release the map, or leave that to the last view of it."""
        self._bytes = self._bytes[:0].copy()


class RemoteFile:
    """A file of an object store: merged ranges, read at the same time, each retried by itself."""

    def __init__(
        self, location: Location, *, size: int | None = None, retry: RetryPolicy = DEFAULT_RETRY
    ) -> None:
        self._reader = RangeReader(location, retry=retry)
        self._size = size
        self.uri = location.uri

    def size(self) -> int:
        """Bytes in the file."""
        if self._size is None:
            self._size = self._reader.size()
        return self._size

    def read(self, ranges: Sequence[ByteRange]) -> Iterator[Part]:
        """The ranges, in parts of the merged ones of the merged ones in the order in which those arrive."""
        return read_merged(self._reader.read_at, ranges)

    def bring(self, ranges: Sequence[ByteRange]) -> None:
        """Nothing: there is no place to keep them."""

    def refresh(self, one: ByteRange) -> Array:
        """The range, read again: what was damaged on the way may arrive well."""
        return np.frombuffer(self._reader.read_at(*one), np.uint8)

    def close(self) -> None:
        """Let go of the handle."""
        self._reader.close()


def read_merged(read_at: Callable[[int, int], bytes], ranges: Sequence[ByteRange]) -> Iterator[Part]:
    """Read `ranges` through few, concurrent calls of `read_at(offset, size)`."""
    merged = merge_ranges(ranges)
    positions: list[list[int]] = [[] for _ in merged]
    begins = [one.offset for one in merged]
    for position, one in enumerate(ranges):
        positions[bisect_right(begins, one.offset) - 1].append(position)
    if len(merged) <= 1:
        arrivals: Iterable[tuple[int, bytes]] = ((i, read_at(*one)) for i, one in enumerate(merged))
    else:
        arrivals = _concurrently(read_at, merged)
    for i, data in arrivals:
        yield Part(np.frombuffer(data, np.uint8), begins[i], positions[i])


def _concurrently(
    read_at: Callable[[int, int], bytes], merged: Sequence[ByteRange]
) -> Iterator[tuple[int, bytes]]:
    pending = {_request_pool().submit(read_at, *one): i for i, one in enumerate(merged)}
    try:
        for future in as_completed(pending):
            yield pending[future], future.result()
    finally:
        for future in pending:  # after an error the others would only be in the way
            future.cancel()


@cache
def _request_pool() -> ThreadPoolExecutor:
    """Shared by all files of the process, which bounds its open requests."""
    return ThreadPoolExecutor(_REQUEST_THREADS, thread_name_prefix="fedvox-range")
