"""Everything a pretraining run is told, with its only defaults.

The sections follow the recipe of nnU-Net (Isensee et al. 2021) with AdamW and warm-up for ConvNeXt and
transformer backbones (MedNeXt, Primus). This module imports neither torch nor ray, so that tools can read
configurations fast.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedvox.config import Config
from fedvox.data.augment_config import AugmentConfig
from fedvox.errors import ConfigError
from fedvox.training.phases import PARTS, Phase

Size3 = tuple[int, int, int]

RESUME_INVARIANT = (
    "seed", "data", "model", "optimizer", "augment", "global_batch_size", "loss", "init_from", "transfer", "schedule",
)  # fmt: skip
"""Sections that must be equal when a run is resumed: they decide what is learnt, and from which samples."""


def expand(uri: str) -> str:
    """Expands `~` and `$VARIABLES`; `$FEDVOX_HOME` defaults to `~/.fedvox`: one file serves every machine."""
    os.environ.setdefault("FEDVOX_HOME", str(Path("~/.fedvox").expanduser()))
    return os.path.expandvars(uri) if "://" in uri else str(Path(os.path.expandvars(uri)).expanduser())


def require_lasting(uri: str, field: str) -> None:
    """Refuses a place for results where nobody would find them again.

    Args:
        uri: a folder or address, not yet expanded.
        field: that names it.

    Raises:
        ConfigError: a variable in it is not set, and a folder called `$SCRATCH` is not what anybody wants; or it is
            relative in a Ray job, whose working directory Ray deletes after it.
    """
    if unset := re.search(r"\$(\w+|\{\w+\})", expand(uri)):
        raise ConfigError(
            f"{field}: {uri!r}: the environment variable {unset[1].strip('{}')} is not set",
            "Set it on every node, or write the path out.",
        )
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and is_relative(uri):
        raise ConfigError(
            f"{field}: {uri!r} lies in the job's working directory, which Ray deletes when the job ends",
            "Give an absolute path that every node reaches, or an s3:// address.",
        )


def is_relative(uri: str) -> bool:
    """Whether a path depends on the working directory."""
    return "://" not in uri and not Path(expand(uri)).is_absolute()


class CacheSection(Config):
    """The node-local disk cache of a remote store."""

    folder: str = "$FEDVOX_HOME/cache"
    budget_gib: float = Field(50.0, gt=0)
    prefetch_threads: int = Field(4, ge=0)


class ExpectedStore(Config):
    """What a run expects of its store: checked at its start; all that `--dry-run` has without the store."""

    cases: int = Field(ge=1)
    structures: int = Field(ge=2)
    """With background."""
    channels: int = Field(1, ge=1)
    sources: int = Field(1, ge=1)
    voxels: int = Field(ge=1)
    """Voxels of all cases together, one channel."""
    gib: float = Field(gt=0)
    """Size of the store in GiB."""


class DataSection(Config):
    """Where the volumes are and how patches are drawn from them."""

    store: str = "$FEDVOX_HOME/stores/default"
    """Brick store: a local folder or an `s3://` address."""
    expect: ExpectedStore | None = None
    patch_size: Size3 = (128, 128, 128)
    """(D, H, W) in voxels."""
    validation_cases: tuple[str, ...] | None = None
    """Held-out cases by name; None draws `validation_fraction` of each source."""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    max_validation_cases: int | None = Field(None, ge=1)
    """Upper bound on the validation set, for stores of many thousands of cases."""
    foreground_fraction: float = Field(1 / 3, ge=0, le=1)
    """Share of the patches that are centred on an annotated structure."""
    source_temperature: float = Field(1.0, ge=1)
    """1 draws cases uniformly; larger values raise the share of small sources (share ~ cases^(1/T))."""
    cache: CacheSection | None = None
    """None reads directly; set it for stores on S3."""
    loader_threads: int = Field(2, ge=1)
    prefetch_batches: int = Field(4, ge=1)
    augment_on: Literal["cpu", "device"] = "device"

    @field_validator("patch_size")
    @classmethod
    def _positive(cls, size: Size3) -> Size3:
        if min(size) < 8:
            raise ValueError("every axis of a patch needs at least 8 voxels")
        return size


class ModelSection(Config):
    """Which backbone, and its options."""

    name: str = "mednext-v2-base"
    """A name that `fedvox models` lists."""
    deep_supervision: bool = True
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to `build_model`, for example `{kernel: 5}`."""


class OptimizerSection(Config):
    """Optimiser and learning-rate schedule: linear warm-up, then polynomial decay to zero."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = Field(0.99, ge=0, lt=1)
    """Nesterov momentum, SGD only."""
    warmup_steps: int = Field(0, ge=0)
    power: float = Field(0.9, gt=0)
    grad_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm; nnU-Net uses 12 with SGD, Primus 1 with AdamW."""


