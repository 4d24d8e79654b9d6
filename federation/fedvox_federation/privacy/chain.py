"""An append-only file in which no line can be changed, removed or lost unnoticed.

    folder/
        ledger.jsonl    one line per entry, in canonical JSON, each naming the hash of the line before
        head.json       number and hash of the last entry known to be on disk
        .lock           held while a line is written

A line is on disk (`fsync`) before `append` returns, and only then does the head follow. Hence after a crash, at
any byte:

- a line without its end was never acknowledged. It stays where it is; the next entry is preceded by one of kind
  `recovered` that declares its length and hash, so that the file is never shortened, not even by us;
- a whole line beyond the head counts;
- a line missing before the head is not what a crash does to an fsynced file: somebody cut or changed it, or an
  old copy was restored. Reading refuses.

Whoever can write the folder could still replace both files by older ones of the same age. Heads that are kept
elsewhere (`--contains` of `fedvox-federation ledger verify`) show that.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvox.errors import StorageError
from fedvox_compliance.canonical import NotCanonical, canonical_json, parse_canonical, sha256_of
from fedvox_compliance.errors import ComplianceError
from fedvox_compliance.files import sync_folder, write_atomic
from fedvox_compliance.instant import format_instant
from fedvox_compliance.locking import folder_lock
from fedvox_federation.errors import LedgerDamaged

LEDGER_FILE = "ledger.jsonl"
HEAD_FILE = "head.json"
RECOVERED = "recovered"
START = "0" * 64
_TORN_MARK = b"#torn\n"
"""Ends a torn line, so that one which only lacks its end does not come true by ours."""
_ASK = "Do not train. Keep the folder as it is, and have the data protection officer look at it."


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        n: counts from 1.
        at: UTC, as text.
        kind: what it says.
        body: the rest, plain JSON.
        prev: hash of the line before.
        sha256: hash of this one.
    """

    n: int
    at: str
    kind: str
    body: Mapping[str, Any]
    prev: str
    sha256: str


@dataclass(frozen=True)
class Chain:
    """All entries of a folder, and what follows the last whole one.

    Attributes:
        entries: in order, `recovered` ones included.
        torn: bytes after the last whole entry, left by a crash while writing.
    """

    entries: tuple[Entry, ...]
    torn: bytes = b""

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self.entries[-1].sha256 if self.entries else START


def exists(folder: Path) -> bool:
    """Whether the folder holds a chain, whole or damaged."""
    if (folder / LEDGER_FILE).exists():
        return True
    head = _read_head(folder)
    return head is not None and head[0] > 1  # a head of 1 without a ledger: a crash while it was created


def create(folder: Path, kind: str, body: Mapping[str, Any]) -> Chain:
    """Start a chain with its first entry.

    Raises:
        StorageError: the folder holds one already, or cannot be written.
    """
    with _storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with folder_lock(folder):
            if exists(folder):
                raise StorageError(
                    f"{folder}: holds a privacy ledger already", "Open it, or name another folder."
                )
            first = _entry(Chain(()), kind, body)
            _write_head(folder, first)  # first, so that a ledger without a head is never innocent
            write_atomic(folder / LEDGER_FILE, _line(first))
    return Chain((first,))


def read(folder: Path) -> Chain:
    """All entries, each checked.

    Raises:
        StorageError: no ledger there, or it cannot be read.
        LedgerDamaged: entries were changed, removed, cut off, or the head is gone.
    """
    path = folder / LEDGER_FILE
    with _storage_errors(folder):
        if not exists(folder):
            raise StorageError(f"{folder}: holds no privacy ledger", "Check the path.")
        head = _read_head(folder)  # before the ledger: a writer in between only adds lines beyond it
        data = path.read_bytes() if path.exists() else b""
    chain = _scan(data)
    _check_head(folder, chain, head)
    return chain


def append(folder: Path, seen: Chain, kind: str, body: Mapping[str, Any]) -> Chain | None:
    """Add an entry, on disk when this returns.

    Args:
        folder: of the chain.
        seen: the chain on which the decision to add this entry was made.
        kind: of the entry.
        body: plain JSON.

    Returns:
        The longer chain, or None if somebody else has added entries since `seen`: look again, decide again.

    Raises:
        StorageError: not written, or perhaps only in part; nothing was acknowledged.
        LedgerDamaged: see `read`.
    """
    with _storage_errors(folder), folder_lock(folder):
        chain = read(folder)
        if chain.head != seen.head:
            return None
        if chain.torn:
            chain = _write(folder, chain, RECOVERED, _description(chain.torn + _TORN_MARK), before=_TORN_MARK)
        return _write(folder, chain, kind, body)


