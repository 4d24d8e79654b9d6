"""What changes a case's label: each decision is one transaction, taken on the revision that the person saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from fedvox.curation.store import schema
from fedvox.curation.store.audit_log import note, now
from fedvox.curation.store.database import Database
from fedvox.curation.store.masks import MaskFiles
from fedvox.curation.store.records import (
    PURPOSES_ALONE,
    Case,
    Decision,
    NewVersion,
    QueueItem,
    Review,
    Source,
    Verdict,
    Version,
)
from fedvox.curation.store.rounds import current_round
from fedvox.curation.store.rows import (
    case_of,
    find_case,
    find_living_case,
    review_of,
    select_version,
    version_of,
)
from fedvox.errors import DataError, LabelConflict


class Decisions:
    """Writes versions, moves heads and records reviews.

    Args:
        database: of the store.
        masks: of the store.
    """

    def __init__(self, database: Database, masks: MaskFiles) -> None:
        self._database = database
        self._masks = masks

    def record(self, new: Sequence[NewVersion], *, actor: str, move_head: bool) -> list[Version]:
        """See `LabelStore.record_versions`."""
        with self._database.write() as connection:
            written = [self._record_one(connection, one, move_head=move_head) for one in new]
            fresh = [version for version, is_new in written if is_new]
            if fresh:
                models = sorted({version.source.name for version in fresh})
                one_case = fresh[0].case_id if len(fresh) == 1 else ""
                note(connection, actor, "versions", one_case, count=len(fresh), by=models, heads=move_head)
        return [version for version, _ in written]

    def _record_one(
        self, connection: Connection, new: NewVersion, *, move_head: bool
    ) -> tuple[Version, bool]:
        case = find_living_case(connection, new.case_id)
        found = _same_version(connection, case, new)
        version = found or self._insert_version(connection, case, new)
        if move_head and case.head != version.number:
            if case.head is not None:
                _refuse_gold(case)
            _move_head(connection, case, version.number, new.round)
        return version, found is None

    def _insert_version(self, connection: Connection, case: Row[Any], new: NewVersion) -> Version:
        # Looked at under the write lock: a garbage collection may have come between the mask and this row.
        self._masks.require(new.mask_sha256)
        return _insert_version(connection, case, new)

    def accept(self, verdict: Verdict, version: int) -> Review:
        """See `LabelStore.accept`."""
        with self._database.write() as connection:
            done = _answered(connection, verdict)
            if done is not None:
                return done
            case = _judged(connection, verdict)
            select_version(connection, case, version)
            return _decide(connection, case, verdict, "accept", version)

    def edit(self, verdict: Verdict, mask_sha256: str, *, parent: int, tool: str) -> Review:
        """See `LabelStore.edit`; the mask is written already."""
        with self._database.write() as connection:
            done = _answered(connection, verdict)
            if done is not None:
                return done
            case = _judged(connection, verdict)
            select_version(connection, case, parent)
            new = NewVersion(
                case_id=verdict.case_id,
                mask_sha256=mask_sha256,
                source=Source("person", verdict.reviewer),
                round=current_round(connection),
                parent=parent,
                reviewer=verdict.reviewer,
                seconds=verdict.seconds,
                reason=verdict.reason,
            )
            version = self._insert_version(connection, case, new)
            return _decide(connection, case, verdict, "edit", version.number, tool=tool)

    def reject(self, verdict: Verdict) -> Review:
        """See `LabelStore.reject`."""
        with self._database.write() as connection:
            done = _answered(connection, verdict)
            if done is not None:
                return done
            case = _judged(connection, verdict)
            return _decide(connection, case, verdict, "reject", case.head)

    def roll_back(
        self, case_id: str, version: int, *, expected_revision: int, actor: str, reason: str
    ) -> Case:
        """See `LabelStore.roll_back`."""
        with self._database.write() as connection:
            case = find_living_case(connection, case_id)
            _refuse_gold(case)
            _require_revision(case, expected_revision)
            select_version(connection, case, version)
            _move_head(connection, case, version, current_round(connection))
            note(connection, actor, "roll_back", case_id, before=case.head, version=version, reason=reason)
            return case_of(find_case(connection, case_id))

    def shown(self, item: QueueItem) -> int | None:
        """See `LabelStore.shown_version`."""
        with self._database.read() as connection:
            case = find_living_case(connection, item.case_id)
            return shown_version(connection, case, item.purpose, item.round)

    def reviews(self, *, round: int | None, case_id: str | None) -> list[Review]:
        """See `LabelStore.reviews`."""
        table, cases = schema.reviews, schema.cases
        wanted = (
            select(table, cases.c.case_id).join(cases, cases.c.key == table.c.case_key).order_by(table.c.key)
        )
        if round is not None:
            wanted = wanted.where(table.c.round == round)
        if case_id is not None:
            wanted = wanted.where(cases.c.case_id == case_id)
        with self._database.read() as connection:
            return [review_of(row, row.case_id) for row in connection.execute(wanted)]


def _same_version(connection: Connection, case: Row[Any], new: NewVersion) -> Version | None:
    table = schema.versions
    row = connection.execute(
        select(table).where(
            table.c.case_key == case.key,
            table.c.round == new.round,
            table.c.mask_sha256 == new.mask_sha256,
            table.c.source_kind == new.source.kind,
            table.c.source_name == new.source.name,
            table.c.weights_sha256 == new.source.weights_sha256,
        )
    ).first()
    return None if row is None else version_of(row, case.case_id)


def _insert_version(connection: Connection, case: Row[Any], new: NewVersion) -> Version:
    table = schema.versions
    last = connection.scalar(select(func.max(table.c.number)).where(table.c.case_key == case.key))
    values = {
        "case_key": case.key,
        "number": (last or 0) + 1,
        "mask_sha256": new.mask_sha256,
        "source_kind": new.source.kind,
        "source_name": new.source.name,
        "weights_sha256": new.source.weights_sha256,
        "round": new.round,
        "parent": new.parent,
        "reviewer": new.reviewer,
        "seconds": new.seconds,
        "reason": new.reason,
        "created": now(),
    }
    connection.execute(insert(table), values)
    return Version(
        **{name: getattr(new, name) for name in NewVersion.__dataclass_fields__},
        number=values["number"],
        created=values["created"],
    )


def _move_head(connection: Connection, case: Row[Any], number: int, round_: int) -> None:
    table = schema.cases
    revision = case.revision + 1
    moved = connection.execute(
        update(table)
        .where(table.c.key == case.key, table.c.revision == case.revision)
        .values(head=number, revision=revision)
    )
    if moved.rowcount != 1:  # where the database lets two transactions read the same revision
        raise _conflict(case, case.revision)
    values = {"case_key": case.key, "revision": revision, "head": number, "round": round_}
    connection.execute(insert(schema.moves), values)


def _answered(connection: Connection, verdict: Verdict) -> Review | None:
    """The review that this very request has written already."""
    if verdict.request_id is None:
        return None
    table = schema.reviews
    row = connection.execute(select(table).where(table.c.request_id == verdict.request_id)).first()
    return None if row is None else review_of(row, verdict.case_id)


def _judged(connection: Connection, verdict: Verdict) -> Row[Any]:
    case = find_living_case(connection, verdict.case_id)
    _refuse_gold(case)
    _require_revision(case, verdict.expected_revision)
    return case


def _decide(
    connection: Connection,
    case: Row[Any],
    verdict: Verdict,
    decision: Decision,
    result: int | None,
    **details: Any,
) -> Review:
    """The head, the review, the queue's item and the line of the log."""
    round_ = current_round(connection)
    purpose = "queue" if verdict.item is None else _answer_item(connection, case, verdict)
    if purpose in PURPOSES_ALONE:
        seen = shown_version(connection, case, purpose, round_)  # a second opinion moves no head
    else:
        seen = case.head
        # A decision that keeps the head still moves the revision: who looked before it looked at something older.
        if result is not None:
            _move_head(connection, case, result, round_)
    values = {
        "case_key": case.key,
        "seen": seen,
        "result": result,
        "decision": decision,
        "round": round_,
        "reviewer": verdict.reviewer,
        "seconds": verdict.seconds,
        "reason": verdict.reason,
        "purpose": purpose,
        "request_id": verdict.request_id,
        "created": now(),
    }
    connection.execute(insert(schema.reviews), values)
    note(
        connection, verdict.reviewer, decision, verdict.case_id, before=seen, version=result,
        reason=verdict.reason, purpose=purpose, **details,
    )  # fmt: skip
    table = schema.reviews
    newest = select(table).where(table.c.case_key == case.key).order_by(table.c.key.desc()).limit(1)
    return review_of(connection.execute(newest).one(), verdict.case_id)


