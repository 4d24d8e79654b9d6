"""From files with times to a `Sequence4D`: read, put into order, compared, refused by name where they do not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedvox.data.nifti import read_nifti
from fedvox.data.readers import read_volume
from fedvox.errors import DataError
from fedvox.forecasting.sequence import UNITS, Sequence4D, check_grid, ordered


@dataclass(frozen=True)
class Scan:
    """A file and its time.

    Attributes:
        file: NIfTI, or the folder of a DICOM series.
        time: in the sequence's unit.
        roi: label map whose voxels above 0 are the region of interest; None where there is none.
    """

    file: str
    time: float
    roi: str | None = None


def sequence_of(patient: str, scans: Sequence[Scan], unit: str | None) -> Sequence4D:
    """Reads the scans of a patient.

    Raises:
        DataError: no unit, two scans of one time, grids that differ, voxels that are not finite, or an unreadable file.
    """
    if not scans:
        raise DataError(f"{patient} has no scan", "Leave this patient out.", code="no_scan", file=patient)
    if unit not in UNITS:
        found = "have no unit" if not unit else f"are in {unit!r}, which is no known unit"
        raise DataError(
            f"{patient}: times {found}",
            f"Give one of: {', '.join(UNITS)}.",
            code="unit_missing",
            file=patient,
        )
    order = ordered([scan.time for scan in scans], [scan.file for scan in scans], patient)
    scans = [scans[int(index)] for index in order]
    volumes = [read_volume(scan.file) for scan in scans]
    for volume, scan in zip(volumes, scans, strict=True):
        check_grid(volume.geometry, scan.file, volumes[0].geometry, scans[0].file)
        if len(volume.data) != len(volumes[0].data):
            raise DataError(
                f"{scan.file} has {len(volume.data)} channels, {scans[0].file} has {len(volumes[0].data)}",
                "Give scans of the same channels.",
                code="channels_differ",
                file=scan.file,
            )
    return Sequence4D(
        patient=patient,
        volumes=np.stack([volume.data.astype(np.float32) for volume in volumes]),
        times=np.array([scan.time for scan in scans]),
        unit=unit,
        valid=np.ones(len(scans), bool),
        roi=_rois(scans, volumes[0].data.shape[1:]),
        geometry=volumes[0].geometry,
        files=tuple(scan.file for scan in scans),
    )


def _rois(scans: Sequence[Scan], shape: tuple[int, ...]) -> np.ndarray | None:
    if any(scan.roi is None for scan in scans):
        return None
    return np.stack([_region(str(scan.roi), shape) for scan in scans])


def _region(file: str, shape: tuple[int, ...]) -> np.ndarray:
    """Where a label map is above 0, `(D, H, W)` bool."""
    found: np.ndarray = read_volume(file).data[0] > 0
    if found.shape != shape:
        raise DataError(
            f"{file} has {found.shape} voxels, its image has {shape}",
            "Give the region on the grid of its image.",
            code="grids_differ",
            file=file,
        )
    return found


def cine(
    file: str, patient: str, *, unit: str | None = None, rois: Sequence[str] = (), first: int = 1
) -> Sequence4D:
    """The frames of a 4D NIfTI.

    Args:
        file: the image; its header says how far apart frames are.
        patient: name.
        unit: `cycle` spreads the frames over one gated cycle, `frames` numbers them; seconds and the like need a
            header that says so. None takes the header's unit.
        rois: label maps, which together are the region of all frames.
        first: number, from 1, of the frame at time 0; those before it come last, as in a cycle.

    Raises:
        DataError: a single volume, no unit of time in the header, or no such first frame.
    """
    volume = read_nifti(file)
    frames = len(volume.data)
    if frames < 2:
        raise DataError(
            f"{file} holds one volume, not a sequence", "Give the 4D file.", code="not_4d", file=file
        )
    step, found = _frame_step(file)
    if unit == "cycle":
        step, found = 1.0 / frames, "cycle"
    elif unit == "frames":
        step, found = 1.0, "frames"
    if found is None or not 0 < step < math.inf:
        raise DataError(
            f"{file}: its header gives no interval between frames with a unit",
            "Give the unit cycle (frames of one gated cycle) or frames: --unit, or data.unit of a training.",
            code="unit_missing",
            file=file,
        )
    if not 1 <= first <= frames:
        raise DataError(
            f"{file} has {frames} frames; there is none of number {first}",
            "Correct the number of the first frame.",
            code="no_such_frame",
            file=file,
        )
    region = np.zeros(volume.data.shape[1:], bool)
    for label in rois:
        region |= _region(label, volume.data.shape[1:])
    return Sequence4D(
        patient=patient,
        volumes=np.roll(volume.data, 1 - first, axis=0)[:, None].astype(np.float32),
        times=np.arange(frames) * step,
        unit=found,
        valid=np.ones(frames, bool),
        roi=np.broadcast_to(region, volume.data.shape) if rois else None,
        geometry=volume.geometry,
        files=(file,) * frames,
    )


def _frame_step(file: str) -> tuple[float, str | None]:
    header: Any = nib.load(Path(file)).header
    step = float(header["pixdim"][4])
    scale = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1])
    return (step * scale, "seconds") if scale is not None else (0.0, None)
