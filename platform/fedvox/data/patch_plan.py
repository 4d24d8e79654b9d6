"""Which blocks of a case a patch touches, and where their voxels go.

Everything here is geometry: no byte is read. It is also the inner loop of training's input: what the hundred
blocks of a patch share is made once, and what each has of its own is kept in parallel lists rather than in
objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, overload

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
        kind: equal for overlaps that take the same voxels of a block of the same length.
    """

    block: int
    length: int
    inside: slice
    target: slice
    kind: int


Cell = tuple[Overlap, Overlap, Overlap]


def overlaps(first: int, extent: int, edge: int, block: int) -> list[Overlap]:
    """The blocks that [first, first + extent) touches along an axis of `edge` voxels."""
    low, high = max(first, 0), min(first + extent, edge)
    found = []
    for number in range(low // block, (high - 1) // block + 1) if low < high else ():
        origin = number * block
        length = min(block, edge - origin)
        begin, end = max(low - origin, 0), min(high - origin, length)
        target = slice(origin + begin - first, origin + end - first)
        kind = (length * (block + 1) + begin) * (block + 1) + end
        found.append(Overlap(number, length, slice(begin, end), target, kind))
    return found


def as_rows(array: Array) -> Array:
    """A view without the last axis, which must be contiguous: each item is a row of it.

    numpy spends more time between rows of 64 bytes than in them. Copied as single items they take 2.4 µs a
    block instead of 6.4.
    """
    row = np.dtype((np.void, array.shape[-1] * array.itemsize))
    return array.view(row)[..., 0]


class Sink:
    """One output of a patch, and the column of the file that fills it.

    Args:
        name: `image` or `label`.
        table: of that column.
        checked: which of its blocks were found right before, bool.
        output: (C, d, h, w), or for labels (d, h, w), zeros to begin with, so that most blocks need nothing.
    """

    def __init__(self, name: str, table: BlockTable, checked: Array, output: Array) -> None:
        self.name = name
        self.table = table
        self.checked = checked
        self.output = output
        self._columns: dict[int, Array] = {}

    def shape(self, cell: Cell) -> tuple[int, ...]:
        """Of a whole block, (C, d, h, w) or (d, h, w)."""
        z, y, x = cell
        return (*self.output.shape[:-3], z.length, y.length, x.length)

    def rows(self, cell: Cell) -> Array:
        """Where a block's voxels go, as rows along the last axis."""
        z, y, x = cell
        column = self._columns.get(x.block)
        if column is None:
            column = self._columns[x.block] = as_rows(self.output[..., x.target])
        return column[..., z.target, y.target]


@dataclass
class Plan:
    """The blocks to decode, in parallel lists; one entry a block.

    Args:
        sinks: where each block goes.
        cells: which block it is.
        offsets: where its bytes are in the file.
        sizes: how many they are.
        bases: what to add to its voxels.
        checked: whether its checksum was found right before.
    """

    sinks: list[Sink] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    bases: list[Any] = field(default_factory=list)
    checked: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sizes)

    def range(self, position: int) -> ByteRange:
        """Where the bytes of one block are."""
        return ByteRange(self.offsets[position], self.sizes[position])

    def ranges(self) -> Ranges:
        """Where the bytes are, one range a block."""
        return Ranges(self.offsets, self.sizes)

    def block(self, position: int) -> Triple:
        """Coordinates of one block."""
        z, y, x = self.cells[position]
        return z.block, y.block, x.block

    def parts(self, count: int) -> list[Plan]:
        """The plan cut into at most `count` of about the same length."""
        step = math.ceil(len(self) / count)
        cuts = [slice(begin, begin + step) for begin in range(0, len(self), step)]
        return [
            Plan(self.sinks[c], self.cells[c], self.offsets[c], self.sizes[c], self.bases[c], self.checked[c])
            for c in cuts
        ]

    def add(self, sink: Sink, axes: Sequence[Sequence[Overlap]]) -> None:
        """Plan one output; blocks without bytes are filled at once.

        Args:
            sink: the output.
            axes: the overlaps along (D, H, W), none of them empty.
        """
        table = sink.table
        box = tuple(slice(axis[0].block, axis[-1].block + 1) for axis in axes)
        cells: list[Cell] = list(product(axes[0], axes[1], axes[2]))
        sizes = table.size[box].ravel()
        fields = [f[box].ravel().tolist() for f in (table.offset, table.base, sink.checked)]
        found: list[list[Any]] = [cells, *fields]
        if not sizes.all():
            where = np.flatnonzero(sizes).tolist()
            self._fill(sink, [(cells[k], fields[1][k]) for k in np.flatnonzero(sizes == 0)])
            found = [[one[k] for k in where] for one in found]
        self.sizes += sizes[sizes > 0].tolist()
        self.cells += found[0]
        self.offsets += found[1]
        self.bases += found[2]
        self.checked += found[3]
        self.sinks += [sink] * (len(self.sizes) - len(self.sinks))

    def _fill(self, sink: Sink, constants: Sequence[tuple[Cell, Any]]) -> None:
        for (z, y, x), base in constants:
            if base or sink.name != "label":
                sink.output[..., z.target, y.target, x.target] = base


class Ranges(Sequence[ByteRange]):
    """Byte ranges that become objects only where one is looked at: a memory map never does."""

    def __init__(self, offsets: Sequence[int], sizes: Sequence[int]) -> None:
        self._offsets = offsets
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[ByteRange]:
        return map(ByteRange, self._offsets, self._sizes)

    @overload
    def __getitem__(self, index: int) -> ByteRange: ...

    @overload
    def __getitem__(self, index: slice) -> Ranges: ...

    def __getitem__(self, index: int | slice) -> ByteRange | Ranges:
        if isinstance(index, slice):
            return Ranges(self._offsets[index], self._sizes[index])
        return ByteRange(self._offsets[index], self._sizes[index])
