"""Everything a diffusion prior is told, with its only defaults. This module imports neither torch nor ray."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fedvox.config import Config
from fedvox.training.config import OptimizerSection, TrainingConfig

Size3 = tuple[int, int, int]
Slab = tuple[int, int]


class PriorNetworkSection(Config):
    """The denoising network: a small U-Net whose every operation is local, of convolutions in 2D or 3D.

    With 2D convolutions the slices of a patch are the channels: one slice, or a few neighbours together (2.5D).
    """

    convolutions: Literal["2d", "3d"] = "2d"
    widths: tuple[int, ...] = (48, 96)
    """Channels per level, finest first."""
    blocks: int = Field(2, ge=1)
    """Residual blocks per level of the encoder; the decoder has one."""
    unshuffle: int = Field(2, ge=1)
    """Edge of the pixel blocks that become channels at the entrance; 1 keeps the full resolution."""
    embedding: int = Field(64, ge=8)
    """Width of the embedding of the noise level."""
    positions: bool = False
    """Show the network where in the image a patch lies: a channel per axis, from -1 to 1."""


class NoiseSection(Config):
    """The preconditioning and the noise levels of Karras et al. 2022 (EDM), for images scaled to [0, 1]."""

    log_mean: float = -1.8
    """Mean of the natural logarithm of the noise levels in training."""
    log_std: float = Field(1.4, gt=0)
    """Standard deviation of the same."""
    smallest: float = Field(0.002, gt=0)
    largest: float = Field(2.0, gt=0)
    """Bounds of the noise levels, in training and when restoring."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError("noise.smallest must be below noise.largest")
        return self


class PriorDataSection(Config):
    """Which images the prior learns, and how patches are drawn from them."""

    folder: str | None = None
    """NIfTI magnitude images, a local folder; None where a template is used."""
    template: Literal["mni152"] | None = None
    """The T1 brain that nilearn carries, 1 mm."""
    patch_size: Size3 = (1, 48, 48)
    """(D, H, W) in voxels; larger than the image is a whole image, padded with zeros."""
    padding: int = Field(16, ge=0)
    """Zeros around the image in the last two axes, from which patches may be drawn too."""
    foreground: float = Field(0.75, ge=0, le=1)
    """Share of the patches whose centre is not background."""
    mirror: bool = True
    """Half of the patches are mirrored along the last axis."""
    held_out: tuple[Slab, ...] = ()
    """Slabs [first, end) of the first axis that training does not see, in every volume."""
    margin: int = Field(3, ge=0)
    """Slices beside a held-out slab that training does not see either."""
    folds: int = Field(5, ge=2)
    """The volumes of a folder are dealt into so many folds."""
    fold: int = Field(0, ge=0)
    """The held-out one, where there are two volumes or more."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.folder is None) == (self.template is None):
            raise ValueError("give either data.folder or data.template")
        if self.template is not None and not self.held_out:
            raise ValueError("a template is one volume: name slabs in data.held_out")
        if any(first < 0 or end <= first for first, end in self.held_out):
            raise ValueError("data.held_out: a slab is [first, end] with 0 <= first < end")
        if min(self.patch_size[1:]) < 8:
            raise ValueError("data.patch_size: the last two axes need at least 8 voxels")
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: they are numbered from 0 to {self.folds - 1}")
        return self


class PriorValidationSection(Config):
    """Denoising of held-out patches during training."""

    every_steps: int = Field(1000, ge=1)
    at_start: bool = False
    examples: int = Field(16, ge=1)
    """How many patches, always the same ones."""
    levels: tuple[float, ...] = (0.02, 0.1, 0.5)
    """Noise levels at which they are denoised."""


class DiffusionPriorConfig(TrainingConfig):
    """One training of a diffusion prior."""

    resume_invariant = ("seed", "data", "network", "noise", "optimizer", "ema", "global_batch_size")

    name: str = Field("diffusion-prior", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory; starting the same name again resumes it."""
    steps: int = Field(50_000, ge=1)
    """Optimiser steps in all."""
    global_batch_size: int = Field(16, ge=1)
    """Patches a step over all workers together."""
    optimizer: OptimizerSection = OptimizerSection(lr=1e-3, weight_decay=0.0, warmup_steps=0)
    ema: float = Field(0.999, ge=0, lt=1)
    """Weight of the past in the moving average of the weights, which is what is released."""
    data: PriorDataSection
    network: PriorNetworkSection = PriorNetworkSection()
    noise: NoiseSection = NoiseSection()
    validation: PriorValidationSection = PriorValidationSection()

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        if self.network.convolutions == "3d" and self.data.patch_size[0] < 8:
            raise ValueError(
                "network.convolutions 3d needs data.patch_size of at least 8 voxels along each axis"
            )
        return self
