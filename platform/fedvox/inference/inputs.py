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
    files: dict[str, dict[int, str]] = {}
    series: list[str] = []
    for name in listing.files:
        inside, _, last = name.removeprefix(folder).rpartition("/")
        if not name.startswith(folder) or last.startswith("."):
            continue
        if inside and "/" not in inside and not last.lower().endswith(NIFTI_ENDINGS):
            series.append(inside)
        elif not inside and last.lower().endswith(NIFTI_ENDINGS):
            match = _CHANNEL.fullmatch(_stem(last))
            case, channel = (match["case"], int(match["channel"])) if match else (_stem(last), -1)
            files.setdefault(case, {})[channel] = listing.path(name)
    cases = [
        _case(case, tuple(channels[index] for index in sorted(channels)), count, modality)
        for case, channels in files.items()
    ]
    if not folder or not cases:
        cases += [
            _case(name, (listing.path(folder + name),), count, modality) for name in dict.fromkeys(series)
        ]
    return cases


def _case(
    name: str, images: tuple[str, ...], count: int, modality: str | None, series_uid: str | None = None
) -> RawCase:
    return RawCase(
        name, "prediction", "prediction", images, series_uid=series_uid, modality=modality, num_channels=count
    )


def _check(cases: Sequence[RawCase], channel_names: Sequence[str]) -> None:
    count = len(channel_names)
    wrong = [case for case in cases if len(case.images) not in (1, count)]
    if wrong:
        named = "; ".join(f"{case.case_id} has {len(case.images)}" for case in wrong[:3])
        raise DataError(
            f"{len(wrong)} of {len(cases)} cases do not have the {count} channels of the model "
            f"({', '.join(channel_names)}): {named}",
            f"Give {count} file{'s' * (count > 1)} a case, CASE_0000.nii.gz to CASE_{count - 1:04d}.nii.gz, in this order.",
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


def _stem(name: str) -> str:
    lowered = name.lower()
    ending = next(
        ending for ending in sorted(NIFTI_ENDINGS, key=len, reverse=True) if lowered.endswith(ending)
    )
    return name[: -len(ending)]
