"""Five-fold cross-validation: every case is predicted by the model that has not seen it, alone and in pairs.

    OUTPUT/CANDIDATE/CASE.nii.gz    out-of-fold predictions, resumable like every prediction
    OUTPUT/CANDIDATE/dice.json      Dice of each case and structure
    OUTPUT/selection.json           the best candidate, its models and score; see `selection`

A pair predicts with both networks at once instead of storing probabilities: that costs their time again, and no disk
(nnU-Net keeps the probabilities of every case, gigabytes each with many classes).
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from fedvox.config import Config
from fedvox.data.case_volumes import CaseVolumes, read_case
from fedvox.data.ignore import ignore_value
from fedvox.data.ingest_config import SourceConfig
from fedvox.data.label_space import LabelSpace, join_labels
from fedvox.data.raw_dataset import RawCase
from fedvox.data.readers import read_volume
from fedvox.data.sources import JoinedSources, open_sources
from fedvox.errors import ConfigError, DataError
from fedvox.inference.config import PredictConfig
from fedvox.inference.ensemble import read_infos
from fedvox.inference.run import Job, predict_cases
from fedvox.inference.selection import (
    POSTPROCESSING,
    Candidate,
    Counts,
    PostprocessingTrial,
    Selection,
    choose_best,
    choose_postprocessing,
    mean_dice,
    try_postprocessing,
    write_selection,
)
from fedvox.planning.splits import Fold, checked_folds, kfold, read_splits
from fedvox.storage import Location, locate, write_atomic

log = logging.getLogger(__name__)


class CrossvalConfig(Config):
    """A cross-validation of trained folds."""

    data: str = ""
    """The raw data set with its labels, as given to the ingest."""
    output: str = ""
    """Folder for predictions and decision."""
    configurations: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> the run of each fold, in the order of the folds."""
    splits: str | None = None
    """splits_final.json; None takes the data set's own, or nnU-Net's for its cases."""
    pairs: bool = True
    """Try pairs of configurations too."""
    predict: PredictConfig = PredictConfig()
    """How to predict; images, output and models are filled in."""


@dataclass(frozen=True)
class _Study:
    """The cases with their references, and who predicts which."""

    config: CrossvalConfig
    sources: JoinedSources
    space: LabelSpace
    folds: tuple[Fold, ...]
    structures: tuple[str, ...]

    @property
    def crop_to_nonzero(self) -> bool:
        """References are compared in the file's own grid."""
        return False

    @property
    def tolerate(self) -> tuple[str, ...]:
        """As for the images."""
        return self.config.predict.tolerate

    @property
    def label_sets(self) -> Any:
        """Label set -> meaning of its values."""
        return self.sources.label_sets

    @property
    def cases(self) -> dict[str, RawCase]:
        """By id."""
        return {case.case_id: case for case in self.sources.cases}


def cross_validate(config: CrossvalConfig) -> Selection:
    """Predicts, scores, chooses, and determines the postprocessing.

    Raises:
        ConfigError: a configuration does not have a model for each fold, or models do not fit together.
        DataError: the data set or its splits cannot be used, or a case could not be predicted.
        RunError: a case failed.
    """
    study = _open(config)
    output = locate(config.output)
    candidates, tables = [], {}
    for name, models in _candidates(config):
        log.info("%s: predicting the held-out cases of %d folds", name, len(study.folds))
        _predict_folds(study, name, models)
        tables[name] = _score(study, output.child(name))
        means = mean_dice(list(tables[name].values()))
        per_structure = {
            structure: float(mean)
            for structure, mean in zip(study.structures, means, strict=True)
            if structure != study.structures[0] and not math.isnan(mean)
        }
        dice = float(np.mean(list(per_structure.values()))) if per_structure else math.nan
        candidates.append(Candidate(name, tuple(itertools.chain(*models)), dice, per_structure))
        log.info("%s: mean Dice %.4f", name, dice)
    best = choose_best(candidates)
    selection = Selection(best.name, best.models, tuple(candidates), len(tables[best.name]))
    selection = _with_postprocessing(study, selection, output)
    write_selection(selection, output)
    return selection


def _open(config: CrossvalConfig) -> _Study:
    for name in ("data", "output", "configurations"):
        if not getattr(config, name):
            remedy = "Name the data set, an output folder, and at least one configuration."
            raise ConfigError(f"`{name}` is empty", remedy)
    sources = open_sources([SourceConfig(path=config.data)])
    labelled = tuple(case for case in sources.cases if case.is_labelled)
    sources = replace(sources, cases=labelled)
    case_ids = [case.case_id for case in labelled]
    if config.splits is not None:
        folds = read_splits(config.splits, case_ids)
    elif sources.splits:
        folds = checked_folds(
            [Fold(tuple(fold["train"]), tuple(fold["val"])) for fold in sources.splits], case_ids, config.data
        )
    else:
        folds = kfold(case_ids)
    for name, models in config.configurations.items():
        if len(models) != len(folds):
            raise ConfigError(
                f"configuration {name!r} has {len(models)} models for {len(folds)} folds",
                "Name the run of each fold, in the order of splits_final.json.",
            )
    infos = read_infos([model for models in config.configurations.values() for model in models])
    space = join_labels(sources.label_sets, None)
    unknown = sorted(set(infos[0].structures) - set(space.structures))
    if unknown:
        raise ConfigError(
            f"the models segment what {config.data} does not annotate: {', '.join(unknown)}",
            "Give the data set that they were trained on, with the same label names.",
        )
    return _Study(config, sources, space, folds, infos[0].structures)


