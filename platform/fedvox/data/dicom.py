"""A DICOM series: a folder of slices, put in order by where they lie in the patient.

File names and instance numbers say nothing reliable about the order. The slices' positions along their
common normal do, and they also tell of missing, repeated and foreign slices, which are refused: a volume with
a hole in it looks like any other.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.filereader import data_element_generator, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from fedvox.data.geometry import Geometry, Volume
from fedvox.data.nifti import bad_spacing, refuse_too_large
from fedvox.errors import DataError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_DIRECTION = 1e-3  # largest difference of two slices' direction cosines
_STEP_TOLERANCE = 0.02  # of the slice distance, and at least _STEP_TOLERANCE_MM
_STEP_TOLERANCE_MM = 0.02
_META_GROUP = 0x0002
_TRANSFER_SYNTAX = 0x00020010
_COPY_AGAIN = "Copy it again from its origin."

_PLACED = ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@dataclass(frozen=True)
class SeriesFile:
    """One file of a series.

    Args:
        name: path or URI, for messages.
        open: gives a local path or a stream of the file's bytes; called for the header and again for the
            pixels.
    """

    name: str
    open: Callable[[], Path | BinaryIO]


@dataclass(frozen=True)
class _Slice:
    file: SeriesFile
    header: Any  # pydicom.Dataset without its pixels
    position: NDArray[np.float64]  # (3,) of the first voxel's centre, LPS mm
    directions: NDArray[np.float64]  # (2, 3): along a row, along a column

    @property
    def name(self) -> str:
        return self.file.name


def read_dicom_series(folder: str, files: Sequence[SeriesFile], *, series_uid: str | None = None) -> Volume:
    """Reads a series into RAS+ order; CT in Hounsfield units.

    Args:
        folder: name of the series for messages.
        files: its files; those which are not DICOM images (DICOMDIR, reports) are passed over.
        series_uid: the SeriesInstanceUID to take where the folder holds several.

    Returns:
        (1, D, H, W), int16 where slope, intercept and values are whole and within its range, else float32.

    Raises:
        DataError: not_dicom, mixed_series, duplicate_slices, missing_slices, not_3d, bad_spacing,
            missing_rescale, compressed_dicom, unsupported_type, too_large, truncated.
    """
    slices = [found for file in files if (found := _read_slice(file)) is not None]
    if not slices:
        raise _refusal(
            "not_dicom",
            folder,
            "holds no DICOM image with a place in the patient",
            "Name the folder which directly holds the series' slices.",
        )
    slices = _one_series(folder, slices, series_uid)
    _check_uniform(folder, slices)
    slices, step = _in_order(folder, slices)
    affine = _affine(slices, step, folder)
    stored = _read_pixels(slices)
    geometry = Geometry.of_file(stored.shape[:0:-1], affine)
    return Volume(geometry.to_ras(stored), geometry, folder, modality=str(slices[0].header.Modality))


def _read_slice(file: SeriesFile) -> _Slice | None:
    try:
        _refuse_deflated(file)
        header = pydicom.dcmread(file.open(), stop_before_pixels=True)
    except InvalidDicomError:
        if file.name.lower().endswith((".dcm", ".ima")):
            raise _refusal(
                "not_dicom", file.name, "is not a DICOM file", "Copy it again from its origin, or remove it."
            ) from None
        return None
    except (EOFError, OSError, ValueError) as error:
        raise _refusal("truncated", file.name, f"is damaged: {error}", _COPY_AGAIN) from error
    _refuse_multi_frame(file.name, header)
    if any(field not in header for field in _PLACED):
        return None  # a report, a structure set, a screenshot: nothing with a place in the patient
    orientation = np.asarray(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    return _Slice(file, header, np.asarray(header.ImagePositionPatient, dtype=np.float64), orientation)


def _refuse_deflated(file: SeriesFile) -> None:
    """Such a file is inflated whole by pydicom before anything in it is looked at, however large that becomes."""
    opened = file.open()
    with opened.open("rb") if isinstance(opened, Path) else opened as stream:
        read_preamble(stream, force=False)
        meta = data_element_generator(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != _META_GROUP)
        syntax = next((element.value for element in meta if element.tag == _TRANSFER_SYNTAX), b"")
    if (syntax or b"").rstrip(b"\0 ").decode("ascii", "replace") == DeflatedExplicitVRLittleEndian:
        raise _refusal(
            "compressed_dicom", file.name, "is deflated as a whole", "Write it uncompressed (dcmconv +te)."
        )


def _refuse_multi_frame(name: str, header: Any) -> None:
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise _refusal(
            "unsupported_type",
            name,
            "is a multi-frame object",
            "Convert it to .nii.gz with dcm2niix.",
        )


def _one_series(folder: str, slices: list[_Slice], series_uid: str | None) -> list[_Slice]:
    by_series = collections.defaultdict(list)
    for found in slices:
        by_series[str(found.header.SeriesInstanceUID)].append(found)
    if series_uid is not None and series_uid in by_series:
        return by_series[series_uid]
    if len(by_series) == 1 and series_uid is None:
        return slices
    listing = "; ".join(
        f"{uid} ({len(members)} images, {members[0].header.get('SeriesDescription', 'no description')})"
        for uid, members in sorted(by_series.items(), key=lambda item: -len(item[1]))
    )
    fault = f"does not hold series {series_uid}" if series_uid else f"mixes {len(by_series)} series"
    raise _refusal(
        "mixed_series",
        folder,
        f"{fault}: {listing}",
        "Keep one series a folder, or name the one to take (series_uid).",
    )


def _check_uniform(folder: str, slices: list[_Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        for field in ("Rows", "Columns", "PixelSpacing"):
            if first.header.get(field) != other.header.get(field):
                raise _refusal(
                    "mixed_series",
                    folder,
                    f"mixes images of different {field}: {first.header.get(field)} in {first.name}, "
                    f"{other.header.get(field)} in {other.name}",
                    "Remove what does not belong to the series (scouts, reformats).",
                )
        if np.abs(first.directions - other.directions).max() > _SAME_DIRECTION:
            raise _refusal(
                "mixed_series",
                folder,
                f"mixes orientations: {first.name} and {other.name} are not parallel",
                "Remove what does not belong to the series (scouts, reformats).",
            )


def _in_order(folder: str, slices: list[_Slice]) -> tuple[list[_Slice], float]:
    """The slices along their normal, and the distance between neighbours in mm."""
    if len(slices) < 2:
        raise _refusal("not_3d", folder, "holds a single 2D image", "Give the whole series.")
    normal = np.cross(*slices[0].directions)
    depth = [float(normal @ s.position) for s in slices]
    order = np.argsort(depth, kind="stable")
    slices, along = [slices[i] for i in order], np.asarray(depth)[order]
    gaps = np.diff(along)
    step = float(np.median(gaps))
    tolerance = max(_STEP_TOLERANCE_MM, _STEP_TOLERANCE * step)
    repeated = np.flatnonzero(gaps < tolerance / 2)
    if len(repeated):
        pair = slices[repeated[0]].name, slices[repeated[0] + 1].name
        raise _refusal(
            "duplicate_slices",
            folder,
            f"holds {len(repeated)} slices at a position already taken (first: {pair[0]} and {pair[1]})",
            "Keep one of each; several phases or echoes belong in a folder each.",
        )
    uneven = np.flatnonzero(np.abs(gaps - step) > tolerance)
    if len(uneven):
        raise _missing(folder, along, gaps, step, uneven)
    return slices, step


def _missing(
    folder: str, along: NDArray[np.float64], gaps: NDArray[np.float64], step: float, uneven: NDArray[np.intp]
) -> DataError:
    absent = int(np.round(gaps[uneven] / step - 1).clip(0).sum())
    at = int(uneven[0])
    found = f"lacks about {absent} slices" if absent else "has unevenly spaced slices"
    return _refusal(
        "missing_slices",
        folder,
        f"{found}: {gaps[at]:.2f} mm between the slices at {along[at]:.2f} and {along[at + 1]:.2f} mm, "
        f"where {step:.2f} mm is usual ({len(uneven)} such gaps)",
        "Export the whole series again.",
    )


def _affine(slices: list[_Slice], step: float, folder: str) -> NDArray[np.float64]:
    """(x, y, z) voxel index -> RAS mm. The third axis runs from the first slice to the last."""
    first, last = slices[0], slices[-1]
    between_rows, between_columns = (float(n) for n in first.header.PixelSpacing)
    if min(between_rows, between_columns, step) <= 0:
        raise bad_spacing(folder, [between_columns, between_rows, step])
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * between_columns
    affine[:3, 1] = first.directions[1] * between_rows
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return np.asarray(_LPS_TO_RAS @ affine)


# ---- pixels ----------------------------------------------------------------------------------------------


def _read_pixels(slices: list[_Slice]) -> np.ndarray:
    """(1, Z, Y, X) in the unit of the modality."""
    rescale = [_rescale(s) for s in slices]
    whole = all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescale)
    dtype = np.dtype(np.int16 if whole else np.float32)
    rows, columns = int(slices[0].header.Rows), int(slices[0].header.Columns)
    refuse_too_large(slices[0].name, len(slices) * rows * columns * dtype.itemsize)
    volume = np.empty((1, len(slices), rows, columns), dtype=dtype)
    limits = np.iinfo(np.int16)
    for index, (source, (slope, intercept)) in enumerate(zip(slices, rescale, strict=True)):
        plane = _plane(source) * slope + intercept
        if volume.dtype == np.int16 and (plane.min() < limits.min or plane.max() > limits.max):
            volume = volume.astype(np.float32)  # once, for the rare series beyond 16 bits
        volume[0, index] = plane
    return volume


def _rescale(source: _Slice) -> tuple[float, float]:
    header = source.header
    if header.Modality == "CT" and "RescaleIntercept" not in header:
        raise _refusal(
            "missing_rescale",
            source.name,
            "is a CT image without RescaleSlope and RescaleIntercept",
            "Export the original series; without them the values are not Hounsfield units.",
        )
    return float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))


def _plane(source: _Slice) -> NDArray[np.float64]:
    if source.header.get("SamplesPerPixel", 1) != 1:
        raise _refusal(
            "unsupported_type", source.name, "is a color image", "Give the original grayscale series."
        )
    try:
        # read afresh and let go: a kept dataset would hold on to its bytes and to its decoded pixels
        plane = np.asarray(pydicom.dcmread(source.file.open()).pixel_array, dtype=np.float64)
    except (AttributeError, ValueError, EOFError) as error:
        raise _refusal(
            "truncated",
            source.name,
            f"holds no complete pixel data: {error}",
            _COPY_AGAIN,
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        syntax = source.header.file_meta.TransferSyntaxUID.name
        raise _refusal(
            "compressed_dicom",
            source.name,
            f"is compressed ({syntax}) and no decoder for it is installed",
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or convert with dcm2niix.",
        ) from error
    if plane.ndim != 2:
        raise _refusal("unsupported_type", source.name, "holds several frames", "Convert it with dcm2niix.")
    return plane


def _refusal(code: str, file: str, found: str, remedy: str) -> DataError:
    return DataError(f"{file} {found}", remedy, code=code, file=file)
