"""What a comparison of backbones is told, with its only defaults. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedvox.config import Config

Unit = Literal["tflop", "seconds", "steps"]

_OF_THE_TRIAL = (
    "name",
    "storage",
    "seed",
    "steps",
    "model",
    "init_from",
    "validation",
    "checkpoint",
    "compute",
)
"""Fields of a training run that the comparison sets itself."""
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Budget(Config):
    """What every backbone may spend on one training run.

    `tflop` is the default: operations are counted, not timed, so that the numbers of steps, and with them the result,
    are the same on every machine and after every interruption. A large network pays for its size with fewer steps.
    `seconds` asks what an hour of the hardware at hand buys, which also counts how well a network uses it; the step
    time is measured once and kept. `steps` shows every network the same patches, as most publications do, whatever
    they cost.
    """

    unit: Unit = "tflop"
    amount: float = Field(gt=0)


class Backbone(Config):
    """One contestant."""

    name: str
    """A name that `fedvox models` lists."""
    label: str | None = Field(None, pattern=_LABEL)
    """In tables and folders; the name by default. Needed where one name occurs with several options."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to `build_model`. `patch_size` is set to that of the recipe where the network wants one."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the recipe for this backbone, such as its own optimizer."""
    pretrained: str | None = None
    """Released weights (a folder with model.json), or a checkpoint file of another project."""

    @property
    def title(self) -> str:
        """The label, or the name."""
        return self.label or self.name


class Pretraining(Config):
    """Where and how long each backbone is pretrained before it is fine-tuned."""

    store: str
    """Brick store; none of its patients may be among the held-out ones of the comparison."""
    budget: Budget | None = None
    """None takes the comparison's."""
    seed: int = Field(0, ge=0)
    data: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the recipe's data section, such as `validation_cases`."""


class Compute(Config):
    """Hardware and its use."""

    concurrent: int = Field(0, ge=0)
    """Trials at a time over Ray Tune; 0 runs one after the other in this process, without Ray."""
    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: float = Field(0.0, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    retries: int = Field(2, ge=0)
    """How often a trial whose worker died is started again; it goes on from its own checkpoint."""
    profile_steps: int = Field(5, ge=1)
    """Steps whose median is the step time, after two to warm up."""


class Statistics(Config):
    """Intervals."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)


class BackboneBenchmarkConfig(Config):
    """One comparison of backbones."""

    name: str = Field("backbones", pattern=_LABEL)
    """Names the folder of results; starting the same name again goes on."""
    storage: str = "$FEDVOX_HOME/backbones"
    """Folder or `s3://` address; must be reachable from every node."""
    backbones: tuple[Backbone, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Of initialisation, sampling and augmentation; every backbone is trained with each of them."""
    budget: Budget
    """Of each training from scratch, and of each fine-tuning."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of a run's steps in which its learning rate rises; in a fraction, because numbers of steps differ."""
    recipe: dict[str, Any]
    """Fields of a pretraining configuration that all share: data, optimizer, loss, augment, global_batch_size."""
    validation_overlap: float = Field(0.5, ge=0, lt=1)
    """Share of a patch that windows have in common when held-out cases are predicted."""
    pretrain: Pretraining | None = None
    """Pretrain each backbone that has no `pretrained`, then fine-tune it; None compares from scratch alone."""
    compute: Compute = Compute()
    statistics: Statistics = Statistics()

    @field_validator("recipe")
    @classmethod
    def _only_shared(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        taken = [field for field in _OF_THE_TRIAL if field in recipe]
        if taken:
            raise ValueError(
                f"{', '.join(taken)} cannot be in the recipe: the comparison sets it for each trial"
            )
        return recipe

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        titles = [backbone.title for backbone in self.backbones]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(
                f"backbones: {', '.join(twice)} occurs more than once; give each a label of its own"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be distinct")
        return self
