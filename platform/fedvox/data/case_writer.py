"""Write one case file: cut, compress, place, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fedvox.data.block_codec import CODECS, Codec, encode_block
from fedvox.data.brick_index import BLOCK, BRICK, BlockTable, Grid, Triple
from fedvox.data.case_header import CaseHeader, CaseIndex, CaseLayout
from fedvox.data.foreground import draw_foreground, encode_foreground
from fedvox.errors import DataError
from fedvox.storage import storage_error, sync_folder

Array = np.ndarray[Any, Any]

_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.binary())])


@dataclass(frozen=True)
class CaseFileInfo:
    """What was written: the hex SHA-256 of the file, and its bytes."""

    sha256: str
    num_bytes: int


def write_case(
    path: Path,
    image: Array,
    label: Array | None,
    *,
    header: CaseHeader,
    codec: Codec = "zstd",
    threads: int = 1,
) -> CaseFileInfo:
    """Write a case file, atomically.

    Args:
        path: a local path; its folder is made.
        image: (C, D, H, W), any integer or floating dtype.
        label: canonical structure indices, (D, H, W), uint8 or uint16; None where the case is unlabelled.
        header: what the case is.
        codec: `zstd` is smaller; `lz4` decodes faster.
        threads: compress this many bricks at once.

    Raises:
        DataError: shapes or dtypes do not fit.
        StorageError: no space, or forbidden.
    """
    _check(image, label, header, codec)
    image = _little_endian(image)
    label = None if label is None else _little_endian(label)
    index = _empty_index(image, label, header, codec)
    batches = _compress(image, label, index, threads)
    _place(batches, index)
    return _write_file(path, batches, index)


def _empty_index(image: Array, label: Array | None, header: CaseHeader, codec: Codec) -> CaseIndex:
    layout = CaseLayout(
        shape=(image.shape[1], image.shape[2], image.shape[3]),
        channels=image.shape[0],
        dtype=image.dtype.name,
        label_dtype=None if label is None else label.dtype.name,
        codec=codec,
        minimum=tuple(np.nanmin(channel).item() for channel in image),
        brick=BRICK,
        block=BLOCK,
    )
    tables = {"image": BlockTable.empty(layout.grid.blocks, image.dtype)}
    if label is not None:
        tables["label"] = BlockTable.empty(layout.grid.blocks, label.dtype)
    foreground = {} if label is None else draw_foreground(label, key=header.case_id)
    return CaseIndex(header, layout, tables, encode_foreground(foreground, layout.shape))


def _check(image: Array, label: Array | None, header: CaseHeader, codec: str) -> None:
    name = f"case {header.case_id!r}"
    if image.ndim != 4 or 0 in image.shape:
        raise DataError(
            f"{name}: the image has shape {image.shape}", "Give it as (C, D, H, W), none of them 0."
        )
    if image.dtype.kind not in "iuf" or image.dtype.itemsize > 8:
        raise DataError(f"{name}: the image's dtype is {image.dtype}", "Convert it to int16 or float32.")
    if label is not None and label.shape != image.shape[1:]:
        raise DataError(
            f"{name}: the label's shape {label.shape} differs from the image's {image.shape[1:]}",
            "Resample one onto the other's grid.",
            code="shape_mismatch",
        )
    if label is not None and label.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise DataError(
            f"{name}: the label's dtype is {label.dtype}",
            "Convert it to uint8, or uint16 above 256 structures.",
        )
    if header.channel_names and len(header.channel_names) != image.shape[0]:
        raise DataError(
            f"{name}: {len(header.channel_names)} channel names for {image.shape[0]} channels",
            "Give one name a channel.",
        )
    if codec not in CODECS:
        raise DataError(f"{name}: unknown codec {codec!r}", f"Use one of {', '.join(CODECS)}.")


def _little_endian(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _compress(image: Array, label: Array | None, index: CaseIndex, threads: int) -> list[pa.RecordBatch]:
    """One record batch a brick, in file order; sizes, checksums and bases go into the tables."""
    layout, tables = index.layout, index.tables
    schema = _SCHEMA.with_metadata(index.schema_metadata())

    def batch(blocks: list[Triple]) -> pa.RecordBatch:
        payloads = [
            None if volume is None else _pack(volume, layout.grid, tables[name], layout.codec, blocks)
            for name, volume in (("image", image), ("label", label))
        ]
        return pa.record_batch([pa.array([payload], pa.binary()) for payload in payloads], schema=schema)

    if threads <= 1:
        return [batch(blocks) for blocks in layout.grid.brick_runs()]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(batch, layout.grid.brick_runs()))


def _pack(volume: Array, grid: Grid, table: BlockTable, codec: Codec, blocks: list[Triple]) -> bytes:
    """A brick's payload: its blocks, one after another."""
    payload = []
    for block in blocks:
        voxels = np.ascontiguousarray(volume[(..., *grid.box_of(block))])
        data, table.base[block] = encode_block(voxels, codec)
        table.size[block] = len(data)
        table.crc[block] = zlib.crc32(data)
        payload.append(data)
    return b"".join(payload)


def _place(batches: list[pa.RecordBatch], index: CaseIndex) -> None:
    """Learn from Arrow itself where each payload lies; the footer that comes last moves nothing."""
    sink = pa.BufferOutputStream()
    _write_batches(sink, batches, {})
    written = sink.getvalue()
    file = pa.ipc.open_file(pa.BufferReader(written))
    for number, blocks in enumerate(index.layout.grid.brick_runs()):
        batch = file.get_batch(number)
        for name, table in index.tables.items():
            payload = batch.column(batch.schema.get_field_index(name)).buffers()[2]
            offset = payload.address - written.address
            for block in blocks:
                if table.size[block]:  # an empty payload has no address
                    table.offset[block] = offset
                    offset += int(table.size[block])


def _write_batches(sink: Any, batches: list[pa.RecordBatch], footer: dict[str, bytes]) -> None:
    with pa.ipc.new_file(sink, batches[0].schema, metadata=footer) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_file(path: Path, batches: list[pa.RecordBatch], index: CaseIndex) -> CaseFileInfo:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _write_batches(file, batches, index.footer_metadata())
            file.flush()
            os.fsync(file.fileno())
        with temporary.open("rb") as file:
            info = CaseFileInfo(
                hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
            )
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return info
