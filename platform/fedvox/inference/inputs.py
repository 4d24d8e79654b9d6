"""Which cases there are to predict.

folder      CASE_0000.nii.gz, CASE_0001.nii.gz, … (a file a channel), CASE.nii.gz (one channel, or all in one 4D
            file), and subfolders that hold a DICOM series each; `imagesTs` of a data set where it has one
manifest    a CSV or Parquet table with case_id and image; see `fedvox.data.manifest_sources`
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedvox.data.manifest_sources import MANIFEST_ENDINGS, read_manifest
from fedvox.data.raw_dataset import Listing, RawCase
from fedvox.data.readers import NIFTI_ENDINGS
from fedvox.errors import DataError

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def find_cases(uri: str, channel_names: Sequence[str], *, modality: str | None = None) -> tuple[RawCase, ...]:
    """Lists the cases of a folder or manifest, by name.

    Args:
        uri: local or `s3://`.
        channel_names: of the model; each case must have as many.
        modality: of the cases; "CT" asks for plausible Hounsfield units.

    Raises:
        DataError: nothing to predict, a case without all its channels, or a name that cannot be used; all cases at
            fault are counted, and the first ones named.
    """
    count = len(channel_names)
    if uri.lower().endswith(MANIFEST_ENDINGS):
        cases = list(_manifest_cases(uri, count, modality))
    elif uri.lower().endswith(NIFTI_ENDINGS):
        cases = [_case(_stem(uri.rsplit("/", 1)[-1]), (uri,), count, modality)]
    else:
        cases = _folder_cases(Listing.of(uri), count, modality)
    if not cases:
        raise DataError(
            f"{uri} holds no image",
            "Put images there as CASE_0000.nii.gz (a file a channel), or give a manifest.",
            code="no_case",
            file=uri,
        )
    _check(cases, channel_names)
    return tuple(sorted(cases, key=lambda case: case.case_id))


def _manifest_cases(uri: str, count: int, modality: str | None) -> Sequence[RawCase]:
    dataset = read_manifest(uri, "manifest", labels={"background": 0}, modality=modality)
    if dataset.rejected:
        raise dataset.rejected[0].errors[0]
    return [_case(c.case_id, c.images, count, c.modality or modality, c.series_uid) for c in dataset.cases]


def _folder_cases(listing: Listing, count: int, modality: str | None) -> list[RawCase]:
    folder = "imagesTs/" if "imagesTs" in listing.folders else ""
    names = [name.removeprefix(folder) for name in listing.files if name.startswith(folder)]
    visible = [name for name in names if not name.rsplit("/", 1)[-1].startswith(".")]
    files = _by_case([n for n in visible if "/" not in n and n.lower().endswith(NIFTI_ENDINGS)], count)
    series = sorted(
        {n.split("/")[0] for n in visible if n.count("/") == 1 and not n.lower().endswith(NIFTI_ENDINGS)}
    )
    if files and folder == "":
        series = [name for name in series if name not in ("imagesTr", "labelsTr", "labelsTs")]
    images = {case: tuple(listing.path(folder + name) for name in found) for case, found in files.items()}
    images |= {name: (listing.path(folder + name),) for name in series}
    return [_case(case, found, count, modality) for case, found in images.items()]


def _by_case(names: Sequence[str], count: int) -> dict[str, list[str]]:
    """File names of each case, in the order of their channels.

    `_0001` is a channel if the model has so many, or if there is a `_0000` beside it; otherwise a part of the name.
    """
    stems = {_stem(name) for name in names}
    cases: dict[str, list[str]] = {}
    for name in sorted(names):
        match = _CHANNEL.fullmatch(_stem(name))
        is_channel = match and (int(match["channel"]) < count or f"{match['case']}_0000" in stems)
        cases.setdefault(match["case"] if match and is_channel else _stem(name), []).append(name)
    return cases


def _case(
    name: str, images: tuple[str, ...], count: int, modality: str | None, series_uid: str | None = None
) -> RawCase:
    return RawCase(
        name, "prediction", "prediction", images, series_uid=series_uid, modality=modality, num_channels=count
    )


def _check(cases: Sequence[RawCase], channel_names: Sequence[str]) -> None:
    count = len(channel_names)
    wrong = [case for case in cases if not _is_complete(case, count)]
    if wrong:
        named = "; ".join(
            f"{c.case_id} has {', '.join(i.rsplit('/', 1)[-1] for i in c.images)}" for c in wrong[:3]
        )
        raise DataError(
            f"{len(wrong)} of {len(cases)} cases do not have the {count} channels of the model "
            f"({', '.join(channel_names)}): {named}",
            "Give a file a channel, in this order: "
            + ", ".join(f"CASE_{index:04d}.nii.gz {name}" for index, name in enumerate(channel_names)),
            code="channel_count",
            file=wrong[0].images[0],
        )
    seen: set[str] = set()
    for case in cases:
        if not _CASE_ID.fullmatch(case.case_id):
            raise DataError(
                f"{case.images[0]}: {case.case_id!r} cannot name a case",
                "Use letters, digits, '.', '_' and '-'.",
                code="bad_case_id",
                file=case.images[0],
            )
        if case.case_id in seen:
            raise DataError(
                f"case {case.case_id} occurs twice",
                "Give every case a name of its own.",
                code="duplicate_case",
            )
        seen.add(case.case_id)


def _is_complete(case: RawCase, count: int) -> bool:
    """A file a channel, numbered from 0 where they are numbered; or one file, which is then to hold all channels."""
    stems = [image.rsplit("/", 1)[-1].split(".")[0] for image in case.images]
    numbers = [int(match["channel"]) for stem in stems if (match := _CHANNEL.fullmatch(stem))]
    if len(numbers) == len(stems) and _CHANNEL.sub(r"\g<case>", stems[0]) == case.case_id:
        return numbers == list(range(count))
    return len(stems) in (1, count)


def _stem(name: str) -> str:
    lowered = name.lower()
    ending = next(
        ending for ending in sorted(NIFTI_ENDINGS, key=len, reverse=True) if lowered.endswith(ending)
    )
    return name[: -len(ending)]
