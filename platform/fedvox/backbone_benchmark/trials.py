"""The trials of a comparison: backbone × phase × seed, each an ordinary training run.

    scratch     every backbone, every seed, on the comparison's store
    pretrain    once per backbone, on the pretraining's store
    finetune    as scratch, but starting from the pretrained weights

All three go through `fedvox.training.loop`; what differs is in their configurations. A trial's folder carries a hash
of all that bears on its result, so that a finished trial is never mistaken for one with other settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedvox import storage
from fedvox.backbone_benchmark.config import Backbone, BackboneBenchmarkConfig, Budget
from fedvox.backbone_benchmark.profile import Profile, StepSpec
from fedvox.config import validate
from fedvox.data.ingest_case import file_state
from fedvox.errors import CheckpointError, ConfigError
from fedvox.models.registry import model_config
from fedvox.storage import Location
from fedvox.training.config import PretrainConfig, expand
from fedvox.training.session import new_network

Phase = Literal["scratch", "pretrain", "finetune"]
PHASES: tuple[Phase, ...] = ("scratch", "pretrain", "finetune")

_NOT_BEARING = {"name", "storage", "compute", "log_every", "checkpoint"}
"""Fields of a training run that change nothing about what it learns."""


@dataclass(frozen=True)
class Facts:
    """What the trials need to know of a store.

    Attributes:
        in_channels: image channels.
        structures: names, background first.
        cases: names of all cases.
        held_out: names of the validation cases.
    """

    in_channels: int
    structures: tuple[str, ...]
    cases: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One training run of a comparison.

    Attributes:
        label: of the backbone.
        phase: scratch, pretrain or finetune.
        seed: of initialisation, sampling and augmentation.
        config: the run.
        start: where the pretrained weights lie; None from scratch.
        tflop: of the whole run.
    """

    label: str
    phase: Phase
    seed: int
    config: PretrainConfig
    start: str | None
    tflop: float

    @property
    def trial_id(self) -> str:
        """Name of the run's folder."""
        return self.config.name


def root_of(config: BackboneBenchmarkConfig) -> Location:
    """The folder of all results."""
    return storage.locate(expand(config.storage)).child(config.name)


def recipe_of(config: BackboneBenchmarkConfig, backbone: Backbone) -> PretrainConfig:
    """The shared recipe with the backbone's own overrides, before steps and seed are known.

    Raises:
        ConfigError: a field is unknown or of a wrong type.
    """
    values = _merged(config.recipe, backbone.recipe)
    values["model"] = {"name": backbone.name, "options": backbone.options}
    found = validate(PretrainConfig, values, source=f"recipe of {backbone.title}")
    return _with_patch(found)


def _with_patch(config: PretrainConfig) -> PretrainConfig:
    """Tells networks that are made for one patch size (Primus) the recipe's."""
    fields = dataclasses.fields(model_config(config.model.name, in_channels=1, classes=2))
    if "patch_size" not in {field.name for field in fields} or "patch_size" in config.model.options:
        return config
    options = {**config.model.options, "patch_size": list(config.data.patch_size)}
    return config.model_copy(update={"model": config.model.model_copy(update={"options": options})})


def step_spec(config: BackboneBenchmarkConfig, backbone: Backbone, facts: Facts) -> StepSpec:
    """The training step to be measured for a backbone.

    Raises:
        ConfigError: the network cannot be built, or the patch does not fit it.
    """
    import torch

    recipe = recipe_of(config, backbone)
    with torch.device("meta"):
        new_network(recipe, facts.in_channels, len(facts.structures))
    on_gpu = config.compute.gpus_per_trial > 0
    precision = config.compute.precision
    return StepSpec(
        name=recipe.model.name,
        options={**recipe.model.options, "deep_supervision": recipe.model.deep_supervision},
        in_channels=facts.in_channels,
        classes=len(facts.structures),
        patch_size=recipe.data.patch_size,
        batch_size=recipe.global_batch_size,
        bf16=precision == "bf16" or (precision == "auto" and on_gpu),
        threads=config.compute.cpus_per_trial,
        steps=config.compute.profile_steps,
    )


