"""What a federation needs to go on after its server was killed, on any place that `fedvox.storage` knows.

    RUN/state/round-0007.safetensors    the global model's trained parameters, and the strategy's memory
    RUN/state/round-0007.json           round, hash of the tensors, and what the checks remember

The JSON is written last and names the hash of the tensors: a pair that a crash tore apart is not taken for a
round. The two last rounds are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedvox import storage
from fedvox.errors import CheckpointError, StorageError
from fedvox.storage import Location
from fedvox_federation.protocol import Arrays

log = logging.getLogger(__name__)

KEPT = 2
SCHEMA = "fedvox.federation-state/1"
_GLOBAL, _STRATEGY = "global/", "strategy/"


@dataclass(frozen=True)
class Snapshot:
    """A federation after a round.

    Attributes:
        round_number: the last completed one; 0 before the first.
        arrays: the global model's trained parameters.
        strategy: see `Aggregator.state`.
        memory: plain values, such as what the checks remember.
    """

    round_number: int
    arrays: Arrays
    strategy: Arrays = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)


def save_snapshot(folder: Location, snapshot: Snapshot) -> None:
    """Write a round's state, and forget the ones before the last.

    Raises:
        StorageError: it could not be written; the earlier state is still there.
    """
    tensors = {_GLOBAL + name: np.ascontiguousarray(value) for name, value in snapshot.arrays.items()}
    tensors |= {_STRATEGY + name: np.ascontiguousarray(value) for name, value in snapshot.strategy.items()}
    data = save(tensors)
    name = f"round-{snapshot.round_number:04d}"
    about = {
        "schema": SCHEMA,
        "round": snapshot.round_number,
        "sha256": hashlib.sha256(data).hexdigest(),
        "memory": snapshot.memory,
    }
    storage.write_atomic(folder.child(f"{name}.safetensors"), data)
    storage.write_atomic(folder.child(f"{name}.json"), json.dumps(about, indent=1).encode())
    for old in _states(folder)[KEPT:]:
        storage.delete(old)
        storage.delete(_tensors_of(old))


def load_snapshot(folder: Location) -> Snapshot | None:
    """The last whole state; None where there never was one.

    Raises:
        CheckpointError: there are states, and none of them is whole.
    """
    states = _states(folder)
    for about in states:
        try:
            return _read(about)
        except (CheckpointError, StorageError) as damaged:
            log.warning("%s", damaged.message)
    if states:
        raise CheckpointError(
            f"{folder.uri}: none of the {len(states)} saved states is whole",
            "Restore the folder from a backup, or begin anew under another name: the clinics' ledgers go on.",
        )
    return None


def _states(folder: Location) -> list[Location]:
    """Newest first."""
    found = (file for file in storage.list_files(folder) if file.path.endswith(".json"))
    return sorted(found, key=lambda file: file.path, reverse=True)


def _tensors_of(about: Location) -> Location:
    return about.parent.child(f"{about.name.removesuffix('.json')}.safetensors")


def _read(about: Location) -> Snapshot:
    data = storage.read_bytes(_tensors_of(about))
    try:
        facts = json.loads(storage.read_bytes(about))
        if facts["schema"] != SCHEMA or facts["sha256"] != hashlib.sha256(data).hexdigest():
            raise ValueError("the hash is another one")
        tensors = load(data)
        return Snapshot(
            int(facts["round"]), _below(_GLOBAL, tensors), _below(_STRATEGY, tensors), facts["memory"]
        )
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{about.uri}: is damaged ({error})", "The round before is taken.") from error


def _below(prefix: str, tensors: Arrays) -> Arrays:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
