"""Steps of an unfinished series, kept so that a run that was cut short goes on.

A step is a function of the state before, of two scans and of how lesions are followed; under a digest of all of these
its result is kept until the series is finished. A damaged or foreign file is a step that has to be done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedvox.data.geometry import Volume
from fedvox.tracking.events import Event
from fedvox.tracking.registration import Quality

if TYPE_CHECKING:
    from fedvox.tracking.track import TrackState


@dataclass(frozen=True)
class StepCache:
    """A folder of steps.

    Args:
        folder: where.
        about: everything else that a step depends on: method, options, versions.
    """

    folder: Path
    about: str

    def key(self, known: TrackState, earlier: Volume, later: Volume, direction: str) -> str:
        """The digest of all that the step depends on."""
        digest = hashlib.sha256(f"{self.about}\n{direction}\n{known.next_id}".encode())
        for array in (known.lesions, known.dormant, earlier.data, later.data):
            digest.update(np.ascontiguousarray(array).tobytes())
        for scan in (earlier, later):
            digest.update(np.asarray(scan.geometry.affine, dtype=np.float64).tobytes())
        return digest.hexdigest()

    def read(self, key: str) -> TrackState | None:
        """A step that was done; None where it was not."""
        from fedvox.tracking.track import TrackState

        try:
            with np.load(self.folder / f"{key}.npz") as stored:
                about = json.loads(bytes(stored["about"]).decode())
                quality = about["quality"]
                return TrackState(
                    stored["lesions"],
                    stored["dormant"],
                    int(about["next_id"]),
                    tuple(Event(**event) for event in about["events"]),
                    about["direction"],
                    None if quality is None else Quality(**quality),
                )
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def write(self, key: str, state: TrackState) -> None:
        """Keeps a step, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {
            "next_id": state.next_id, "direction": state.direction, "events": [asdict(e) for e in state.events],
            "quality": None if state.quality is None else asdict(state.quality),
        }  # fmt: skip
        text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        temporary = self.folder / f".{key}.tmp"
        with temporary.open("wb") as file:
            np.savez_compressed(file, lesions=state.lesions, dormant=state.dormant, about=text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / f"{key}.npz")

    def clear(self) -> None:
        """The series is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
