"""Where the scans of patients lie, and when they were taken, in each layout that is known."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedvox.data.readers import NIFTI_ENDINGS
from fedvox.errors import DataError
from fedvox.forecasting.loaders.scans import Scan, cine, sequence_of
from fedvox.forecasting.sequence import Sequence4D

TABLES = ("series.json", "times.json", "times.csv", "sessions.csv")
Layout = str


def load_sequence(path: Path | str, *, layout: Layout = "auto", unit: str | None = None) -> Sequence4D:
    """One patient's scans.

    Args:
        path: a patient's folder, its table of times (CSV or JSON), or a 4D NIfTI.
        layout: see the package; `auto` looks.
        unit: of the times, where the files do not say; what they say holds. `cycle` and `frames` count the frames of a
            cine, whatever its header says.

    Raises:
        DataError: nothing there is a sequence, or its scans cannot be used; see `sequence_of`.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist", "Correct the path.", code="missing_file", file=str(path))
    if path.is_file():
        if path.name.lower().endswith(NIFTI_ENDINGS):
            return cine(str(path), _stem(path), unit=unit)
        return _from_table(path, unit)
    found = _layout_of_patient(path) if layout == "auto" else layout
    if found is None or found not in _READERS:
        raise DataError(
            f"{path} holds no sequence that is known ({', '.join(TABLES)}, a 4D NIfTI, sessions)",
            f"Add a times.csv with the columns file and date (or time, unit), or name a layout: {', '.join(_READERS)}.",
            code="no_sequence",
            file=str(path),
        )
    if not _FITS[found](path):
        raise DataError(
            f"{path} is no patient of layout {found!r}",
            "See docs/forecasting.md for how each layout looks, or leave --layout out.",
            code="no_sequence",
            file=str(path),
        )
    return _READERS[found](path, unit)