def _write(folder: Path, chain: Chain, kind: str, body: Mapping[str, Any], before: bytes = b"") -> Chain:
    entry = _entry(chain, kind, body)
    handle = os.open(folder / LEDGER_FILE, os.O_WRONLY | os.O_APPEND)
    try:
        rest = before + _line(entry)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    _write_head(folder, entry)
    return Chain((*chain.entries, entry))


def _entry(chain: Chain, kind: str, body: Mapping[str, Any]) -> Entry:
    fields: dict[str, Any] = {
        "n": len(chain.entries) + 1,
        "at": format_instant(dt.datetime.now(dt.UTC)),
        "kind": kind,
        "body": dict(body),
        "prev": chain.head,
    }
    return Entry(**fields, sha256=sha256_of(fields))


def _line(entry: Entry) -> bytes:
    return canonical_json({**vars(entry)}) + b"\n"


def _scan(data: bytes) -> Chain:
    chain, offset = Chain(()), 0
    while offset < len(data):
        entry, end = _entry_at(data, offset, chain)
        if entry is None or entry.kind == RECOVERED:
            entry, end = _entry_after_torn(data, offset, chain)
        if entry is None:
            return Chain(chain.entries, data[offset:])
        chain, offset = Chain((*chain.entries, entry)), end
    return chain


def _entry_at(data: bytes, start: int, chain: Chain) -> tuple[Entry | None, int]:
    """The entry on the line at `start` if it is whole and the next of the chain, and where its line ends."""
    newline = data.find(b"\n", start)
    if newline < 0:
        return None, len(data)
    entry = _parse(data[start:newline])
    if entry is None or entry.n != len(chain.entries) + 1 or entry.prev != chain.head:
        return None, newline + 1
    return entry, newline + 1


def _entry_after_torn(data: bytes, start: int, chain: Chain) -> tuple[Entry | None, int]:
    """The `recovered` entry that declares exactly the bytes from `start` up to itself."""
    newline = data.find(b"\n", start)
    while newline >= 0:
        begin = newline + 1
        entry, end = _entry_at(data, begin, chain)
        if entry is not None and entry.kind == RECOVERED and entry.body == _description(data[start:begin]):
            return entry, end
        newline = data.find(b"\n", begin)
    return None, len(data)


def _description(torn: bytes) -> dict[str, Any]:
    return {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}


def _parse(line: bytes) -> Entry | None:
    try:
        fields = parse_canonical(line)
        entry = Entry(**fields)
    except (NotCanonical, TypeError):
        return None
    claimed = fields.pop("sha256")
    return entry if isinstance(entry.body, dict) and claimed == sha256_of(fields) else None


def _write_head(folder: Path, entry: Entry) -> None:
    write_atomic(folder / HEAD_FILE, canonical_json({"n": entry.n, "sha256": entry.sha256}) + b"\n")
    sync_folder(folder)


def _read_head(folder: Path) -> tuple[int, str] | None:
    path = folder / HEAD_FILE
    if not path.exists():
        return None
    try:
        fields = parse_canonical(path.read_bytes().removesuffix(b"\n"))
        return int(fields["n"]), str(fields["sha256"])
    except (NotCanonical, KeyError, TypeError, ValueError):
        raise LedgerDamaged(f"{path}: not readable", _ASK) from None


def _check_head(folder: Path, chain: Chain, head: tuple[int, str] | None) -> None:
    found = len(chain.entries)
    if head is None:
        raise LedgerDamaged(f"{folder / HEAD_FILE} is missing beside a ledger of {found} entries", _ASK)
    number, sha256 = head
    if number > found:
        raise LedgerDamaged(
            f"{folder / LEDGER_FILE}: {number} entries were written, {found} are whole; "
            f"entry {found + 1} was changed, cut off or removed",
            _ASK,
        )
    if number < 1 or chain.entries[number - 1].sha256 != sha256:
        raise LedgerDamaged(f"{folder / LEDGER_FILE}: entry {number} is not the one that was written", _ASK)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except ComplianceError as error:  # of the shared functions for files and locks
        raise StorageError(error.message, error.remedy) from error
    except OSError as error:
        raise StorageError(
            f"{folder}: privacy ledger: {error.strerror or error}", "Check free space and your rights on it."
        ) from error
