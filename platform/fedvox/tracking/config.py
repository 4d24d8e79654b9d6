"""Everything a training of a promptable network is told, with its only defaults. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from fedvox.config import Config
from fedvox.training.config import ModelSection, OptimizerSection, TrainingConfig

Size3 = tuple[int, int, int]
PromptKind = Literal["point", "box", "scribble", "mask"]
KINDS: tuple[PromptKind, ...] = get_args(PromptKind)


class StoreSection(Config):
    """A brick store with labelled lesions."""

    uri: str
    """Folder or `s3://` address."""
    structures: tuple[str, ...] | None = None
    """Which of its structures are lesions; None takes all."""
    instances: Literal["components", "values"] = "components"
    """components: what hangs together is one lesion. values: the label is an instance map, each value one lesion."""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of its cases that judge."""


class SyntheticSection(Config):
    """Lesions painted into differently shaped MNI152 brains, without end."""

    kinds: tuple[str, ...] | None = None
    """See `fedvox.tracking.lesion_types`; None takes all, some left out are unseen ones to test with."""
    variation: float = Field(0.2, ge=0, lt=1)
    """By which share a lesion's brightness, rim, texture and outline stray from those of its kind."""
    heads: int = Field(8, ge=1)
    """Shapes of the brain."""
    radius_mm: tuple[float, float] = (3.0, 12.0)
    others: int = Field(2, ge=0)
    """Most further lesions nearby, which are not the marked one."""
    distinct: int | None = Field(None, ge=1)
    """How many different ones there are; None draws a new one for every sample. Few save time: they are kept."""
    share: float = Field(0.5, ge=0, le=1)
    """Of all samples, where there are stores too."""


class LesionDataSection(Config):
    """Where lesions come from. Every lesion counts the same, however large it is and however many its scan has."""

    stores: tuple[StoreSection, ...] = ()
    temperature: float = Field(1.0, ge=1)
    """A store with n lesions is drawn from in proportion to n^(1/temperature)."""
    synthetic: SyntheticSection | None = None
    follow_ups: bool = True
    """Simulate later scans, to learn from how a mask is carried over."""

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if not self.stores and self.synthetic is None:
            raise ValueError("give data.stores, data.synthetic or both")
        return self


class PromptSection(Config):
    """What simulated readers mark."""

    kinds: tuple[PromptKind, ...] = KINDS
    """Equally often."""
    follow_up_share: float = Field(0.4, ge=0, le=1)
    """Of steps that learn from two scans: the lesion is marked on the first, what the network says there is warped to
    the second as a dense prompt, and the gradient flows back through the warp."""
    empty_share: float = Field(0.1, ge=0, le=1)
    """Of samples of one scan whose mask was carried to healthy tissue."""
    corrected_share: float = Field(0.3, ge=0, le=1)
    """Of steps on one scan in which a reader corrects the network first."""
    corrections: int = Field(3, ge=1)
    """Most clicks of such a reader."""
    dense: bool = True
    """False leaves the prompts out of what the network sees: they place the patch alone."""
    target: Literal["marked", "all"] = "marked"
    """all: segment every lesion in sight, whatever is marked."""
    radius_mm: float = Field(4.0, gt=0)
    """Of a click."""
    prior: float = Field(1.0, ge=0)
    """Weight of the random walker's answer in the network's, in logits; see `fedvox.tracking.network.with_prior`."""


class LesionValidationSection(Config):
    """Held-out lesions during training."""

    every_steps: int = Field(500, ge=1)
    at_start: bool = False
    lesions: int = Field(16, ge=1)
    """How many are segmented; always the same ones."""
    ema: float = Field(0.7, ge=0, lt=1)


class LesionConfig(TrainingConfig):
    """One training of a promptable network."""

    resume_invariant = (
        "seed", "data", "model", "prompts", "patch_size", "spacing_mm", "optimizer", "global_batch_size",
    )  # fmt: skip

    name: str = Field("lesions", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory; starting the same name again resumes it."""
    steps: int = Field(20_000, ge=1)
    """Optimiser steps in all."""
    global_batch_size: int = Field(2, ge=1)
    """Lesions a step over all workers together."""
    init_from: str | None = None
    """Pretrained weights, with or without prompts: a run, its `final` folder, or an upstream checkpoint."""
    model: ModelSection = ModelSection(name="resenc-unet-tiny", deep_supervision=False)
    patch_size: Size3 = (64, 64, 64)
    spacing_mm: tuple[float, float, float] | None = None
    """(D, H, W) that patches are resampled to; None keeps each scan's own."""
    optimizer: OptimizerSection = OptimizerSection(lr=1e-3)
    data: LesionDataSection
    prompts: PromptSection = PromptSection()
    validation: LesionValidationSection = LesionValidationSection()