def list_patients(folder: Path | str, layout: Layout = "auto") -> list[Path]:
    """The patients' folders (or files) in a data set's folder, by name.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder", "Correct data.folder.", code="missing_file", file=str(folder)
        )
    candidates = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "derivatives")))
    known = [p for p in candidates if _layout_of_patient(p) is not None]
    if layout != "auto":
        known = [p for p in candidates if layout in _FITS and _FITS[layout](p)]
    if not known:
        raise DataError(
            f"{folder} holds no patient of layout {layout!r}",
            "See docs/forecasting.md for how each layout looks.",
            code="no_sequence",
            file=str(folder),
        )
    return known


_FITS: Mapping[Layout, Callable[[Path], bool]] = {
    "cine": lambda path: path.is_file() and path.name.endswith(("_4d.nii.gz", "_cine.nii.gz")),
    "table": lambda path: any((path / name).is_file() for name in TABLES),
    "acdc": lambda path: any(path.glob("*_4d.nii*")),
    "isles": lambda path: any(path.rglob("*_ctp.nii*")),
    "bids": lambda path: any(path.glob("ses-*")),
    "lumiere": lambda path: any(path.glob("week-*")),
}
"""How a patient of each layout is known, in the order in which `auto` looks."""


def _layout_of_patient(path: Path) -> Layout | None:
    return next((layout for layout, fits in _FITS.items() if fits(path)), None)


# ---- table ---------------------------------------------------------------------------------------------------


def _table(path: Path, unit: str | None) -> Sequence4D:
    return _from_table(next(path / name for name in TABLES if (path / name).is_file()), unit)


def _from_table(path: Path, unit: str | None) -> Sequence4D:
    """A CSV with columns file, date | time [, unit, roi], or the same as JSON with `scans`."""
    content, rows = _rows(path)
    if not rows:
        raise DataError(f"{path} lists no scan", "Add a row per scan.", code="no_scan", file=str(path))
    times, found = _times(rows, _stated(content, rows, path), unit, path)
    origin = _origin(rows, path)
    scans = [
        Scan(str(path.parent / _cell(row, ("file", "image"), path)), time, _optional(row, path.parent))
        for row, time in zip(rows, times, strict=True)
    ]
    return replace(sequence_of(str(content.get("patient") or path.parent.name), scans, found), origin=origin)


def _stated(content: Mapping[str, Any], rows: list[dict[str, Any]], path: Path) -> str | None:
    """The unit that a table gives, which is one for all rows."""
    units = {str(row["unit"]).strip().lower() for row in rows if row.get("unit") not in (None, "")}
    units |= {str(content[key]).strip().lower() for key in ("time_unit", "unit") if content.get(key)}
    if len(units) > 1:
        raise DataError(
            f"{path}: times are given in several units: {', '.join(sorted(units))}",
            "Give all times of a patient in one unit.",
            code="units_differ",
            file=str(path),
        )
    return next(iter(units), None)


def _origin(rows: list[dict[str, Any]], path: Path) -> datetime | None:
    """The first date, where all rows have one."""
    if not all(row.get("date") for row in rows):
        return None
    return min(parse_date(str(row["date"]), path) for row in rows)


def _rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
        if path.suffix == ".json":
            content = json.loads(text)
            return content, [dict(scan) for scan in content["scans"]]
        dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
        return {}, list(csv.DictReader(text.splitlines(), dialect=dialect))
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no table of scans ({' '.join(repr(error).split())})",
            "Give a CSV with the columns file and date, or JSON with a list `scans`.",
            code="bad_table",
            file=str(path),
        ) from None


def _times(
    rows: list[dict[str, Any]], stated: str | None, fallback: str | None, path: Path
) -> tuple[list[float], str | None]:
    """Times of the rows: days since the first date, or numbers in the unit that is stated, or else in the fallback."""
    if all(row.get("date") for row in rows):
        dates = [parse_date(str(row["date"]), path) for row in rows]
        days = [days_between(min(dates), date) for date in dates]
        if stated not in (None, "days"):
            raise DataError(
                f"{path}: dates count in days, but the unit is {stated!r}",
                "Leave the unit out, or give a column time.",
                code="unit_missing",
                file=str(path),
            )
        return days, "days"
    return [_number_of(_cell(row, ("time",), path), path) for row in rows], stated or fallback


def _number_of(text: str, path: Path) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{path}: the time {text!r} is no number", "Give numbers.", code="bad_table", file=str(path)
        )
    return number


def days_between(first: datetime, second: datetime) -> float:
    """Days from one date to another."""
    return (second - first).total_seconds() / 86400


def parse_date(text: str, path: Path | str = "") -> datetime:
    """An ISO date with or without a time of day, or a DICOM date (20240131, 20240131093000); with a zone, in UTC.

    Raises:
        DataError: neither.
    """
    plain = text.strip()
    if re.fullmatch(r"\d{14}(\.\d+)?", plain):
        plain = f"{plain[:8]}T{plain[8:14]}"
    try:
        found = datetime.fromisoformat(plain)
        return found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
    except ValueError:
        raise DataError(
            f"{path}: {text!r} is no date", "Write 2024-01-31 or 20240131.", code="bad_table", file=str(path)
        ) from None


def _cell(row: Mapping[str, Any], names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if row.get(name) not in (None, ""):
            return str(row[name])
    raise DataError(
        f"{path}: a scan has no {' or '.join(names)}: {dict(row)}",
        "Fill it in.",
        code="bad_table",
        file=str(path),
    )


def _optional(row: Mapping[str, Any], folder: Path) -> str | None:
    found = row.get("roi") or row.get("mask")
    return str(folder / str(found)) if found else None


# ---- sessions, cine, the public sets -------------------------------------------------------------------------


def _bids(path: Path, unit: str | None) -> Sequence4D:
    """sub-X/ses-Y/anat/*.nii.gz; times from sub-X_sessions.tsv (acq_time, or a column of days), or ses-NNN as days."""
    table = next(path.glob("*_sessions.tsv"), None)
    known: dict[str, dict[str, Any]] = {}
    if table is not None:
        known = {str(row.get("session_id")): row for row in _rows(table)[1]}
    rows, files = [], []
    for session in sorted(path.glob("ses-*")):
        image = _first(session, ("anat/*T1w.nii*", "anat/*.nii*", "*/*.nii*", "*.nii*"))
        if image is not None:
            rows.append({**known.get(session.name, {}), "session": _number(session.name)})
            files.append(image)
    source = table or path
    rows, stated = _session_times(rows)
    times, found = _times(rows, stated, unit, source)
    scans = [Scan(str(file), time) for file, time in zip(files, times, strict=True)]
    return replace(sequence_of(path.name, scans, found), origin=_origin(rows, source))


