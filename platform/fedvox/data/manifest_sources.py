"""A data set that is a table: a CSV or Parquet manifest with a row a case.

    case_id    image                             label                 source
    p0001      s3://hospital/p0001/ct.nii.gz     labels/p0001.nii.gz   hospital_a
    p0002      dicom/p0002;dicom/p0002_contrast  labels/p0002.nii.gz   hospital_b

Columns: `case_id`; `image`, where several channels are separated by `;`, or a column a channel (`image_0000`,
`image_0001`, ...); `label`; optionally `source`, `labels` (a file that names the label values), `series_uid` and
`modality`. Relative paths start at the manifest's folder. Other columns are left alone.

The label values are named by the `labels` column, by the configuration, or by a file beside the manifest
(`cohort.labels.json` or `.yaml` for `cohort.csv`): `{"liver": 1}`, or a mapping for each source.
"""

from __future__ import annotations

import difflib
import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import yaml

from fedvox.config import parse_scalar
from fedvox.data.label_space import SourceLabels, parse_labels
from fedvox.data.raw_dataset import RawCase, RawDataset, Rejected
from fedvox.errors import DataError
from fedvox.storage import Location, exists, locate, read_bytes

MANIFEST_ENDINGS = (".csv", ".parquet")
_CHANNEL_COLUMN = re.compile(r"image_\d{4}")
_Row = dict[str, str]


def read_manifest(
    uri: str,
    name: str,
    *,
    labels: Mapping[str, Any] | str | None = None,
    channel_names: tuple[str, ...] | None = None,
    modality: str | None = None,
) -> RawDataset:
    """Lists the cases of a manifest.

    Args:
        uri: of the CSV or Parquet file.
        name: of the data set, and of the source of rows which name none.
        labels: meaning of the label values: a mapping, or the file that holds it.
        channel_names: one a channel; by default the modality, or `channel_0`, ....
        modality: of rows which name none.

    Raises:
        DataError: missing_file, bad_manifest, bad_labels or missing_labels.
    """
    manifest = locate(uri)
    rows = _rows(manifest, uri)
    images = [_images(row) for row in rows]
    channels = channel_names or _channel_names(max(map(len, images)), modality)
    found_labels = _label_sets(rows, manifest, name, labels)
    cases, rejected = [], []
    for number, (row, files) in enumerate(zip(rows, images, strict=True), start=2):  # row 1 is the header
        source = row.get("source") or name
        errors = _row_errors(row, files, channels, f"{uri}, row {number}")
        if errors:
            rejected.append(Rejected(row.get("case_id") or f"row {number}", source, tuple(errors)))
        else:
            case = _case(row, files, manifest, name, modality)
            cases.append(replace(case, num_channels=len(channels)))
    modalities = {case.modality for case in cases}
    only = next(iter(modalities)) if len(modalities) == 1 else None
    return RawDataset(
        name=name,
        format="manifest",
        root=uri,
        channel_names=channels,
        modality=only or "other",
        labels=found_labels,
        cases=tuple(cases),
        rejected=tuple(rejected),
    )


def _case(row: _Row, files: list[str], manifest: Location, name: str, modality: str | None) -> RawCase:
    label = row.get("label")
    return RawCase(
        case_id=row["case_id"],
        source=row.get("source") or name,
        label_set=_label_set(row, name),
        images=tuple(_absolute(path, manifest) for path in files),
        label=_absolute(label, manifest) if label else None,
        series_uid=row.get("series_uid"),
        modality=row.get("modality") or modality,
    )


def _rows(manifest: Location, uri: str) -> list[_Row]:
    """The non-empty cells of each row, as text."""
    if not exists(manifest):
        raise DataError(f"{uri} does not exist", "Correct the path.", code="missing_file", file=uri)
    data = read_bytes(manifest)
    try:
        table = _parquet(data) if manifest.name.endswith(".parquet") else _csv(data)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _bad(uri, f"cannot be read: {error}") from None
    _check_columns(table.column_names, uri)
    rows = [{key: text for key, value in row.items() if (text := _text(value))} for row in table.to_pylist()]
    if not rows:
        raise _bad(uri, "has no rows")
    return rows


def _csv(data: bytes) -> pa.Table:
    names = pa.csv.open_csv(io.BytesIO(data)).schema.names
    as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(io.BytesIO(data), convert_options=as_text)


def _parquet(data: bytes) -> pa.Table:
    return pa.parquet.read_table(pa.BufferReader(data))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _check_columns(names: list[str], uri: str) -> None:
    has_image = "image" in names or any(_CHANNEL_COLUMN.fullmatch(name) for name in names)
    missing = [
        column for column, there in (("case_id", "case_id" in names), ("image", has_image)) if not there
    ]
    if missing:
        near = [difflib.get_close_matches(column, names, n=1) for column in missing]
        hints = [
            f"rename {match[0]!r} to {column!r}" for column, match in zip(missing, near, strict=True) if match
        ]
        hint = f" ({'; '.join(hints)}?)" if hints else ""
        raise _bad(uri, f"lacks the column {' and '.join(missing)}{hint}; it has {', '.join(names)}")


