"""Released weights: `model.safetensors` beside `model.json`, which says all that is needed to use them.

FOLDER/model.safetensors    the weights
FOLDER/model.json           network, input, label space, training, data, provenance with hashes; written last
FOLDER/README.md            the model card, written from model.json

model, info = load_release("runs/liver/final")
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fedvox import storage
from fedvox.errors import CheckpointError
from fedvox.models.registry import build_model
from fedvox.storage import Location
from fedvox.training.model_card import model_card
from fedvox.training.release_files import fill, write_description, write_weights

SCHEMA = "fedvox.model/1"


@dataclass(frozen=True)
class ModelInfo:
    """What `model.json` holds.

    Attributes:
        name: backbone, as `build_model` takes it.
        options: further arguments of `build_model`.
        structures: names of the output channels, background first.
        channel_names: input channels.
        patch_size: (D, H, W) in voxels that it was trained with.
        spacing_mm: (D, H, W) of the training volumes, None if they kept their own.
        normalization: `ct` or `zscore`.
        intensity: statistics that the `ct` normalisation uses.
        provenance: run, step, Dice, versions, hash of the weights.
        modality: of the training volumes: "CT", "MR", …; empty where it is not known.
        crop_to_nonzero: whether their margin where all channels are 0 was cut off.
        training: the resolved configuration of the run, without paths and without names of cases.
        data: of the training store: counts, sources, label sets and a hash of its content; see `data_facts`.
    """

    name: str
    options: dict[str, Any]
    structures: tuple[str, ...]
    channel_names: tuple[str, ...]
    patch_size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    normalization: str
    intensity: Any
    provenance: dict[str, Any] = field(default_factory=dict)
    modality: str = ""
    crop_to_nonzero: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def write_release(model: nn.Module, info: ModelInfo, folder: Location) -> None:
    """Writes the weights, the model card, then the description, whose presence means that all is whole."""
    info = replace(info, provenance=write_weights(model, info.provenance, folder))
    storage.write_atomic(folder.child("README.md"), model_card(info).encode())
    write_description(SCHEMA, info, folder)


def read_info(folder: Location) -> ModelInfo:
    """Reads `model.json`.

    Raises:
        CheckpointError: it is missing or of another schema.
    """
    location = folder.child("model.json")
    if not storage.exists(location):
        raise CheckpointError(
            f"{folder.uri} holds no released model (model.json is missing)", "Name a run's `final` folder."
        )
    try:
        value = json.loads(storage.read_bytes(location))
        if value.pop("schema") != SCHEMA:
            raise CheckpointError(
                f"{location.uri} is of another schema than {SCHEMA}", "Use the version that wrote it."
            )
        for key in ("structures", "channel_names", "patch_size", "spacing_mm"):
            value[key] = tuple(value[key]) if value[key] is not None else None
        return ModelInfo(**value)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{location.uri} is not readable: {error!r}", "Export the model again."
        ) from error


def load_release(uri: str) -> tuple[nn.Module, ModelInfo]:
    """Builds the released network with its weights, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the folder is not a release, or its weights are damaged or do not fit.
    """
    folder = storage.locate(uri)
    info = read_info(folder)
    model = build_model(
        info.name, in_channels=len(info.channel_names), classes=len(info.structures), **info.options
    )
    fill(model, info.provenance, folder)
    return model, info
