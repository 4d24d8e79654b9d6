"""What a data set on disk or in a bucket holds, before any voxel is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedvox.data.label_space import SourceLabels
from fedvox.errors import DataError
from fedvox.storage import Location, exists, list_files, locate, read_bytes


@dataclass(frozen=True)
class RawCase:
    """The files of one case.

    Args:
        case_id: unique in the store, a file name without an ending.
        source: the site or collection it comes from.
        label_set: whose annotation rules it follows; a key of `RawDataset.labels`.
        images: one file a channel, or a single file that holds all channels.
        label: the label map, or None.
        masks: instead of a label map, one binary mask a structure: (value in `labels`, file).
        series_uid: of the DICOM series to take from a folder with several.
        modality: "CT", "MR", ... where it is known.
        num_channels: in its files together.
        channels: which of them to keep, None for all.
    """

    case_id: str
    source: str
    label_set: str
    images: tuple[str, ...]
    label: str | None = None
    masks: tuple[tuple[int, str], ...] = ()
    series_uid: str | None = None
    modality: str | None = None
    num_channels: int = 1
    channels: tuple[int, ...] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the case is made from."""
        masks = tuple(path for _, path in self.masks)
        return (*self.images, *(() if self.label is None else (self.label,)), *masks)

    @property
    def is_labelled(self) -> bool:
        """Whether somebody annotated it."""
        return self.label is not None or bool(self.masks)


@dataclass(frozen=True)
class Rejected:
    """A case that cannot be used, and why.

    Args:
        case_id: which one.
        source: where it comes from.
        errors: every reason that was found.
    """

    case_id: str
    source: str
    errors: tuple[DataError, ...]


@dataclass(frozen=True)
class RawDataset:
    """A data set as its files describe it.

    Args:
        name: for people, and the default name of its source.
        format: "nnunet", "msd", "totalsegmentator" or "manifest".
        root: the folder or manifest.
        channel_names: one a channel.
        modality: "CT", "MR", "PT" or "other".
        labels: label set -> meaning of its label values.
        cases: those whose files are all there.
        rejected: the others.
        splits: nnU-Net's splits_final.json, where there is one.
    """

    name: str
    format: str
    root: str
    channel_names: tuple[str, ...]
    modality: str
    labels: Mapping[str, SourceLabels]
    cases: tuple[RawCase, ...]
    rejected: tuple[Rejected, ...] = ()
    splits: tuple[Mapping[str, tuple[str, ...]], ...] = ()

    def describe(self) -> str:
        """One line for people."""
        structures = {name for labels in self.labels.values() for name, _ in labels.structures}
        refused = f", {len(self.rejected)} unusable" if self.rejected else ""
        return (
            f"{self.root}: {self.format} data set {self.name!r}, {len(self.cases)} cases{refused}, "
            f"{len(self.channel_names)} channel(s) {'/'.join(self.channel_names)} ({self.modality}), "
            f"{len(structures)} structures"
        )


@dataclass(frozen=True)
class Listing:
    """The files below a folder, by their path relative to it."""

    root: Location
    uri: str
    files: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, uri: str) -> Listing:
        """Lists a folder.

        Raises:
            DataError: missing_folder or empty_folder.
            StorageError: the bucket is missing or forbidden.
        """
        root = locate(uri)
        below = len(root.path.rstrip("/")) + 1
        files = tuple(found.path[below:] for found in list_files(root))
        if files:
            return cls(root, uri, files)
        missing = root.is_local and not exists(root)
        raise DataError(
            f"{uri} {'does not exist' if missing else 'is an empty folder'}",
            "Name the folder of a data set (for nnU-Net, the one that holds dataset.json).",
            code="missing_folder" if missing else "empty_folder",
            file=uri,
        )

    def path(self, relative: str) -> str:
        """The full path or URI of a file."""
        return self.root.child(relative).uri

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders directly below."""
        return tuple(sorted({name.split("/", 1)[0] for name in self.files if "/" in name}))

    def inside(self, folder: str) -> list[str]:
        """Names of the visible files directly in a folder below."""
        start = f"{folder}/"
        names = (name[len(start) :] for name in self.files if name.startswith(start))
        return sorted(name for name in names if "/" not in name and not name.startswith("."))

    def read_json(self, relative: str) -> Any:
        """Parses a JSON file.

        Raises:
            DataError: bad_dataset_json.
        """
        try:
            return json.loads(read_bytes(self.root.child(relative)))
        except ValueError as error:
            raise bad_json(self.path(relative), f"is not valid JSON: {error}") from None


def bad_json(path: str, found: str) -> DataError:
    """The error for a dataset.json that cannot be used."""
    return DataError(
        f"{path} {found}",
        "Write it as nnU-Net describes: channel_names, labels, numTraining, file_ending.",
        code="bad_dataset_json",
        file=path,
    )


def modality_of(channel_names: tuple[str, ...]) -> str:
    """The modality that channel names speak of: "CT", "PT", "MR", or "other" where they differ or say nothing."""
    kinds = {_MODALITIES.get(word, "") for name in channel_names for word in _words(name)} - {""}
    return kinds.pop() if len(kinds) == 1 else "other"


def _words(name: str) -> list[str]:
    return name.casefold().replace("-", "_").replace(" ", "_").split("_")


_MODALITIES = {
    "ct": "CT",
    "cta": "CT",
    "pet": "PT",
    "pt": "PT",
    **dict.fromkeys(
        ("mr", "mri", "t1", "t2", "t1w", "t2w", "t1c", "t1ce", "t1gd", "t1n", "flair", "adc", "dwi", "swi"),
        "MR",
    ),
}
