"""A collection from a brick store: its cases, its labels as the first versions, and the frozen gold set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice

from fedvox.curation.store import LabelStore, NewCase, NewVersion, Source
from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError

_BATCH = 256


def create_collection(
    uri: str,
    images: str,
    *,
    gold: Collection[str] = (),
    name: str | None = None,
    database: str = "sqlite:///curation.db",
    actor: str,
    on_case: Callable[[int, int], None] | None = None,
) -> LabelStore:
    """Makes a label store of a brick store's cases; run again, it goes on where it stopped.

    Args:
        uri: of the label store.
        images: of the brick store; its labels become version 1 of the cases that have one.
        gold: cases of the frozen set, whose labels must be right.
        name: of the collection; by default the brick store's.
        database: see `LabelStore.create`.
        actor: person or job.
        on_case: told how many cases of how many are done.

    Raises:
        ConfigError: a gold case is not in the brick store, or has no label.
        DataError: there is a label store of other structures.
        StorageError: full, or forbidden.
    """
    bricks = BrickStore.open(images)
    known = set(bricks.case_ids)
    unknown = sorted(set(gold) - known)
    if unknown:
        raise ConfigError(f"gold: case {unknown[0]!r} is not in {images}", "Name cases of the brick store.")
    store = LabelStore.create(
        uri,
        name=name or bricks.meta.name,
        structures=bricks.meta.structures,
        images=images,
        database=database,
    )
    rows = range(len(bricks))
    for batch in _batches(rows):
        new = [_new_case(bricks, row, gold) for row in batch]
        store.add_cases(new, actor=actor)
        versions = [version for row in batch for version in _label(store, bricks, row)]
        if versions:
            store.record_versions(versions, actor=actor, move_head=True)
        if on_case is not None:
            on_case(batch[-1] + 1, len(rows))
    unlabelled = [case.case_id for case in store.cases(gold=True) if case.head is None]
    if unlabelled:
        raise ConfigError(f"gold: case {unlabelled[0]!r} has no label", "Name labelled cases.")
    return store


def _new_case(bricks: BrickStore, row: int, gold: Collection[str]) -> NewCase:
    record = bricks.record(row)
    header = bricks.reader(row).header
    return NewCase(
        record.case_id, record.shape, record.spacing_mm, header.affine, record.source, record.case_id in gold
    )


def _label(store: LabelStore, bricks: BrickStore, row: int) -> list[NewVersion]:
    """Version 1 of a case, unless it has one, or the brick store has no label of it."""
    case = store.case(bricks.case_ids[row])
    if case.head is not None:
        return []
    _, label = bricks.read_patch(row, (0, 0, 0), case.shape)
    if label is None:
        return []
    source = Source("import", bricks.source_names[int(bricks.sources[row])])
    return [NewVersion(case.case_id, store.masks.write(case, label), source, reason="came with the data")]


def _batches(rows: Sequence[int]) -> Iterator[list[int]]:
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        yield batch
