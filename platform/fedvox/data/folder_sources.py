"""Data sets that are folders: nnU-Net raw, the Medical Segmentation Decathlon, TotalSegmentator.

nnU-Net              imagesTr/CASE_0000.nii.gz (a file a channel), labelsTr/CASE.nii.gz, dataset.json
                     {"channel_names": {"0": "CT"}, "labels": {"liver": 1}, "file_ending": ".nii.gz"}
Decathlon            dataset.json {"modality": {"0": "CT"}, "labels": {"1": "liver"},
                     "training": [{"image": ..., "label": ...}]}, channels last in one 4D file
TotalSegmentator     s0001/ct.nii.gz, s0001/segmentations/liver.nii.gz (a mask a structure)
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from fedvox.data.label_space import SourceLabels, canonical_name, parse_labels
from fedvox.data.raw_dataset import Listing, RawCase, RawDataset, Rejected, bad_json, modality_of
from fedvox.data.readers import NIFTI_ENDINGS
from fedvox.errors import DataError

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_TOTAL_IMAGES = {"ct.nii.gz": "CT", "mri.nii.gz": "MR"}


def detect_folder(listing: Listing) -> str:
    """The format of a folder: "nnunet", "msd" or "totalsegmentator".

    Raises:
        DataError: missing_dataset_json, bad_dataset_json or unknown_format, with what to do instead.
    """
    if "dataset.json" in listing.files:
        return _detect_by_description(listing)
    if "imagesTr" in listing.folders:
        raise DataError(
            f"{listing.path('dataset.json')} is missing",
            "Add dataset.json: channel_names, labels, numTraining, file_ending (see the nnU-Net format).",
            code="missing_dataset_json",
            file=listing.path("dataset.json"),
        )
    if any(_is_total_image(name) for name in listing.files) and any(
        "/segmentations/" in n for n in listing.files
    ):
        return "totalsegmentator"
    nested = sorted(
        {name.split("/", 1)[0] for name in listing.files if name.count("/") == 1 and "dataset.json" in name}
    )
    if nested:
        remedy = f"Name the data sets themselves, one --input each: {', '.join(nested)}."
    elif any(name.lower().endswith((".dcm", ".ima")) for name in listing.files):
        remedy = "List DICOM series in a manifest: a CSV with the columns case_id, image (a folder), label."
    else:
        remedy = "Give an nnU-Net, Decathlon or TotalSegmentator folder, or a CSV or Parquet manifest."
    raise DataError(
        f"{listing.uri} holds no data set that is known", remedy, code="unknown_format", file=listing.uri
    )


def _detect_by_description(listing: Listing) -> str:
    description = _description(listing)
    if "channel_names" in description:
        return "nnunet"
    if "modality" not in description:
        raise bad_json(
            listing.path("dataset.json"), "has neither channel_names (nnU-Net) nor modality (Decathlon)"
        )
    # nnU-Net v1 wrote the Decathlon's dataset.json, with a file a channel
    stems = [_without_ending(name) for name in listing.inside("imagesTr")]
    return "nnunet" if stems and all(_CHANNEL.fullmatch(stem) for stem in stems) else "msd"


def _description(listing: Listing) -> dict[str, Any]:
    description = listing.read_json("dataset.json")
    if not isinstance(description, dict):
        raise bad_json(listing.path("dataset.json"), "is not a JSON object")
    return description


def _field(listing: Listing, description: Mapping[str, Any], name: str, kind: type) -> Any:
    value = description.get(name)
    if not isinstance(value, kind) or not value:
        raise bad_json(listing.path("dataset.json"), f"has no {name!r}")
    return value


def _channel_names(listing: Listing, description: Mapping[str, Any]) -> tuple[str, ...]:
    name = "channel_names" if "channel_names" in description else "modality"
    channels = _field(listing, description, name, dict)
    if sorted(channels, key=str) != sorted(map(str, range(len(channels)))):
        raise bad_json(
            listing.path("dataset.json"), f"numbers its {name} {', '.join(channels)}, not 0, 1, ..."
        )
    return tuple(str(channels[str(index)]) for index in range(len(channels)))


def _labels(listing: Listing, description: Mapping[str, Any]) -> SourceLabels:
    return parse_labels(_field(listing, description, "labels", dict), listing.path("dataset.json"))


# ---- nnU-Net -----------------------------------------------------------------------------------------------


def read_nnunet(listing: Listing, name: str) -> RawDataset:
    """Lists an nnU-Net raw data set.

    Two files beside dataset.json are read where they exist: splits_final.json (nnU-Net's own), and sources.json
    (`{case: source}`), for a data set that was put together from several sites.

    Raises:
        DataError: bad_dataset_json, bad_labels, unsupported_file_ending or empty_folder.
    """
    description = _description(listing)
    channels = _channel_names(listing, description)
    labels = _labels(listing, description)
    sources = listing.read_json("sources.json") if "sources.json" in listing.files else {}
    files = _listed_files(listing, description) or _found_files(listing, description)
    if not files:
        raise DataError(
            f"{listing.path('imagesTr')} holds no image",
            "Put the images there as CASE_0000.nii.gz, and check file_ending in dataset.json.",
            code="empty_folder",
            file=listing.path("imagesTr"),
        )
    cases, rejected = [], []
    for case, (images, label) in sorted(files.items()):
        source = str(sources.get(case, name))
        errors = _completeness(listing, case, images, label, channels)
        if errors:
            rejected.append(Rejected(case, source, tuple(errors)))
        else:
            ordered = tuple(listing.path(images[index]) for index in sorted(images))
            cases.append(
                RawCase(case, source, name, ordered, listing.path(label), num_channels=len(channels))
            )
    return RawDataset(
        name=name,
        format="nnunet",
        root=listing.uri,
        channel_names=channels,
        modality=modality_of(channels),
        labels={name: labels},
        cases=tuple(cases),
        rejected=tuple(rejected),
        splits=_splits(listing),
    )


_Files = dict[str, tuple[dict[int, str], str]]


def _listed_files(listing: Listing, description: Mapping[str, Any]) -> _Files:
    """nnU-Net's optional `dataset` field: `{case: {"images": [...], "label": ...}}`."""
    listed = description.get("dataset") or {}
    try:
        return {
            str(case): (
                {index: str(PurePosixPath(path)) for index, path in enumerate(files["images"])},
                str(PurePosixPath(files["label"])),
            )
            for case, files in listed.items()
        }
    except (AttributeError, KeyError, TypeError):
        raise bad_json(
            listing.path("dataset.json"), "has a `dataset` without images and label of each case"
        ) from None


def _found_files(listing: Listing, description: Mapping[str, Any]) -> _Files:
    ending = str(description.get("file_ending", ".nii.gz"))
    if ending.lower() not in NIFTI_ENDINGS:
        raise DataError(
            f"{listing.path('dataset.json')} gives the file ending {ending!r}",
            "Convert the images and labels to .nii.gz.",
            code="unsupported_file_ending",
            file=listing.path("dataset.json"),
        )
    files: _Files = {}
    for name in listing.inside("imagesTr"):
        match = _CHANNEL.fullmatch(name.removesuffix(ending))
        if match and name.endswith(ending):
            case = match["case"]
            images, _ = files.setdefault(case, ({}, f"labelsTr/{case}{ending}"))
            images[int(match["channel"])] = f"imagesTr/{name}"
    for name in listing.inside("labelsTr"):
        if name.endswith(ending):
            files.setdefault(name.removesuffix(ending), ({}, f"labelsTr/{name}"))
    return files


def _completeness(
    listing: Listing, case: str, images: Mapping[int, str], label: str, channels: tuple[str, ...]
) -> list[DataError]:
    present = set(listing.files)
    errors = []
    if not images:
        errors.append(_incomplete("missing_image", listing, label, f"case {case} has a label and no image"))
    elif sorted(images) != list(range(len(channels))):
        found = ", ".join(f"{index:04d}" for index in sorted(images))
        first = listing.path(images[min(images)])
        text = (
            f"case {case} has the channels {found} ({first}, ...), where dataset.json names {len(channels)}"
        )
        errors.append(_incomplete("channel_count", listing, images[min(images)], text))
    absent = [path for path in (*images.values(), label) if path not in present]
    for path in absent:
        code, kind = ("missing_label", "label") if path == label else ("missing_image", "image")
        errors.append(_incomplete(code, listing, path, f"case {case} lacks its {kind} {listing.path(path)}"))
    return errors


def _incomplete(code: str, listing: Listing, path: str, message: str) -> DataError:
    remedy = "Add the missing file, or remove the case."
    return DataError(message, remedy, code=code, file=listing.path(path))


def _splits(listing: Listing) -> tuple[dict[str, tuple[str, ...]], ...]:
    if "splits_final.json" not in listing.files:
        return ()
    folds = listing.read_json("splits_final.json")
    try:
        return tuple({part: tuple(map(str, fold[part])) for part in ("train", "val")} for fold in folds)
    except (KeyError, TypeError):
        raise bad_json(
            listing.path("splits_final.json"), "is no list of {train: [...], val: [...]}"
        ) from None


# ---- Medical Segmentation Decathlon ------------------------------------------------------------------------


def read_msd(listing: Listing, name: str) -> RawDataset:
    """Lists a task of the Medical Segmentation Decathlon.

    Raises:
        DataError: bad_dataset_json or bad_labels.
    """
    description = _description(listing)
    channels = _channel_names(listing, description)
    cases, rejected = [], []
    for entry in _field(listing, description, "training", list):
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise bad_json(listing.path("dataset.json"), "has a `training` entry without image and label")
        image, label = (str(PurePosixPath(str(entry[kind]))) for kind in ("image", "label"))
        case = _without_ending(PurePosixPath(image).name)
        errors = _completeness(listing, case, {0: image}, label, channels[:1])
        if errors:
            rejected.append(Rejected(case, name, tuple(errors)))
        else:
            files = (listing.path(image),), listing.path(label)
            cases.append(RawCase(case, name, name, *files, num_channels=len(channels)))
    return RawDataset(
        name=name,
        format="msd",
        root=listing.uri,
        channel_names=channels,
        modality=modality_of(channels),
        labels={name: _labels(listing, description)},
        cases=tuple(cases),
        rejected=tuple(rejected),
    )


# ---- TotalSegmentator --------------------------------------------------------------------------------------


def read_totalsegmentator(listing: Listing, name: str) -> RawDataset:
    """Lists a TotalSegmentator data set; a structure's value is its place in the sorted list of mask names.

    Cases that lack some of the masks have a label set of their own (`NAME~…`), which does not annotate them.
    """
    masks: dict[str, dict[str, str]] = {}
    images: dict[str, tuple[str, str]] = {}
    for path in listing.files:
        parts = path.split("/")
        if _is_total_image(path):
            images[parts[0]] = path, _TOTAL_IMAGES[parts[1]]
        elif len(parts) == 3 and parts[1] == "segmentations" and parts[2].endswith(".nii.gz"):
            masks.setdefault(parts[0], {})[canonical_name(_without_ending(parts[2]))] = listing.path(path)
    structures = sorted({structure for found in masks.values() for structure in found})
    values = {structure: value for value, structure in enumerate(structures, start=1)}
    labels: dict[str, SourceLabels] = {}
    cases, rejected = [], []
    for case, (image, modality) in sorted(images.items()):
        found = masks.get(case, {})
        if not found:
            path = f"{case}/segmentations"
            error = _incomplete("missing_label", listing, path, f"case {case} lacks {listing.path(path)}")
            rejected.append(Rejected(case, name, (error,)))
            continue
        absent = [structure for structure in structures if structure not in found]
        label_set = f"{name}~{zlib.crc32('/'.join(absent).encode()):08x}" if absent else name
        labels[label_set] = SourceLabels(tuple((s, (values[s],)) for s in structures if s in found))
        files = tuple((values[s], path) for s, path in sorted(found.items()))
        cases.append(RawCase(case, name, label_set, (listing.path(image),), masks=files, modality=modality))
    modalities = {case.modality for case in cases}
    modality = "other" if len(modalities) != 1 else str(next(iter(modalities)))
    return RawDataset(
        name, "totalsegmentator", listing.uri, (modality,), modality, labels, tuple(cases), tuple(rejected)
    )


def _is_total_image(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 2 and parts[1] in _TOTAL_IMAGES


def _without_ending(name: str) -> str:
    return next(
        (name[: -len(e)] for e in sorted(NIFTI_ENDINGS, key=len, reverse=True) if name.endswith(e)), name
    )
