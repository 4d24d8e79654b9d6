"""Writes a map in the grid of its input: the same affine, orientation and header, in a compressed NIfTI file.

The header of the input is copied field by field (both transforms with their codes, units, description); what describes
voxels is set anew: type, scaling, display range, number of volumes. The voxels are compressed plane by plane, into a
temporary file that takes its name when it is complete.
"""

from __future__ import annotations

import gzip
import os
import secrets
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from fedvox.data.geometry import Geometry
from fedvox.data.readers import NIFTI_ENDINGS
from fedvox.storage import Location, locate, read_range, storage_error, sync_folder, upload_file

_HEADER_START = 1 << 16  # compressed bytes that hold a header for certain
_LEVEL = 3  # of gzip: label maps hardly shrink further, and level 9 takes 5 times as long
_STEPS = 65535  # of a map between 0 and 1


def source_header(uri: str, geometry: Geometry) -> nib.Nifti1Header | nib.Nifti2Header:
    """The header of an input file; of a DICOM series, one that says where its volume lies.

    Args:
        uri: the file or folder.
        geometry: of the volume that was read from it.

    Raises:
        StorageError: the file is gone.
    """
    if not uri.lower().endswith(NIFTI_ENDINGS):
        header = nib.Nifti1Header()
        header.set_data_shape(geometry.file_shape)
        header.set_sform(np.asarray(geometry.file_affine), code=1)
        header.set_qform(np.asarray(geometry.file_affine), code=1)
        header.set_xyzt_units("mm")
        return header
    start = read_range(locate(uri), 0, _HEADER_START)
    block = zlib.decompressobj(wbits=31).decompress(start, 1024) if start[:2] == b"\x1f\x8b" else start
    sizes = int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")
    kind = nib.Nifti2Header if nib.Nifti2Header.sizeof_hdr in sizes else nib.Nifti1Header
    found: Any = kind(block[: kind.sizeof_hdr], check=False)  # type: ignore[no-untyped-call]  # as nibabel has it
    assert isinstance(found, nib.Nifti1Header | nib.Nifti2Header)
    return found


def write_labels(
    labels: np.ndarray, geometry: Geometry, header: nib.Nifti1Header | nib.Nifti2Header, location: Location
) -> None:
    """Writes a label map, atomically.

    Args:
        labels: (D, H, W) uint8 or uint16, RAS+.
        geometry: of the input.
        header: of the input; left alone.
        location: ends in `.nii.gz`.

    Raises:
        StorageError: no space, forbidden, or no such folder.
    """
    _write(geometry.to_file(labels), lambda plane: plane, header, location)


def write_image(
    values: np.ndarray, geometry: Geometry, header: nib.Nifti1Header | nib.Nifti2Header, location: Location
) -> None:
    """Writes an image as float32, atomically.

    Args:
        values: (D, H, W) float, RAS+.
        geometry: see `write_labels`.
        header: see `write_labels`.
        location: see `write_labels`.

    Raises:
        StorageError: see `write_labels`.
    """
    _write(geometry.to_file(values), lambda plane: np.asarray(plane, dtype=np.float32), header, location)


def write_share(
    values: np.ndarray, geometry: Geometry, header: nib.Nifti1Header | nib.Nifti2Header, location: Location
) -> None:
    """Writes a map of values between 0 and 1 in 16 bits a voxel, scaled by the header.

    Args:
        values: (D, H, W) float, RAS+.
        geometry: see `write_labels`.
        header: see `write_labels`.
        location: see `write_labels`.

    Raises:
        StorageError: see `write_labels`.
    """

    def quantize(plane: np.ndarray) -> np.ndarray:
        return np.asarray(np.rint(np.clip(plane, 0, 1) * _STEPS), dtype=np.uint16)

    _write(geometry.to_file(values), quantize, header, location, slope=1 / _STEPS)


def _write(
    volume: np.ndarray,
    encode: Callable[[np.ndarray], np.ndarray],
    header: nib.Nifti1Header | nib.Nifti2Header,
    location: Location,
    *,
    slope: float = 1.0,
) -> None:
    """Writes (X, Y, Z) voxels; `encode` is applied to each plane."""
    dtype = encode(volume[:, :, :1]).dtype
    adapted = _adapted(header, volume.shape, dtype, slope)

    def fill(stream: BinaryIO) -> None:
        stream.write(adapted.binaryblock + b"\0" * 4)  # no extensions
        stored = dtype.newbyteorder(adapted.endianness)
        for plane in np.moveaxis(volume, 2, 0):  # x fastest: Fortran order
            stream.write(np.asfortranarray(encode(plane)).astype(stored, copy=False).tobytes(order="F"))

    try:
        _write_file(fill, location)
    except OSError as error:
        raise storage_error(error, location.uri) from error


def _write_file(fill: Callable[[BinaryIO], None], location: Location) -> None:
    """Runs `fill` on a compressing stream into a temporary file, which then takes its place."""
    if location.is_local:
        target = Path(location.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            _compress(fill, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
        return
    with tempfile.TemporaryDirectory(prefix="fedvox-") as scratch:
        _compress(fill, Path(scratch) / "map.nii.gz")
        upload_file(Path(scratch) / "map.nii.gz", location)


def _compress(fill: Callable[[BinaryIO], None], path: Path) -> None:
    with path.open("wb") as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_LEVEL, mtime=0) as stream:
            fill(stream)  # type: ignore[arg-type]  # it is written to like a BinaryIO
        file.flush()
        os.fsync(file.fileno())


def _adapted(header: Any, shape: tuple[int, ...], dtype: np.dtype[Any], slope: float) -> Any:
    found = header.copy()
    found.set_data_shape(shape)
    found.set_data_dtype(dtype)
    found["scl_slope"], found["scl_inter"] = slope, 0.0
    found["cal_min"], found["cal_max"] = 0.0, 0.0
    found["vox_offset"] = found.single_vox_offset
    found["magic"] = found.single_magic
    return found
