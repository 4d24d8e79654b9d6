"""Rounds and their steps: what is done, so that a round goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from fedvox.curation.store import schema
from fedvox.curation.store.audit_log import note, now
from fedvox.curation.store.database import Database
from fedvox.errors import DataError


@dataclass(frozen=True)
class Round:
    """A round.

    Args:
        number: 1, 2, …; before the first, all is of round 0.
        created: ISO 8601, UTC.
        closed: the same; empty while it is open.
        settings: that it was opened with.
    """

    number: int
    created: str
    closed: str
    settings: Mapping[str, Any]


def current_round(connection: Connection) -> int:
    """The newest round's number; 0 before the first."""
    return int(connection.scalar(select(func.max(schema.rounds.c.number))) or 0)


class Rounds:
    """Opens and closes rounds, and remembers which of their steps are done.

    Args:
        database: of the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def current(self) -> int:
        """The newest round's number; 0 before the first."""
        with self._database.read() as connection:
            return current_round(connection)

    def open(self, settings: Mapping[str, Any], *, actor: str) -> int:
        """Begin a round, or go on with the one that is open.

        Args:
            settings: written down with a new round.
            actor: person or job.

        Returns:
            Its number.
        """
        table = schema.rounds
        with self._database.write() as connection:
            number = current_round(connection)
            last = connection.execute(select(table).where(table.c.number == number)).first()
            if last is not None and not last.closed:
                return number
            values = {
                "number": number + 1,
                "created": now(),
                "closed": "",
                "settings": json.dumps(dict(settings)),
            }
            connection.execute(insert(table), values)
            note(connection, actor, "open_round", round=number + 1)
            return number + 1

    def close(self, number: int, *, actor: str) -> None:
        """End a round.

        Raises:
            DataError: unknown_round.
        """
        table = schema.rounds
        with self._database.write() as connection:
            closed = connection.execute(
                update(table).where(table.c.number == number, table.c.closed == "").values(closed=now())
            )
            if closed.rowcount:
                note(connection, actor, "close_round", round=number)
            elif connection.execute(select(table).where(table.c.number == number)).first() is None:
                raise DataError(f"there is no round {number}", "fedvox curate rounds.", code="unknown_round")

    def all(self) -> list[Round]:
        """Every round in order."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.rounds).order_by(schema.rounds.c.number))
            return [Round(row.number, row.created, row.closed, json.loads(row.settings)) for row in rows]

    def finish_step(self, number: int, step: str, result: Mapping[str, Any], *, actor: str) -> None:
        """Remember that a step of a round is done; a second time changes nothing."""
        with self._database.write() as connection:
            if _step(connection, number, step) is not None:
                return
            values = {"round": number, "step": step, "finished": now(), "result": json.dumps(dict(result))}
            connection.execute(insert(schema.steps), values)
            note(connection, actor, "step", round=number, step=step)

    def step(self, number: int, step: str) -> dict[str, Any] | None:
        """The result of a step that is done, or None."""
        with self._database.read() as connection:
            return _step(connection, number, step)


def _step(connection: Connection, number: int, step: str) -> dict[str, Any] | None:
    table = schema.steps
    text = connection.scalar(select(table.c.result).where(table.c.round == number, table.c.step == step))
    return None if text is None else dict(json.loads(text))
