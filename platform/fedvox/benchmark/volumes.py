"""Files of a benchmark: which cases a folder holds, and how they are written without ever being half there."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvox.errors import DataError

ENDINGS = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def list_volumes(folder: Path) -> dict[str, Path]:
    """Label maps of a folder: case -> file, sorted by case.

    Raises:
        DataError: the folder is missing or holds none, or a case has two files.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder", "Give the folder which holds CASE.nii.gz.", code="missing_folder"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in ENDINGS if path.name.endswith(e)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        case = path.name[: -len(ending)]
        if case in found:
            raise DataError(
                f"{folder} holds case {case!r} as .nii and as .nii.gz", "Keep one of them.", code="twice"
            )
        found[case] = path
    if not found:
        raise DataError(f"{folder} holds no label map", "Put CASE.nii.gz into it.", code="empty_folder")
    return dict(sorted(found.items()))


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Images of a folder, nnU-Net's way: case -> CASE_0000.nii.gz, CASE_0001.nii.gz … in the order of channels.

    Raises:
        DataError: the folder is missing, or a file does not end in a channel's number.
    """
    found: dict[str, list[Path]] = {}
    for name, path in list_volumes(folder).items():
        match = _CHANNEL.fullmatch(name)
        if match is None:
            raise DataError(
                f"{path} does not say which channel it is", f"Name it {name}_0000.nii.gz.", code="image_name"
            )
        found.setdefault(match["case"], []).append(path)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON like `write_text`."""
    write_text(path, to_json(value, indent=1) + "\n")


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON text. NaN and infinity become null, as JSON has neither."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
