"""What a store knows of each case and of itself: as dataclasses, as JSON, and as columns of the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from fedvox.data.ignore import ignore_value, label_dtype
from fedvox.data.intensity import FIELDS, CaseIntensity, ChannelIntensity

SCHEMA_VERSION = 1

_CHANNEL = pa.list_(pa.float64(), len(FIELDS))

# The columns that `BrickStore.open` keeps in memory; the others are read for single cases.
LIGHT_COLUMNS = (
    "case_id",
    "source",
    "label_set",
    "shape",
    "spacing_mm",
    "channels",
    "num_bytes",
    "version",
    "foreground_intensity",
    "whole_intensity",
)
MANIFEST_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("label_set", pa.dictionary(pa.int32(), pa.string())),
        ("shape", pa.list_(pa.int32(), 3)),
        ("spacing_mm", pa.list_(pa.float64(), 3)),
        ("channels", pa.uint16()),
        ("num_bytes", pa.int64()),
        ("version", pa.int64()),
        ("foreground_intensity", pa.list_(_CHANNEL)),
        ("whole_intensity", pa.list_(_CHANNEL)),
        ("class_voxels", pa.map_(pa.uint16(), pa.int64())),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("origin", pa.string()),
    ]
)


@dataclass(frozen=True)
class CaseRecord:
    """A row of the manifest.

    Args:
        case_id: unique in the store.
        source: the data set it comes from.
        uri: its file, relative to the store.
        shape: voxels, (D, H, W).
        spacing_mm: voxel size, (D, H, W).
        channels: C.
        label_set: key of `StoreMeta.label_sets`: which structures its source annotates.
        class_voxels: canonical structure index -> voxels, background included.
        intensity: statistics of each channel.
        sha256: of the file, hex.
        num_bytes: of the file.
        origin: what it was made from; a case whose origin has changed is written again.
    """

    case_id: str
    source: str
    uri: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    channels: int
    label_set: str
    class_voxels: dict[int, int]
    intensity: CaseIntensity
    sha256: str
    num_bytes: int
    origin: str = ""

    @property
    def version(self) -> int:
        """A number that changes with the file's content."""
        return int.from_bytes(hashlib.blake2b(self.sha256.encode(), digest_size=7).digest())

    def to_json(self) -> bytes:
        """As one JSON object."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> CaseRecord:
        """The inverse of `to_json`."""
        fields = json.loads(data)
        intensity = {
            key: tuple(ChannelIntensity(**channel) for channel in channels)
            for key, channels in fields["intensity"].items()
        }
        return cls(
            **{
                **fields,
                "shape": tuple(fields["shape"]),
                "spacing_mm": tuple(fields["spacing_mm"]),
                "class_voxels": {int(key): count for key, count in fields["class_voxels"].items()},
                "intensity": CaseIntensity(**intensity),
            }
        )

    def to_row(self) -> dict[str, Any]:
        """As a row of `MANIFEST_SCHEMA`."""
        return {
            **{name: getattr(self, name) for name in MANIFEST_SCHEMA.names if hasattr(self, name)},
            "class_voxels": list(self.class_voxels.items()),
            "foreground_intensity": channel_rows(self.intensity.foreground),
            "whole_intensity": channel_rows(self.intensity.whole),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> CaseRecord:
        """The inverse of `to_row`."""
        fields = {key: row[key] for key in cls.__dataclass_fields__ if key in row}
        return cls(
            **{
                **fields,
                "shape": tuple(row["shape"]),
                "spacing_mm": tuple(row["spacing_mm"]),
                "class_voxels": dict(row["class_voxels"]),
                "intensity": intensity_from_rows(row["foreground_intensity"], row["whole_intensity"]),
            }
        )


def channel_rows(channels: Sequence[ChannelIntensity]) -> list[list[float]]:
    """Each channel's numbers in the order of `FIELDS`."""
    return [[getattr(channel, name) for name in FIELDS] for channel in channels]


def intensity_from_rows(
    foreground: Sequence[Sequence[float]], whole: Sequence[Sequence[float]]
) -> CaseIntensity:
    """The inverse of `channel_rows`, for both regions."""
    return CaseIntensity(
        tuple(ChannelIntensity(*numbers) for numbers in foreground),
        tuple(ChannelIntensity(*numbers) for numbers in whole),
    )


@dataclass(frozen=True)
class StoreMeta:
    """What all cases of a store share.

    Args:
        name: of the data set.
        channel_names: one a channel.
        modality: `CT`, `MR`, ….
        structures: canonical names; index 0 is `background`.
        label_sets: label set id -> the canonical indices that it annotates, 0 included.
        normalization: `ct` (clip to the data set's percentiles, then z-score by its mean and deviation) or
            `zscore` (by each case's own).
        spacing_mm: (D, H, W) where all cases were resampled to one spacing.
        intensity: over the foreground of the whole data set, one entry a channel; empty until known.
        crop_to_nonzero: whether the margin where all channels are 0 was cut off.
        created: ISO 8601, UTC.
        fedvox_version: that wrote the store.
        schema_version: of the store.
    """

    name: str
    channel_names: tuple[str, ...]
    modality: str
    structures: tuple[str, ...]
    label_sets: dict[str, tuple[int, ...]]
    normalization: str
    spacing_mm: tuple[float, float, float] | None = None
    intensity: tuple[ChannelIntensity, ...] = ()
    crop_to_nonzero: bool = False
    created: str = ""
    fedvox_version: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """As one indented JSON object."""
        return json.dumps(asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StoreMeta:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the data are not what `to_json` writes.
        """
        fields = json.loads(data)
        spacing = fields["spacing_mm"]
        return cls(
            **{
                **fields,
                "channel_names": tuple(fields["channel_names"]),
                "structures": tuple(fields["structures"]),
                "label_sets": {key: tuple(values) for key, values in fields["label_sets"].items()},
                "spacing_mm": None if spacing is None else tuple(spacing),
                "intensity": tuple(ChannelIntensity(**channel) for channel in fields["intensity"]),
            }
        )

    @property
    def ignore_index(self) -> int:
        """The value of voxels that were not judged, in this store's labels."""
        return ignore_value(label_dtype(len(self.structures)))

    @property
    def identity(self) -> tuple[Any, ...]:
        """What must be the same for cases to live in one store."""
        return self.channel_names, self.modality, self.structures, self.schema_version
