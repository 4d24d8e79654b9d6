"""Read patches out of one case file."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fedvox.data.block_codec import decode_block
from fedvox.data.brick_index import BlockTable, Triple
from fedvox.data.case_header import CaseHeader, CaseIndex, CaseLayout, read_index
from fedvox.data.ranges import ByteRange, ByteSource, MappedFile, RemoteFile
from fedvox.errors import DamagedCase
from fedvox.storage import DEFAULT_RETRY, Location, RetryPolicy, call_with_retry

Array = np.ndarray[Any, Any]

# The table of a 300×512×512 volume takes about 50 KiB, its foreground sample at most as much again.
TAIL_BYTES = 128 << 10
_TRAILER_BYTES = 10  # the footer's length (int32), and the magic
_MAGIC = b"ARROW1"


class _Overlap(NamedTuple):
    """Where a block of one axis meets the patch: which of the block's voxels, and where they go."""

    block: int
    inside: slice
    target: slice


class _Wanted(NamedTuple):
    """One block to decode: where its bytes are, and which of its voxels go where."""

    name: str
    block: Triple
    inside: tuple[slice, slice, slice]
    target: Array
    range: ByteRange


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
        # One byte a block, set by the first read that checked it. Racing threads would only check twice.
        self._checked = {name: np.zeros(index.layout.grid.blocks, bool) for name in index.tables}
        self._scratch = threading.local()

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
        return cls(location, _read_tail(location, opened), opened)

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
        self, start: Sequence[int], size: Sequence[int], *, pad_value: float | Sequence[float] | None = None
    ) -> tuple[Array, Array | None]:
        """The voxels of a box, which may reach beyond the volume.

        Args:
            start: first voxel, (z, y, x); may be negative.
            size: voxels, (d, h, w).
            pad_value: what lies outside the volume, for all channels or for each; by default each channel's
                minimum. Labels are padded with 0.

        Returns:
            The image (C, d, h, w) in the stored dtype, and the label (d, h, w) or None.

        Raises:
            DamagedCase: a block does not match its checksum.
            StorageError: unreachable beyond the retry deadline.
        """
        layout = self._index.layout
        axes = [
            list(_overlaps(first, extent, edge, layout.block))
            for first, extent, edge in zip(start, size, layout.shape, strict=True)
        ]
        whole = all(s >= 0 and s + n <= edge for s, n, edge in zip(start, size, layout.shape, strict=True))
        image = np.empty((layout.channels, *size), layout.dtype)
        label = None if layout.label_dtype is None else np.empty(tuple(size), layout.label_dtype)
        if not whole:
            padding = layout.minimum if pad_value is None else pad_value
            image[...] = np.asarray(padding, image.dtype).reshape(-1, 1, 1, 1)
            if label is not None:
                label.fill(0)
        self._fill(axes, {"image": image} if label is None else {"image": image, "label": label})
        return image, label

    def read_all(self) -> tuple[Array, Array | None]:
        """The whole volume: image (C, D, H, W) and label (D, H, W) or None."""
        return self.read_patch((0, 0, 0), self.shape)

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def _fill(self, axes: list[list[_Overlap]], outputs: dict[str, Array]) -> None:
        """Decode the blocks where the axes' overlaps cross into the outputs."""
        wanted: list[_Wanted] = []
        for name, output in outputs.items():
            table = self._index.tables[name]
            for z, y, x in product(*axes):
                block = (z.block, y.block, x.block)
                target = output[..., z.target, y.target, x.target]
                size = int(table.size[block])
                if size:
                    inside = (z.inside, y.inside, x.inside)
                    wanted.append(
                        _Wanted(name, block, inside, target, ByteRange(int(table.offset[block]), size))
                    )
                else:
                    target[...] = table.fill[block]
        for one, data in zip(wanted, self._source.read([one.range for one in wanted]), strict=True):
            one.target[...] = self._decode(one.name, one.block, data)[(..., *one.inside)]

    def _decode(self, name: str, block: Triple, data: memoryview) -> Array:
        """A block's voxels, in a buffer that this thread's next call overwrites."""
        layout = self._index.layout
        box = layout.grid.box_of(block)
        shape = tuple(side.stop - side.start for side in box)
        dtype = np.dtype(layout.dtype if name == "image" else layout.label_dtype)
        if name == "image":
            shape = (layout.channels, *shape)
        voxels = self._buffer(name, dtype)[: int(np.prod(shape))].reshape(shape)
        if not self._checked[name][block]:
            if zlib.crc32(data) != self._index.tables[name].crc[block]:
                raise self._damaged(name, block, "does not match its checksum")
            self._checked[name][block] = True
        try:
            decode_block(data, voxels)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(name, block, str(error)) from error
        return voxels

    def _buffer(self, name: str, dtype: np.dtype[Any]) -> Array:
        buffer: Array | None = getattr(self._scratch, name, None)
        if buffer is None:
            layout = self._index.layout
            buffer = np.empty(layout.block**3 * (layout.channels if name == "image" else 1), dtype)
            setattr(self._scratch, name, buffer)
        return buffer

    def _damaged(self, name: str, block: Triple, what: str) -> DamagedCase:
        brick = self._index.layout.grid.brick_of(block)
        return DamagedCase(
            f"{self.location.uri}: brick {brick} of case {self.header.case_id!r}: the {name} {what}",
            "Delete the file and run the ingest again.",
        )


def _open_source(location: Location, size: int | None, retry: RetryPolicy) -> ByteSource:
    if not location.is_local:
        return RemoteFile(location, size=size, retry=retry)
    path = location.local_path
    if path.is_file() and path.stat().st_size == 0:
        raise DamagedCase(f"{location.uri}: the file is empty", "Delete the file and run the ingest again.")
    return call_with_retry(lambda: MappedFile(path), location.uri, retry)


def _read_tail(location: Location, source: ByteSource) -> CaseIndex:
    """The index, with one read in almost all cases."""
    size = source.size()
    tail_bytes = min(size, TAIL_BYTES)
    (tail,) = source.read([ByteRange(size - tail_bytes, tail_bytes)])
    remedy = "Delete the file and run the ingest again."
    if len(tail) < _TRAILER_BYTES or bytes(tail[-len(_MAGIC) :]) != _MAGIC:
        raise DamagedCase(
            f"{location.uri}: truncated, or not a case file (it does not end in ARROW1)", remedy
        )
    needed = int.from_bytes(tail[-_TRAILER_BYTES : -len(_MAGIC)], "little") + _TRAILER_BYTES + len(_MAGIC)
    if needed > size:
        raise DamagedCase(f"{location.uri}: the footer claims {needed} bytes of a file of {size}", remedy)
    if needed > tail_bytes:
        (tail,) = source.read([ByteRange(size - needed, needed)])
    try:
        index = read_index(tail)
        _check_extent(index.tables, size)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DamagedCase(f"{location.uri}: the index cannot be read ({error})", remedy) from error
    return index


def _check_extent(tables: dict[str, BlockTable], size: int) -> None:
    for name, table in tables.items():
        end = int((table.offset + table.size).max())
        if end > size:
            raise ValueError(f"the {name} ends at byte {end} of a file of {size}")


def _overlaps(first: int, extent: int, edge: int, block: int) -> Iterator[_Overlap]:
    """The blocks of one axis that the patch [first, first + extent) touches."""
    low, high = max(first, 0), min(first + extent, edge)
    if low >= high:
        return
    for number in range(low // block, (high - 1) // block + 1):
        begin, end = max(low, number * block), min(high, (number + 1) * block)
        yield _Overlap(
            number, slice(begin - number * block, end - number * block), slice(begin - first, end - first)
        )
