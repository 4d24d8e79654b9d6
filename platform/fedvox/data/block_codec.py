"""One block of voxels to bytes and back, with blosc2.

A block is small (32³ voxels) so that a patch decodes little more than it needs; each is a blosc2 chunk of its
own. Decoding one takes some 25 µs. blosc2's Python call sets up and frees a decoder each time, which adds
10–15 µs; so this module calls the C library that blosc2's wheel carries, keeps one decoder a thread, and lets
go of the GIL meanwhile. Where the wheel carries no such library, blosc2's own call does the same work,
slower.

The upper and the lower half of a block's depth are compressed apart, which costs a thousandth of the size: at the
edge of a patch the decoder skips the half that nobody asked for.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import blosc2
import numpy as np

Array = np.ndarray[Any, Any]
Codec = Literal["lz4", "zstd"]
CODECS: tuple[Codec, ...] = ("lz4", "zstd")

_BLOSC_CODEC = {"lz4": blosc2.Codec.LZ4, "zstd": blosc2.Codec.ZSTD}
_LEVEL = 5
_BYTE = 256
_STEP = 32
_HEADER_SLAB_BYTES = 8  # where a chunk's header has blosc2's "blocksize"
# Adding the base back takes some 2 µs a block, as much as decoding this many bits a voxel.
_WORTHWHILE_BITS = 0.02

# Threads decode and encode side by side; blosc2's Python calls keep the GIL unless told otherwise.
blosc2.set_releasegil(True)


def encode_block(block: Array, codec: Codec) -> tuple[bytes, Any]:
    """A block's voxels, less a base value, as one blosc2 chunk.

    Args:
        block: of any shape, contiguous.
        codec: that compresses it.

    Returns:
        The chunk, empty where all voxels are equal; and the base, a scalar of the block's dtype. The decoded
        voxels plus the base, modulo the dtype's range, are the block.
    """
    base = choose_base(block)
    if block.flat[0] == base and (block == base).all():
        return b"", base
    return compress(block - base if base else block, codec), base


def choose_base(block: Array) -> Any:
    """The base that quiets the high bytes of the voxels; a constant block's only value.

    The bytes of 16-bit voxels are compressed apart. Noise about a multiple of 256 (water, in CT) flips the
    high byte at random, which costs 6 % of the size and a quarter of the decoding time; moved off it, the
    high byte is quiet. Where that gains nothing the base is 0.
    """
    lowest = block.min()
    if block.flat[0] == lowest and (block == lowest).all():
        return lowest
    zero = block.dtype.type(0)
    if block.dtype.kind not in "iu" or block.itemsize != 2:
        return zero
    as_it_is = _entropy(np.bincount((block.view(np.uint16) >> 8).reshape(-1)))
    if as_it_is < _WORTHWHILE_BITS:
        return zero
    above = (block - lowest).view(np.uint16)
    counts = np.bincount((above // _STEP).reshape(-1))
    steps = _BYTE // _STEP
    entropies = []
    for shift in range(steps):
        shifted = np.pad(counts, (shift, -(counts.size + shift) % steps))
        entropies.append(_entropy(shifted.reshape(-1, steps).sum(axis=1)))
    best = int(np.argmin(entropies))
    if entropies[best] > as_it_is - _WORTHWHILE_BITS:
        return zero
    return np.array(int(lowest) - _STEP * best).astype(block.dtype)[()]  # wraps around, as decoding does


def _entropy(counts: Array) -> float:
    """Bits a symbol."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def compress(block: Array, codec: Codec) -> bytes:
    """A contiguous block as one blosc2 chunk."""
    wide = block.itemsize > 1
    data: bytes = blosc2.compress2(
        block,
        typesize=block.itemsize,
        codec=_BLOSC_CODEC[codec],
        clevel=_LEVEL,
        filters=[blosc2.Filter.SHUFFLE if wide else blosc2.Filter.NOFILTER],
        filters_meta=[0],
        # Byte planes coded apart: the high bytes collapse to runs, the low bytes get an entropy table of
        # their own.
        splitmode=blosc2.SplitMode.ALWAYS_SPLIT if wide else blosc2.SplitMode.NEVER_SPLIT,
        blocksize=block.nbytes // _slabs(block.shape),
        nthreads=1,
    )
    return data


def _slabs(shape: Sequence[int]) -> int:
    """How many parts of (C, d, h, w) or (d, h, w) are compressed apart: two halves of the depth a channel."""
    channels = math.prod(shape[:-3])
    return 2 * channels if len(shape) >= 3 and shape[-3] % 2 == 0 else channels


class Target(NamedTuple):
    """Where a block is decoded to.

    Args:
        voxels: the array.
        address: of its first byte.
        num_bytes: of the array.
        skipped: a flag for each slab, true where it need not be decoded; None where all are needed.
    """

    voxels: Array
    address: int
    num_bytes: int
    skipped: Any = None


class BlockDecoder:
    """Decodes blocks into one buffer that it keeps. Not for two threads at once: see `thread_decoder`."""

    def __init__(self) -> None:
        self._decompress = decompressor()
        self._buffer: Array = np.empty(0, np.uint8)

    def target(self, shape: tuple[int, ...], dtype: str, depth: slice | None = None) -> Target:
        """A place for a block of this shape and dtype; all places share one buffer.

        Args:
            shape: (C, d, h, w) or (d, h, w).
            dtype: of the voxels.
            depth: what is wanted of the block along d; by default all. The rest may hold anything afterwards.
        """
        count = math.prod(shape) * np.dtype(dtype).itemsize
        if self._buffer.size < count:
            self._buffer = np.empty(count, np.uint8)
        voxels = self._buffer[:count].view(dtype).reshape(shape)
        return Target(voxels, address_of(self._buffer), count, _skipped(shape, depth))

    def decode(self, source: int, size: int, target: Target, base: Any) -> None:
        """Decode one block; what the last call decoded is gone then.

        Args:
            source: the address of the chunk.
            size: its bytes.
            target: where its voxels go.
            base: what `encode_block` took away.

        Raises:
            ValueError: the bytes are not a chunk of a block of this shape and dtype.
        """
        self._decompress(source, size, target.address, target.num_bytes, target.skipped)
        if base:
            voxels = target.voxels
            voxels += base


