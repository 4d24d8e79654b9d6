"""Which cases are held out for validation: by name, or a stable share of every source."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedvox.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """Rows of a store's manifest.

    Attributes:
        training: ascending row numbers.
        validation: ascending row numbers, disjoint from `training`.
    """

    training: np.ndarray
    validation: np.ndarray


def split_cases(
    case_ids: Sequence[str],
    sources: np.ndarray,
    *,
    named: Sequence[str] | None,
    fraction: float,
    at_most: int | None = None,
) -> Split:
    """Splits a store into training and validation cases.

    A drawn split depends on case names alone: adding cases to the store moves no case between training and
    validation, and neither does the seed of a run.

    Args:
        case_ids: name of every row.
        sources: `(N,)` integer code of every row's source.
        named: held-out cases by name; None draws them.
        fraction: expected share of every source to hold out, if drawn.
        at_most: upper bound on the number of validation cases; the surplus is used by neither side.

    Raises:
        ConfigError: a named case is unknown, or nothing is left to train on.
    """
    if named is not None:
        held_out = _rows_of(case_ids, named)
    else:
        threshold = int(fraction * 2**64)
        held_out = np.fromiter(
            (row for row, name in enumerate(case_ids) if _hash(name) < threshold), np.int64
        )
        held_out = _keep_every_source_trainable(held_out, sources)
    training = np.setdiff1d(np.arange(len(case_ids)), held_out)
    if len(training) == 0:
        raise ConfigError(
            f"all {len(case_ids)} cases are held out for validation, none is left to train on",
            "Lower data.validation_fraction or name fewer data.validation_cases.",
        )
    if at_most is not None and len(held_out) > at_most:
        order = np.argsort([_hash(case_ids[row]) for row in held_out])
        held_out = np.sort(held_out[order[:at_most]])
    return Split(training, held_out)


def _keep_every_source_trainable(held_out: np.ndarray, sources: np.ndarray) -> np.ndarray:
    total = np.bincount(sources, minlength=1)
    taken = np.bincount(sources[held_out], minlength=len(total))
    whole = np.flatnonzero((taken == total) & (total > 0))
    return held_out[~np.isin(sources[held_out], whole)]


def _rows_of(case_ids: Sequence[str], named: Sequence[str]) -> np.ndarray:
    rows = {name: row for row, name in enumerate(case_ids)}
    unknown = [name for name in named if name not in rows]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(rows)[:10_000], n=3, cutoff=0.4)
        raise ConfigError(
            f"data.validation_cases: {unknown[0]!r} is not in the store ({len(case_ids)} cases)",
            f"Nearest names: {', '.join(near)}."
            if near
            else "List the store's cases in its manifest.parquet.",
        )
    return np.array(sorted(rows[name] for name in named), np.int64)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
