"""What a round of curation is told, with its only defaults. Imports neither numpy nor torch nor ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvox.config import Config
from fedvox.curation.queueing.settings import QueueSection
from fedvox.training.config import PretrainConfig
from fedvox.training.finetune_config import FullSchedule, Schedule


class ProposeSection(Config):
    """Who proposes."""

    models: tuple[str, ...] = ()
    """Released models to begin with, at least two unless masks are imported; none trains `folds` models on the labels
    as they are."""
    imported: tuple[str, ...] = ()
    """Names of sources whose imported masks are proposals too (see `fedvox curate import-masks`)."""
    folds: int = Field(2, ge=2)
    """Each model is trained without the cases of one fold, so that every case has a model that never saw its label."""
    consensus: Literal["majority", "staple"] = "majority"
    overlap: float = Field(0.5, ge=0, lt=1)
    """Share of a patch that neighbouring windows have in common."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""


class RetrainSection(Config):
    """How the models go on learning after a review; all else is as in `training`."""

    steps: int = Field(10_000, ge=1)
    lr: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(500, ge=0)
    schedule: Schedule = FullSchedule()


class GateSection(Config):
    """When retrained models may take the place of the old ones."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the paired bootstrap interval of each structure's change in Dice on the gold set."""
    tolerance: float = Field(0.0, ge=0)
    """Loss in Dice that is put up with."""
    resamples: int = Field(2000, ge=100)


class StopSection(Config):
    """When the cycle has done its work."""

    max_rounds: int = Field(10, ge=1)
    residual_error: float = Field(0.01, ge=0, le=1)
    """Stop when the audit's interval for the error rate among cases that nobody looked at lies below this."""
    advantage: float = Field(1.0, ge=0)
    """Stop when the queue finds fewer than this many times the errors per minute that a random look finds."""


class CurateConfig(Config):
    """A collection's cycle."""

    store: str = "$FEDVOX_HOME/curation/default"
    """Label store (see `fedvox curate create`)."""
    rules: str | None = None
    """YAML file of rules; None takes the general ones (volume, gaps, roughness, consensus, label errors)."""
    propose: ProposeSection = ProposeSection()
    queue: QueueSection = QueueSection()
    training: PretrainConfig = PretrainConfig()
    """Of the first models; name, storage, data.store, data.validation_cases and init_from are the cycle's own."""
    retrain: RetrainSection = RetrainSection()
    gate: GateSection = GateSection()
    stop: StopSection = StopSection()
    pictures: int = Field(200, ge=0)
    """Findings of a round that get a picture, the gravest first."""
    seed: int = Field(0, ge=0)