class LossSection(Config):
    """Dice + cross-entropy, masked to the structures that a case's source annotates."""

    batch_dice: bool = False
    """Pool Dice over the global batch (every worker) instead of taking the mean over samples."""
    smooth: float = Field(1e-5, gt=0)


class ValidationSection(Config):
    """Sliding-window validation on whole volumes."""

    every_steps: int = Field(2500, ge=1)
    at_start: bool = False
    """Validate the untrained network too, to see early whether validation works and how far training has
    come."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Share of a patch that neighbouring windows have in common."""
    mirror: bool = False
    ema: float = Field(0.9, ge=0, lt=1)
    """Weight of the past in the exponential moving average of the mean foreground Dice."""
    overlays: int = Field(3, ge=0)
    """How many validation cases get an overlay picture at the end."""


class CheckpointSection(Config):
    """When checkpoints are written and how many are kept."""

    every_steps: int = Field(1000, ge=1)
    keep: int = Field(3, ge=1)
    commit_timeout_s: float = Field(600.0, gt=0)
    """How long a checkpoint may wait for every worker's shard before it is given up."""


class ComputeSection(Config):
    """Hardware and its use."""

    num_workers: int | tuple[int, int] = 1
    """Ray Train workers; (min, max) is elastic; 0 trains in this process without Ray, for debugging."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    gpu_wait_s: float = Field(300.0, ge=0)
    """How long `use_gpu: yes` waits for a cluster that grows on demand to get its first GPU."""
    cpus_per_worker: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on GPUs, fp32 on CPUs."""
    max_failures: int = Field(8, ge=-1)
    """Restarts of the worker group before the run fails; -1 for no limit. (Ray's own default is 0.)"""
    torch_threads: int | None = Field(None, ge=1)
    """CPU threads of each worker; None leaves torch's choice."""

    @property
    def max_workers(self) -> int:
        """The largest number of workers that the run may have, at least 1."""
        return max(1, self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1])

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.num_workers, tuple) and not 1 <= self.num_workers[0] <= self.num_workers[1]:
            raise ValueError("num_workers: a range is [min, max] with 1 <= min <= max")
        if isinstance(self.num_workers, int) and self.num_workers < 0:
            raise ValueError("num_workers must be 0 (no Ray), a positive number, or a range")
        return self


class TrainingConfig(Config):
    """What every training run is told, whatever it trains: `fedvox.training.ray_shell` and the loop need no more."""

    resume_invariant: ClassVar[tuple[str, ...]] = ()
    """Sections that must be equal when a run is resumed."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory; starting the same name again resumes it."""
    storage: str = "$FEDVOX_HOME/runs"
    """Folder or `s3://` address that holds run directories; must be reachable from every node."""
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(250_000, ge=1)
    """Optimiser steps in all."""
    global_batch_size: int = Field(2, ge=1)
    """Samples a step over all workers together: the number of workers changes nothing about it."""
    log_every: int = Field(10, ge=1)
    max_nonfinite_steps: int = Field(20, ge=1)
    """Consecutive steps with a non-finite gradient that are skipped before the run is stopped."""
    optimizer: OptimizerSection = OptimizerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    compute: ComputeSection = ComputeSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be smaller than steps ({self.steps})"
            )
        if self.global_batch_size < self.compute.max_workers:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) is smaller than the number of workers "
                f"({self.compute.max_workers}): every worker needs a sample"
            )
        return self


class PretrainConfig(TrainingConfig):
    """One pretraining run."""

    resume_invariant = RESUME_INVARIANT

    name: str = Field("pretrain", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory; starting the same name again resumes it."""
    init_from: str | None = None
    """Released weights (`…/final`) to start from; None starts from scratch."""
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    augment: AugmentConfig = AugmentConfig()
    validation: ValidationSection = ValidationSection()

    def phases(self) -> tuple[Phase, ...]:
        """Stretches of the run that train the same parts: here a single one, of everything."""
        return (joint_phase(self.optimizer, 0, self.steps),)

    @property
    def layer_decay(self) -> float:
        """Factor of the learning rate per layer of distance from the heads; 1 for the same rate everywhere."""
        return 1.0


def joint_phase(
    optimizer: OptimizerSection, start: int, end: int, *, parts: tuple[str, ...] = PARTS
) -> Phase:
    """The phase that an optimiser's section describes, from step `start` up to `end`, excluded."""
    return Phase(
        start=start,
        steps=end - start,
        parts=parts,
        lr=optimizer.lr,
        warmup_steps=optimizer.warmup_steps,
        power=optimizer.power,
    )
