"""The tables of the label store.

    cases      ── versions (append-only) ── masks/ab/abcd….arrow
        └──── moves (append-only): every change of a case's head, so that any round's labels can be told
        └──── findings, items (the queue), reviews
    rounds, steps     what a round has done
    people            who may do what
    audit             append-only, hash-chained

Versions, moves, reviews and the audit log refuse UPDATE and DELETE in the database itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

SCHEMA_VERSION = 1

metadata = MetaData()


def _case_key() -> Column[int]:
    return Column("case_key", Integer, ForeignKey("cases.key"), nullable=False)


cases = Table(
    "cases",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("case_id", String(200), nullable=False, unique=True),
    Column("geometry", Text, nullable=False),  # JSON: shape, spacing_mm, affine
    Column("site", String(200), nullable=False),
    Column("gold", Boolean, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("head", Integer),
    Column("revision", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("key", Integer, primary_key=True),
    _case_key(),
    Column("number", Integer, nullable=False),
    Column("mask_sha256", String(64), nullable=False, index=True),
    Column("source_kind", String(16), nullable=False),
    Column("source_name", String(400), nullable=False),
    Column("weights_sha256", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("parent", Integer),
    Column("reviewer", String(200), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", String(40), nullable=False),
    UniqueConstraint("case_key", "number"),
)

moves = Table(
    "moves",
    metadata,
    Column("key", Integer, primary_key=True),
    _case_key(),
    Column("revision", Integer, nullable=False),
    Column("head", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    UniqueConstraint("case_key", "revision"),
)

reviews = Table(
    "reviews",
    metadata,
    Column("key", Integer, primary_key=True),
    _case_key(),
    Column("seen", Integer),
    Column("result", Integer),
    Column("decision", String(16), nullable=False),
    Column("round", Integer, nullable=False, index=True),
    Column("reviewer", String(200), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("request_id", String(100), unique=True),
    Column("created", String(40), nullable=False),
)

findings = Table(
    "findings",
    metadata,
    Column("key", Integer, primary_key=True),
    _case_key(),
    Column("version", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("structure", String(200), nullable=False),
    Column("rule", String(64), nullable=False),
    Column("severity", Float, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("picture", Text, nullable=False),
    Index("findings_of_round", "round", "case_key"),
)

items = Table(
    "items",
    metadata,
    Column("key", Integer, primary_key=True),
    _case_key(),
    Column("round", Integer, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("priority", Float, nullable=False),
    Column("gain_mm3", Float, nullable=False),
    Column("minutes", Float, nullable=False),
    Column("not_for", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reviewer", String(200), nullable=False),
    Column("lease_until", Float, nullable=False),
    UniqueConstraint("round", "case_key", "purpose"),
    Index("open_items", "round", "state", "priority"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("created", String(40), nullable=False),
    Column("closed", String(40), nullable=False),
    Column("settings", Text, nullable=False),
)

steps = Table(
    "steps",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("step", String(40), primary_key=True),
    Column("finished", String(40), nullable=False),
    Column("result", Text, nullable=False),
)

people = Table(
    "people",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("token_sha256", String(64), nullable=False, unique=True),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("created", String(40), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(40), nullable=False),
    Column("case_id", String(200), nullable=False, index=True),
    Column("details", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
)

_ddl = cast("Callable[[str], Any]", DDL)  # which has no annotations of its own

APPEND_ONLY = (versions, moves, reviews, audit)


def _refuse_changes(table: Table) -> None:
    for verb in ("UPDATE", "DELETE"):
        name = f"{table.name}_no_{verb.lower()}"
        sqlite = _ddl(
            f"CREATE TRIGGER {name} BEFORE {verb} ON {table.name} "
            f"BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"
        )
        event.listen(table, "after_create", sqlite.execute_if(dialect="sqlite"))
        function = _ddl(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table.name} is append-only'; END $$"
        )
        trigger = _ddl(
            f"CREATE TRIGGER {name} BEFORE {verb} ON {table.name} FOR EACH ROW EXECUTE FUNCTION {name}()"
        )
        event.listen(table, "after_create", function.execute_if(dialect="postgresql"))
        event.listen(table, "after_create", trigger.execute_if(dialect="postgresql"))


for _table in APPEND_ONLY:
    _refuse_changes(_table)
