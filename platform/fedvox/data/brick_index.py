"""Where the voxels of a case lie in its file: the grid of bricks and blocks, and the table of their places.

A *brick* (64³ voxels) is the unit of the Arrow file: one record batch. A *block* (32³) is the unit of
compression: a brick's payload is its blocks one after another. The table has one entry a block, shaped like
    the grid of blocks, so
that the blocks which a patch touches are a slice of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]
Triple = tuple[int, int, int]

BRICK = 64
BLOCK = 32


@dataclass(frozen=True)
class Grid:
    """How a volume is cut.

    Args:
        shape: voxels, (D, H, W).
        brick: voxels along each side of a brick; a multiple of `block`.
        block: voxels along each side of a block. Those at the far edges hold only what lies in the volume.
    """

    shape: Triple
    brick: int = BRICK
    block: int = BLOCK

    @property
    def bricks(self) -> Triple:
        """Bricks along (D, H, W)."""
        d, h, w = (-(-extent // self.brick) for extent in self.shape)
        return d, h, w

    @property
    def blocks(self) -> Triple:
        """Blocks along (D, H, W)."""
        d, h, w = (-(-extent // self.block) for extent in self.shape)
        return d, h, w

    def brick_order(self) -> list[Triple]:
        """Brick coordinates in the order of the file: along a Z-order curve, so that neighbours lie close."""
        d, h, w = self.bricks
        return sorted(product(range(d), range(h), range(w)), key=_morton)

    def blocks_of(self, brick: Triple) -> Iterator[Triple]:
        """Coordinates of a brick's blocks, in the order of its payload."""
        ratio = self.brick // self.block
        yield from product(
            *(range(b * ratio, min((b + 1) * ratio, n)) for b, n in zip(brick, self.blocks, strict=True))
        )

    def brick_of(self, block: Triple) -> Triple:
        """The brick that holds a block."""
        ratio = self.brick // self.block
        return block[0] // ratio, block[1] // ratio, block[2] // ratio

    def box_of(self, block: Triple) -> tuple[slice, slice, slice]:
        """The voxels of a block in the volume."""
        z, y, x = (
            slice(b * self.block, min((b + 1) * self.block, extent))
            for b, extent in zip(block, self.shape, strict=True)
        )
        return z, y, x


def _morton(brick: Triple) -> int:
    """Position along the Z-order curve: the bits of the three coordinates, interleaved."""
    z, y, x = brick
    key = 0
    for bit in range(21):
        key |= ((x >> bit & 1) | (y >> bit & 1) << 1 | (z >> bit & 1) << 2) << (3 * bit)
    return key


@dataclass(frozen=True)
class BlockTable:
    """Place and checksum of each block of one column; all arrays have the shape of `Grid.blocks`.

    Args:
        offset: first byte in the file, uint64.
        size: bytes, uint32; 0 where all voxels of the block equal `fill`.
        crc: CRC-32 of the bytes, uint32.
        fill: the only value of a block without bytes; of the column's dtype.
    """

    offset: Array
    size: Array
    crc: Array
    fill: Array

    @classmethod
    def empty(cls, blocks: Triple, dtype: np.dtype[Any]) -> BlockTable:
        """A table to be filled while writing."""
        return cls(
            np.zeros(blocks, np.uint64),
            np.zeros(blocks, np.uint32),
            np.zeros(blocks, np.uint32),
            np.zeros(blocks, dtype),
        )


def encode_tables(tables: dict[str, BlockTable]) -> bytes:
    """The tables as an Arrow IPC stream: columns `image_offset`, `image_size`, …, a row a block in C order."""
    columns = {
        f"{name}_{field}": pa.array(getattr(table, field).ravel())
        for name, table in tables.items()
        for field in ("offset", "size", "crc", "fill")
    }
    return to_stream(pa.table(columns))


def decode_tables(data: bytes, blocks: Triple) -> dict[str, BlockTable]:
    """The inverse of `encode_tables`."""
    table = pa.ipc.open_stream(data).read_all()
    arrays = {name: table[name].to_numpy().reshape(blocks) for name in table.column_names}
    names = {name.rpartition("_")[0] for name in arrays}
    return {
        name: BlockTable(*(arrays[f"{name}_{field}"] for field in ("offset", "size", "crc", "fill")))
        for name in names
    }


def to_stream(table: pa.Table) -> bytes:
    """An Arrow table as a zstd-compressed IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
