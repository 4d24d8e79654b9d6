"""NIfTI-1 and NIfTI-2, plain or gzipped, read as a stream into the array that is kept.

nibabel parses the header. The voxels do not go through it: there a scaled image becomes float64 (eight bytes
a voxel for a 12-bit CT), and a gzipped one is held twice. NIfTI stores x fastest, which is C order of
(Z, Y, X), so that the decompressed bytes land in their final place a few megabytes at a time.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fedvox.data.geometry import Geometry, Volume
from fedvox.errors import ConfigError, DataError

_CHUNK_BYTES = 4 << 20
LARGEST_VOLUME = "FEDVOX_MAX_VOLUME_GIB"
_LARGEST_VOLUME_GIB = 16.0  # 2,048³ voxels of 16 bits: several times the largest CT
_FURTHEST_OFFSET = 1 << 30  # of the voxels; before them are the header and what its extensions hold
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_LIMIT = 1100  # deflate cannot shrink by more than 1032
_HEADER_BYTES = {348, 540}  # sizeof_hdr of NIfTI-1 and of NIfTI-2
_KEPT = "bhiBHIf"  # numpy type characters that stay as they are

_Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header says, checked.

    Args:
        shape: (C, Z, Y, X) as stored.
        affine: (4, 4), voxel index (x, y, z) -> mm.
        dtype: of the stored voxels, byte order included.
        slope: value = slope · stored + intercept.
        intercept: see `slope`.
        offset: of the first voxel's byte.
    """

    shape: tuple[int, int, int, int]
    affine: NDArray[np.float64]
    dtype: np.dtype[np.generic]
    slope: float
    intercept: float
    offset: int

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxels in the file, decompressed."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_nifti_header(path: str, stream: BinaryIO | None = None) -> NiftiHeader:
    """Reads no more than the header.

    Args:
        path: a local file; with `stream`, only its name for messages.
        stream: the file's bytes.

    Raises:
        DataError: see `read_nifti`.
    """
    with stream or open_local(path) as opened:
        return _parse_header(_Feed(opened, path), path)[0]


def read_nifti(path: str, stream: BinaryIO | None = None) -> Volume:
    """Reads a NIfTI file into RAS+ order, channels first.

    Integers stay integers (a scaling by whole numbers included, as int16 where it fits); everything else
    becomes float32. The volume exists once in memory.

    Args:
        path: a local file; with `stream`, only its name for messages.
        stream: the file's bytes, closed afterwards.

    Raises:
        DataError: missing_file, not_nifti, truncated, corrupt_gzip, not_3d, bad_spacing, bad_affine,
            too_large, unsupported_type.
    """
    with stream or open_local(path) as opened:
        feed = _Feed(opened, path)
        header, size_on_disk = _parse_header(feed, path)
        if header.voxel_bytes > _DEFLATE_LIMIT * max(size_on_disk, 1):
            raise _truncated(path, f"its header announces {header.voxel_bytes:,} bytes of voxels")
        refuse_too_large(path, header.voxel_bytes)
        feed.skip_to(header.offset)
        stored = _read_voxels(feed, header)
    geometry = Geometry.of_file(header.shape[:0:-1], header.affine)
    return Volume(geometry.to_ras(stored), geometry, path)


def refuse_too_large(path: str, voxel_bytes: int) -> None:
    """Stops before memory is asked for.

    A few megabytes of gzip can stand for more zeros than a machine has memory, and a header's numbers cost nothing.

    Raises:
        DataError: too_large.
        ConfigError: the limit in the environment is no number.
    """
    given = os.environ.get(LARGEST_VOLUME, "")
    try:
        limit_gib = float(given) if given else _LARGEST_VOLUME_GIB
    except ValueError:
        raise ConfigError(
            f"{LARGEST_VOLUME} is {given!r}", "Set it to a number of GiB, or unset it."
        ) from None
    if voxel_bytes > limit_gib * 2**30:
        raise DataError(
            f"{path} announces {voxel_bytes / 2**30:,.1f} GiB of voxels, more than the {limit_gib:g} GiB of a volume",
            f"Check where the file comes from; if it is meant, set {LARGEST_VOLUME} to more.",
            code="too_large",
            file=path,
        )


def open_local(path: str) -> BinaryIO:
    """Opens a local file for reading.

    Raises:
        DataError: missing_file.
    """
    try:
        return Path(path).open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise DataError(
            f"{path} cannot be opened: {error.strerror}",
            "Correct the path, or remove the case from the data set.",
            code="missing_file",
            file=path,
        ) from None


# ---- header ----------------------------------------------------------------------------------------------


def _parse_header(feed: _Feed, path: str) -> tuple[NiftiHeader, int]:
    """The header, and the size of the file in bytes."""
    raw = _parse_binary(feed.peek(540), path)
    dimensions = [int(n) for n in raw["dim"][1 : 1 + int(raw["dim"][0])]]
    x, y, z, channels = _spatial_shape(dimensions, path)
    _check_pixdim(raw, path)
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if not math.isfinite(slope) or slope == 0:  # "not scaled", by the standard
        slope, intercept = 1.0, 0.0
    header = NiftiHeader(
        shape=(channels, z, y, x),
        affine=_affine(raw, path),
        dtype=_dtype(raw, path),
        slope=slope,
        intercept=intercept if math.isfinite(intercept) else 0.0,
        offset=_offset(raw, path),
    )
    return header, feed.size_on_disk


