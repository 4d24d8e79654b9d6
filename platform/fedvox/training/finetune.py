"""What fine-tuning does before its first step: settle the network, and fill it with the given weights."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, cast

import yaml

from fedvox import storage
from fedvox.data.records import StoreMeta
from fedvox.errors import CheckpointError, ConfigError
from fedvox.models.backbone import Backbone
from fedvox.models.registry import model_config
from fedvox.models.transfer import LoadReport, load_pretrained
from fedvox.planning.nnunet_plans import read_plans
from fedvox.training.checkpoint import committed_steps
from fedvox.training.config import ModelSection, Size3, expand
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.pretrained import Pretrained, read_pretrained
from fedvox.training.run_directory import RunDirectory

log = logging.getLogger(__name__)

TRANSFER_FILE = "transfer.json"


@dataclass(frozen=True)
class Transferred:
    """What became of the weights, for people and for the run directory.

    Attributes:
        origin: where they are from.
        report: what was done with every tensor.
        differences: between the data they were trained on and the new: "spacing_mm: (1, 1, 1) -> (2, 2, 2)".
    """

    origin: dict[str, Any]
    report: LoadReport
    differences: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": "fedvox.transfer/1",
            "origin": self.origin,
            "differences": list(self.differences),
            **self.report.as_dict(),
        }

    def __str__(self) -> str:
        """A line for the origin, one per difference of the data, and the report."""
        lines = [f"weights of {self.origin['uri']} ({self.origin['kind']}, {self.origin['model']})"]
        return "\n".join([*lines, *(f"  data differ in {d}" for d in self.differences), str(self.report)])


def resolve(config: FinetuneConfig) -> FinetuneConfig:
    """Settles backbone and patch where the configuration leaves them to the weights.

    A run that has checkpoints keeps what it began with, so that it resumes even where its weights are gone.

    Raises:
        FedvoxError: the weights cannot be read, or do not say what is needed.
    """
    given = config.model.model_fields_set if "model" in config.model_fields_set else set()
    patch_given = "data" in config.model_fields_set and "patch_size" in config.data.model_fields_set
    if "name" in given and patch_given:
        return _settled(config, config.model, config.data.patch_size)
    begun = _begun_with(config)
    if begun is not None:
        model, patch = begun
    else:
        source = read_pretrained(str(config.init_from), patch_size=config.transfer.patch_size)
        model = ModelSection(
            name=source.model, deep_supervision=source.deep_supervision, options=_plain(source.options)
        )
        patch = source.patch_size or _patch_needed(config, source, patch_given=patch_given)
    if "name" in given:
        model = config.model
    elif given:
        chosen = {field: getattr(config.model, field) for field in given - {"options"}}
        options = {**model.options, **config.model.options}
        model = model.model_copy(update={**chosen, "options": options})
    return _settled(config, model, config.data.patch_size if patch_given else patch)


def _begun_with(config: FinetuneConfig) -> tuple[ModelSection, Size3] | None:
    """Backbone and patch of a run that has checkpoints."""
    run = RunDirectory.of(config)
    location = run.child("config.resolved.yaml")
    if not committed_steps(run.checkpoints) or not storage.exists(location):
        return None
    before = yaml.safe_load(storage.read_bytes(location))
    d, h, w = before["data"]["patch_size"]
    return ModelSection.model_validate(before["model"]), (d, h, w)


def _patch_needed(config: FinetuneConfig, source: Pretrained, *, patch_given: bool) -> Size3:
    if patch_given:
        return config.data.patch_size
    raise ConfigError(
        f"{source.uri} does not say with which patch it was trained",
        "Name one: --set data.patch_size=[128,128,128], or use the configuration that `fedvox plan` writes.",
    )


def _settled(config: FinetuneConfig, model: ModelSection, patch: Size3) -> FinetuneConfig:
    """The configuration with this backbone and patch; a backbone for one patch alone is built for that one."""
    known = model_config(model.name, in_channels=1, classes=2)
    if "patch_size" in {field.name for field in dataclasses.fields(known)}:
        model = model.model_copy(update={"options": {**model.options, "patch_size": list(patch)}})
    data = config.data.model_copy(update={"patch_size": patch})
    return config.model_copy(update={"model": model, "data": data})


def _plain(value: Any) -> Any:
    """Tuples as lists, at every depth, as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def check_plans(config: FinetuneConfig, meta: StoreMeta) -> None:
    """Compares the plans that the configuration follows with the store.

    Raises:
        ConfigError: they are for another number of channels, or cannot be read.
    """
    if config.plans is not None:
        read_plans(expand(config.plans)).check_channels(meta.channel_names)


def transfer(config: FinetuneConfig, network: Backbone, meta: StoreMeta) -> Transferred:
    """Fills a freshly built network with the weights that the configuration names.

    Args:
        config: resolved.
        network: for the store's channels and structures; changed in place.
        meta: of the store.

    Raises:
        CheckpointError: the weights cannot be read or do not fit; what differs is listed.
        ConfigError: a part that is never trained would stay random.
    """
    source = read_pretrained(str(config.init_from), patch_size=config.transfer.patch_size)
    by_name = config.transfer.heads == "by_name" and source.structures is not None
    try:
        report = load_pretrained(
            network,
            source.tensors,
            pretrained_config=source.config,
            structures=meta.structures if by_name else None,
            pretrained_structures=source.structures if by_name else None,
            keep_heads=config.transfer.heads == "keep",
            least_encoder_share=config.transfer.least_encoder_share,
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"init_from: {source.uri} ({source.kind}, {source.model}) does not fit model {config.model.name}: "
            f"{error.message}",
            f"Leave `model` out to take the weights' own backbone, or {error.remedy}.",
        ) from error
    _check_frozen(config, report)
    return Transferred(source.origin(), report, tuple(_differences(source, config, meta)))


def _check_frozen(config: FinetuneConfig, report: LoadReport) -> None:
    """Refuses to keep random weights for good."""
    random = [
        entry for entry in report.entries if entry.action == "new" and entry.part in config.never_trained
    ]
    if random:
        listed = ", ".join(f"{entry.name} ({entry.note})" for entry in random[:3])
        raise ConfigError(
            f"schedule {config.schedule.kind!r} never trains {' and '.join(config.never_trained)}, but "
            f"{len(random)} of their tensors would start anew: {listed}",
            "Use --set schedule.kind=full or unfreeze (or schedule.train_stem=true if only the stem is new).",
        )


def _differences(source: Pretrained, config: FinetuneConfig, meta: StoreMeta) -> list[str]:
    """What is different about the data, as far as the weights say."""
    info = source.info
    pairs: dict[str, tuple[Any, Any]] = {"patch_size": (source.patch_size, config.data.patch_size)}
    if info is not None:
        pairs |= {
            "channels": (tuple(info.channel_names), tuple(meta.channel_names)),
            "modality": (info.modality or None, meta.modality),
            "spacing_mm": (info.spacing_mm, meta.spacing_mm),
            "normalization": (info.normalization, meta.normalization),
        }
    return [
        f"{name}: {before} -> {now}" for name, (before, now) in pairs.items() if before not in (None, now)
    ]


def initialise(config: FinetuneConfig, network: Any, meta: StoreMeta) -> Transferred:
    """`check_plans`, then `transfer`."""
    check_plans(config, meta)
    return transfer(config, cast(Backbone, network), meta)
