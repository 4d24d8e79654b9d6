"""Which code runs: hashes of an app bundle, and the list of those that a clinic approved.

Flower hands every SuperNode the app of whoever starts a run. A clinic reads a version of it, notes its hash, and from
then on answers to nothing else. The hash is over names and contents of the files that can run or configure, below the
app's source roots; line endings of a README do not matter.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedvox.errors import ConfigError, DataError

SOURCE_ROOTS = ("platform", "federation", "compliance")
"""What the app's entry puts on Python's path."""
_HASHED_FOLDERS = (*SOURCE_ROOTS, "jobs/configs")
_SUFFIXES = (".py", ".toml", ".yaml", ".yml", ".json")
ENTRY = "federation/flower_entry.py"
"""What Flower loads."""
SCHEMA = "fedvox.approved-bundles/1"


def is_hashed(name: str) -> bool:
    """Whether the hash is over a file of this name, relative to the app's root."""
    path = PurePosixPath(name)
    inside = any(path.is_relative_to(folder) for folder in _HASHED_FOLDERS)
    return inside and path.suffix in _SUFFIXES and "__pycache__" not in path.parts


def bundle_files(root: Path) -> dict[str, Path]:
    """The files that the hash is over, by name."""
    found = (path for folder in _HASHED_FOLDERS for path in (root / folder).rglob("*"))
    named = {path.relative_to(root).as_posix(): path for path in found}
    return {name: path for name, path in named.items() if is_hashed(name) and path.is_file()}


def bundle_sha256(root: Path) -> str:
    """Hash of an app: a checkout, or what Flower unpacked.

    Raises:
        ConfigError: there is no app in the folder.
    """
    files = bundle_files(root)
    if ENTRY not in files:
        raise ConfigError(
            f"{root} holds no app of Fedvox", "Name a checkout, or a folder that Flower unpacked."
        )
    return hash_of_files((name, files[name].read_bytes()) for name in sorted(files))


def hash_of_files(files: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names and contents, in the order given."""
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Approval:
    """One approved version.

    Attributes:
        sha256: of the bundle.
        at: when, UTC.
        by: by whom.
        note: free.
    """

    sha256: str
    at: str
    by: str
    note: str = ""


def read_approvals(path: Path) -> tuple[Approval, ...]:
    """The clinic's list; empty where there is no file: nothing is approved.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return ()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise ValueError(value["schema"])
        return tuple(Approval(**one) for one in value["approved"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no list of approved bundles: {error!r}", "Approve again.") from None


def approve(path: Path, root: Path, *, by: str, note: str = "") -> Approval:
    """Add a bundle to the clinic's list.

    Raises:
        StorageError: the list cannot be written.
    """
    from fedvox import storage  # pyarrow and numpy: not for `--help`

    known = read_approvals(path)
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    new = Approval(bundle_sha256(root), now, by, note)
    rest = [one for one in known if one.sha256 != new.sha256]
    value = {"schema": SCHEMA, "approved": [vars(one) for one in (*rest, new)]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage.storage_error(error, str(path)) from error
    storage.write_atomic(storage.locate(path), (json.dumps(value, indent=1) + "\n").encode())
    return new


def is_approved(path: Path, sha256: str) -> bool:
    """Whether the clinic approved exactly this."""
    return any(one.sha256 == sha256 for one in read_approvals(path))