def _parse_binary(start: bytes, path: str) -> nib.Nifti1Header:
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    size = next(iter(sizes & _HEADER_BYTES), None)
    if size is None or len(start) < size:
        raise _not_nifti(path, "it does not begin with a NIfTI header" if start else "it is empty")
    block = start[:size]
    raw = nib.Nifti2Header(block, check=False) if size == 540 else nib.Nifti1Header(block, check=False)
    magic = bytes(raw["magic"])
    if magic[:3] == b"ni1" or magic[:3] == b"ni2":
        raise _not_nifti(path, "it is one half of an .hdr/.img pair")
    if magic[:3] not in (b"n+1", b"n+2"):
        raise _not_nifti(path, "its header lacks the NIfTI signature (Analyze 7.5 has no orientation)")
    return raw


def _spatial_shape(dimensions: list[int], path: str) -> tuple[int, int, int, int]:
    while len(dimensions) > 3 and dimensions[-1] == 1:
        dimensions = dimensions[:-1]
    if len(dimensions) == 5 and dimensions[3] == 1:  # a vector image
        dimensions = [*dimensions[:3], dimensions[4]]
    spelled = " × ".join(map(str, dimensions)) or "none"
    if not dimensions or min(dimensions) < 1 or len(dimensions) > 4:
        raise _not_nifti(path, f"its header gives the dimensions {spelled}")
    if len(dimensions) < 3 or min(dimensions[:3]) < 2:
        raise DataError(
            f"{path} is a 2D image ({spelled} voxels)",
            "Give volumes: stack the slices of one series into one file.",
            code="not_3d",
            file=path,
        )
    x, y, z, *channels = dimensions
    return x, y, z, channels[0] if channels else 1


def _check_pixdim(raw: nib.Nifti1Header, path: str) -> None:
    pixdim = [float(n) for n in raw["pixdim"][1:4]]
    if not all(math.isfinite(n) and n > 0 for n in pixdim):
        raise bad_spacing(path, pixdim)


def bad_spacing(path: str, spacing_mm: list[float]) -> DataError:
    """The error for a voxel size that cannot be."""
    spelled = " × ".join(f"{n:g}" for n in spacing_mm)
    return DataError(
        f"{path} has a voxel size of {spelled} mm (x, y, z)",
        "Restore the spacing from the original DICOM series; it must be in millimetres.",
        code="bad_spacing",
        file=path,
    )


def _affine(raw: nib.Nifti1Header, path: str) -> NDArray[np.float64]:
    try:
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise _bad_affine(path, str(error)) from error
    if not np.isfinite(affine).all():
        raise _bad_affine(path, "the affine holds NaN or Inf")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise bad_spacing(path, spacing.tolist())
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise _bad_affine(path, "two axes of the affine point the same way")
    return affine


def _offset(raw: nib.Nifti1Header, path: str) -> int:
    """Where the voxels begin; 0 stands for right after the header."""
    offset = float(raw["vox_offset"])
    if not 0 <= offset <= _FURTHEST_OFFSET:  # NaN included
        raise _not_nifti(path, f"its voxels begin at byte {offset:g}")
    return int(offset)


def _dtype(raw: nib.Nifti1Header, path: str) -> np.dtype[np.generic]:
    try:
        dtype: np.dtype[np.generic] = np.dtype(raw.get_data_dtype())
    except nib.spatialimages.HeaderDataError:
        raise _not_nifti(path, f"its header gives the unknown data type {int(raw['datatype'])}") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(
            f"{path} holds {raw.get_value_label('datatype')} voxels",
            "Give a grayscale image of integers or floats, one channel a file.",
            code="unsupported_type",
            file=path,
        )
    return dtype


# ---- voxels ----------------------------------------------------------------------------------------------


def _read_voxels(feed: _Feed, header: NiftiHeader) -> np.ndarray:
    """(C, Z, Y, X), the byte order of the file."""
    native = header.dtype.newbyteorder("=")
    unscaled = header.slope == 1 and header.intercept == 0
    whole = header.dtype.kind in "iu" and header.slope.is_integer() and header.intercept.is_integer()
    if native.char in _KEPT and (unscaled or whole):
        stored = np.empty(header.shape, dtype=native)
        feed.fill(stored.reshape(-1).view(np.uint8).data)
        if not header.dtype.isnative:
            stored.byteswap(inplace=True)
        return stored if unscaled else _scaled_integers(stored, header, feed.path)
    if whole:  # 64-bit integers: labels, mostly
        stored = np.empty(header.shape, dtype=np.int32)
        _fill(feed, header, stored, lambda chunk: _within_int32(chunk, header, feed.path))
        return stored
    stored = np.empty(header.shape, dtype=np.float32)
    _fill(feed, header, stored, lambda chunk: chunk.astype(np.float64) * header.slope + header.intercept)
    return stored


