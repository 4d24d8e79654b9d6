"""A folder of patients as the source of a training."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from fedvox.errors import DataError
from fedvox.forecasting.config import ForecastConfig, Size3
from fedvox.forecasting.loaders.layouts import list_patients, load_sequence
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.protocol import patient_folds
from fedvox.forecasting.sequence import Sequence4D
from fedvox.forecasting.sources import SequenceSource
from fedvox.training.config import expand

log = logging.getLogger(__name__)


def open_sequences(config: ForecastConfig) -> SequenceSource:
    """Reads all patients of `data.folder`, normalised, dealt into training and the held-out fold.

    Patients with a single scan cannot teach anything and are left out, by name.

    Raises:
        DataError: no patient is left, units or grids differ, or a scan cannot be used.
    """
    data = config.data
    assert data.folder is not None  # by its validator, where nothing is simulated
    patients = list_patients(expand(data.folder), data.layout)
    found = [load_sequence(p, layout=data.layout, unit=data.unit) for p in patients]
    single = [s.patient for s in found if s.valid.sum() < 2]
    if single:
        log.warning("left out, because they have a single scan: %s", ", ".join(single))
    sequences = [prepared(s, data.size) for s in found if s.valid.sum() >= 2]
    if len(sequences) < 2:
        raise DataError(
            f"{data.folder} holds {len(sequences)} patient(s) with two scans or more",
            "Give at least two: one to learn from, one that is held out.",
            code="too_few_patients",
            file=data.folder,
        )
    _check_alike(sequences)
    folds = patient_folds([s.patient for s in sequences], min(data.folds, len(sequences)))
    held_out = set(folds[data.fold % len(folds)])
    return SequenceSource(
        training=tuple(s for s in sequences if s.patient not in held_out),
        validation=tuple(s for s in sequences if s.patient in held_out),
        data=data, seed=config.seed, visits=config.flow.slots, digest=_digest(sequences),
    )  # fmt: skip


def prepared(sequence: Sequence4D, size: Size3 | None) -> Sequence4D:
    """The sequence in normalised units, cropped or padded around its centre if a size is given."""
    volumes = Normalization.of(sequence.volumes[sequence.valid]).apply(sequence.volumes)
    roi = sequence.roi
    if size is not None:
        volumes = fitted(volumes, size)
        roi = None if roi is None else fitted(roi, size)
    return replace(sequence, volumes=volumes, roi=roi)


def fitted(volumes: np.ndarray, size: Size3) -> np.ndarray:
    """`(…, D, H, W)` cropped or padded with zeros around the centre to `size`."""
    lead = volumes.ndim - 3
    taken: list[Any] = [slice(None)] * lead
    widths = [(0, 0)] * lead
    for have, want in zip(volumes.shape[lead:], size, strict=True):
        start = max(0, (have - want) // 2)
        taken.append(slice(start, start + min(have, want)))
        before = max(0, (want - have) // 2)
        widths.append((before, max(0, want - have - before)))
    return np.pad(volumes[tuple(taken)], widths)


def _check_alike(sequences: list[Sequence4D]) -> None:
    first = sequences[0]
    for sequence in sequences[1:]:
        if sequence.unit != first.unit:
            raise DataError(
                f"{sequence.patient} counts in {sequence.unit}, {first.patient} in {first.unit}",
                "Give all patients' times in one unit.",
                code="units_differ",
                file=sequence.patient,
            )
        if sequence.volumes.shape[1:] != first.volumes.shape[1:]:
            raise DataError(
                f"{sequence.patient} has volumes (C, D, H, W) of {sequence.volumes.shape[1:]}, {first.patient} of "
                f"{first.volumes.shape[1:]}",
                "Set data.size to crop or pad all of them, and resample them to one spacing beforehand.",
                code="shapes_differ",
                file=sequence.patient,
            )


def _digest(sequences: list[Sequence4D]) -> str:
    told = "\n".join(f"{s.patient} {s.unit} {list(s.times)} {s.volumes.shape}" for s in sequences)
    return hashlib.sha256(told.encode()).hexdigest()
