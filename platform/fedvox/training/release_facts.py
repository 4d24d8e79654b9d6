"""What a release tells of its run and its data: what others need to judge it, and nothing that names a patient."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from fedvox.data.split import Split
from fedvox.data.store import BrickStore
from fedvox.training.config import PretrainConfig

_PRIVATE = ("storage", "init_from", "plans", "compute")
_PRIVATE_DATA = ("store", "validation_cases", "cache", "loader_threads", "prefetch_batches")


def published(config: PretrainConfig) -> dict[str, Any]:
    """The resolved configuration without paths, hardware and names of cases: releases are for others to read."""
    values = config.model_dump(mode="json")
    kept = {key: value for key, value in values.items() if key not in _PRIVATE}
    kept["data"] = {key: value for key, value in values["data"].items() if key not in _PRIVATE_DATA}
    return kept


def data_facts(store: BrickStore, split: Split) -> dict[str, Any]:
    """Counts, sources and label sets of a store, and a hash that changes with any of its case files.

    Returns:
        store (its name), cases, held_out, sources (name -> cases), label_sets (name -> structures), sha256.
    """
    meta = store.meta
    counts = np.bincount(store.sources, minlength=len(store.source_names))
    return {
        "store": meta.name,
        "cases": len(store),
        "held_out": len(split.validation),
        "sources": {name: int(count) for name, count in zip(store.source_names, counts, strict=True)},
        "label_sets": {
            name: [meta.structures[k] for k in indices if k > 0] for name, indices in meta.label_sets.items()
        },
        "sha256": hashlib.sha256(np.ascontiguousarray(store.versions).tobytes()).hexdigest(),
    }
