"""Reads one image or label map, from a local path or an object store, in whichever format it has.

    read_volume("imagesTr/liver_0_0000.nii.gz")       NIfTI
    read_volume("s3://hospital/series/1.2.840.113")   a folder of DICOM slices

The result is (C, D, H, W) in RAS+ order with the geometry of the file, see `fedvox.data.geometry`.
"""

from __future__ import annotations

import io
from functools import cache
from typing import BinaryIO

import pyarrow.fs

from fedvox.data.dicom import SeriesFile, read_dicom_series
from fedvox.data.geometry import Volume
from fedvox.data.nifti import NiftiHeader, open_local, read_nifti, read_nifti_header
from fedvox.errors import DataError, StorageError
from fedvox.storage import DEFAULT_RETRY, Location, call_with_retry, exists, list_files, locate, read_bytes

NIFTI_ENDINGS = (".nii", ".nii.gz")


def read_volume(uri: str, *, series_uid: str | None = None) -> Volume:
    """Reads a NIfTI file or a DICOM series.

    Args:
        uri: a file or folder: a local path, `file://` or `s3://`.
        series_uid: which DICOM series to take where a folder holds several.

    Raises:
        DataError: the file cannot be used; `code` says why (see `read_nifti` and `read_dicom_series`).
        StorageError: the bucket is missing or forbidden.
    """
    location = locate(uri)
    if uri.lower().endswith(NIFTI_ENDINGS):
        return read_nifti(uri, _stream(location))
    if _is_folder(location):
        return read_dicom_series(uri, _series_files(location), series_uid=series_uid)
    if uri.lower().endswith((".dcm", ".ima")):
        raise _refused(uri, "names one DICOM slice", "Name the folder which holds the series.")
    if not exists(location):
        raise _missing(uri)
    raise _refused(
        uri, "has no ending that Fedvox reads", "Give .nii, .nii.gz or the folder of a DICOM series."
    )


def read_header(uri: str) -> NiftiHeader:
    """Reads the header of a NIfTI file.

    Raises:
        DataError: see `read_nifti`.
    """
    return read_nifti_header(uri, _stream(locate(uri)))


def _is_folder(location: Location) -> bool:
    found = call_with_retry(
        lambda: location.filesystem.get_file_info(location.path), location.uri, DEFAULT_RETRY
    )
    return bool(found.type == pyarrow.fs.FileType.Directory)


def _stream(location: Location) -> BinaryIO:
    """A local file is streamed from disk; a remote object is fetched whole, still compressed."""
    return open_local(location.path) if location.is_local else io.BytesIO(_fetch(location))


def _fetch(location: Location) -> bytes:
    try:
        return read_bytes(location)
    except StorageError:
        if not exists(location):
            raise _missing(location.uri) from None
        raise


def _series_files(folder: Location) -> list[SeriesFile]:
    files = [file for file in list_files(folder, recursive=False) if not file.name.startswith(".")]
    return [_series_file(file) for file in files]


def _series_file(location: Location) -> SeriesFile:
    if location.is_local:
        return SeriesFile(location.uri, lambda: location.local_path)
    fetch = cache(lambda: _fetch(location))  # header and pixels share one transfer
    return SeriesFile(location.uri, lambda: io.BytesIO(fetch()))


def _missing(uri: str) -> DataError:
    remedy = "Correct the path, or remove the case from the data set."
    return DataError(f"{uri} does not exist", remedy, code="missing_file", file=uri)


def _refused(uri: str, found: str, remedy: str) -> DataError:
    return DataError(f"{uri} {found}", remedy, code="not_nifti", file=uri)
