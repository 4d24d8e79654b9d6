"""The cycle's models: trained first, warm-started after each review, through the training shell of all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fedvox.config import validate
from fedvox.curation.cycle.config import CurateConfig
from fedvox.curation.cycle.datasets import fold_of
from fedvox.curation.propose.proposers import ModelProposer, load_proposers
from fedvox.curation.store import LabelStore
from fedvox.training.config import PretrainConfig
from fedvox.training.finetune_config import FinetuneConfig

Train = Callable[[PretrainConfig], dict[str, Any]]
"""Runs (or resumes) a training; `fedvox.training.ray_shell.run`."""


@dataclass(frozen=True)
class Models:
    """The models of a round.

    Args:
        uris: runs or `final` folders.
        folds: for each, the fold whose cases it was not trained on; -1 for a model from elsewhere.
    """

    uris: tuple[str, ...]
    folds: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Models:
        """The inverse of `to_json`."""
        return cls(tuple(fields["uris"]), tuple(fields["folds"]))

    def proposers(self, store: LabelStore, folds: int) -> tuple[ModelProposer, ...]:
        """Loaded, with the cases that each has learnt the labels of."""
        cases = [case.case_id for case in store.cases(gold=False) if case.head is not None]
        seen = [
            frozenset() if held < 0 else frozenset(one for one in cases if fold_of(one, folds) != held)
            for held in self.folds
        ]
        return load_proposers(self.uris, store.structures, seen)


def first_models(config: CurateConfig, store: LabelStore, train: Train) -> Models:
    """The models that are named, or new ones, trained on the labels as they are."""
    given = config.propose.models
    if given or config.propose.imported:
        return Models(tuple(given), (-1,) * len(given))
    uris = [_trained(_first_training(config, store, fold), train) for fold in range(config.propose.folds)]
    return Models(tuple(uris), tuple(range(config.propose.folds)))


def retrained_models(
    config: CurateConfig, store: LabelStore, round: int, before: Models, train: Train
) -> Models:
    """The models of the round before, trained on with the labels as they are now."""
    folds = [number % config.propose.folds for number in range(len(before.uris))]
    uris = [
        _trained(_retraining(config, store, round, number, fold, uri), train)
        for number, (fold, uri) in enumerate(zip(folds, before.uris, strict=True))
    ]
    # A model from elsewhere may have seen any label: held out is only what no training of it has used.
    held = [fold if old == fold else -1 for fold, old in zip(folds, before.folds, strict=True)]
    return Models(tuple(uris), tuple(held))


def _trained(config: PretrainConfig, train: Train) -> str:
    train(config)
    return f"{config.storage}/{config.name}/final"


def _first_training(config: CurateConfig, store: LabelStore, fold: int) -> PretrainConfig:
    fields = {**_fields(config, store, fold), "name": f"round-000-model-{fold}", "seed": config.seed + fold}
    return validate(PretrainConfig, fields, source="training")


def _retraining(
    config: CurateConfig, store: LabelStore, round: int, number: int, fold: int, uri: str
) -> PretrainConfig:
    fields = _fields(config, store, fold)
    for of_weights in ("model",):
        fields.pop(of_weights)
    retrain = config.retrain
    fields |= {
        "name": f"round-{round:03d}-model-{number}",
        "init_from": uri,
        "seed": config.seed + 1000 * round + number,
        "steps": retrain.steps,
        "optimizer": {**fields["optimizer"], "lr": retrain.lr, "warmup_steps": retrain.warmup_steps},
        "schedule": retrain.schedule.model_dump(),
    }
    found = validate(FinetuneConfig, fields, source="retrain")
    from fedvox.training.finetune import resolve

    return resolve(found)


def _fields(config: CurateConfig, store: LabelStore, fold: int) -> dict[str, Any]:
    """A training's fields, with data and places of this cycle."""
    fields = config.training.model_dump()
    held_out = [
        case.case_id
        for case in store.cases(gold=False)
        if case.head is not None and fold_of(case.case_id, config.propose.folds) == fold
    ]
    fields["storage"] = store.location.child("runs").uri
    fields["data"] |= {"store": store.location.child("training").uri, "validation_cases": held_out}
    fields["data"]["max_validation_cases"] = fields["data"]["max_validation_cases"] or 20
    fields.pop("init_from")
    return fields
