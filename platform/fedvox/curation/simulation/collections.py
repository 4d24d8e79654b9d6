"""A label store with planted errors, and the record of which."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from fedvox.curation.simulation.corruptions import Corruption, corrupt, plan_corruptions
from fedvox.curation.store import LabelStore, NewCase, NewVersion, Source
from fedvox.data.store import BrickStore
from fedvox.storage import exists, read_bytes, write_atomic

RECORD_FILE = "planted.json"


def write_collection(
    uri: str, truth: BrickStore, *, gold: int, share: float, seed: int, clean: bool = False
) -> LabelStore:
    """Makes a label store of simulated brains in which a share of the labels is wrong; a finished one is opened.

    Args:
        uri: of the label store; `planted.json` in it records what is wrong.
        truth: brick store of images and true labels.
        gold: cases of the frozen set, the last of the store, all right.
        share: of the other cases that are corrupted.
        seed: of which, and how.
        clean: plant nothing: what the best curation could reach.
    """
    store = LabelStore.create(
        uri, name=f"planted-{seed}", structures=truth.meta.structures, images=truth.location.uri
    )
    record = store.location.child(RECORD_FILE)
    if exists(record):
        return store
    ids = list(truth.case_ids)
    order = [str(name) for name in np.random.default_rng([seed, 0]).permutation(ids)]
    frozen, rest = set(order[:gold]), sorted(order[gold:])
    plan = {} if clean else plan_corruptions(rest, share, seed)
    planted: list[Corruption] = []
    cases, versions = [], []
    for row, case_id in enumerate(ids):
        known = truth.record(row)
        header = truth.reader(row).header
        new = NewCase(case_id, known.shape, known.spacing_mm, header.affine, known.source, case_id in frozen)
        cases.append(new)
    store.add_cases(cases, actor="simulation")
    for row, case_id in enumerate(ids):
        label = truth.read_patch(row, (0, 0, 0), truth.record(row).shape)[1]
        assert label is not None  # simulated cases all have one
        if case_id in plan:
            label, done = corrupt(label, case_id, plan[case_id], np.random.default_rng([seed, 2, row]))
            planted.append(done)
        versions.append(NewVersion(case_id, store.write_mask(case_id, label), Source("import", "annotators")))
    store.record_versions(versions, actor="simulation", move_head=True)
    write_atomic(record, json.dumps([asdict(one) for one in planted], indent=1).encode())
    return store


def planted(store: LabelStore) -> list[Corruption]:
    """What is wrong with a simulated collection's first versions."""
    return [Corruption(**one) for one in json.loads(read_bytes(store.location.child(RECORD_FILE)))]
