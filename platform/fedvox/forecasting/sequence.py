"""The data contract: one patient's scans over time.

Scans of a `Sequence4D` share one grid and are chronological; times are real numbers with a unit. What cannot be so is
refused by name: the file, what was found, what to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from fedvox.data.geometry import Geometry
from fedvox.errors import DataError

UNITS = ("seconds", "minutes", "hours", "days", "weeks", "months", "years", "cycle", "frames")
"""Units of times; `cycle` is the phase of a gated cycle, from 0 to 1."""

SAME_TIME = 1e-9
"""Relative difference of times that comes from arithmetic, such as that of `0.7 * 3` and 2.1."""


@dataclass(frozen=True)
class Sequence4D:
    """One patient's scans.

    Attributes:
        patient: name.
        volumes: `(T, C, D, H, W)` float32; missing scans hold NaN.
        times: `(T,)` float64, strictly ascending.
        unit: one of `UNITS`.
        valid: `(T,)` bool, which scans there are.
        roi: `(T, D, H, W)` bool, a region of interest per scan; None where there is none.
        geometry: of every scan; None for simulated ones.
        files: of the scans, for messages and for the header of forecasts; empty for simulated ones.
        origin: the date of time 0, where times come from dates.
    """

    patient: str
    volumes: np.ndarray
    times: np.ndarray
    unit: str
    valid: np.ndarray
    roi: np.ndarray | None = None
    geometry: Geometry | None = None
    files: tuple[str, ...] = ()
    origin: datetime | None = None

    def __post_init__(self) -> None:
        _check_unit(self.patient, self.unit)
        if self.volumes.ndim != 5 or not len(self.volumes) == len(self.times) == len(self.valid):
            raise DataError(
                f"{self.patient}: volumes {self.volumes.shape}, {len(self.times)} times and {len(self.valid)} "
                "validity flags do not belong together",
                "Give volumes (T, C, D, H, W), and a time and a flag for each of the T scans.",
                code="sequence_shape",
            )
        if not np.isfinite(self.times).all() or (np.diff(self.times) <= 0).any():
            raise DataError(
                f"{self.patient}: times {_spelled(self.times)} {self.unit} are not strictly ascending",
                "Order the scans by time (`ordered` does), one scan a time.",
                code="times_unordered",
            )
        if not self.valid.any():
            raise DataError(f"{self.patient} has no scan", "Leave this patient out.", code="no_scan")
        for index in np.flatnonzero(self.valid):
            if not np.isfinite(self.volumes[index]).all():
                raise DataError(
                    f"{self.file_of(int(index))} holds NaN or infinite voxels",
                    "Mend the image, or leave this scan out.",
                    code="not_finite",
                    file=self.file_of(int(index)),
                )

    def __len__(self) -> int:
        return len(self.times)

    def file_of(self, index: int) -> str:
        """What to call a scan in messages."""
        return self.files[index] if self.files else f"{self.patient}, scan {index}"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (D, H, W); 1 mm where there is no geometry."""
        return (1.0, 1.0, 1.0) if self.geometry is None else self.geometry.spacing_mm

    def before(self, time: float) -> Sequence4D:
        """The scans before a time; one that differs from it by rounding alone is not before it.

        Raises:
            DataError: there is none: every scan lies in the future of what is asked.
        """
        earlier = self.times < time - SAME_TIME * max(1.0, abs(time))
        if not (earlier & self.valid).any():
            raise DataError(
                f"{self.patient}: all scans are from {_spelled(self.times[self.valid])} {self.unit}, none from "
                f"before {time:g}",
                "Ask for a later time: a forecast needs at least one scan before it.",
                code="future_only",
            )
        return self.take(np.flatnonzero(earlier))

    def take(self, rows: np.ndarray) -> Sequence4D:
        """The scans of these ascending rows."""
        return replace(
            self, volumes=self.volumes[rows], times=self.times[rows], valid=self.valid[rows],
            roi=None if self.roi is None else self.roi[rows],
            files=tuple(self.files[int(row)] for row in rows) if self.files else (),
        )  # fmt: skip


def ordered(times: Sequence[float], files: Sequence[str], patient: str) -> np.ndarray:
    """The order of scans by time, whatever order they come in.

    Args:
        times: of the scans.
        files: their names, for messages.
        patient: for messages.

    Raises:
        DataError: two scans have one time.
    """
    order = np.argsort(np.asarray(times, float), kind="stable")
    for first, second in itertools.pairwise(order):
        if times[int(first)] == times[int(second)]:
            raise DataError(
                f"{patient}: {files[int(first)]} and {files[int(second)]} have the same time, {times[int(first)]:g}",
                "Leave one of them out, or give their times of day too.",
                code="times_duplicate",
                file=files[int(second)],
            )
    return order


def check_grid(geometry: Geometry, file: str, first: Geometry, first_file: str) -> None:
    """Compares a scan's grid with that of the patient's first scan.

    Raises:
        DataError: they differ in shape, or lie more than half a voxel apart.
    """
    if geometry.shape != first.shape:
        found = f"has {geometry.shape} voxels (D, H, W), {first_file} has {first.shape}"
    elif (apart := geometry.corner_distance_mm(first)) > 0.5 * min(first.spacing_mm):
        found = f"lies up to {apart:.1f} mm apart from {first_file}"
    else:
        return
    raise DataError(
        f"{file} {found}",
        "Register and resample the scans of a patient to one grid; a forecast is made voxel by voxel.",
        code="grids_differ",
        file=file,
    )


def _check_unit(where: str, unit: str | None) -> None:
    if unit not in UNITS:
        found = "have no unit" if not unit else f"are in {unit!r}, which is no known unit"
        raise DataError(
            f"{where}: times {found}", f"Give one of: {', '.join(UNITS)}.", code="unit_missing", file=where
        )


def _spelled(times: np.ndarray) -> str:
    return ", ".join(f"{time:g}" for time in times)