def _candidates(config: CrossvalConfig) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Name -> the models of each fold; single configurations first."""
    singles: dict[str, list[tuple[str, ...]]] = {
        name: [(model,) for model in models] for name, models in config.configurations.items()
    }
    yield from singles.items()
    if config.pairs:
        for (first, ours), (second, theirs) in itertools.combinations(singles.items(), 2):
            yield f"{first}+{second}", [a + b for a, b in zip(ours, theirs, strict=True)]


def _predict_folds(study: _Study, name: str, models: Sequence[tuple[str, ...]]) -> None:
    output = locate(study.config.output).child(name)
    for fold, of_fold in zip(study.folds, models, strict=True):
        config = study.config.predict.model_copy(
            update={
                "images": study.config.data,
                "output": output.uri,
                "models": of_fold,
                "postprocessing": None,
            }
        )
        cases = tuple(study.cases[case_id] for case_id in fold.validation)
        report = predict_cases(Job(config, read_infos(of_fold), cases))
        error = report.error()
        if error is not None:
            raise error


# ---- scores ------------------------------------------------------------------------------------------------


def _score(study: _Study, folder: Location) -> dict[str, np.ndarray]:
    """Dice (K,) of every held-out case, and dice.json."""
    rows: dict[str, np.ndarray] = {}
    for case, reference, prediction in _pairs(study, folder):
        dice = Counts.of(reference, prediction, len(study.structures)).dice()
        rows[case.case_id] = np.where(_annotated(study, case), dice, np.nan)
    table = {
        case_id: {
            name: None if math.isnan(value) else round(float(value), 6)
            for name, value in zip(study.structures[1:], row[1:], strict=True)
        }
        for case_id, row in rows.items()
    }
    write_atomic(folder.child("dice.json"), (json.dumps(table, indent=1) + "\n").encode())
    return rows


def _with_postprocessing(study: _Study, selection: Selection, output: Location) -> Selection:
    trials: list[PostprocessingTrial] = []
    for case, reference, prediction in _pairs(study, output.child(selection.best)):
        trials.append(
            try_postprocessing(reference, prediction, len(study.structures), _annotated(study, case))
        )
    chosen = choose_postprocessing(trials, study.structures)
    if not chosen.steps:
        return selection
    location = output.child(POSTPROCESSING)
    chosen.write(location)
    with_union = len(chosen.steps[0]) > 1
    rows = []
    for trial in trials:
        row = (trial.union if with_union else trial.plain).copy()
        for step in chosen.steps:
            if len(step) == 1:
                row[step[0]] = (trial.single_after_union if with_union else trial.single)[step[0]]
        rows.append(row)
    return replace(
        selection, postprocessing=location.uri, dice_postprocessed=float(np.nanmean(mean_dice(rows)[1:]))
    )


def _pairs(study: _Study, folder: Location) -> Iterator[tuple[RawCase, np.ndarray, np.ndarray]]:
    """Case, reference and prediction as structure indices of the models; what nobody judged is left out of both."""
    table = _to_model(study.space.structures, study.structures)
    for case_id in sorted({case_id for fold in study.folds for case_id in fold.validation}):
        case = study.cases[case_id]
        volumes = _reference(case, study)
        prediction = read_volume(folder.child(f"{case_id}.nii.gz").uri).data[0]
        label = volumes.label
        assert label is not None  # only labelled cases are studied
        judged = label != ignore_value(label.dtype)
        reference = table[np.where(judged, label, 0)]
        yield case, np.where(judged, reference, 0), np.where(judged, prediction, 0)


def _reference(case: RawCase, study: _Study) -> CaseVolumes:
    volumes = read_case(case, study)
    if volumes.label is None:
        raise DataError(f"case {case.case_id} has no label", "Leave it out of the splits.", code="no_label")
    return volumes


def _to_model(known: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Table from the data set's structure indices to the models'; what they do not segment becomes background."""
    index: Mapping[str, int] = {name: number for number, name in enumerate(wanted)}
    return np.array([index.get(name, 0) for name in known], dtype=np.uint16)


def _annotated(study: _Study, case: RawCase) -> np.ndarray:
    """Bool (K,), the models' structures that the case's source annotates."""
    names = {study.space.structures[index] for index in study.space.annotated[case.label_set]}
    return np.array([name in names for name in study.structures])
