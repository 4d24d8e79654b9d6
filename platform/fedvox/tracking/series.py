"""The scans of one patient, in order of time, as a file names them.

    {"patient": "P01", "modality": "MR",
     "scans": [{"image": "t0.nii.gz", "date": "2024-01-05", "mask": "t0_lesions.nii.gz"},
               {"image": "t1.nii.gz", "date": "2024-04-02"}]}

Paths are relative to the file. An image is a NIfTI file or the folder of a DICOM series; a DICOM series tells its date
and its patient itself. Instead of dates, `day` may count days from any origin. A scan's marks are a `mask` (instances)
or `prompts` (see `fedvox.tracking.prompt_files`).
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pydicom
from pydantic import model_validator
from pydicom.errors import InvalidDicomError

from fedvox.config import Config, validate
from fedvox.data.geometry import Volume
from fedvox.data.readers import NIFTI_ENDINGS, read_volume
from fedvox.errors import ConfigError, DataError


class ScanEntry(Config):
    """One scan.

    Attributes:
        image: NIfTI file or folder of a DICOM series.
        date: of the scan.
        day: instead of a date: days from any origin.
        mask: instance map of its lesions.
        prompts: file of prompts, instead of a mask.
    """

    image: str
    date: datetime.date | None = None
    day: float | None = None
    mask: str | None = None
    prompts: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ScanEntry:
        if self.date is not None and self.day is not None:
            raise ValueError("give date or day, not both")
        if self.mask is not None and self.prompts is not None:
            raise ValueError("give mask or prompts, not both")
        return self


class Series(Config):
    """The scans of one patient.

    Attributes:
        patient: name.
        modality: "CT", "MR", ...
        scans: in order of time.
    """

    patient: str
    modality: str = ""
    scans: tuple[ScanEntry, ...]

    def days(self) -> list[float]:
        """Of every scan, counted from the first."""
        days = [_days(scan) for scan in self.scans]
        return [day - days[0] for day in days]


def read_series(path: Path) -> Series:
    """Reads a series; paths become absolute, dates of DICOM series are filled in.

    Raises:
        ConfigError: the file cannot be read, or has unknown or wrong fields.
        DataError: no scan (no_scan), one without a date (no_date), two of one date (duplicate_date), scans out of order
            (dates_out_of_order), DICOM series of different patients (another_patient).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no series: {error}", "Give an existing JSON file.") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} is no series: it holds no object", 'Write {"patient": ..., "scans": [...]}.'
        )
    series = validate(Series, content, source=str(path))
    scans = [_resolved(scan, path.parent) for scan in series.scans]
    found = series.model_copy(update={"scans": tuple(scans)})
    _check(found, path)
    return found


def _resolved(scan: ScanEntry, folder: Path) -> ScanEntry:
    names = {key: getattr(scan, key) for key in ("image", "mask", "prompts")}
    paths = {k: v if v is None or "://" in v else str(folder / v) for k, v in names.items()}
    update: dict[str, Any] = dict(paths)
    if scan.date is None and scan.day is None:
        update["date"] = _dicom(str(paths["image"]))[1]
    return scan.model_copy(update=update)


def _check(series: Series, path: Path) -> None:
    if not series.scans:
        raise _refused(path, "names no scan", "Name at least one.", "no_scan")
    for scan in series.scans:
        if scan.date is None and scan.day is None:
            raise _refused(path, f"gives no date for {scan.image}", "Add its date, or its day.", "no_date")
    if len({scan.date is None for scan in series.scans}) > 1:
        raise _refused(path, "gives dates to some scans and days to others", "Give one of them.", "no_date")
    days = [_days(scan) for scan in series.scans]
    for before, after, scan in zip(days, days[1:], series.scans[1:], strict=False):
        if after == before:
            raise _refused(
                path, f"has two scans of one date ({scan.image})", "Keep one of them.", "duplicate_date"
            )
        if after < before:
            raise _refused(
                path,
                f"has its scans out of order: {scan.image} is earlier than the one before",
                "Correct its date, or sort the scans by time.",
                "dates_out_of_order",
            )
    patients = {p for scan in series.scans if (p := _dicom(scan.image)[0])}
    if len(patients) > 1:
        raise _refused(
            path,
            f"names DICOM series of {len(patients)} patients",
            "Name scans of one patient.",
            "another_patient",
        )


def _days(scan: ScanEntry) -> float:
    if scan.date is not None:
        return float(scan.date.toordinal())
    assert scan.day is not None  # `_check` saw to it
    return scan.day


def _dicom(image: str) -> tuple[str, datetime.date | None]:
    """Patient id and study date of a local DICOM series; empty for anything else."""
    folder = Path(image)
    if image.lower().endswith(NIFTI_ENDINGS) or not folder.is_dir():
        return "", None
    for file in sorted(folder.iterdir()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        text = str(header.get("StudyDate") or "")
        date = datetime.datetime.strptime(text, "%Y%m%d").date() if len(text) == 8 else None
        return str(header.get("PatientID") or ""), date
    return "", None


def read_scans(series: Series) -> list[Volume]:
    """The images of a series.

    Raises:
        DataError: see `read_volume`.
    """
    return [read_volume(scan.image) for scan in series.scans]


def _refused(path: Path, found: str, remedy: str, code: str) -> DataError:
    return DataError(f"{path} {found}", remedy, code=code, file=str(path))
