"""The queue: who looks at which case, with leases, so that two people do not get the same one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, update

from fedvox.curation.store import schema
from fedvox.curation.store.audit_log import note
from fedvox.curation.store.database import Database
from fedvox.curation.store.findings import case_keys
from fedvox.curation.store.records import NewItem, QueueItem
from fedvox.curation.store.rounds import current_round
from fedvox.curation.store.rows import item_of
from fedvox.errors import DataError, LabelConflict


class QueueTable:
    """Items of each round's queue.

    Args:
        database: of the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def replace(self, round: int, items: Sequence[NewItem], *, actor: str) -> None:
        """Write a round's queue in place of what of it is still open; answered and leased items stay."""
        table = schema.items
        with self._database.write() as connection:
            keys = case_keys(connection)
            connection.execute(table.delete().where(table.c.round == round, table.c.state == "open"))
            taken = connection.execute(
                select(table.c.case_key, table.c.purpose).where(table.c.round == round)
            )
            known = {(key, purpose) for key, purpose in taken}
            rows = [
                {
                    "case_key": keys[item.case_id],
                    "round": round,
                    "purpose": item.purpose,
                    "priority": item.priority,
                    "gain_mm3": item.gain_mm3,
                    "minutes": item.minutes,
                    "not_for": item.not_for,
                    "state": "open",
                    "reviewer": "",
                    "lease_until": 0.0,
                }
                for item in items
                if (keys[item.case_id], item.purpose) not in known
            ]
            if rows:
                connection.execute(insert(table), rows)
            note(connection, actor, "queue", round=round, count=len(rows))

    def add(self, round: int, item: NewItem, *, actor: str) -> None:
        """Add one item, unless the round has it already."""
        with self._database.write() as connection:
            key = case_keys(connection).get(item.case_id)
            table = schema.items
            same = select(table.c.key).where(
                table.c.round == round, table.c.case_key == key, table.c.purpose == item.purpose
            )
            if connection.execute(same).first() is not None:
                return
            values = {name: getattr(item, name) for name in NewItem.__dataclass_fields__ if name != "case_id"}
            connection.execute(
                insert(table),
                {
                    **values,
                    "case_key": key,
                    "round": round,
                    "state": "open",
                    "reviewer": "",
                    "lease_until": 0.0,
                },
            )
            note(connection, actor, "queue", item.case_id, round=round, purpose=item.purpose)

    def next(self, reviewer: str, *, lease_s: float = 1800.0, case_id: str | None = None) -> QueueItem | None:
        """Lease the most urgent item of the current round that this person may have; None where there is none.

        A person who holds a lease gets the same item again, with a new lease. A lease that ended is open again.

        Args:
            reviewer: who asks.
            lease_s: until somebody else may have it.
            case_id: only an item of this case.
        """
        with self._database.write() as connection:
            row = self._find(connection, reviewer, case_id)
            if row is None:
                return None
            until = time.time() + lease_s
            connection.execute(
                update(schema.items)
                .where(schema.items.c.key == row.key)
                .values(state="leased", reviewer=reviewer, lease_until=until)
            )
            leased = select(schema.items).where(schema.items.c.key == row.key)
            return item_of(connection.execute(leased).one(), row.case_id)

    def _find(self, connection: Connection, reviewer: str, case_id: str | None) -> Any:
        table, cases, reviews = schema.items, schema.cases, schema.reviews
        mine = and_(table.c.state == "leased", table.c.reviewer == reviewer)
        free = or_(
            table.c.state == "open", and_(table.c.state == "leased", table.c.lease_until < time.time())
        )
        read_before = (
            select(reviews.c.key)
            .where(
                reviews.c.case_key == table.c.case_key,
                reviews.c.round == table.c.round,
                reviews.c.reviewer == reviewer,
            )
            .exists()
        )
        allowed: list[ColumnElement[bool]] = [
            table.c.round == current_round(connection),
            ~cases.c.deleted,
            or_(mine, and_(free, table.c.not_for != reviewer)),
            or_(mine, table.c.purpose == "blind", ~read_before),
        ]
        if case_id is not None:
            allowed.append(cases.c.case_id == case_id)
        wanted = (
            select(table.c.key, cases.c.case_id)
            .join(cases, cases.c.key == table.c.case_key)
            .where(*allowed)
            .order_by(mine.desc(), table.c.priority.desc(), table.c.key)
            .limit(1)
        )
        return connection.execute(wanted).first()

    def release(self, item: int, reviewer: str) -> None:
        """Give a leased item back unanswered.

        Raises:
            LabelConflict: it is leased to somebody else, or answered.
            DataError: unknown_item.
        """
        table = schema.items
        with self._database.write() as connection:
            row = connection.execute(select(table).where(table.c.key == item)).first()
            if row is None:
                raise DataError(f"the queue has no item {item}", "fedvox curate next.", code="unknown_item")
            if row.state != "leased" or row.reviewer != reviewer:
                raise LabelConflict(f"item {item} is not leased to {reviewer}", "fedvox curate next.")
            connection.execute(
                update(table).where(table.c.key == item).values(state="open", reviewer="", lease_until=0.0)
            )

    def items(self, *, round: int | None = None, state: str | None = None) -> list[QueueItem]:
        """Items, the most urgent first; of the current round where none is named."""
        table, cases = schema.items, schema.cases
        with self._database.read() as connection:
            number = current_round(connection) if round is None else round
            wanted = (
                select(table, cases.c.case_id)
                .join(cases, cases.c.key == table.c.case_key)
                .where(table.c.round == number)
                .order_by(table.c.priority.desc(), table.c.key)
            )
            if state is not None:
                wanted = wanted.where(table.c.state == state)
            return [item_of(row, row.case_id) for row in connection.execute(wanted)]

    def counts(self, *, round: int | None = None) -> dict[str, int]:
        """State -> items of a round, the current one by default."""
        table = schema.items
        with self._database.read() as connection:
            number = current_round(connection) if round is None else round
            wanted = (
                select(table.c.state, func.count().label("items"))
                .where(table.c.round == number)
                .group_by(table.c.state)
            )
            return {row.state: row.items for row in connection.execute(wanted)}
