"""What a case file says about itself, apart from its voxels."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from fedvox.data.block_codec import CODECS, Codec
from fedvox.data.brick_index import BlockTable, Grid, Triple, decode_tables, encode_tables
from fedvox.data.foreground import decode_foreground

Array = np.ndarray[Any, Any]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CaseHeader:
    """What a case is, besides its voxels.

    Args:
        case_id: unique in the store.
        spacing_mm: voxel size along (D, H, W).
        channel_names: one name a channel; empty where they have none.
        affine: voxel (D, H, W, 1) -> RAS+ millimetres, 4 × 4, row by row; empty where unknown.
        origin: what the case was made from, for people.
    """

    case_id: str
    spacing_mm: tuple[float, float, float]
    channel_names: tuple[str, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class CaseLayout:
    """How the voxels are stored.

    Args:
        shape: (D, H, W).
        channels: C.
        dtype: of the image, as numpy names it (`int16`).
        label_dtype: of the label; None where the case has none.
        codec: of the blocks.
        minimum: smallest value of each channel; it pads patches that reach beyond the volume.
        brick: voxels along each side of a brick.
        block: voxels along each side of a block.
        version: of the format.
    """

    shape: Triple
    channels: int
    dtype: str
    label_dtype: str | None
    codec: Codec
    minimum: tuple[float, ...]
    brick: int
    block: int
    version: int = FORMAT_VERSION

    @property
    def grid(self) -> Grid:
        """How the volume is cut."""
        return Grid(self.shape, self.brick, self.block)


@dataclass(frozen=True)
class CaseIndex:
    """Everything that is in a case file but its voxels.

    Args:
        header: what the case is.
        layout: how its voxels are stored.
        tables: `image` and, where the case has one, `label`: where each block lies.
        foreground_stream: the bounded sample of each structure's voxels, as `encode_foreground` makes it.
    """

    header: CaseHeader
    layout: CaseLayout
    tables: dict[str, BlockTable]
    foreground_stream: bytes

    @cached_property
    def foreground(self) -> dict[int, Array]:
        """Structure index -> voxel coordinates (n, 3) as (z, y, x), decoded when first asked for."""
        return decode_foreground(self.foreground_stream, self.layout.shape)

    def schema_metadata(self) -> dict[str, str]:
        """What the Arrow schema carries: small, and readable by people."""
        return {
            "fedvox.case": json.dumps(asdict(self.header)),
            "fedvox.layout": json.dumps(asdict(self.layout)),
        }

    def footer_metadata(self) -> dict[str, bytes]:
        """What the Arrow footer carries: the tables, and a checksum over everything but the voxels."""
        blocks = encode_tables(self.tables)
        foreground = self.foreground_stream
        texts = "".join(self.schema_metadata().values()).encode()
        return {
            "fedvox.blocks": blocks,
            "fedvox.foreground": foreground,
            "fedvox.crc": str(zlib.crc32(texts + blocks + foreground)).encode(),
        }


def parse_index(schema: dict[bytes, bytes], footer: dict[bytes, bytes]) -> CaseIndex:
    """The index out of a file's metadata.

    Raises:
        ValueError: the metadata do not match their checksum, or come from a newer version.
        KeyError: this is some other Arrow file.
    """
    case, layout_text = schema[b"fedvox.case"], schema[b"fedvox.layout"]
    blocks, foreground = footer[b"fedvox.blocks"], footer[b"fedvox.foreground"]
    if zlib.crc32(case + layout_text + blocks + foreground) != int(footer[b"fedvox.crc"]):
        raise ValueError("the index does not match its checksum")
    layout = _layout(json.loads(layout_text))
    return CaseIndex(
        header=_header(json.loads(case)),
        layout=layout,
        tables=decode_tables(blocks, layout.grid.blocks),
        foreground_stream=foreground,
    )


def read_index(tail: Array) -> CaseIndex:
    """The index out of the last bytes of a file, which must hold the whole footer."""
    # pyarrow looks for the footer from the end, and never at the bytes before it until a batch is asked for.
    file = pa.ipc.open_file(pa.BufferReader(tail))
    return parse_index(file.schema.metadata, dict(file.metadata))


def _header(fields: dict[str, Any]) -> CaseHeader:
    return CaseHeader(
        case_id=fields["case_id"],
        spacing_mm=tuple(fields["spacing_mm"]),
        channel_names=tuple(fields["channel_names"]),
        affine=tuple(tuple(row) for row in fields["affine"]),
        origin=fields["origin"],
    )


def _layout(fields: dict[str, Any]) -> CaseLayout:
    if fields["version"] > FORMAT_VERSION:
        raise ValueError(f"format version {fields['version']} is newer than {FORMAT_VERSION}; upgrade fedvox")
    if fields["codec"] not in CODECS:
        raise ValueError(f"unknown codec {fields['codec']!r}")
    return CaseLayout(**{**fields, "shape": tuple(fields["shape"]), "minimum": tuple(fields["minimum"])})
