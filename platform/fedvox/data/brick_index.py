"""Where the voxels of a case lie in its file: the grid of bricks and blocks, and the table of their places.

A *brick* (64³ voxels) is the unit of the Arrow file: one record batch. A *block* (32³) is the unit of
compression: a brick's payload is its blocks one after another. The table has one entry a block, shaped like
    the grid of blocks, so
that the blocks which a patch touches are a slice of it.

Blocks follow a Hilbert curve, which fills each aligned cube of blocks before it leaves it, so a brick is a
run of it. Of a 300×512×512 volume a 128³ patch then takes 7.7 ranges and 4.4 MB on average when gaps of 256
KiB are read along; with bricks in C order 8.9 and 4.5, in Z-order 9.7 and 5.0, and reading whole bricks in C
order 8.9 and 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, product
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

    def brick_runs(self) -> list[list[Triple]]:
        """Coordinates of the blocks of each brick, in the order of the file."""
        d, h, w = self.blocks
        bits = max((extent - 1).bit_length() for extent in self.blocks)
        order = sorted(product(range(d), range(h), range(w)), key=lambda block: hilbert_key(block, bits))
        return [list(run) for _, run in groupby(order, key=self.brick_of)]

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


def hilbert_key(cell: Triple, bits: int) -> int:
    """Position of a cell along the Hilbert curve through a cube of 2^bits cells a side.

    Skilling's transform: J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707, 381 (2004).
    """
    axes = list(cell)
    for shift in range(bits - 1, 0, -1):
        bit = 1 << shift
        for i in range(3):
            if axes[i] & bit:
                axes[0] ^= bit - 1
            else:
                swap = (axes[0] ^ axes[i]) & (bit - 1)
                axes[0] ^= swap
                axes[i] ^= swap
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    flip = 0
    for shift in range(bits - 1, 0, -1):
        if axes[2] >> shift & 1:
            flip ^= (1 << shift) - 1
    key = 0
    for shift in range(bits - 1, -1, -1):
        for axis in axes:
            key = key << 1 | ((axis ^ flip) >> shift & 1)
    return key


@dataclass(frozen=True)
class BlockTable:
    """Place and checksum of each block of one column; all arrays have the shape of `Grid.blocks`.

    Args:
        offset: first byte in the file, uint64.
        size: bytes, uint32; 0 where all voxels of the block equal `base`.
        crc: CRC-32 of the bytes, uint32.
        base: what to add to the decoded voxels, modulo the range of the column's dtype.
    """

    offset: Array
    size: Array
    crc: Array
    base: Array

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
        for field in ("offset", "size", "crc", "base")
    }
    return to_stream(pa.table(columns))


def decode_tables(data: bytes, blocks: Triple) -> dict[str, BlockTable]:
    """The inverse of `encode_tables`."""
    table = pa.ipc.open_stream(data).read_all()
    arrays = {name: table[name].to_numpy().reshape(blocks) for name in table.column_names}
    names = {name.rpartition("_")[0] for name in arrays}
    return {
        name: BlockTable(*(arrays[f"{name}_{field}"] for field in ("offset", "size", "crc", "base")))
        for name in names
    }


def to_stream(table: pa.Table) -> bytes:
    """An Arrow table as a zstd-compressed IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
