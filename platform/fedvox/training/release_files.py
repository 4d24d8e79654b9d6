"""The two files of every release, whatever was trained: weights, then the description that says how to use them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

import fedvox
from fedvox import storage
from fedvox.storage import Location
from fedvox.training.checkpoint import load_tensors, save_tensors
from fedvox.training.state import check_fits

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"


def write_weights(network: nn.Module, provenance: dict[str, Any], folder: Location) -> dict[str, Any]:
    """Writes the weights; gives the provenance with their hash and the version."""
    written = save_tensors(dict(network.state_dict()), folder.child(_WEIGHTS))
    return {**provenance, "fedvox": fedvox.__version__, "sha256": written["sha256"]}


def write_description(schema: str, info: DataclassInstance, folder: Location) -> None:
    """Writes `model.json`, whose presence means that all is whole."""
    value = {"schema": schema, **asdict(info)}
    storage.write_atomic(
        folder.child(_DESCRIPTION), (json.dumps(value, indent=1, default=str) + "\n").encode()
    )


def released_folder(uri: str) -> Location:
    """The folder of a release, which may be named by its run directory too."""
    folder = storage.locate(uri)
    final = folder.child("final")
    is_run = not storage.exists(folder.child(_DESCRIPTION)) and storage.exists(final.child(_DESCRIPTION))
    return final if is_run else folder


def fill(network: nn.Module, provenance: dict[str, Any], folder: Location) -> None:
    """Puts the released weights into a new network and sets it to evaluation. Nothing is unpickled.

    Raises:
        CheckpointError: the weights are damaged or do not fit.
    """
    weights = load_tensors(folder.child(_WEIGHTS), expect_sha256=provenance.get("sha256"))
    check_fits(network, weights)
    network.load_state_dict(weights)
    network.eval()