def shown_version(connection: Connection, case: Row[Any], purpose: str, round_: int) -> int | None:
    """The version that a reader gets to see: the head; for a second opinion, what the first reader saw."""
    table = schema.reviews
    if purpose not in PURPOSES_ALONE:
        return None if case.head is None else int(case.head)
    first = select(table.c.seen).where(table.c.case_key == case.key, table.c.purpose.not_in(PURPOSES_ALONE))
    # A second reader answers within the round; a blind re-read may follow rounds later.
    if purpose == "double":
        first = first.where(table.c.round == round_)
    seen = connection.scalar(first.order_by(table.c.key.desc()).limit(1))
    return case.head if seen is None else int(seen)


def _answer_item(connection: Connection, case: Row[Any], verdict: Verdict) -> str:
    table = schema.items
    item = connection.execute(select(table).where(table.c.key == verdict.item)).first()
    if item is None or item.case_key != case.key or item.state == "dropped":
        raise DataError(
            f"item {verdict.item} of the queue is not there, or not about case {verdict.case_id!r}",
            "Ask for the next item: fedvox curate next.",
            code="unknown_item",
        )
    if item.state == "done" or (item.state == "leased" and item.reviewer != verdict.reviewer):
        raise LabelConflict(
            f"case {verdict.case_id!r}: {item.reviewer} has taken this item of the queue meanwhile",
            "Go on with the next case: fedvox curate next. Nothing was written.",
        )
    connection.execute(
        update(table).where(table.c.key == item.key).values(state="done", reviewer=verdict.reviewer)
    )
    return str(item.purpose)


def _refuse_gold(case: Row[Any]) -> None:
    if case.gold:
        raise DataError(
            f"case {case.case_id!r} belongs to the frozen gold set; its label judges every round and stays",
            "Start a new collection to change the gold set.",
            code="gold_is_frozen",
        )


def _require_revision(case: Row[Any], expected: int) -> None:
    if case.revision != expected:
        raise _conflict(case, expected)


def _conflict(case: Row[Any], expected: int) -> LabelConflict:
    return LabelConflict(
        f"case {case.case_id!r}: somebody decided meanwhile (revision {case.revision}, not {expected}; "
        f"its label is version {case.head} now)",
        "Look at the case again, then decide; nothing was written.",
    )
