"""Reading and writing an assessment: after a crash there is the old file or the new one, never half of it.

An assessment is a folder that only its owner can read (the answers list a clinic's weaknesses):

    clinic-a/
        assessment.json     the present state
        history.jsonl       every change that led to it, hash-chained; see `fedvox_compliance.history`
        evidence/           the documents, copied in
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedvox_compliance.assessment import Assessment, to_jsonable
from fedvox_compliance.canonical import NotCanonical, parse_strict
from fedvox_compliance.errors import AssessmentError, UsageError

ASSESSMENT_FILE = "assessment.json"
HISTORY_FILE = "history.jsonl"
EVIDENCE_FOLDER = "evidence"
MAX_BYTES = 32 * 2**20
"""An honest assessment has about 0.2 MB; what is larger than this is not one."""
_SHOWN_PROBLEMS = 8


def load_assessment(path: str | os.PathLike[str]) -> Assessment:
    """Read an assessment from its folder, or from a single JSON file.

    From a folder, changes that reached the history but not the state file (a crash between the two) are
    included.

    Raises:
        AssessmentError: no such file, or its content cannot be used; every problem is named.
        IntegrityError: state and history contradict each other.
    """
    where = Path(path)
    if where.is_dir():
        from fedvox_compliance.history import read_state

        return read_state(where)
    return parse_assessment(read_limited(where), source=str(where))


def save_assessment(assessment: Assessment, path: str | os.PathLike[str]) -> None:
    """Write an assessment atomically to one JSON file (a folder stands for its `assessment.json`)."""
    where = Path(path)
    if where.is_dir():
        where = where / ASSESSMENT_FILE
    text = json.dumps(to_jsonable(assessment), ensure_ascii=False, indent=1)
    write_atomic(where, (text + "\n").encode("utf-8"))


def parse_assessment(data: bytes, *, source: str) -> Assessment:
    """Validate an assessment's JSON text.

    Raises:
        AssessmentError: it is not JSON, repeats a key, or does not fit the schema; every problem is named.
    """
    parse_json(data, source=source)
    try:
        return Assessment.model_validate_json(data)
    except ValidationError as wrong:
        raise AssessmentError(
            describe_problems(wrong, source), "Correct the file, or restore it from a copy."
        ) from None


def parse_json(data: bytes, *, source: str) -> Any:
    """Parse JSON strictly: a reviewer and a program must not see different values in the same file.

    Raises:
        AssessmentError: not JSON in UTF-8, nested without end, or a key is repeated.
    """
    try:
        return parse_strict(data)
    except NotCanonical as wrong:
        raise AssessmentError(f"{source}: not readable as JSON: {wrong}", "Choose the right file.") from None


def describe_problems(wrong: ValidationError, source: str) -> str:
    """Pydantic's findings as lines that name the field, without repeating the answers themselves."""
    found = [
        f"{'.'.join(map(str, e['loc'])) or '(whole)'}: {_in_words(e['type'], e['msg'])}"
        for e in wrong.errors(include_url=False)
    ]
    shown = found[:_SHOWN_PROBLEMS] + (
        [f"and {len(found) - _SHOWN_PROBLEMS} more"] * (len(found) > _SHOWN_PROBLEMS)
    )
    return "\n  ".join([f"{source}: {len(found)} problem{'s' * (len(found) > 1)}", *shown])


def _in_words(kind: str, message: str) -> str:
    if kind == "string_pattern_mismatch" and r"\x00-\x08" in message:
        return "it holds a character that cannot be shown, or a line break where one line is asked for"
    return message.removeprefix("Value error, ")


@contextmanager
def problems_named(source: str) -> Iterator[None]:
    """What a person gave on the command line is checked by the models; say so in their words.

    Raises:
        UsageError: a model refused something; every problem is named.
    """
    try:
        yield
    except ValidationError as wrong:
        raise UsageError(describe_problems(wrong, source), "Correct it and try again.") from None


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a file that should be small.

    Raises:
        AssessmentError: it is missing, unreadable, no file, or larger than `limit` bytes.
    """
    try:
        if path.stat().st_size > limit:
            raise AssessmentError(f"{path}: larger than {limit // 2**20} MiB", "Choose the right file.")
        return path.read_bytes()
    except (OSError, ValueError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else wrong
        raise AssessmentError(f"{path}: {reason}", "Check the path and your rights on it.") from None


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a whole file or nothing: temporary name in the same folder, flushed to disk, then renamed.

    Raises:
        UsageError: the folder is missing, read-only or full.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as wrong:
        raise UsageError(
            f"{path}: cannot be written: {wrong.strerror}", "Check free space and your rights."
        ) from wrong
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can (Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