def steps_within(budget: Budget, tflop_per_step: float, seconds_per_step: float) -> int:
    """How many steps a budget buys.

    Raises:
        ConfigError: not a single one.
    """
    price = {"tflop": tflop_per_step, "seconds": seconds_per_step, "steps": 1.0}[budget.unit]
    steps = int(budget.amount / price + 1e-9)
    if steps < 1:
        raise ConfigError(
            f"a budget of {budget.amount:g} {budget.unit} does not pay for one step of {price:.3g}",
            "Raise budget.amount, or lower recipe.global_batch_size or recipe.data.patch_size.",
        )
    return steps


def scratch_trials(config: BackboneBenchmarkConfig, backbone: Backbone, cost: Profile) -> list[Trial]:
    """Every seed from scratch."""
    return [_trial(config, backbone, "scratch", seed, config.budget, cost) for seed in config.seeds]


def pretrain_trial(config: BackboneBenchmarkConfig, backbone: Backbone, cost: Profile) -> Trial | None:
    """The pretraining of a backbone; None where weights are given, or nothing is to be pretrained."""
    if config.pretrain is None or backbone.pretrained is not None:
        return None
    budget = config.pretrain.budget or config.budget
    return _trial(config, backbone, "pretrain", config.pretrain.seed, budget, cost)


def finetune_trials(config: BackboneBenchmarkConfig, backbone: Backbone, cost: Profile) -> list[Trial]:
    """Every seed from pretrained weights; none where there are no such weights."""
    pretraining = pretrain_trial(config, backbone, cost)
    if pretraining is not None:
        start = root_of(config).child("trials", pretraining.trial_id, "final").uri
        state = pretraining.trial_id
    elif backbone.pretrained is not None:
        start = expand(backbone.pretrained)
        state = _state_of(start)
    else:
        return []
    begun = (start, state)
    return [_trial(config, backbone, "finetune", seed, config.budget, cost, begun) for seed in config.seeds]


def _state_of(weights: str) -> str:
    """What changes when the weights of that name are replaced.

    Raises:
        CheckpointError: there are none.
    """
    folder = storage.locate(weights)
    for location in (folder.child("model.json"), folder.child("final", "model.json")):
        if storage.exists(location):
            return hashlib.sha256(storage.read_bytes(location)).hexdigest()
    if not storage.exists(folder):
        raise CheckpointError(
            f"pretrained: {weights} does not exist", "Name a released model's folder, or a checkpoint file."
        )
    return str(file_state(weights))


def _trial(
    config: BackboneBenchmarkConfig,
    backbone: Backbone,
    phase: Phase,
    seed: int,
    budget: Budget,
    cost: Profile,
    begun: tuple[str, str] | None = None,
) -> Trial:
    recipe = recipe_of(config, backbone)
    steps = steps_within(budget, cost.tflop_per_step, cost.seconds_per_step)
    values = recipe.model_dump(mode="json")
    if phase == "pretrain":
        assert config.pretrain is not None  # whoever asks for this phase has looked
        held_out = {"validation_cases": None}
        values["data"] = {
            **values["data"],
            **held_out,
            **config.pretrain.data,
            "store": config.pretrain.store,
        }
    warmup = min(steps - 1, round(config.warmup_fraction * steps))
    values["optimizer"] = {**values["optimizer"], "warmup_steps": warmup}
    values |= {
        "seed": seed,
        "steps": steps,
        "validation": {"every_steps": steps, "overlap": config.validation_overlap, "overlays": 0},
        "checkpoint": {"every_steps": max(1, steps // 4), "keep": 1},
        "compute": {
            "num_workers": 0,
            "use_gpu": "yes" if config.compute.gpus_per_trial else "no",
            "cpus_per_worker": config.compute.cpus_per_trial,
            "torch_threads": config.compute.cpus_per_trial,
            "precision": config.compute.precision,
        },
    }
    name = f"{backbone.title}-{phase}-{seed}-{_hash(values, begun)}"
    values |= {"name": name, "storage": root_of(config).child("trials").uri}
    found = validate(PretrainConfig, values, source=f"trial {name}")
    start = None if begun is None else begun[0]
    return Trial(backbone.title, phase, seed, found, start, steps * cost.tflop_per_step)


def _hash(values: Mapping[str, Any], begun: tuple[str, str] | None) -> str:
    """Eight digits that change with everything that bears on a result."""
    bearing = {key: value for key, value in values.items() if key not in _NOT_BEARING}
    text = json.dumps([bearing, begun], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        nested = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(before, value) if nested else value  # type: ignore[arg-type]
    return merged
