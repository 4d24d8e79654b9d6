"""What a cross-validation decided: which models to use together, and which structures keep their largest part alone.

    selection.json       the best configuration, every candidate's score, the models of all its folds
    postprocessing.json  beside it, where a step helps

Postprocessing is nnU-Net's: first the union of all structures, taken only if the mean Dice rises and no structure
loses; then each structure by itself, taken only if its own Dice rises. Where nothing rises nothing is done.

Source: Isensee et al. 2021, nnU-Net, "empirical parameters".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedvox.errors import ConfigError
from fedvox.inference.postprocessing import Postprocessing, keep_largest
from fedvox.storage import Location, exists, locate, read_bytes, write_atomic

SCHEMA = "fedvox.selection/1"
POSTPROCESSING = "postprocessing.json"


@dataclass(frozen=True)
class Counts:
    """Voxel counts of one case for Dice, each (K,) int64.

    Attributes:
        both: where reference and prediction agree on the structure.
        reference: voxels of the reference.
        prediction: voxels of the prediction.
    """

    both: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray

    @classmethod
    def of(cls, reference: np.ndarray, prediction: np.ndarray, num_structures: int) -> Counts:
        """Counts over whole volumes (D, H, W) of structure indices; other values count as nothing."""
        counts = np.zeros((3, np.iinfo(np.uint16).max + 1), dtype=np.int64)
        for ours, theirs in zip(reference, prediction, strict=True):  # bincount works on 8 bytes a voxel
            for row, values in zip(counts, (ours[ours == theirs], ours, theirs), strict=True):
                found = np.bincount(values.reshape(-1))
                row[: len(found)] += found
        both, there, here = counts[:, :num_structures]
        return cls(both, there, here)

    def dice(self) -> np.ndarray:
        """(K,) NaN where the structure is in neither."""
        total = self.reference + self.prediction
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, 2 * self.both / total, np.nan)


@dataclass(frozen=True)
class PostprocessingTrial:
    """One case's Dice (K,) without and with each step that postprocessing might take.

    Attributes:
        plain: as predicted.
        union: with the largest component of the union of all structures alone.
        single: with each structure's largest component alone; column k is structure k's own Dice.
        single_after_union: the same after `union`.
    """

    plain: np.ndarray
    union: np.ndarray
    single: np.ndarray
    single_after_union: np.ndarray


def try_postprocessing(
    reference: np.ndarray, prediction: np.ndarray, num_structures: int, annotated: np.ndarray
) -> PostprocessingTrial:
    """What each possible step would do to a case.

    Args:
        reference: (D, H, W) structure indices; voxels that nobody judged are to be excluded beforehand.
        prediction: the same.
        num_structures: K, background included.
        annotated: bool (K,), the structures that the reference knows; the others' Dice is NaN.
    """
    joined = keep_largest(prediction, range(1, num_structures))
    results = []
    for labels in (prediction, joined):
        plain = Counts.of(reference, labels, num_structures).dice()
        single = plain.copy()
        for structure in np.unique(labels):
            if 0 < structure < num_structures:
                single[structure] = _dice_of(
                    reference, keep_largest(labels, (int(structure),)), int(structure)
                )
        results.append([np.where(annotated, dice, np.nan) for dice in (plain, single)])
    (plain, single), (union, after) = results
    return PostprocessingTrial(plain, union, single, after)


def _dice_of(reference: np.ndarray, labels: np.ndarray, structure: int) -> float:
    here, there = reference == structure, labels == structure
    total = int(here.sum()) + int(there.sum())
    return 2 * int((here & there).sum()) / total if total else float("nan")


def choose_postprocessing(trials: Sequence[PostprocessingTrial], structures: Sequence[str]) -> Postprocessing:
    """The steps that raise the Dice of a cross-validation.

    Args:
        trials: one a case.
        structures: names, background first.
    """
    plain, union = mean_dice([t.plain for t in trials]), mean_dice([t.union for t in trials])
    steps: list[tuple[int, ...]] = []
    before, single = plain, mean_dice([t.single for t in trials])
    known = ~np.isnan(plain[1:]) & ~np.isnan(union[1:])
    is_better = np.nanmean(union[1:][known]) > np.nanmean(plain[1:][known]) if known.any() else False
    if is_better and not (union[1:][known] < plain[1:][known]).any():
        steps.append(tuple(range(1, len(structures))))
        before, single = union, mean_dice([t.single_after_union for t in trials])
    if len(structures) > 2:  # of a single structure, its own component is that of the union
        steps += [(index,) for index in range(1, len(structures)) if single[index] > before[index]]
    return Postprocessing(tuple(structures), tuple(steps))


def mean_dice(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(K,) mean over the cases that have the structure, NaN where none has."""
    table = np.stack(rows)
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known.any(axis=0), np.where(known, table, 0).sum(axis=0) / known.sum(axis=0), np.nan)


@dataclass(frozen=True)
class Candidate:
    """A configuration, or a pair of them, as cross-validation saw it.

    Attributes:
        name: of the configuration; of a pair, both with a "+".
        models: of all folds.
        dice: mean of the structures' means over the cases, each predicted by the fold that had not seen it.
        per_structure: the means.
    """

    name: str
    models: tuple[str, ...]
    dice: float
    per_structure: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """The decision.

    Attributes:
        best: name of the winner.
        models: to use together from now on.
        candidates: in the order in which they were tried.
        num_cases: that were predicted.
        postprocessing: URI of postprocessing.json, None where no step helps.
        dice_postprocessed: of the winner with it.
    """

    best: str
    models: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    num_cases: int
    postprocessing: str | None = None
    dice_postprocessed: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `schema` names the layout."""
        return {"schema": SCHEMA, **asdict(self)}


def choose_best(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the highest Dice; of equals the first, which is the simplest.

    Raises:
        ConfigError: none has a Dice.
    """
    known = [candidate for candidate in candidates if not np.isnan(candidate.dice)]
    if not known:
        raise ConfigError(
            "no candidate has a Dice: no structure is in any case", "Check the labels of the data set."
        )
    return max(known, key=lambda candidate: candidate.dice)


def write_selection(selection: Selection, folder: Location) -> Location:
    """Writes selection.json, atomically."""
    location = folder.child("selection.json")
    write_atomic(location, (json.dumps(selection.to_dict(), indent=1) + "\n").encode())
    return location


def read_selection(uri: str) -> Selection:
    """Reads selection.json.

    Raises:
        ConfigError: it is missing, unreadable, or of another schema.
    """
    location = locate(uri)
    if not exists(location):
        raise ConfigError(f"selection {uri} does not exist", "Run `fedvox crossval` first.")
    try:
        value = json.loads(read_bytes(location))
        if value.pop("schema") != SCHEMA:
            raise ConfigError(f"{uri} is of another schema than {SCHEMA}", "Use the version that wrote it.")
        candidates = tuple(Candidate(**{**c, "models": tuple(c["models"])}) for c in value.pop("candidates"))
        return Selection(**{**value, "models": tuple(value["models"]), "candidates": candidates})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{uri} is no selection: {error!r}", "Run `fedvox crossval` again.") from error
