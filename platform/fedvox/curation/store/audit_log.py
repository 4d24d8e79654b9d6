"""The audit log: append-only, and chained by hashes, so that a line changed behind the program's back shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from fedvox.curation.store import schema
from fedvox.curation.store.database import Database
from fedvox.curation.store.records import AuditEntry
from fedvox.errors import DataError


def now() -> str:
    """The time as the store writes it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def note(connection: Connection, actor: str, action: str, case_id: str = "", **details: Any) -> None:
    """Append a line within the transaction that does what it tells.

    Args:
        connection: of a write transaction.
        actor: person or job.
        action: what is done.
        case_id: on which case.
        **details: of the action, as JSON holds them.
    """
    table = schema.audit
    last = connection.execute(
        select(table.c.sequence, table.c.sha256).order_by(table.c.sequence.desc()).limit(1)
    ).first()
    sequence, before = (0, "") if last is None else (last.sequence, last.sha256)
    line = {
        "sequence": sequence + 1,
        "created": now(),
        "actor": actor,
        "action": action,
        "case_id": case_id,
        "details": json.dumps(details, sort_keys=True),
    }
    connection.execute(insert(table), {**line, "sha256": _chained(before, line)})


class AuditLog:
    """Reads and verifies the audit log.

    Args:
        database: of the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def entries(self, case_id: str | None = None, *, last: int | None = None) -> list[AuditEntry]:
        """Lines in order.

        Args:
            case_id: only of this case.
            last: only so many, the newest.
        """
        table = schema.audit
        wanted = select(table).order_by(table.c.sequence.desc())
        if case_id is not None:
            wanted = wanted.where(table.c.case_id == case_id)
        if last is not None:
            wanted = wanted.limit(last)
        with self._database.read() as connection:
            return [_entry(row) for row in reversed(connection.execute(wanted).all())]

    def verify(self) -> int:
        """Follow the chain from its beginning.

        Returns:
            The number of lines.

        Raises:
            DataError: audit_broken, with the first line that is missing or was changed.
        """
        before, count = "", 0
        for count, row in enumerate(self._rows(), 1):
            line = {name: row[name] for name in row if name != "sha256"}
            if row["sequence"] != count or row["sha256"] != _chained(before, line):
                raise DataError(
                    f"{self._database.url}: line {count} of the audit log is missing or was changed",
                    "Somebody wrote to the database by other means; compare with a copy.",
                    code="audit_broken",
                )
            before = row["sha256"]
        return count

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        with self._database.read() as connection:
            found = connection.execution_options(yield_per=1000).execute(
                select(schema.audit).order_by(schema.audit.c.sequence)
            )
            for row in found.mappings():
                yield dict(row)


def _chained(before: str, line: Mapping[str, Any]) -> str:
    return hashlib.sha256((before + json.dumps(line, sort_keys=True)).encode()).hexdigest()


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        row.sequence, row.created, row.actor, row.action, row.case_id, json.loads(row.details), row.sha256
    )
