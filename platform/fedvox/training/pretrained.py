"""Reading the weights that a fine-tuning starts from, whoever wrote them.

    RUN                             its `final` weights, or its newest checkpoint while it has not ended
    RUN/final, RUN/best             released weights
    RUN/checkpoints/step-00001000   a training checkpoint
    checkpoint_final.pth, …         a file of nnU-Net, MedNeXt, Primus or MONAI (see `fedvox.models.upstream`)

on disk or on S3. Nothing that a file contains is run.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from torch import Tensor

from fedvox import storage
from fedvox.errors import CheckpointError
from fedvox.models.backbone import PerAxis
from fedvox.models.recognition import config_of
from fedvox.models.registry import model_config, nearest_size
from fedvox.models.upstream import read_weights, translate
from fedvox.storage import Location
from fedvox.training.checkpoint import COMMIT, load, load_latest
from fedvox.training.config import Size3, expand
from fedvox.training.release import ModelInfo, load_release

_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".model")


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known of the network that they belong to.

    Attributes:
        uri: where they were found.
        kind: who wrote them: "release" and "checkpoint" are ours; otherwise the layout's name, such as "nnunet".
        tensors: by our names.
        config: the backbone's config dataclass.
        model: the backbone's name, as `build_model` takes it.
        options: further arguments of `build_model`, without deep supervision.
        structures: names of the output channels, background first; None where the file does not say.
        patch_size: (D, H, W) that they were trained with; None where the file does not say.
        info: the release's own description.
        sha256: of the weights' file; None for a checkpoint of several shards.
    """

    uri: str
    kind: str
    tensors: dict[str, Tensor]
    config: Any
    model: str
    options: dict[str, Any]
    structures: tuple[str, ...] | None = None
    patch_size: Size3 | None = None
    info: ModelInfo | None = None
    sha256: str | None = None

    @property
    def deep_supervision(self) -> bool:
        """Whether the network had heads at coarse levels."""
        return bool(self.config.deep_supervision)

    def origin(self) -> dict[str, Any]:
        """For a run's log and a release's provenance: where the weights are from, as plain data."""
        trained = self.info.provenance if self.info is not None else {}
        return {
            "uri": self.uri,
            "kind": self.kind,
            "model": self.model,
            "sha256": self.sha256,
            "run": trained.get("run"),
            "step": trained.get("step"),
        }


def read_pretrained(uri: str, *, patch_size: PerAxis | None = None) -> Pretrained:
    """Reads weights of any kind that the module's header lists.

    Args:
        uri: see there.
        patch_size: of a Primus of another project, if it was no cube.

    Raises:
        CheckpointError: there is nothing of the kind, it is damaged, or its network is unknown.
    """
    location = storage.locate(expand(uri))
    if PurePosixPath(location.path).suffix in _FILES:
        if location.name == "model.safetensors" and storage.exists(location.parent.child("model.json")):
            return _release(location.parent)
        return _file(location, patch_size)
    found = _kind_of_folder(location)
    if found == "release":
        return _release(location)
    if found == "checkpoint":
        return _checkpoint(location)
    if storage.exists(location.child("final", "model.json")):
        return _release(location.child("final"))
    return _newest_checkpoint(location)


def _kind_of_folder(location: Location) -> Literal["release", "checkpoint"] | None:
    if storage.exists(location.child("model.json")):
        return "release"
    return "checkpoint" if storage.exists(location.child(COMMIT)) else None


def _release(folder: Location) -> Pretrained:
    network, info = load_release(folder.uri)
    return Pretrained(
        uri=folder.uri,
        kind="release",
        tensors=dict(network.state_dict()),
        config=network.config,
        model=info.name,
        options={key: value for key, value in info.options.items() if key != "deep_supervision"},
        structures=tuple(info.structures),
        patch_size=info.patch_size,
        info=info,
        sha256=info.provenance.get("sha256"),
    )


def _newest_checkpoint(run: Location) -> Pretrained:
    snapshot = load_latest(run.child("checkpoints"))
    if snapshot is None:
        raise CheckpointError(
            f"{run.uri} holds no weights: no model.json, no {COMMIT}, no final/ and no checkpoints/",
            "Name a run's directory, its `final` folder, a checkpoint `…/checkpoints/step-NNNNNNNN`, or a file "
            f"({', '.join(_FILES)}).",
        )
    return _from_snapshot(run.child("checkpoints"), snapshot.tensors, snapshot.meta, run)


def _checkpoint(folder: Location) -> Pretrained:
    snapshot = load(folder)
    return _from_snapshot(folder, snapshot.tensors, snapshot.meta, folder.parent.parent)


def _from_snapshot(
    location: Location, tensors: dict[str, Tensor], meta: dict[str, Any], run: Location
) -> Pretrained:
    built = meta["architecture"]
    structures = tuple(built["structures"])
    config = model_config(
        built["name"],
        in_channels=built["in_channels"],
        classes=len(structures),
        deep_supervision=built["deep_supervision"],
        **built["options"],
    )
    weights = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    return Pretrained(
        uri=location.uri,
        kind="checkpoint",
        tensors=weights,
        config=config,
        model=built["name"],
        options=dict(built["options"]),
        structures=structures,
        patch_size=_patch_of_run(run),
    )


def _patch_of_run(run: Location) -> Size3 | None:
    """The patch in the resolved configuration beside the checkpoints, if it is still there."""
    location = run.child("config.resolved.yaml")
    if not storage.exists(location):
        return None
    d, h, w = yaml.safe_load(storage.read_bytes(location))["data"]["patch_size"]
    return (d, h, w)


def _file(location: Location, patch_size: PerAxis | None) -> Pretrained:
    if not storage.exists(location):
        raise CheckpointError(f"{location.uri} does not exist", "Give the path of a checkpoint file.")
    with tempfile.TemporaryDirectory(prefix="fedvox-") as scratch:
        path = location.local_path if location.is_local else Path(scratch) / location.name
        if not location.is_local:
            path.write_bytes(storage.read_bytes(location))
        weights = translate(read_weights(path))
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        tensors = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    config = config_of(tensors, patch_size=patch_size)
    model, options = nearest_size(config)
    return Pretrained(
        uri=location.uri,
        kind=weights.source,
        tensors=tensors,
        config=config,
        model=model,
        options=options,
        patch_size=getattr(config, "patch", None),
        sha256=sha256,
    )
