"""Connections and transactions: SQLite in WAL mode, or PostgreSQL, with errors that people can act on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from fedvox.errors import ConfigError, DataError, StorageError

_WRITE = {"fedvox_write": True}
_WRITERS = 8_430_017  # PostgreSQL's advisory lock of all writers of a label database


class Database:
    """A database, open for short transactions from many threads.

    A write takes a lock of all writers at its beginning (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock), so
    that what it reads stays true until it commits. A commit is on the disk when it returns.

    Args:
        url: as SQLAlchemy has it, without a password.
        timeout_s: a locked database is waited for this long.

    Raises:
        ConfigError: the URL is malformed, carries a password, or its driver is not installed.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        self.url = url
        self.engine = _engine(url, timeout_s)
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database.

        Raises:
            StorageError: locked, full, or not to be opened.
        """
        with self._told(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock; all of it is written, or nothing.

        Raises:
            StorageError: locked, full, or not to be opened.
        """
        with (
            self._told(),
            self.engine.connect().execution_options(**_WRITE) as connection,
            connection.begin(),
        ):
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SET LOCAL lock_timeout = {int(1000 * self._timeout_s)}"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITERS})
            yield connection

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise self._explain(error) from error

    def _explain(self, error: DatabaseError) -> Exception:
        said = str(error.orig)
        low = said.lower()
        if "locked" in low or "lock timeout" in low or "busy" in low:
            return StorageError(
                f"{self.url}: the label database is locked by another process for more than {self._timeout_s:g} s",
                "Wait for the other job or close the program that holds it, then repeat; nothing was written.",
            )
        if "full" in low or "no space" in low or "disk i/o" in low:
            return StorageError(
                f"{self.url}: the label database cannot grow ({said})",
                "Free some space on that disk, then repeat; nothing was written.",
            )
        if "readonly" in low or "read-only" in low or "unable to open" in low or "connect" in low:
            return StorageError(
                f"{self.url}: the label database cannot be opened for this ({said})",
                "Check that the path or server exists and that this user may write to it.",
            )
        if "not a database" in low or "malformed" in low or "no such table" in low:
            return DataError(
                f"{self.url}: is no label database, or a damaged one ({said})",
                "Name the folder of a label store, or restore the database from a copy.",
                code="damaged_store",
            )
        return error


def _engine(url: str, timeout_s: float) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.password:
            raise ConfigError(
                "the database URL carries a password",
                "Leave it out, and give it as PGPASSWORD or in ~/.pgpass.",
            )
        if parsed.get_backend_name() != "sqlite":
            return create_engine(url, pool_pre_ping=True)
        engine = create_engine(url, connect_args={"timeout": timeout_s})
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"database {url!r} cannot be used: {error}",
            "Give sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME (pip install psycopg).",
        ) from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, not at the first INSERT
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("fedvox_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
