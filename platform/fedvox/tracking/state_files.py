"""The state of every scan of a series, as files: what a scan needs of its neighbour to be done again alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvox.benchmark.volumes import write_json
from fedvox.data.geometry import Volume
from fedvox.data.readers import read_volume
from fedvox.errors import ConfigError
from fedvox.inference.nifti_out import source_header, write_labels
from fedvox.storage import locate
from fedvox.tracking.events import Event
from fedvox.tracking.registration import Quality
from fedvox.tracking.track import TrackState

Labels = npt.NDArray[np.integer[Any]]


def write_map(labels: Labels, scan: Volume, path: Path) -> None:
    """Writes instances on the scan's own grid."""
    kept = labels.astype(np.uint16)
    write_labels(kept, scan.geometry, source_header(scan.path, scan.geometry), locate(str(path)))


def write_state(output: Path, index: int, state: TrackState, scan: Volume) -> None:
    """Writes what a scan's neighbour needs of it, beside its instances."""
    folder = output / "states"
    write_map(state.dormant, scan, folder / f"scan_{index:02d}_dormant.nii.gz")
    write_json(
        folder / f"scan_{index:02d}.json",
        {
            "next_id": state.next_id,
            "direction": state.direction,
            "events": [asdict(event) for event in state.events],
            "quality": None if state.quality is None else asdict(state.quality),
        },
    )


def read_state(output: Path, index: int, scan: Volume) -> TrackState:
    """Reads a scan's state.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = output / "states" / f"scan_{index:02d}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        quality = content["quality"]
        maps = [
            output / f"scan_{index:02d}_lesions.nii.gz",
            path.with_name(f"scan_{index:02d}_dormant.nii.gz"),
        ]
        lesions, dormant = (read_volume(str(m)).data[0].astype(np.uint16) for m in maps)
        return TrackState(
            lesions,
            dormant,
            int(content["next_id"]),
            tuple(Event(**event) for event in content["events"]),
            content["direction"],
            None if quality is None else Quality(**quality),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no state of {scan.path}: {error!r}", "Run the whole series first."
        ) from error
