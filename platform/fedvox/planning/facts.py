"""What a plan is made from: spacings, shapes and intensities of a data set, from wherever they were measured.

a brick store                   STORE/store.json, STORE/fingerprint.json
a preprocessed nnU-Net folder   dataset_fingerprint.json, dataset.json
a raw data set                  measured here, case by case (nnU-Net, Decathlon, TotalSegmentator, manifest)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedvox.data.store import BrickStore
from fedvox.errors import DataError
from fedvox.storage import Location, exists, locate, read_bytes

log = logging.getLogger(__name__)

_FINGERPRINTS = ("fingerprint.json", "dataset_fingerprint.json")


@dataclass(frozen=True)
class IntensityProperties:
    """Foreground intensities of one channel over the whole data set, by nnU-Net's names."""

    max: float
    mean: float
    median: float
    min: float
    percentile_00_5: float
    percentile_99_5: float
    std: float


@dataclass(frozen=True)
class DatasetFacts:
    """What the planner needs to know of a data set.

    Attributes:
        name: of the data set.
        spacings_mm: (D, H, W) of each case.
        shapes: (D, H, W) of each case, cropped to nonzero voxels.
        relative_size: median share of a volume that cropping leaves.
        channel_names: one a channel.
        num_labels: output channels, background included.
        intensity: one entry a channel.
        case_ids: sorted; empty where the source does not name them.
    """

    name: str
    spacings_mm: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    relative_size: float
    channel_names: tuple[str, ...]
    num_labels: int
    intensity: tuple[IntensityProperties, ...]
    case_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses facts that no plan can be made from."""
        if not self.spacings_mm or len(self.spacings_mm) != len(self.shapes):
            raise _refused(self.name, f"{len(self.spacings_mm)} spacings and {len(self.shapes)} shapes")
        if min(min(spacing) for spacing in self.spacings_mm) <= 0:
            raise _refused(self.name, "a spacing that is not positive")
        if min(min(shape) for shape in self.shapes) < 1:
            raise _refused(self.name, "an empty shape")
        if len(self.intensity) != len(self.channel_names):
            raise _refused(
                self.name,
                f"intensities of {len(self.intensity)} channels, and names of {len(self.channel_names)}",
            )

    @property
    def num_cases(self) -> int:
        """Training cases."""
        return len(self.shapes)


def load_facts(uri: str) -> DatasetFacts:
    """Reads or measures the facts of a data set.

    Args:
        uri: a brick store, a preprocessed nnU-Net folder, or a raw data set; local or `s3://`.

    Raises:
        DataError: nothing is there that a plan can be made from, or a file of it is incomplete.
        StorageError: the bucket is missing or forbidden.
    """
    folder = locate(uri)
    if exists(folder.child("store.json")):
        return facts_of_store(folder)
    if exists(folder.child("dataset_fingerprint.json")):
        return facts_of_nnunet(
            _read_json(folder.child("dataset_fingerprint.json")),
            _read_json(folder.child("dataset.json")),
            name=uri.rstrip("/").rsplit("/", 1)[-1],
        )
    return facts_of_raw(uri)


def facts_of_store(folder: Location) -> DatasetFacts:
    """The facts that the ingest left in a store: of the volumes as they were before it resampled them.

    Raises:
        DataError: the store is not finished, or was written without a fingerprint.
    """
    meta = _read_json(folder.child("store.json"))
    fingerprint = next((folder.child(name) for name in _FINGERPRINTS if exists(folder.child(name))), None)
    if fingerprint is None:
        raise DataError(
            f"{folder.uri} has no fingerprint.json",
            "Run the ingest again until it reports that it has finished; it writes that file.",
            code="no_fingerprint",
            file=folder.uri,
        )
    return _facts(
        _read_json(fingerprint),
        fingerprint.uri,
        name=str(meta["name"]),
        channel_names=tuple(meta["channel_names"]),
        num_labels=len(meta["structures"]),
        case_ids=tuple(sorted(BrickStore.open(folder.uri).case_ids)),
    )


def facts_of_nnunet(
    fingerprint: Mapping[str, Any], dataset: Mapping[str, Any], *, name: str = "dataset"
) -> DatasetFacts:
    """The facts in nnU-Net's own files.

    Args:
        fingerprint: content of dataset_fingerprint.json.
        dataset: content of dataset.json.
        name: of the data set.

    Raises:
        DataError: a field is missing.
    """
    channels = dataset.get("channel_names") or dataset.get("modality")
    labels = dataset.get("labels")
    if not isinstance(channels, Mapping) or not isinstance(labels, Mapping):
        raise DataError(
            "dataset.json has no channel_names or no labels",
            "Write both, as nnU-Net describes.",
            code="dataset_json",
        )
    names = tuple(str(channels[key]) for key in sorted(channels, key=int))
    return _facts(
        fingerprint, "dataset_fingerprint.json", name=name, channel_names=names, num_labels=len(labels)
    )


def facts_of_raw(uri: str) -> DatasetFacts:
    """Measures a raw data set, cropped to nonzero voxels as nnU-Net does, one case at a time.

    Raises:
        DataError: the data set cannot be understood, or none of its cases can be used.
    """
    from fedvox.data.ingest_config import (
        SourceConfig,
    )  # of what a raw data set needs, nothing is needed elsewhere
    from fedvox.data.sources import open_sources
    from fedvox.planning.measure import measure_sources

    sources = open_sources([SourceConfig(path=uri)])
    measured = measure_sources(sources)
    return _facts(
        measured.fingerprint.to_nnunet(),
        uri,
        name=sources.datasets[0].name,
        channel_names=sources.channel_names,
        num_labels=measured.num_labels,
        case_ids=measured.case_ids,
    )


def _facts(
    fingerprint: Mapping[str, Any],
    file: str,
    *,
    name: str,
    channel_names: tuple[str, ...],
    num_labels: int,
    case_ids: tuple[str, ...] = (),
) -> DatasetFacts:
    try:
        channels = fingerprint["foreground_intensity_properties_per_channel"]
        intensity = tuple(_intensity(channels[key]) for key in sorted(channels, key=int))
        return DatasetFacts(
            name=name,
            spacings_mm=tuple((float(d), float(h), float(w)) for d, h, w in fingerprint["spacings"]),
            shapes=tuple((int(d), int(h), int(w)) for d, h, w in fingerprint["shapes_after_crop"]),
            relative_size=float(fingerprint["median_relative_size_after_cropping"]),
            channel_names=channel_names,
            num_labels=num_labels,
            intensity=intensity,
            case_ids=case_ids,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is no fingerprint of 3D volumes: {error!r}",
            "Measure the data set again: fedvox ingest, or nnUNetv2_extract_fingerprint.",
            code="bad_fingerprint",
            file=file,
        ) from error


def _intensity(values: Mapping[str, Any]) -> IntensityProperties:
    return IntensityProperties(
        **{name.name: float(values[name.name]) for name in fields(IntensityProperties)}
    )


def _read_json(location: Location) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(location))
    except ValueError as error:
        raise DataError(
            f"{location.uri} is not valid JSON: {error}",
            "Write it again.",
            code="bad_json",
            file=location.uri,
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"{location.uri} is not a JSON object", "Write it again.", code="bad_json", file=location.uri
        )
    return value


def _refused(name: str, found: str) -> DataError:
    return DataError(
        f"the fingerprint of {name} has {found}", "Measure the data set again.", code="bad_fingerprint"
    )
