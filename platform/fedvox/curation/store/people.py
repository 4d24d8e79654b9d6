"""Who may look, decide or lead; tokens are kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import Row, delete, insert, select

from fedvox.curation.store import schema
from fedvox.curation.store.audit_log import note
from fedvox.curation.store.database import Database
from fedvox.curation.store.records import Person, Role
from fedvox.errors import DataError


class People:
    """The people of a store.

    Args:
        database: of the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def admit(self, name: str, role: Role, *, actor: str) -> str:
        """Admit somebody, or give them another role and a new token.

        Returns:
            The token; it is shown once and kept as a hash only.
        """
        token = secrets.token_urlsafe(24)
        table = schema.people
        with self._database.write() as connection:
            connection.execute(delete(table).where(table.c.name == name))
            connection.execute(insert(table), {"name": name, "role": role, "token_sha256": _hash(token)})
            note(connection, actor, "admit", person=name, role=role)
        return token

    def dismiss(self, name: str, *, actor: str) -> None:
        """Make somebody's token useless.

        Raises:
            DataError: unknown_person.
        """
        with self._database.write() as connection:
            gone = connection.execute(delete(schema.people).where(schema.people.c.name == name))
            if not gone.rowcount:
                raise DataError(f"{name!r} is not admitted", "fedvox curate people.", code="unknown_person")
            note(connection, actor, "dismiss", person=name)

    def by_token(self, token: str) -> Person | None:
        """Whose token this is; None where nobody's."""
        table = schema.people
        with self._database.read() as connection:
            row = connection.execute(select(table).where(table.c.token_sha256 == _hash(token))).first()
        return None if row is None else _person(row)

    def all(self) -> list[Person]:
        """Everybody by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.people).order_by(schema.people.c.name)).all()
        return [_person(row) for row in rows]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _person(row: Row[Any]) -> Person:
    return Person(row.name, row.role)