def _fill(feed: _Feed, header: NiftiHeader, target: np.ndarray, convert: _Convert) -> None:
    flat = target.reshape(-1)
    step = _CHUNK_BYTES // header.dtype.itemsize
    for start in range(0, flat.size, step):
        stop = min(start + step, flat.size)
        chunk = np.frombuffer(feed.take((stop - start) * header.dtype.itemsize), dtype=header.dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN is for the checks to report
            flat[start:stop] = convert(chunk)


def _scaled_integers(stored: np.ndarray, header: NiftiHeader, path: str) -> np.ndarray:
    slope, intercept = int(header.slope), int(header.intercept)
    ends = [int(end) * slope + intercept for end in (stored.min(), stored.max())]
    narrow = np.iinfo(np.int16)
    dtype = np.int16 if narrow.min <= min(ends) and max(ends) <= narrow.max else np.int32
    _check_int32(min(ends), max(ends), path)
    scaled = np.empty(stored.shape, dtype=dtype)
    for source, target in zip(stored, scaled, strict=True):
        for plane, kept in zip(source, target, strict=True):
            kept[...] = plane.astype(np.int64) * slope + intercept
    return scaled


def _within_int32(chunk: np.ndarray, header: NiftiHeader, path: str) -> NDArray[np.int64]:
    values = chunk.astype(np.float64) * header.slope + header.intercept  # exact far beyond 32 bits
    _check_int32(float(values.min()), float(values.max()), path)
    return values.astype(np.int64)


def _check_int32(low: float, high: float, path: str) -> None:
    limits = np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise DataError(
            f"{path} holds values from {low:g} to {high:g}, beyond 32-bit integers",
            "Store the image as int16 or float32.",
            code="unsupported_type",
            file=path,
        )


# ---- bytes -----------------------------------------------------------------------------------------------


class _Feed:
    """The decompressed bytes of a file, in order, by demand."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.path = path
        self.size_on_disk = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        compressed = stream.read(2) == _GZIP_MAGIC
        stream.seek(0)
        self._chunks = _inflate(stream, path) if compressed else _plain(stream)
        self._held = memoryview(b"")
        self._position = 0

    def peek(self, count: int) -> bytes:
        """Up to `count` next bytes, which stay to be taken."""
        self._hold(count)
        return bytes(self._held[:count])

    def take(self, count: int) -> bytearray:
        """Exactly `count` bytes."""
        taken = bytearray(count)
        self.fill(memoryview(taken))
        return taken

    def fill(self, target: memoryview) -> None:
        """Puts the next bytes into all of `target`, each copied once."""
        done = 0
        while done < len(target):
            self._hold(1)
            part = self._held[: len(target) - done]
            if not part:
                found, needed = self._position + done, self._position + len(target)
                raise _truncated(self.path, f"it ends after {found:,} of at least {needed:,} bytes")
            target[done : done + len(part)] = part
            self._held = self._held[len(part) :]
            done += len(part)
        self._position += done

    def skip_to(self, offset: int) -> None:
        """Passes over everything before `offset`."""
        while self._position < offset:
            self.take(min(offset - self._position, _CHUNK_BYTES))

    def _hold(self, count: int) -> None:
        while len(self._held) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            self._held = memoryview(bytes(self._held) + chunk) if self._held else memoryview(chunk)


def _plain(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _inflate(stream: BinaryIO, path: str) -> Iterator[bytes]:
    """Decompresses gzip, several members included (bgzip, pigz), in chunks of bounded size."""
    inflater = zlib.decompressobj(wbits=31)
    for data in _plain(stream):
        while data:
            try:
                yield inflater.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                raise DataError(
                    f"{path} is damaged: {error}",
                    "Copy the file again from its origin, or convert the series again.",
                    code="corrupt_gzip",
                    file=path,
                ) from None
            data = inflater.unconsumed_tail
            if inflater.eof:
                data = inflater.unused_data
                if not data.startswith(_GZIP_MAGIC[:1]):
                    return  # what follows the last member is padding
                inflater = zlib.decompressobj(wbits=31)
    if not inflater.eof:
        raise _truncated(path, "its gzip stream ends early")


# ---- errors ----------------------------------------------------------------------------------------------


def _not_nifti(path: str, found: str) -> DataError:
    return DataError(
        f"{path} is not a NIfTI file: {found}",
        "Convert the series to .nii.gz (for example with dcm2niix).",
        code="not_nifti",
        file=path,
    )


def _truncated(path: str, found: str) -> DataError:
    return DataError(
        f"{path} is truncated: {found}",
        "Copy the file again from its origin; an interrupted download or a full disk leaves such files.",
        code="truncated",
        file=path,
    )


def _bad_affine(path: str, found: str) -> DataError:
    return DataError(
        f"{path} has no usable orientation: {found}",
        "Restore the affine (sform/qform) from the original DICOM series.",
        code="bad_affine",
        file=path,
    )
