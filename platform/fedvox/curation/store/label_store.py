"""The label store: every version of every case's label map, and how each came about.

    CURATION/
        curation.json       what the store is: structures, images, database
        curation.db         SQLite, unless a PostgreSQL database is named
        masks/ab/abcd….arrow
        rounds/003/…        pictures, maps and reports of a round

Write order: a mask's file is on the disk before the row that names it, and a version, the move of the head, the
review and the line of the audit log are one transaction. So a process killed at any point leaves at worst a mask
that no version knows (`garbage`), never a version without its mask, half a decision, or the same one twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, select, update

from fedvox.curation.store import schema
from fedvox.curation.store.audit_log import AuditLog, note
from fedvox.curation.store.database import Database
from fedvox.curation.store.decisions import Decisions
from fedvox.curation.store.findings import FindingTable
from fedvox.curation.store.images import Images
from fedvox.curation.store.masks import MaskFiles
from fedvox.curation.store.people import People
from fedvox.curation.store.queue_table import QueueTable
from fedvox.curation.store.records import (
    Case,
    NewCase,
    NewVersion,
    QueueItem,
    Review,
    Source,
    Verdict,
    Version,
)
from fedvox.curation.store.rounds import Rounds
from fedvox.curation.store.rows import case_of, find_case, geometry_json, heads, select_version, version_of
from fedvox.curation.store.settings import SETTINGS_FILE, StoreSettings
from fedvox.errors import DataError
from fedvox.storage import Location, exists, locate

Array = np.ndarray[Any, Any]

_SQLITE_FILE = "curation.db"


class LabelStore:
    """A label store, open for use from many threads. Pickled, it is opened again where it arrives.

    Args:
        location: of its folder.
        name: of the collection.
        structures: canonical names, background first.
        images: URI of the brick store of the images.
        database: where versions and decisions are.
    """

    def __init__(
        self, location: Location, name: str, structures: tuple[str, ...], images: str, database: Database
    ) -> None:
        self.location = location
        self.name = name
        self.structures = structures
        self.images = Images(images)
        self.database = database
        self.masks = MaskFiles(location.child("masks"), structures)
        self.audit = AuditLog(database)
        self.queue = QueueTable(database)
        self.findings = FindingTable(database)
        self.rounds = Rounds(database)
        self.people = People(database)
        self._decisions = Decisions(database, self.masks)

    @classmethod
    def create(
        cls,
        uri: str | Path,
        *,
        name: str,
        structures: Sequence[str],
        images: str,
        database: str = f"sqlite:///{_SQLITE_FILE}",
    ) -> LabelStore:
        """Make a store, or open the one that is there with the same structures.

        Args:
            uri: its folder, local where the database is SQLite.
            name: of the collection.
            structures: canonical names, background first.
            images: URI of the brick store of the images.
            database: `sqlite:///FILE` (relative to the store), or `postgresql+psycopg://USER@HOST/NAME`.

        Raises:
            DataError: other_store, where one of other structures is there.
            ConfigError: the database cannot be used.
            StorageError: full, forbidden, or unreachable.
        """
        location = locate(uri)
        if not exists(location.child(SETTINGS_FILE)):
            settings = StoreSettings(name, tuple(structures), images, database)
            engine = Database(settings.url(location))
            if location.is_local:
                location.local_path.mkdir(parents=True, exist_ok=True)
            with engine.write() as connection:
                schema.metadata.create_all(connection)
            engine.close()
            settings.write(location)
        found = cls.open(uri)
        if found.structures != tuple(structures):
            raise DataError(
                f"{uri}: holds a label store of other structures ({', '.join(found.structures)})",
                "Name another folder.",
                code="other_store",
            )
        return found

    @classmethod
    def open(cls, uri: str | Path, *, timeout_s: float = 30.0) -> LabelStore:
        """Open a store.

        Args:
            uri: its folder.
            timeout_s: a locked database is waited for this long.

        Raises:
            DataError: there is none, or it comes from a newer version.
            StorageError: forbidden, or unreachable.
        """
        location = locate(uri)
        settings = StoreSettings.read(location)
        database = Database(settings.url(location), timeout_s=timeout_s)
        return cls(location, settings.name, settings.structures, settings.images, database)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.location.uri,)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    # ---- cases ---------------------------------------------------------------------------------------------

    def add_cases(self, new: Iterable[NewCase], *, actor: str) -> int:
        """Register cases; those that are there already are left alone.

        Returns:
            How many were new.
        """
        table = schema.cases
        with self.database.write() as connection:
            known = set(connection.scalars(select(table.c.case_id)))
            rows = [
                {
                    "case_id": case.case_id,
                    "geometry": geometry_json(case),
                    "site": case.site,
                    "gold": case.gold,
                    "deleted": False,
                    "head": None,
                    "revision": 0,
                }
                for case in new
                if case.case_id not in known
            ]
            if rows:
                connection.execute(insert(table), rows)
                note(connection, actor, "add_cases", count=len(rows))
        return len(rows)

    def case(self, case_id: str) -> Case:
        """One case.

        Raises:
            DataError: unknown_case.
        """
        with self.database.read() as connection:
            return case_of(find_case(connection, case_id))

    def cases(self, *, gold: bool | None = None, deleted: bool | None = False) -> list[Case]:
        """All cases by id.

        Args:
            gold: only those of the frozen set, or only the others.
            deleted: only those taken out, or only the others; None for both.
        """
        table = schema.cases
        wanted = select(table).order_by(table.c.case_id)
        if gold is not None:
            wanted = wanted.where(table.c.gold == gold)
        if deleted is not None:
            wanted = wanted.where(table.c.deleted == deleted)
        with self.database.read() as connection:
            return [case_of(row) for row in connection.execute(wanted)]

    def delete_case(self, case_id: str, *, actor: str, reason: str) -> None:
        """Take a case out of the collection; its versions stay, decisions on it are refused.

        Raises:
            DataError: unknown_case.
        """
        with self.database.write() as connection:
            row = find_case(connection, case_id)
            connection.execute(update(schema.cases).where(schema.cases.c.key == row.key).values(deleted=True))
            note(connection, actor, "delete_case", case_id, reason=reason)

    # ---- versions ------------------------------------------------------------------------------------------

    def write_mask(self, case_id: str, mask: Array) -> str:
        """The first half of writing versions: the mask's file, on the disk when this returns.

        Args:
            case_id: whose mask.
            mask: canonical structure indices, (D, H, W).

        Returns:
            The mask's SHA-256, for `NewVersion`.

        Raises:
            DataError: shape_mismatch, not_integer, unknown_label or unknown_case.
            StorageError: no space, or forbidden.
        """
        return self.masks.write(self.case(case_id), mask)

    def record_versions(
        self, new: Sequence[NewVersion], *, actor: str, move_head: bool = False
    ) -> list[Version]:
        """The second half: rows for masks that are written, all in one transaction.

        A version that is there already (same case, round, mask and source) is returned and not repeated, so that
        a job can be run again.

        Args:
            new: versions, of any cases.
            actor: person or job.
            move_head: make each the label of its case, as an import does.

        Raises:
            DataError: unknown_case, case_deleted, or gold_is_frozen where a gold case's head would move.
        """
        return self._decisions.record(new, actor=actor, move_head=move_head)

    def add_version(
        self,
        case_id: str,
        mask: Array,
        source: Source,
        *,
        round: int,
        actor: str,
        reason: str = "",
        move_head: bool = False,
    ) -> Version:
        """`write_mask` and `record_versions` for one mask: a proposal, or with `move_head` an import."""
        new = NewVersion(case_id, self.write_mask(case_id, mask), source, round=round, reason=reason)
        return self.record_versions([new], actor=actor, move_head=move_head)[0]

    def versions(self, case_id: str, *, round: int | None = None) -> list[Version]:
        """The versions of a case in order, or only those of one round.

        Raises:
            DataError: unknown_case.
        """
        with self.database.read() as connection:
            row = find_case(connection, case_id)
            table = schema.versions
            wanted = select(table).where(table.c.case_key == row.key).order_by(table.c.number)
            if round is not None:
                wanted = wanted.where(table.c.round == round)
            return [version_of(found, case_id) for found in connection.execute(wanted)]

    def version(self, case_id: str, number: int) -> Version:
        """One version.

        Raises:
            DataError: unknown_case or unknown_version.
        """
        with self.database.read() as connection:
            return version_of(select_version(connection, find_case(connection, case_id), number), case_id)

    def read_mask(self, version: Version) -> Array:
        """The label map of a version, (D, H, W), uint8 or uint16."""
        return self.masks.read(version.mask_sha256)

    def heads(self, *, at_round: int | None = None) -> dict[str, int]:
        """Case id -> number of the version that is, or at the end of a round was, its label.

        Deleted cases are left out.
        """
        with self.database.read() as connection:
            return heads(connection, at_round)

    # ---- decisions -----------------------------------------------------------------------------------------

    def shown_version(self, item: QueueItem) -> int | None:
        """The version that the reader of an item gets to see: the head; for a second opinion, what the first saw.

        Raises:
            DataError: unknown_case or case_deleted.
        """
        return self._decisions.shown(item)

    def accept(self, verdict: Verdict, version: int) -> Review:
        """Make a version the label: the head itself (it is right), or a proposal (it is better).

        Raises:
            LabelConflict: somebody decided meanwhile (`expected_revision` is old).
            DataError: unknown_case, unknown_version, case_deleted, gold_is_frozen, or unknown_item.
        """
        return self._decisions.accept(verdict, version)

    def edit(self, verdict: Verdict, mask: Array, *, parent: int, tool: str = "") -> Review:
        """Make a person's mask the label.

        Args:
            verdict: on which case, as seen when.
            mask: canonical structure indices, (D, H, W).
            parent: number of the version that was edited.
            tool: that it was edited with.

        Raises:
            LabelConflict, DataError: see `accept` and `write_mask`.
        """
        digest = self.write_mask(verdict.case_id, mask)
        return self._decisions.edit(verdict, digest, parent=parent, tool=tool)

    def reject(self, verdict: Verdict) -> Review:
        """Say that no version is right and somebody must edit; the head stays, the case comes back.

        Raises:
            LabelConflict, DataError: see `accept`.
        """
        return self._decisions.reject(verdict)

    def roll_back(
        self, case_id: str, version: int, *, expected_revision: int, actor: str, reason: str
    ) -> Case:
        """Make an earlier version the label again; the history keeps both moves.

        Raises:
            LabelConflict, DataError: see `accept`.
        """
        return self._decisions.roll_back(
            case_id, version, expected_revision=expected_revision, actor=actor, reason=reason
        )

    def reviews(self, *, round: int | None = None, case_id: str | None = None) -> list[Review]:
        """Decisions in order, of one round or case, or all."""
        return self._decisions.reviews(round=round, case_id=case_id)

    # ---- files ---------------------------------------------------------------------------------------------

    def garbage(self) -> list[str]:
        """Masks that no version knows: what a killed process left, or is just writing."""
        return sorted(set(self.masks.names()) - self._known_masks())

    def collect_garbage(self, *, actor: str, min_age_s: float = 86_400.0) -> int:
        """Delete masks that no version knows.

        Args:
            actor: person or job.
            min_age_s: younger ones may belong to a version that is being written.

        Returns:
            How many were deleted.
        """
        before = time.time() - min_age_s
        doomed = [name for name in self.garbage() if self.masks.modified(name) <= before]
        for name in doomed:
            self.masks.delete(name)
        if doomed:
            with self.database.write() as connection:
                note(connection, actor, "collect_garbage", count=len(doomed))
        return len(doomed)

    def _known_masks(self) -> set[str]:
        with self.database.read() as connection:
            return set(connection.scalars(select(schema.versions.c.mask_sha256).distinct()))

    def missing_masks(self) -> list[str]:
        """Masks that a version names and that are not there: empty, unless somebody deleted files."""
        return sorted(self._known_masks() - set(self.masks.names()))

    def round_folder(self, round: int) -> Location:
        """Where a round keeps its pictures, maps and reports."""
        return self.location.child("rounds", f"{round:03d}")


def _reopen(uri: str) -> LabelStore:
    return LabelStore.open(uri)