def _images(row: _Row) -> list[str]:
    columns = sorted(column for column in row if _CHANNEL_COLUMN.fullmatch(column))
    if columns:
        return [row[column] for column in columns]
    return [path.strip() for path in row.get("image", "").split(";") if path.strip()]


def _channel_names(count: int, modality: str | None) -> tuple[str, ...]:
    if count == 1:
        return (modality or "image",)
    return tuple(f"channel_{index}" for index in range(count))


def _row_errors(row: _Row, files: list[str], channels: tuple[str, ...], where: str) -> list[DataError]:
    errors = []
    if "case_id" not in row:
        errors.append(DataError(f"{where} has no case_id", "Fill it in.", code="bad_manifest", file=where))
    if not files:
        errors.append(DataError(f"{where} has no image", "Fill it in.", code="missing_image", file=where))
    elif len(files) not in (1, len(channels)):  # a single file may hold all channels
        text = f"{where} has {len(files)} images, where there are {len(channels)} channels"
        errors.append(DataError(text, "Give one image a channel.", code="channel_count", file=where))
    return errors


def _absolute(path: str, manifest: Location) -> str:
    if "://" in path or PurePosixPath(path).is_absolute():
        return path
    return manifest.parent.child(path.removeprefix("./")).uri


# ---- names of label values ---------------------------------------------------------------------------------


def _label_set(row: _Row, name: str) -> str:
    source = row.get("source") or name
    file = row.get("labels")
    return f"{source}~{zlib.crc32(file.encode()):08x}" if file else source


def _label_sets(
    rows: list[_Row], manifest: Location, name: str, given: Mapping[str, Any] | str | None
) -> dict[str, SourceLabels]:
    common: Mapping[str, Any] | None = None
    where = f"{manifest.uri}: the configured labels"
    if isinstance(given, str):
        where = _absolute(given, manifest)
        common = _load(where)
    elif given is not None:
        common = given
    elif (beside := _beside(manifest)) is not None:
        where = beside
        common = _load(where)
    found: dict[str, SourceLabels] = {}
    for row in rows:
        key = _label_set(row, name)
        if key in found:
            continue
        if "labels" in row:
            file = _absolute(row["labels"], manifest)
            found[key] = parse_labels(_load(file), file)
        elif common is not None:
            found[key] = _for_source(common, row.get("source") or name, where)
        elif "label" in row:
            raise _unnamed(manifest)
        else:
            found[key] = SourceLabels(())
    return found


def _beside(manifest: Location) -> str | None:
    stem = manifest.name.rpartition(".")[0]
    files = [manifest.parent.child(f"{stem}.labels.{ending}") for ending in ("json", "yaml", "yml")]
    return next((file.uri for file in files if exists(file)), None)


def _load(uri: str) -> Mapping[str, Any]:
    location = locate(uri)
    if not exists(location):
        raise DataError(f"{uri} does not exist", "Correct the path.", code="missing_file", file=uri)
    try:
        content = parse_scalar(read_bytes(location).decode())  # JSON is a part of YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad_labels_file(uri, f"is neither JSON nor YAML: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        content = content["labels"]  # a whole dataset.json
    if not isinstance(content, dict) or not content:
        raise _bad_labels_file(uri, "holds no mapping of label names to values")
    return content


def _for_source(common: Mapping[str, Any], source: str, where: str) -> SourceLabels:
    if not all(isinstance(value, dict) for value in common.values()):
        return parse_labels(common, where)
    if source not in common:
        raise _bad_labels_file(where, f"names no labels for the source {source!r}")
    return parse_labels(common[source], f"{where}, {source}")


def _unnamed(manifest: Location) -> DataError:
    stem = manifest.name.rpartition(".")[0]
    return DataError(
        f"{manifest.uri} has labels whose values are not named",
        f'Write {stem}.labels.json beside it, {{"background": 0, "liver": 1}}, or add a column `labels`.',
        code="missing_labels",
        file=manifest.uri,
    )


def _bad_labels_file(uri: str, found: str) -> DataError:
    remedy = 'Write {"background": 0, "liver": 1, ...}, or such a mapping for each source.'
    return DataError(f"{uri} {found}", remedy, code="bad_labels", file=uri)


def _bad(uri: str, found: str) -> DataError:
    remedy = "Write a CSV or Parquet table with the columns case_id, image, label, source."
    return DataError(f"{uri} {found}", remedy, code="bad_manifest", file=uri)
