"""Everything a forecasting model is told, with its only defaults. This module imports neither torch nor ray."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedvox.config import Config
from fedvox.training.config import OptimizerSection, TrainingConfig

Size3 = tuple[int, int, int]


class NetworkSection(Config):
    """The velocity network: an own small U-Net, or a registered backbone."""

    backbone: str | None = None
    """A name that `fedvox models` lists; None takes the small U-Net described by the fields below."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to `build_model` with a backbone."""
    init_from: str | None = None
    """Pretrained weights of the backbone: a run, its `final` folder, or an upstream checkpoint."""
    widths: tuple[int, ...] = (32, 64)
    """Channels per level of the U-Net, finest first."""
    blocks: int = Field(1, ge=1)
    """Residual blocks per level of the encoder; the decoder has one."""
    patch: int = Field(2, ge=1)
    """Edge of the voxel cubes that become channels at the entrance; 1 keeps the full resolution."""
    embedding: int = Field(64, ge=8)
    """Width of the time embedding."""
    recompute_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them."""


class FlowSection(Config):
    """How the context is carried to the target."""

    method: Literal["cronos", "tfm", "convlstm"] = "cronos"
    """cronos: the scans that there are, with their real times. tfm: a slot per visit, time is the slot's position.
    convlstm: the recurrent baseline, which predicts the target itself (objective `regression` only)."""
    slots: int = Field(4, ge=1)
    """Context images that the network takes."""
    times: Literal["continuous", "grid", "pooled"] = "continuous"
    """For cronos. grid rounds times to `grid_step`; pooled is the published pooling over slots."""
    grid_step: float = Field(1.0, gt=0)
    """In the unit of the data."""
    objective: Literal["flow", "regression"] = "flow"
    """regression: the same network predicts the difference to the target from the context in one step."""
    sigma: float = Field(0.01, ge=0)
    """Noise on the path in training, and of stochastic forecasts, in normalised units."""
    condition_on_source: bool = True
    """Show the network the context itself beside the current state of the flow."""
    roi_weight: float = Field(0.0, ge=0)
    """Additional weight of the loss in the target's region of interest."""
    mask_missing: bool = False
    """Leave filled slots out of the loss (tfm)."""


class SolverSection(Config):
    """How the flow is integrated."""

    name: Literal["euler", "midpoint", "adaptive"] = "midpoint"
    steps: int = Field(5, ge=1)
    """Of euler and midpoint."""
    tolerance: float = Field(1e-5, gt=0)
    """Absolute and relative, of adaptive (Dormand and Prince, from torchdiffeq)."""
    aggregate: Literal["mean", "last"] = "mean"
    """Which forecast is taken: the mean of those that start at each context image, or the one from the last."""


class SimulatedSection(Config):
    """Simulated patients instead of files; see `fedvox.forecasting.simulation`."""

    kind: Literal["heart", "contrast", "brain", "response"] = "heart"
    schedule: Literal["irregular", "regular"] = "irregular"
    target: Literal["any", "after"] = "any"
    """Ask for any time, or only for times after the last scan."""
    size: int = Field(16, ge=8)
    """Edge of the volumes in voxels."""
    noise: float = Field(0.01, ge=0)
    static: float = Field(0.1, ge=0, le=1)
    """Share of the patients that never change."""


class ForecastDataSection(Config):
    """Where the sequences come from, and what is drawn from them."""

    folder: str | None = None
    """Sequences on disk, a local folder; None where patients are simulated."""
    layout: Literal["auto", "table", "cine", "bids", "acdc", "isles", "lumiere"] = "auto"
    """How they lie there; see `fedvox.forecasting.loaders`."""
    unit: str | None = None
    """Of times, where the files do not say: seconds, minutes, hours, days, weeks, months, years, cycle or frames."""
    simulated: SimulatedSection | None = None
    size: Size3 | None = None
    """(D, H, W) that every volume is cropped or padded to, around its centre; None takes them as they are."""
    missing: float = Field(0.3, ge=0, lt=1)
    """Share of the context scans that training leaves out, beside those that are missing anyway."""
    interpolate: bool = True
    """Ask for scans between others too, not only for those after all of the context."""
    folds: int = Field(5, ge=2)
    """The patients, all scans of each together, are dealt into so many folds."""
    fold: int = Field(0, ge=0)
    """The held-out one."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.simulated is None):
            raise ValueError("give either data.folder or data.simulated")
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: they are numbered from 0 to {self.folds - 1}")
        return self


class ForecastValidationSection(Config):
    """Forecasts of held-out patients during training."""

    every_steps: int = Field(500, ge=1)
    at_start: bool = False
    examples: int = Field(16, ge=1)
    """How many targets are forecast; always the same ones."""
    trust_examples: int = Field(64, ge=0)
    """Held-out targets from which, after training, the prior of trust is fitted; 0: changes are trusted in full."""


class ForecastConfig(TrainingConfig):
    """One training of a forecasting model."""

    resume_invariant = ("seed", "data", "flow", "network", "optimizer", "decay", "global_batch_size")

    name: str = Field("forecast", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory; starting the same name again resumes it."""
    steps: int = Field(20_000, ge=1)
    """Optimiser steps in all."""
    global_batch_size: int = Field(4, ge=1)
    """Patients a step over all workers together."""
    optimizer: OptimizerSection = OptimizerSection(lr=1e-4, warmup_steps=0)
    decay: Literal["cosine", "polynomial"] = "cosine"
    """Of the learning rate after the warm-up."""
    data: ForecastDataSection
    flow: FlowSection = FlowSection()
    network: NetworkSection = NetworkSection()
    solver: SolverSection = SolverSection()
    validation: ForecastValidationSection = ForecastValidationSection()

    @model_validator(mode="after")
    def _recurrent_is_direct(self) -> Self:
        if self.flow.method == "convlstm" and self.flow.objective != "regression":
            raise ValueError("flow.method convlstm has no flow: set flow.objective to regression")
        return self
