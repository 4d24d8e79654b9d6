"""From a plan to a training run: the backbone's options, patch and batch, as a configuration for `fedvox pretrain`.

nnU-Net's networks follow its plan to the letter. For the others the same rule chooses the patch, with the memory that
their training really keeps, counted on torch's meta device: a MedNeXt takes over kernels and strides, so that it fits
thick slices as a U-Net does; a Primus cuts any volume into tokens of 8³ voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedvox.errors import ConfigError
from fedvox.models.registry import build_model, model_config
from fedvox.planning.footprint import Network
from fedvox.planning.plan import Configuration, Decision, ExperimentPlan
from fedvox.planning.planner import fit_patch
from fedvox.planning.presets import MIN_BATCH
from fedvox.planning.topology import Topology, topology_for
from fedvox.training.estimate import GIB, cost_of

_UNETS: dict[Network, str] = {"plain": "plain-unet", "resenc": "resenc-unet-l"}
_PRESET_MODELS = {"resenc-m": "resenc-unet-m", "resenc-l": "resenc-unet-l", "resenc-xl": "resenc-unet-xl"}
_SGD = {"name": "sgd", "lr": 1e-2, "momentum": 0.99, "weight_decay": 3e-5, "grad_clip": 12.0}
_ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2, "warmup_steps": 12_500, "grad_clip": 1.0}
_PRIMUS = {"name": "adamw", "lr": 3e-4, "weight_decay": 5e-2, "warmup_steps": 12_500, "grad_clip": 1.0}
_BYTES_PER_PARAMETER = 16  # weights, gradients and two moments
_TOKEN = 8

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class BackbonePlan:
    """How a backbone is trained on a data set; axes are (D, H, W).

    Attributes:
        model: a name that `fedvox models` lists.
        options: of `build_model`.
        patch_size: voxels.
        batch_size: patches a step.
        spacing_mm: of the store.
        batch_dice: pool Dice over the batch.
        optimizer: of the published recipe.
        decisions: with reasons.
    """

    model: str
    options: dict[str, Any]
    patch_size: Size3
    batch_size: int
    spacing_mm: tuple[float, float, float]
    batch_dice: bool
    optimizer: dict[str, Any]
    decisions: tuple[Decision, ...]

    def training_values(self) -> dict[str, Any]:
        """A configuration file for `fedvox pretrain`, as far as the plan decides it."""
        return {
            "global_batch_size": self.batch_size,
            "data": {"patch_size": list(self.patch_size)},
            "model": {"name": self.model, "options": self.options},
            "optimizer": self.optimizer,
            "loss": {"batch_dice": self.batch_dice},
        }


def plan_backbone(
    plan: ExperimentPlan,
    configuration: str = "3d_fullres",
    *,
    model: str | None = None,
    classes: int,
    memory_gib: float,
) -> BackbonePlan:
    """The training of one backbone by a plan.

    Args:
        plan: of the data set.
        configuration: a 3D configuration of it.
        model: a name that `fedvox models` lists; None for the network that the plan is for.
        classes: output channels, background included.
        memory_gib: of one GPU, for backbones whose memory nnU-Net has no measure of.

    Raises:
        ConfigError: there is no such configuration or model, it is 2D, or nothing fits the memory.
    """
    found = plan.configuration(configuration)
    if len(found.patch_size) != 3:
        raise ConfigError(f"configuration {configuration!r} is 2D", "Fedvox trains volumes: take 3d_fullres.")
    if model is None or model == _UNETS[found.network] or model in _PRESET_MODELS.values():
        return _unet(plan, found, model)
    return _other(plan, found, model, classes, memory_gib)


def _unet(plan: ExperimentPlan, found: Configuration, model: str | None) -> BackbonePlan:
    preset = next(
        (name for name in _PRESET_MODELS if plan.planner.lower().endswith(name.replace("-", ""))), ""
    )
    name = model or _PRESET_MODELS.get(preset, _UNETS[found.network])
    options: dict[str, Any] = {
        "features": list(found.features),
        "blocks": list(found.encoder_blocks),
        "decoder_convs": list(found.decoder_blocks[::-1]),  # full resolution first
        "kernel": [list(plan.in_volume_order(kernel)) for kernel in found.topology.kernels],
        "stride": [list(plan.in_volume_order(stride)) for stride in found.topology.strides[1:]],
    }
    return BackbonePlan(
        model=name,
        options=options,
        patch_size=_three(plan.in_volume_order(found.patch_size)),
        batch_size=found.batch_size,
        spacing_mm=_three(plan.in_volume_order(found.spacing_mm)),
        batch_dice=found.batch_dice,
        optimizer=dict(_SGD),
        decisions=(Decision("optimizer", "SGD, 0.01", "nnU-Net's recipe for its own networks"),),
    )


def _other(
    plan: ExperimentPlan, found: Configuration, model: str, classes: int, memory_gib: float
) -> BackbonePlan:
    channels = len(found.normalization)
    config = model_config(model, in_channels=channels, classes=classes)
    is_primus = model.startswith("primus")
    levels = getattr(config, "levels", None)

    def topology_of(size: Sequence[float]) -> Topology:
        if is_primus:
            padded = tuple(math.ceil(n / _TOKEN) * _TOKEN for n in size)
            return Topology(((_TOKEN,) * 3,), ((_TOKEN,) * 3,), padded)
        return topology_for(found.spacing_mm, size, max_stages=levels)

    memory = _Memory(plan, model, channels, classes, is_primus)
    budget = memory_gib * GIB
    fitted = fit_patch(
        found.spacing_mm, found.median_shape, topology_of, lambda t: memory.of(t, MIN_BATCH) <= budget
    )
    if fitted is None:
        raise ConfigError(f"{memory_gib:g} GiB hold no patch of {model} at all", "Give more: --memory-gib.")
    topology = fitted.topology
    batch = MIN_BATCH
    while memory.of(topology, batch + 1) <= budget:
        batch += 1
    used = memory.of(topology, batch) / GIB
    decisions = [
        Decision(
            "patch_size",
            " × ".join(map(str, plan.in_volume_order(topology.patch_size))),
            fitted.reason(found.median_shape),
        ),
        Decision(
            "batch_size",
            str(batch),
            f"counted for {model}: {used:.1f} of {memory_gib:g} GiB (weights, gradients, moments, activations in bf16)",
        ),
        _why_topology(is_primus, levels, topology),
    ]
    return BackbonePlan(
        model=model,
        options=memory.options(topology),
        patch_size=_three(plan.in_volume_order(topology.patch_size)),
        batch_size=batch,
        spacing_mm=_three(plan.in_volume_order(found.spacing_mm)),
        batch_dice=found.batch_dice,
        optimizer=dict(_PRIMUS if is_primus else _ADAMW),
        decisions=tuple(decisions),
    )


class _Memory:
    """Bytes of a training step, counted once for each architecture and scaled by the voxels of the patch."""

    def __init__(
        self, plan: ExperimentPlan, model: str, channels: int, classes: int, is_primus: bool
    ) -> None:
        self._plan, self._model, self._is_primus = plan, model, is_primus
        self._channels, self._classes = channels, classes
        self._counted: dict[str, tuple[int, float]] = {}

    def options(self, topology: Topology) -> dict[str, Any]:
        """Of `build_model`, axes as (D, H, W)."""
        if self._is_primus:
            return {"patch_size": list(self._plan.in_volume_order(topology.patch_size))}
        config = model_config(self._model, in_channels=self._channels, classes=self._classes)
        missing = config.levels - topology.num_stages  # published depth is kept where the patch is small
        strides = [*topology.strides[1:], *((1, 1, 1),) * missing]
        kernels = [*topology.kernels, *((3, 3, 3),) * missing]
        widest = max(max(kernel) for kernel in config.kernels)
        return {
            "kernel": [
                [widest if k == 3 else 1 for k in self._plan.in_volume_order(kernel)] for kernel in kernels
            ],
            "stride": [list(self._plan.in_volume_order(stride)) for stride in strides],
        }

    def of(self, topology: Topology, batch: int) -> float:
        """For a batch of patches."""
        options = self.options(topology)
        key = repr(options) if not self._is_primus else "tokens"
        if key not in self._counted:
            with torch.device("meta"):
                network = build_model(
                    self._model, in_channels=self._channels, classes=self._classes, **options
                )
            patch = _three(self._plan.in_volume_order(topology.patch_size))
            cost = cost_of(network, self._channels, patch, bf16=True)
            self._counted[key] = cost.parameters, cost.activation_bytes / math.prod(patch)
        parameters, per_voxel = self._counted[key]
        return parameters * _BYTES_PER_PARAMETER + batch * per_voxel * math.prod(topology.patch_size)


def _why_topology(is_primus: bool, levels: int | None, topology: Topology) -> Decision:
    if is_primus:
        return Decision("topology", "tokens of 8 × 8 × 8 voxels", "the architecture has no other")
    reason = (
        f"kernels and strides by spacing as for a U-Net, within the {levels} resolutions of the architecture"
    )
    if levels is not None and topology.num_stages < levels:
        reason += f"; the patch allows {topology.num_stages}, so that the coarsest ones share a resolution"
    return Decision("topology", f"{topology.num_stages} resolutions", reason)


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    a, b, c = values
    return a, b, c
