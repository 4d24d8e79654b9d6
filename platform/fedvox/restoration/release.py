"""Released priors: `model.safetensors` (the averaged weights) beside `model.json`, which says all that is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from fedvox import storage
from fedvox.config import validate
from fedvox.errors import CheckpointError
from fedvox.restoration.config import NoiseSection, PriorNetworkSection, Size3
from fedvox.restoration.prior import DiffusionPrior
from fedvox.storage import Location
from fedvox.training.release_files import fill, released_folder, write_description, write_weights

SCHEMA = "fedvox.diffusion_prior/1"
_REMEDY = "Name a run of jobs/diffusion_prior.py, or its `final` folder."


@dataclass(frozen=True)
class PriorInfo:
    """What `model.json` of a prior holds.

    Attributes:
        network: section of the training's configuration, as plain data.
        noise: see there.
        patch_size: (D, H, W) of the patches in training.
        provenance: run, step, error, versions, hash of the weights.
    """

    network: dict[str, Any]
    noise: dict[str, Any]
    patch_size: Size3
    provenance: dict[str, Any] = field(default_factory=dict)


def build_prior(info: PriorInfo, source: str) -> DiffusionPrior:
    """A freshly initialised prior as described."""
    return DiffusionPrior(
        validate(PriorNetworkSection, info.network, source=source),
        validate(NoiseSection, info.noise, source=source),
        info.patch_size,
    )


def write_release(prior: DiffusionPrior, info: PriorInfo, folder: Location) -> None:
    """Writes the weights, then the description, whose presence means that all is whole."""
    provenance = write_weights(prior, info.provenance, folder)
    write_description(SCHEMA, replace(info, provenance=provenance), folder)


def load_release(uri: str) -> tuple[DiffusionPrior, PriorInfo]:
    """Builds the released prior with its weights, in evaluation mode on the CPU. Nothing is unpickled.

    Args:
        uri: a run directory or its `final` folder.

    Raises:
        CheckpointError: there is no such release, or its weights are damaged or do not fit.
    """
    folder = released_folder(uri)
    info = _read(folder)
    prior = build_prior(info, folder.uri)
    fill(prior, info.provenance, folder)
    return prior.requires_grad_(False), info


def _read(folder: Location) -> PriorInfo:
    location = folder.child("model.json")
    if not storage.exists(location):
        raise CheckpointError(f"{folder.uri} holds no released prior (model.json is missing)", _REMEDY)
    try:
        value = json.loads(storage.read_bytes(location))
        if value.pop("schema") != SCHEMA:
            raise CheckpointError(f"{location.uri} is no diffusion prior ({SCHEMA})", _REMEDY)
        depth, height, width = value.pop("patch_size")
        return PriorInfo(**value, patch_size=(depth, height, width))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{location.uri} is not readable: {error!r}", "Train the prior again."
        ) from error