def _skipped(shape: Sequence[int], depth: slice | None) -> Any:
    """Flags of the slabs without a wanted voxel, as C has them; None where there are none."""
    if depth is None or shape[-3] % 2:
        return None
    middle = shape[-3] // 2
    halves = (depth.start >= middle, depth.stop <= middle)
    slabs = _slabs(shape)
    return (ctypes.c_bool * slabs)(*halves * (slabs // 2)) if any(halves) else None


Decompress = Callable[[int, int, int, int, Any], None]


def decompressor() -> Decompress:
    """A function that decodes (address, bytes) of a chunk to (address, bytes) of its voxels; for one thread.

    Its last argument is `Target.skipped`. It raises `ValueError` where the chunk is damaged or of another size.
    """
    library = _library()
    return _slow_decompress if library is None else _Context(library)


def _slow_decompress(source: int, source_bytes: int, target: int, target_bytes: int, skipped: Any) -> None:  # noqa: ARG001 - decodes all
    data = (ctypes.c_uint8 * source_bytes).from_address(source)
    # Bytes 4-8 tell the decoded size, and blosc2's own call writes that much whatever the target holds.
    if source_bytes < blosc2.MIN_HEADER_LENGTH or int.from_bytes(data[4:8], "little") != target_bytes:
        raise ValueError(f"not a chunk of {target_bytes} bytes")
    try:
        blosc2.decompress2(data, dst=(ctypes.c_uint8 * target_bytes).from_address(target), nthreads=1)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


class _Context:
    """A decoder of the C library, kept."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._create = library.blosc2_create_dctx
        self._free = library.blosc2_free_ctx
        self._decompress = library.blosc2_decompress_ctx
        self._skip = library.blosc2_set_maskout
        self._pointer = self._create(_Parameters(nthreads=1))

    def __call__(
        self, source: int, source_bytes: int, target: int, target_bytes: int, skipped: Any = None
    ) -> None:
        if skipped is not None and _slab_bytes(source, source_bytes) * len(skipped) == target_bytes:
            self._skip(self._pointer, skipped, len(skipped))
        written = self._decompress(self._pointer, source, source_bytes, target, target_bytes)
        if written != target_bytes:
            # What was to be skipped is forgotten by a call that succeeds, and by no other.
            self._free(self._pointer)
            self._pointer = self._create(_Parameters(nthreads=1))
            raise ValueError(f"not a chunk of {target_bytes} bytes (blosc2 returns {written})")

    def __del__(self) -> None:
        self._free(self._pointer)


def _slab_bytes(source: int, source_bytes: int) -> int:
    """What a chunk's header says is compressed apart; blosc2 has the last word on it where a block is tiny."""
    if source_bytes < blosc2.MIN_HEADER_LENGTH:
        return 0
    return ctypes.c_int32.from_address(source + _HEADER_SLAB_BYTES).value


class _Parameters(ctypes.Structure):
    """`blosc2_dparams`; the padding leaves room for members that a later version adds at its end."""

    _fields_ = (
        ("nthreads", ctypes.c_int),
        ("schunk", ctypes.c_void_p),
        ("postfilter", ctypes.c_void_p),
        ("postparams", ctypes.c_void_p),
        ("typesize", ctypes.c_int32),
        ("padding", ctypes.c_uint8 * 60),
    )


def address_of(array: Array) -> int:
    """The address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address


@cache
def _library() -> ctypes.CDLL | None:
    """The C library of blosc2's wheel, or None where it has none."""
    names = ("libblosc2.so", "libblosc2.dylib", "libblosc2.dll", "blosc2.dll")
    folder = Path(blosc2.__file__).parent / "lib"
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        return None
    library = ctypes.CDLL(str(found))
    library.blosc2_init.argtypes, library.blosc2_init.restype = [], None
    library.blosc2_create_dctx.argtypes = [_Parameters]
    library.blosc2_create_dctx.restype = ctypes.c_void_p
    library.blosc2_free_ctx.argtypes, library.blosc2_free_ctx.restype = [ctypes.c_void_p], None
    decompress = library.blosc2_decompress_ctx
    decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32]
    decompress.restype = ctypes.c_int
    library.blosc2_set_maskout.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    library.blosc2_set_maskout.restype = ctypes.c_int
    library.blosc2_init()
    return library if _decodes(library) else None


def _decodes(library: ctypes.CDLL) -> bool:
    """Whether the library, called this way, gives back what blosc2 compressed."""
    expected = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    data = np.frombuffer(compress(expected, "zstd"), np.uint8)
    out = np.zeros_like(expected)
    _Context(library)(address_of(data), data.size, address_of(out), out.nbytes)
    return np.array_equal(out, expected)


_per_thread = threading.local()


def thread_decoder() -> BlockDecoder:
    """The calling thread's decoder."""
    decoder: BlockDecoder | None = getattr(_per_thread, "decoder", None)
    if decoder is None:
        decoder = _per_thread.decoder = BlockDecoder()
    return decoder
