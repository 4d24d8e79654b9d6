"""One block of voxels to bytes and back, with blosc2.

A block is small (32³ voxels) so that a patch decodes little more than it needs; each is a blosc2 chunk of its
own.
"""

from __future__ import annotations

from typing import Any, Literal

import blosc2
import numpy as np

Codec = Literal["lz4", "zstd"]
CODECS: tuple[Codec, ...] = ("lz4", "zstd")

_BLOSC_CODEC = {"lz4": blosc2.Codec.LZ4, "zstd": blosc2.Codec.ZSTD}
_LEVEL = 5

# Threads of a loader decode side by side; blosc2's Python calls keep the GIL unless told otherwise.
blosc2.set_releasegil(True)


def encode_block(block: np.ndarray[Any, Any], codec: Codec) -> bytes:
    """Compress a contiguous block of any shape into one blosc2 chunk."""
    wide = block.itemsize > 1
    data: bytes = blosc2.compress2(
        block,
        typesize=block.itemsize,
        codec=_BLOSC_CODEC[codec],
        clevel=_LEVEL,
        filters=[blosc2.Filter.SHUFFLE if wide else blosc2.Filter.NOFILTER],
        filters_meta=[0],
        # Byte planes coded apart: the high bytes of CT collapse to runs, and the low bytes get their own
        # entropy table.
        splitmode=blosc2.SplitMode.ALWAYS_SPLIT if wide else blosc2.SplitMode.NEVER_SPLIT,
        blocksize=block.nbytes,
        nthreads=1,
    )
    return data


def decode_block(data: memoryview | bytes, out: np.ndarray[Any, Any]) -> None:
    """Decompress one chunk into `out`, which has exactly the block's bytes.

    Raises:
        ValueError: the chunk is of another size, or is not a blosc2 chunk.
    """
    num_bytes = int.from_bytes(data[4:8], "little")
    if num_bytes != out.nbytes:
        raise ValueError(f"the block holds {num_bytes} bytes instead of {out.nbytes}")
    blosc2.decompress2(data, dst=out, nthreads=1)
