"""Brick stores out of the label store: what models train on, and what judges them.

Both lie in the label store's folder and are brought up to date between rounds: a case is written again only when its
label has another version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedvox.curation.store import Case, LabelStore
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import DataError


def training_store(store: LabelStore) -> BrickStore:
    """The cases outside of the gold set with their labels as they are now.

    Raises:
        DataError: no_labels, where no case has a label.
    """
    return _written(store, "training", [case for case in store.cases(gold=False) if case.head is not None])


def gold_store(store: LabelStore) -> BrickStore | None:
    """The frozen gold set; None where the collection has none."""
    cases = [case for case in store.cases(gold=True) if case.head is not None]
    return _written(store, "gold", cases) if cases else None


def _written(store: LabelStore, name: str, cases: Sequence[Case]) -> BrickStore:
    if not cases:
        raise DataError(
            f"{store.location.uri}: no case outside of the gold set has a label",
            "Import labels (fedvox curate create --labels), or name models (propose.models).",
            code="no_labels",
        )
    images = store.images.store
    location = store.location.child(name)
    writer = StoreWriter.create(location.uri, images.meta)
    for case in cases:
        version = store.version(case.case_id, case.head or 0)
        if writer.finished(case.case_id, origin=version.mask_sha256) is not None:
            continue
        record = images.record(store.images.rows[case.case_id])
        writer.add_case(
            case.case_id,
            store.images.read(case.case_id),
            store.read_mask(version),
            source=record.source,
            label_set=record.label_set,
            spacing_mm=case.spacing_mm,
            affine=case.affine,
            origin=version.mask_sha256,
            intensity=record.intensity,
        )
    writer.finish(images.meta, case_ids=[case.case_id for case in cases])
    return BrickStore.open(location.uri)


def fold_of(case_id: str, folds: int) -> int:
    """The fold of a case: by its name alone, so that cases which come or go move no other."""
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest()) % folds
