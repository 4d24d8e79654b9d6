"""Rows of the database to records and back."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Row, func, select

from fedvox.curation.store import schema
from fedvox.curation.store.records import Case, NewCase, QueueItem, Review, Source, Version
from fedvox.errors import DataError


def find_case(connection: Connection, case_id: str) -> Row[Any]:
    """The row of a case.

    Raises:
        DataError: unknown_case.
    """
    row = connection.execute(select(schema.cases).where(schema.cases.c.case_id == case_id)).first()
    if row is None:
        raise DataError(
            f"case {case_id!r} is not in the label store",
            "fedvox curate status lists what is.",
            code="unknown_case",
        )
    return row


def find_living_case(connection: Connection, case_id: str) -> Row[Any]:
    """The row of a case that decisions may be taken on.

    Raises:
        DataError: unknown_case or case_deleted.
    """
    row = find_case(connection, case_id)
    if row.deleted:
        raise DataError(
            f"case {case_id!r} was taken out of the collection meanwhile",
            "Go on with the next case; nothing was written.",
            code="case_deleted",
        )
    return row


def select_version(connection: Connection, case: Row[Any], number: int) -> Row[Any]:
    """The row of a version.

    Raises:
        DataError: unknown_version.
    """
    table = schema.versions
    row = connection.execute(
        select(table).where(table.c.case_key == case.key, table.c.number == number)
    ).first()
    if row is None:
        raise DataError(
            f"case {case.case_id!r} has no version {number}",
            "fedvox curate versions CASE lists them.",
            code="unknown_version",
        )
    return row


def geometry_json(case: NewCase) -> str:
    """Shape, spacing and affine as one JSON object."""
    return json.dumps({"shape": case.shape, "spacing_mm": case.spacing_mm, "affine": case.affine})


def case_of(row: Row[Any]) -> Case:
    """A row of `cases`."""
    geometry = json.loads(row.geometry)
    return Case(
        case_id=row.case_id,
        shape=tuple(geometry["shape"]),
        spacing_mm=tuple(geometry["spacing_mm"]),
        affine=tuple(tuple(line) for line in geometry["affine"]),
        site=row.site,
        gold=bool(row.gold),
        head=row.head,
        revision=row.revision,
        deleted=bool(row.deleted),
    )


def version_of(row: Row[Any], case_id: str) -> Version:
    """A row of `versions`."""
    return Version(
        case_id=case_id,
        mask_sha256=row.mask_sha256,
        source=Source(row.source_kind, row.source_name, row.weights_sha256),
        round=row.round,
        parent=row.parent,
        reviewer=row.reviewer,
        seconds=row.seconds,
        reason=row.reason,
        number=row.number,
        created=row.created,
    )


def review_of(row: Row[Any], case_id: str) -> Review:
    """A row of `reviews`."""
    return Review(
        id=row.key,
        case_id=case_id,
        seen=row.seen,
        result=row.result,
        decision=row.decision,
        round=row.round,
        reviewer=row.reviewer,
        seconds=row.seconds,
        reason=row.reason,
        purpose=row.purpose,
        created=row.created,
    )


def item_of(row: Row[Any], case_id: str) -> QueueItem:
    """A row of `items`."""
    return QueueItem(
        case_id=case_id,
        purpose=row.purpose,
        priority=row.priority,
        gain_mm3=row.gain_mm3,
        minutes=row.minutes,
        not_for=row.not_for,
        id=row.key,
        round=row.round,
        state=row.state,
        reviewer=row.reviewer,
        lease_until=row.lease_until,
    )


def heads(connection: Connection, at_round: int | None) -> dict[str, int]:
    """Case id -> number of its head now, or at the end of a round; without deleted cases."""
    cases, moves = schema.cases, schema.moves
    if at_round is None:
        now = select(cases.c.case_id, cases.c.head).where(~cases.c.deleted, cases.c.head.is_not(None))
        return {row.case_id: row.head for row in connection.execute(now)}
    last = (
        select(moves.c.case_key, func.max(moves.c.revision).label("revision"))
        .where(moves.c.round <= at_round)
        .group_by(moves.c.case_key)
        .subquery()
    )
    then = (
        select(cases.c.case_id, moves.c.head)
        .join(last, last.c.case_key == cases.c.key)
        .join(moves, (moves.c.case_key == cases.c.key) & (moves.c.revision == last.c.revision))
        .where(~cases.c.deleted)
    )
    return {row.case_id: row.head for row in connection.execute(then)}