def _session_times(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Dates or times of sessions by the first column that all of them have, and the unit that it says.

    `n/a` is how BIDS writes that there is no value.
    """
    for column, key, unit in (
        ("acq_time", "date", None), ("date", "date", None), ("time", "time", None), ("days", "time", "days"),
    ):  # fmt: skip
        values = [row.get(column) for row in rows]
        if all(value not in (None, "", "n/a") for value in values):
            return [{key: value} for value in values], unit
    return [{"time": row["session"]} for row in rows], None


def _acdc(path: Path, unit: str | None) -> Sequence4D:
    """patientNNN/patientNNN_4d.nii.gz with Info.cfg: frames over one heart cycle, from end-diastole.

    The region is what the heart covers in the frames of end-diastole and end-systole together: where it moves.
    """
    image = next(path.glob("*_4d.nii*"))
    marked = _info(path / "Info.cfg")
    frames = [f"frame{number:02d}" for number in marked.values()] or ["frame*"]
    labels = [label for frame in frames for label in sorted(path.glob(f"*_{frame}_gt.nii*"))]
    return cine(
        str(image), path.name, unit=unit if unit == "frames" else "cycle",
        rois=[str(label) for label in labels], first=marked.get("ED", 1),
    )  # fmt: skip


def _info(file: Path) -> dict[str, int]:
    """The frames of end-diastole (ED) and end-systole (ES) by number, from 1; empty without the file."""
    if not file.is_file():
        return {}
    lines = (line.partition(":") for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    told = {name.strip(): value.strip() for name, _, value in lines}
    try:
        return {name: int(told[name]) for name in ("ED", "ES")}
    except (KeyError, ValueError):
        raise DataError(
            f"{file} does not give the frames ED and ES as numbers",
            "Write lines such as `ED: 1` and `ES: 12`, or remove the file.",
            code="bad_table",
            file=str(file),
        ) from None


def _isles(path: Path, unit: str | None) -> Sequence4D:
    """sub-X/[ses-Y/]perf/sub-X_ctp.nii.gz: 4D, seconds by its header, or frames where the unit says so."""
    image = next(iter(sorted(path.rglob("*_ctp.nii*"))))
    return cine(str(image), path.name, unit=unit)


def _lumiere(path: Path, unit: str | None) -> Sequence4D:  # noqa: ARG001 - the folders say weeks
    """Patient-X/week-NNN[-R]/CT1.nii.gz; the region is the first label map beside it."""
    scans = []
    for week in sorted(path.glob("week-*")):
        image = _first(week, ("CT1.nii*", "*CT1*.nii*", "T1*.nii*"))
        if image is not None:
            match = re.fullmatch(r"week-(\d+)(?:-(\d+))?", week.name)
            if match is None:
                raise DataError(
                    f"{week} is no week: a number should follow",
                    "Name the folder week-012, or move it elsewhere.",
                    code="bad_table",
                    file=str(week),
                )
            # A second scan of one week is the later one; the data set does not say by how much.
            time = float(match[1]) + 0.1 * (int(match[2] or 1) - 1)
            roi = _first(week, ("*seg*.nii*", "*mask*.nii*", "**/*seg*CT1*.nii*"))
            scans.append(Scan(str(image), time, None if roi is None else str(roi)))
    return sequence_of(path.name, scans, "weeks")


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((found for pattern in patterns for found in _sorted(folder, pattern)), None)


def _sorted(folder: Path, pattern: str) -> Iterator[Path]:
    yield from sorted(folder.glob(pattern))


def _number(name: str) -> str | None:
    match = re.search(r"(\d+(?:\.\d+)?)", name)
    return match[1] if match else None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _cine_file(path: Path, unit: str | None) -> Sequence4D:
    return cine(str(path), _stem(path), unit=unit)


_READERS: dict[Layout, Callable[[Path, str | None], Sequence4D]] = {
    "table": _table, "cine": _cine_file, "bids": _bids, "acdc": _acdc, "isles": _isles, "lumiere": _lumiere,
}  # fmt: skip
