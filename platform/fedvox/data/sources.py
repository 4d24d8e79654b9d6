"""Finds out what kind of data set a path holds, and joins several of them.

    open_source(SourceConfig(path="nnUNet_raw/Dataset003_Liver"))    -> RawDataset(format="nnunet", ...)
    open_sources([...])                                              -> JoinedSources: cases of all, channels agree

Nothing is read here but folder listings, dataset.json and manifests.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedvox.data.folder_sources import detect_folder, read_msd, read_nnunet, read_totalsegmentator
from fedvox.data.ingest_config import SourceConfig
from fedvox.data.label_space import SourceLabels
from fedvox.data.manifest_sources import MANIFEST_ENDINGS, read_manifest
from fedvox.data.raw_dataset import Listing, RawCase, RawDataset, Rejected
from fedvox.errors import DataError, FedvoxError

_CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_READERS = {"nnunet": read_nnunet, "msd": read_msd, "totalsegmentator": read_totalsegmentator}


@dataclass(frozen=True)
class JoinedSources:
    """Data sets that go into one store.

    Args:
        datasets: as they were found.
        channel_names: the same for all.
        modality: "CT", ..., or "other" where they differ.
        label_sets: label set -> meaning of its values.
        cases: sorted by id.
        rejected: cases that cannot be used, known without reading a voxel.
        splits: folds of all data sets, where they have any.
    """

    datasets: tuple[RawDataset, ...]
    channel_names: tuple[str, ...]
    modality: str
    label_sets: dict[str, SourceLabels]
    cases: tuple[RawCase, ...]
    rejected: tuple[Rejected, ...]
    splits: tuple[dict[str, tuple[str, ...]], ...]


def open_source(config: SourceConfig) -> RawDataset:
    """Detects and lists one data set.

    Raises:
        DataError: nothing is there, or it cannot be understood.
        StorageError: the bucket is missing or forbidden.
    """
    name = config.name or _default_name(config.path)
    is_manifest = config.path.lower().endswith(MANIFEST_ENDINGS)
    if config.format == "manifest" or (config.format == "auto" and is_manifest):
        dataset = read_manifest(
            config.path,
            name,
            labels=config.labels,
            channel_names=config.channel_names,
            modality=config.modality,
        )
    else:
        listing = Listing.of(config.path)
        kind = detect_folder(listing) if config.format == "auto" else config.format
        dataset = _READERS[kind](listing, name)
    return _adapted(dataset, config)


def _default_name(path: str) -> str:
    last = path.rstrip("/").rsplit("/", 1)[-1]
    stem = next((last[: -len(ending)] for ending in MANIFEST_ENDINGS if last.lower().endswith(ending)), last)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem) or "dataset"


def _adapted(dataset: RawDataset, config: SourceConfig) -> RawDataset:
    """Applies the prefix, the choice of channels and the modality that a user gave."""
    modality = config.modality or dataset.modality
    channels = config.channels
    if channels is not None and max(channels) >= len(dataset.channel_names):
        raise DataError(
            f"{config.path} has {len(dataset.channel_names)} channels; channel {max(channels)} was asked for",
            f"They are numbered from 0: {', '.join(dataset.channel_names)}.",
            code="channel_count",
            file=config.path,
        )
    names = dataset.channel_names if channels is None else tuple(dataset.channel_names[c] for c in channels)

    def renamed(case_id: str) -> str:
        return config.prefix + case_id

    return replace(
        dataset,
        modality=modality,
        channel_names=names,
        cases=tuple(
            replace(
                case,
                case_id=renamed(case.case_id),
                channels=channels,
                modality=config.modality or case.modality or modality,
            )
            for case in dataset.cases
        ),
        rejected=tuple(replace(r, case_id=renamed(r.case_id)) for r in dataset.rejected),
        splits=tuple(
            {part: tuple(map(renamed, ids)) for part, ids in fold.items()} for fold in dataset.splits
        ),
    )


def open_sources(configs: Sequence[SourceConfig], *, allow_unlabelled: bool = False) -> JoinedSources:
    """Lists all data sets and joins them; what is wrong with any of them is told at once.

    Raises:
        DataError: a data set cannot be understood, or they do not fit together.
        StorageError: a bucket is missing or forbidden.
    """
    if not configs:
        raise DataError("no data set was named", "Give at least one: --input FOLDER.", code="no_source")
    datasets, errors = [], []
    for config in configs:
        try:
            datasets.append(open_source(config))
        except FedvoxError as error:
            errors.append(error)
    if errors:
        raise _combined(errors)
    _check_agreement(datasets)
    cases, rejected = _usable([case for dataset in datasets for case in dataset.cases], allow_unlabelled)
    modalities = {dataset.modality for dataset in datasets}
    return JoinedSources(
        datasets=tuple(datasets),
        channel_names=datasets[0].channel_names,
        modality=modalities.pop() if len(modalities) == 1 else "other",
        label_sets={key: labels for dataset in datasets for key, labels in dataset.labels.items()},
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        rejected=(*(r for dataset in datasets for r in dataset.rejected), *rejected),
        splits=_joined_splits(datasets),
    )


def _combined(errors: list[FedvoxError]) -> FedvoxError:
    if len(errors) == 1:
        return errors[0]
    told = "\n".join(f"- {error}" for error in errors)
    return DataError(f"{len(errors)} data sets cannot be used:\n{told}", code="several")


def _check_agreement(datasets: list[RawDataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if len(other.channel_names) != len(first.channel_names):
            raise DataError(
                f"{first.root} has {len(first.channel_names)} channels ({', '.join(first.channel_names)}), "
                f"{other.root} has {len(other.channel_names)} ({', '.join(other.channel_names)})",
                "Choose the channels they share, for example `channels: [0]` of a source, or build two stores.",
                code="channel_count",
                file=other.root,
            )
    labels = collections.Counter(key for dataset in datasets for key in dataset.labels)
    repeated = [key for key, count in labels.items() if count > 1]
    if repeated:
        raise DataError(
            f"two data sets are called {repeated[0]!r}",
            "Give one of them another `name`.",
            code="duplicate_source",
        )


def _usable(cases: list[RawCase], allow_unlabelled: bool) -> tuple[list[RawCase], list[Rejected]]:
    by_id = collections.defaultdict(list)
    for case in cases:
        by_id[case.case_id].append(case)
    usable, rejected = [], []
    for case_id, members in by_id.items():
        errors = [
            *([] if _CASE_ID.fullmatch(case_id) else [_bad_id(case_id, members[0])]),
            *([] if len(members) == 1 else [_duplicate(case_id, members)]),
            *([] if members[0].is_labelled or allow_unlabelled else [_unlabelled(members[0])]),
        ]
        if errors:
            rejected += [Rejected(case_id, member.source, tuple(errors)) for member in members]
        else:
            usable += members
    return usable, rejected


def _bad_id(case_id: str, case: RawCase) -> DataError:
    return DataError(
        f"case id {case_id!r} of {case.images[0]} cannot be a file name",
        "Use letters, digits, '.', '_' and '-', starting with a letter or digit.",
        code="bad_case_id",
        file=case.images[0],
    )


def _duplicate(case_id: str, members: list[RawCase]) -> DataError:
    files = " and ".join(member.images[0] for member in members[:3])
    return DataError(
        f"case id {case_id!r} is used {len(members)} times: {files}",
        "Make it unique, or give a `prefix` to the data sets which number their cases alike.",
        code="duplicate_case",
        file=members[0].images[0],
    )


def _unlabelled(case: RawCase) -> DataError:
    return DataError(
        f"case {case.case_id} ({case.images[0]}) has no label",
        "Add its label map, remove the case, or set `allow_unlabelled: true`.",
        code="missing_label",
        file=case.images[0],
    )


def _joined_splits(datasets: list[RawDataset]) -> tuple[dict[str, tuple[str, ...]], ...]:
    """Fold by fold; a data set without folds of its own is trained on in all of them."""
    folds = max((len(dataset.splits) for dataset in datasets), default=0)
    joined = []
    for index in range(folds):
        parts: dict[str, tuple[str, ...]] = {"train": (), "val": ()}
        for dataset in datasets:
            every = {"train": tuple(case.case_id for case in dataset.cases), "val": ()}
            fold = dataset.splits[index] if index < len(dataset.splits) else every
            parts = {part: parts[part] + tuple(fold[part]) for part in parts}
        joined.append(parts)
    return tuple(joined)
