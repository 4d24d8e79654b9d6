"""What a forecast leaves in its folder: NIfTI on the grid of the scans, side-car, animation, difference overlay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedvox import storage
from fedvox.data.geometry import Geometry
from fedvox.forecasting.figures import animation, difference_overlay
from fedvox.forecasting.predict import Forecast
from fedvox.inference.nifti_out import source_header, write_image
from fedvox.storage import Location
from fedvox.training.figures import save_figure
from fedvox.training.run_directory import without_nan

Written = dict[str, str]
"""Kind of result -> file."""


def write_forecast(found: Forecast, output: Path, provenance: dict[str, Any]) -> Written:
    """Writes a forecast's files, each atomically; the side-car last. What is left of an earlier forecast is deleted.

    Args:
        found: the forecast.
        output: folder, made if it is not there.
        provenance: what the side-car says of the model.

    Returns:
        The files by kind.

    Raises:
        StorageError: no space, or forbidden.
    """
    folder = storage.locate(str(output))
    context, written = found.context, {}
    geometry = context.geometry or _plain(found.volume.shape[1:])
    header = _header(context.files[-1] if context.files else None, geometry)
    maps = {"forecast": found.volume, **({} if found.spread is None else {"uncertainty": found.spread})}
    for kind, volumes in maps.items():
        for channel, volume in enumerate(volumes):
            suffix = f"_{channel:04d}" if len(volumes) > 1 else ""
            target = folder.child(f"{kind}{suffix}.nii.gz")
            write_image(volume, geometry, header, target)
            written[f"{kind}{suffix}"] = target.uri
    written |= _pictures(found, folder, geometry)
    _leave_nothing_older(folder, written)
    side_car = {**found.as_dict(), **provenance, "files": written}
    target = folder.child("forecast.json")
    storage.write_atomic(target, (json.dumps(without_nan(side_car), indent=1, default=str) + "\n").encode())
    return {**written, "side-car": target.uri}


def _leave_nothing_older(folder: Location, written: Written) -> None:
    """Deletes what an earlier forecast wrote here and the new one does not: it would seem to belong to the new one."""
    side_car = folder.child("forecast.json")
    if not storage.exists(side_car):
        return
    try:
        files = [str(file) for file in json.loads(storage.read_bytes(side_car))["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # no side-car of ours: nothing is known to be ours
    for name in {file.rsplit("/", 1)[-1] for file in files} - {
        file.rsplit("/", 1)[-1] for file in written.values()
    }:
        if storage.exists(folder.child(name)):
            storage.delete(folder.child(name))


def _pictures(found: Forecast, folder: Location, geometry: Geometry) -> Written:
    context, spacing = found.context, geometry.spacing_mm
    labels = [f"{time:g} {context.unit}" for time in context.times]
    frames = [*context.volumes[:, 0], found.volume[0]]
    gif = folder.child("forecast.gif")
    storage.write_atomic(
        gif, animation(frames, [*labels, f"{found.time:g} {context.unit}: forecast"], spacing)
    )
    title = f"{context.patient}: {labels[-1]} and {found.time:g} {context.unit} ({found.method})"
    overlay = folder.child("difference.png")
    save_figure(difference_overlay(context.volumes[-1, 0], found.volume[0], title, spacing), overlay)
    return {"animation": gif.uri, "difference": overlay.uri}


def _header(file: str | None, geometry: Geometry) -> nib.Nifti1Header | nib.Nifti2Header:
    """The header of the last scan, as that of one volume."""
    header: Any = source_header(file or "", geometry)
    header["pixdim"][4] = 0  # frames of a cine have an interval, their forecast has none
    return header  # type: ignore[no-any-return]  # nibabel's header classes are untyped in part


def _plain(shape: tuple[int, ...]) -> Geometry:
    return Geometry.of_file(shape[::-1], np.eye(4))
