"""Evidence files: copied into the assessment's folder, hashed, and compared later.

The name on disk is made from the hash and a harmless form of the original name, so a document can neither
overwrite another nor leave the folder.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fedvox_compliance.assessment import Assessment, Evidence
from fedvox_compliance.errors import EvidenceError
from fedvox_compliance.files import EVIDENCE_FOLDER, sync_folder

_CHUNK = 2**20
MAX_EVIDENCE_BYTES = 256 * 2**20


class EvidenceState(StrEnum):
    """What became of a document's file. One that cannot be read shows nothing, like one that is missing."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    MISSING = "missing"
    UNREADABLE = "unreadable"


def copy_into_folder(folder: Path, file: Path, *, keep_name: bool = False) -> tuple[str, str]:
    """Copy a document into the evidence folder, atomically.

    Args:
        folder: the assessment's folder.
        file: the document.
        keep_name: the name is one that this function gave already (a copy of the folder is being merged).

    Returns:
        Its path relative to `folder`, and its SHA-256.

    Raises:
        EvidenceError: not a readable file, empty, or too large.
    """
    _require_document(file)
    target_folder = folder / EVIDENCE_FOLDER
    try:
        target_folder.mkdir(mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target_folder, prefix=".incoming.")
        try:
            with file.open("rb") as source, os.fdopen(handle, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
                target.flush()
                os.fsync(target.fileno())
            digest = sha256_of_file(Path(temporary))
            name = safe_name(file.name) if keep_name else f"{digest[:12]}-{safe_name(file.name)}"
            Path(temporary).replace(target_folder / name)
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(target_folder)
    except OSError as wrong:
        raise EvidenceError(
            f"{file}: cannot be copied: {wrong.strerror}", "Check free space and your rights."
        ) from None
    return f"{EVIDENCE_FOLDER}/{name}", digest


def place_of(file: Path) -> tuple[str, str]:
    """Where `copy_into_folder` would put a document, and its SHA-256, without copying it yet.

    Raises:
        EvidenceError: not a readable file, empty, or too large.
    """
    _require_document(file)
    try:
        digest = sha256_of_file(file)
    except OSError as wrong:
        raise EvidenceError(f"{file}: {wrong.strerror}", "Check your rights on it.") from None
    return f"{EVIDENCE_FOLDER}/{digest[:12]}-{safe_name(file.name)}", digest


def inside(folder: Path, relative: str) -> Path | None:
    """A file of a folder by its relative path; None if there is none, or if the path or a link leads out of it."""
    try:
        path = (folder / relative).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a character that no file name holds
        return None


def sha256_of_file(path: Path) -> str:
    """SHA-256, in hex, of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(name: str) -> str:
    """A file name reduced to letters, digits, dot, dash and underscore, its extension kept."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  (a name, not a path)
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-.")[:60] or "document"
    return clean + re.sub(r"[^A-Za-z0-9.]", "", suffix)[:12]


def state_of(document: Evidence, folder: Path) -> EvidenceState:
    """Whether a document's file is still what was hashed. A link out of the folder counts as missing."""
    path = inside(folder, document.path)
    if path is None:
        return EvidenceState.MISSING
    try:
        digest = sha256_of_file(path)
    except OSError:
        return EvidenceState.UNREADABLE
    return EvidenceState.UNCHANGED if digest == document.sha256 else EvidenceState.CHANGED


@dataclass(frozen=True)
class DocumentUse:
    """One document and all that it is attached to.

    Attributes:
        last_day: the latest on which it counts in full for one of its controls.
    """

    sha256: str
    path: str
    state: EvidenceState
    last_day: dt.date
    controls: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "sha256": self.sha256,
            "path": self.path,
            "state": self.state.value,
            "last_day": self.last_day.isoformat(),
            "controls": list(self.controls),
        }


def inventory(assessment: Assessment, folder: Path) -> tuple[DocumentUse, ...]:
    """All documents of an assessment, each once, by path."""
    uses: dict[tuple[str, str], list[tuple[str, Evidence]]] = {}
    for control_id, entry in assessment.entries.items():
        for document in entry.evidence:
            uses.setdefault((document.path, document.sha256), []).append((control_id, document))
    return tuple(
        DocumentUse(
            sha256=digest,
            path=path,
            state=state_of(found[0][1], folder),
            last_day=max(d.last_day for _, d in found),
            controls=tuple(i for i, _ in found),
        )
        for (path, digest), found in sorted(uses.items())
    )


def _require_document(file: Path) -> None:
    try:
        if not file.is_file():
            raise EvidenceError(f"{file}: no such file", "Check the path.")
        size = file.stat().st_size
    except (OSError, ValueError) as wrong:
        raise EvidenceError(f"{file}: {wrong}", "Check the path.") from None
    if size == 0:
        raise EvidenceError(f"{file}: is empty, and shows nothing", "Choose the document itself.")
    if size > MAX_EVIDENCE_BYTES:
        raise EvidenceError(
            f"{file}: larger than {MAX_EVIDENCE_BYTES // 2**20} MiB", "Attach an extract of it."
        )
