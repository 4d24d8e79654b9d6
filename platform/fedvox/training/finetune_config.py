"""What a fine-tuning run is told, on top of what a pretraining run is told.

Fine-tuning is the same training on other data, from given weights: `init_from` names them, `transfer` says how they
are adapted, and `schedule` which parts are trained when:

    full        everything, with a warm-up ("Warm-Up" of An OpenMind for 3D medical vision, arXiv:2412.17041)
    unfreeze    decoder and heads alone, with a warm-up; then everything, with another ("Sawtooth" there)
    decoder     decoder and heads alone
    layerwise   everything, at rates that fall with the distance from the heads (as for BEiT and ConvNeXt)

`optimizer` describes the rate of the phase in which everything is trained, or the only one. This module imports
neither torch nor ray.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedvox.config import Config
from fedvox.training.config import ModelSection, OptimizerSection, PretrainConfig, Size3, joint_phase
from fedvox.training.phases import PARTS, Phase

_DECODING = ("decoder", "heads")
_DECODING_AND_STEM = ("stem", "decoder", "heads")


class _Schedule(Config):
    """What all schedules have in common."""

    @abstractmethod
    def phases(self, optimizer: OptimizerSection, steps: int) -> tuple[Phase, ...]:
        """The run's phases, without gaps, from step 0 to `steps`."""

    @property
    def decay(self) -> float:
        """Factor of the learning rate per layer of distance from the heads; 1 for the same rate everywhere."""
        return 1.0


class FullSchedule(_Schedule):
    """All parts from the first step, with the optimiser's warm-up."""

    kind: Literal["full"] = "full"

    def phases(self, optimizer: OptimizerSection, steps: int) -> tuple[Phase, ...]:
        """One phase."""
        return (joint_phase(optimizer, 0, steps),)


class UnfreezeSchedule(_Schedule):
    """Decoder and heads first, on frozen features; then all parts, with a warm-up of their own."""

    kind: Literal["unfreeze"] = "unfreeze"
    frozen_steps: int = Field(12_500, ge=1)
    """Steps with a frozen encoder; 50 epochs of nnU-Net's 250 by default."""
    frozen_lr: float | None = Field(None, gt=0)
    """Peak learning rate of that phase; None takes `optimizer.lr`."""
    frozen_warmup_steps: int | None = Field(None, ge=0)
    """Linear warm-up of that phase, after which its rate is constant; None warms up all through it."""
    train_stem: bool = False
    """Train the stem from the first step, where the image channels have changed."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """See `LayerwiseSchedule`."""

    @property
    def decay(self) -> float:
        """`layer_decay`."""
        return self.layer_decay

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.frozen_warmup_steps or 0) > self.frozen_steps:
            raise ValueError(
                f"frozen_warmup_steps ({self.frozen_warmup_steps}) is larger than frozen_steps ({self.frozen_steps})"
            )
        return self

    def phases(self, optimizer: OptimizerSection, steps: int) -> tuple[Phase, ...]:
        """Two phases."""
        warmup = self.frozen_steps if self.frozen_warmup_steps is None else self.frozen_warmup_steps
        first = Phase(
            start=0,
            steps=self.frozen_steps,
            parts=_DECODING_AND_STEM if self.train_stem else _DECODING,
            lr=self.frozen_lr or optimizer.lr,
            warmup_steps=warmup,
            power=0.0,
        )
        return (first, joint_phase(optimizer, self.frozen_steps, steps))


class DecoderSchedule(_Schedule):
    """Decoder and heads only: the features stay what they are."""

    kind: Literal["decoder"] = "decoder"
    train_stem: bool = False
    """Train the stem too, where the image channels have changed."""

    def phases(self, optimizer: OptimizerSection, steps: int) -> tuple[Phase, ...]:
        """One phase."""
        return (joint_phase(optimizer, 0, steps, parts=_DECODING_AND_STEM if self.train_stem else _DECODING),)


class LayerwiseSchedule(_Schedule):
    """All parts, at a rate of `lr * layer_decay ** distance`, with the distance from the heads in layers.

    A layer is a resolution level of a U-Net's encoder or decoder, or a block of a transformer.
    """

    kind: Literal["layerwise"] = "layerwise"
    layer_decay: float = Field(0.8, gt=0, le=1)
    """Closer to 1 for deep transformers: 0.8 ** 19 leaves 1 % of the rate for the stem of a Primus-M."""

    @property
    def decay(self) -> float:
        """`layer_decay`."""
        return self.layer_decay

    def phases(self, optimizer: OptimizerSection, steps: int) -> tuple[Phase, ...]:
        """One phase."""
        return (joint_phase(optimizer, 0, steps),)


Schedule = Annotated[
    FullSchedule | UnfreezeSchedule | DecoderSchedule | LayerwiseSchedule, Field(discriminator="kind")
]


class TransferSection(Config):
    """How the given weights are adapted to the new data."""

    heads: Literal["by_name", "keep", "new"] = "by_name"
    """by_name: output channels of structures of the same name keep their weights, others start anew; keep: the heads
    as they are, for weights that do not name their structures; new: all start anew."""
    least_encoder_share: float = Field(0.5, ge=0, le=1)
    """Refuse weights that fill less of the encoder."""
    patch_size: Size3 | None = None
    """(D, H, W) that a Primus of another project was trained with, if it was no cube."""


class FinetuneOptimizer(OptimizerSection):
    """The optimiser's section, with the warm-up that MedNeXt-v2 and nnU-Net's SSL fine-tuning use."""

    warmup_steps: int = Field(12_500, ge=0)


class FinetuneConfig(PretrainConfig):
    """One fine-tuning run.

    What a file leaves out of `model` and `data.patch_size` is taken from the weights, not from a default.
    """

    name: str = Field("finetune", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory; starting the same name again resumes it."""
    steps: int = Field(75_000, ge=1)
    """Optimiser steps in all: 300 epochs of 250, as MedNeXt-v2 is fine-tuned."""
    init_from: str | None = None
    """The weights: a run, its `final` or `best`, a checkpoint `…/checkpoints/step-…`, or a file of nnU-Net,
    MedNeXt, Primus or MONAI; on disk or on S3."""
    plans: str | None = None
    """nnU-Net plans file that the configuration follows: refused if it is for other channels than the store's."""
    transfer: TransferSection = TransferSection()
    schedule: Schedule = FullSchedule()
    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    model: ModelSection = ModelSection()

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        if self.init_from is None:
            raise ValueError(
                "init_from names no weights to start from (to train from scratch, use fedvox pretrain)"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        last = self.phases()[-1]
        if last.warmup_steps >= last.steps:
            raise ValueError(
                f"the schedule's last phase begins at step {last.start} and warms up for {last.warmup_steps}: "
                f"steps ({self.steps}) must be more than {last.start + last.warmup_steps}"
            )
        return self

    def phases(self) -> tuple[Phase, ...]:
        """As the schedule has them."""
        return self.schedule.phases(self.optimizer, self.steps)

    @property
    def layer_decay(self) -> float:
        """As the schedule has it."""
        return self.schedule.decay

    @property
    def never_trained(self) -> tuple[str, ...]:
        """Parts that no phase trains."""
        trained = {part for phase in self.phases() for part in phase.parts}
        return tuple(part for part in PARTS if part not in trained)
