"""What the checks found, kept per round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from fedvox.curation.store import schema
from fedvox.curation.store.audit_log import note
from fedvox.curation.store.database import Database
from fedvox.curation.store.records import Finding


def case_keys(connection: Connection) -> dict[str, int]:
    """Case id -> key of its row."""
    table = schema.cases
    rows = connection.execute(select(table.c.case_id, table.c.key))
    return {row.case_id: row.key for row in rows}


class FindingTable:
    """Findings of the checks.

    Args:
        database: of the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def replace(self, round: int, findings: Sequence[Finding], *, actor: str) -> None:
        """Write a round's findings in place of those it had, all of them or none."""
        table = schema.findings
        with self._database.write() as connection:
            keys = case_keys(connection)
            connection.execute(delete(table).where(table.c.round == round))
            rows = [
                {
                    "case_key": keys[one.case_id],
                    "version": one.version,
                    "round": round,
                    "structure": one.structure,
                    "rule": one.rule,
                    "severity": one.severity,
                    "evidence": json.dumps(dict(one.evidence)),
                    "picture": one.picture,
                }
                for one in findings
            ]
            if rows:
                connection.execute(insert(table), rows)
            note(connection, actor, "findings", round=round, count=len(rows))

    def of(self, *, round: int | None = None, case_id: str | None = None) -> list[Finding]:
        """Findings, the gravest of a case first; of one round or case, or all."""
        table, cases = schema.findings, schema.cases
        wanted = (
            select(table, cases.c.case_id)
            .join(cases, cases.c.key == table.c.case_key)
            .order_by(cases.c.case_id, table.c.severity.desc(), table.c.key)
        )
        if round is not None:
            wanted = wanted.where(table.c.round == round)
        if case_id is not None:
            wanted = wanted.where(cases.c.case_id == case_id)
        with self._database.read() as connection:
            return [_finding(row) for row in connection.execute(wanted)]


def _finding(row: Any) -> Finding:
    return Finding(
        case_id=row.case_id,
        version=row.version,
        round=row.round,
        structure=row.structure,
        rule=row.rule,
        severity=row.severity,
        evidence=json.loads(row.evidence),
        picture=row.picture,
    )
