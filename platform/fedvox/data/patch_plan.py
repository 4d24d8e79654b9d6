"""Which blocks of a case a patch touches, and where their voxels go.

Everything here is geometry: no byte is read. It is also the inner loop of training's input, so what can be
shared by the hundred blocks of a patch is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np

from fedvox.data.brick_index import Array, BlockTable, Triple
from fedvox.data.ranges import ByteRange


class Overlap(NamedTuple):
    """Where a block meets the patch along one axis.

    Args:
        block: coordinate of the block.
        length: its extent in voxels; less than that of others at the far edge.
        inside: the block's voxels that the patch holds.
        target: where they go in the patch.
        key: equal for overlaps that take the same voxels of a block of the same length.
    """

    block: int
    length: int
    inside: slice
    target: slice
    key: tuple[int, int, int]


class Piece(NamedTuple):
    """One block to decode.

    Args:
        name: `image` or `label`.
        block: its coordinates.
        shape: of its voxels, (C, d, h, w) or (d, h, w).
        inside: which of them the patch holds.
        rows: where they go: a view of the output whose items are the rows along the last axis.
        base: what to add to them.
        range: where its bytes are.
        checked: whether its checksum was found right before.
        key: equal for pieces of the same shape and inside.
    """

    name: str
    block: Triple
    shape: tuple[int, ...]
    inside: tuple[EllipsisType, slice, slice, slice]
    rows: Array
    base: Any
    range: ByteRange
    checked: bool
    key: tuple[Any, ...]


def overlaps(first: int, extent: int, edge: int, block: int) -> list[Overlap]:
    """The blocks that [first, first + extent) touches along an axis of `edge` voxels."""
    low, high = max(first, 0), min(first + extent, edge)
    found = []
    for number in range(low // block, (high - 1) // block + 1) if low < high else ():
        origin = number * block
        length = min(block, edge - origin)
        begin, end = max(low - origin, 0), min(high - origin, length)
        target = slice(origin + begin - first, origin + end - first)
        found.append(Overlap(number, length, slice(begin, end), target, (length, begin, end)))
    return found


def as_rows(array: Array) -> Array:
    """A view without the last axis, which must be contiguous: each item is a row of it.

    numpy spends more time between rows of 64 bytes than in them. Copied as single items they take 2.4 µs a
    block instead of 6.4.
    """
    row = np.dtype((np.void, array.shape[-1] * array.itemsize))
    return array.view(row)[..., 0]


def plan(
    name: str, table: BlockTable, checked: Array, axes: Sequence[Sequence[Overlap]], output: Array
) -> list[Piece]:
    """The blocks to decode into one output; those without bytes are filled at once.

    Args:
        name: `image` or `label`.
        table: of that column.
        checked: which of its blocks were found right before, bool.
        axes: the overlaps along (D, H, W), none of them empty.
        output: (C, d, h, w) or (d, h, w); zeros where a block of zeros has no bytes.
    """
    box = tuple(slice(axis[0].block, axis[-1].block + 1) for axis in axes)
    fields = (table.size, table.offset, table.base, checked)
    found = zip(*(field[box].ravel().tolist() for field in fields), strict=True)
    columns = {x.block: as_rows(output[..., x.target]) for x in axes[2]}
    head = output.shape[:-3]
    pieces = []
    for (z, y, x), (size, offset, base, right) in zip(product(*axes), found, strict=True):
        if size:
            pieces.append(
                Piece(
                    name,
                    (z.block, y.block, x.block),
                    (*head, z.length, y.length, x.length),
                    (..., z.inside, y.inside, x.inside),
                    columns[x.block][..., z.target, y.target],
                    base,
                    ByteRange(offset, size),
                    right,
                    (name, z.key, y.key, x.key),
                )
            )
        elif base:
            output[..., z.target, y.target, x.target] = base
    return pieces
