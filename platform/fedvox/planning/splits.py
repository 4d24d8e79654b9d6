"""Folds for cross-validation: nnU-Net's, to the case.

Source: nnU-Net's splits_final.json: scikit-learn's KFold over the sorted case ids, shuffled with seed 12345.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedvox.errors import DataError
from fedvox.storage import Location, locate, read_bytes, write_atomic

SEED = 12345
NUM_FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """One split.

    Attributes:
        training: case ids, sorted.
        validation: case ids, sorted.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]


def kfold(
    case_ids: Iterable[str],
    *,
    folds: int = NUM_FOLDS,
    seed: int = SEED,
    patient_of: Callable[[str], str] | None = None,
) -> tuple[Fold, ...]:
    """Splits cases into folds; each case is held out once.

    Args:
        case_ids: in any order.
        folds: how many.
        seed: of the shuffle.
        patient_of: case id -> patient; all cases of a patient are then held out together. None takes every case
            for a patient of its own, as nnU-Net does.

    Raises:
        DataError: fewer patients than folds, or a case twice.
    """
    cases = sorted(case_ids)
    if len(set(cases)) != len(cases):
        twice = next(a for a, b in itertools.pairwise(cases) if a == b)
        raise DataError(
            f"case {twice} occurs twice", "Give every case an id of its own.", code="duplicate_case"
        )
    patients = [case if patient_of is None else patient_of(case) for case in cases]
    names = sorted(set(patients))
    if not 2 <= folds <= len(names):
        raise DataError(
            f"{len(names)} patients cannot be split into {folds} folds",
            f"Give between 2 and {len(names)} folds." if len(names) > 1 else "Add cases.",
            code="too_few_cases",
        )
    order = np.random.RandomState(seed).permutation(len(names))
    result = []
    for part in np.array_split(order, folds):
        held_out = {names[index] for index in part}
        result.append(
            Fold(
                tuple(c for c, p in zip(cases, patients, strict=True) if p not in held_out),
                tuple(c for c, p in zip(cases, patients, strict=True) if p in held_out),
            )
        )
    return tuple(result)


def read_splits(uri: str, case_ids: Sequence[str] | None = None) -> tuple[Fold, ...]:
    """Reads a splits_final.json.

    Args:
        uri: of the file.
        case_ids: the cases that there are; None skips the check.

    Raises:
        DataError: it is no list of `{"train": [...], "val": [...]}`, a case is on both sides of a fold, or it is
            unknown.
    """
    try:
        value = json.loads(read_bytes(locate(uri)))
        folds = tuple(Fold(tuple(sorted(f["train"])), tuple(sorted(f["val"]))) for f in value)
    except (ValueError, KeyError, TypeError) as error:
        raise _bad_splits(uri, f"is no list of folds with `train` and `val`: {error!r}") from error
    return checked_folds(folds, case_ids, uri)


def checked_folds(folds: Sequence[Fold], case_ids: Sequence[str] | None, source: str) -> tuple[Fold, ...]:
    """The folds, if they can be used.

    Args:
        folds: to check.
        case_ids: the cases that there are; None for any.
        source: names the splits in messages.

    Raises:
        DataError: a case is on both sides of a fold, or it is unknown.
    """
    for number, fold in enumerate(folds):
        both = set(fold.training) & set(fold.validation)
        if both:
            raise _bad_splits(source, f"holds case {min(both)} in both parts of fold {number}")
        unknown = set(fold.training + fold.validation) - set(case_ids if case_ids is not None else ())
        if case_ids is not None and unknown:
            raise _bad_splits(
                source, f"names case {min(unknown)} in fold {number}, which the data set does not have"
            )
    return tuple(folds)


def write_splits(folds: Sequence[Fold], location: Location) -> None:
    """Writes folds as nnU-Net's splits_final.json, atomically."""
    value = [{"train": list(fold.training), "val": list(fold.validation)} for fold in folds]
    write_atomic(location, json.dumps(value, indent=1).encode())


def _bad_splits(uri: str, found: str) -> DataError:
    return DataError(
        f"{uri} {found}", "Write it as nnU-Net's splits_final.json.", code="bad_splits", file=uri
    )
