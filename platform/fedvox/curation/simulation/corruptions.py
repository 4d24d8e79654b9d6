"""Planted label errors: six kinds that data sets really have, each recorded.

dropped_part     one half of a structure is background, as where a component was forgotten
swapped_sides    left and right exchanged
dilated          a structure has grown over its neighbours
missing_slices   a run of slices has no label
shifted          the whole mask lies some voxels beside the anatomy
wrong_label      on one side, gray matter is called white and the other way round
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation

from fedvox.curation.simulation.brains import STRUCTURES

Array = np.ndarray[Any, Any]

KINDS = ("dropped_part", "swapped_sides", "dilated", "missing_slices", "shifted", "wrong_label")
_LEFT_TO_RIGHT = np.array([0, 2, 1, 4, 3], np.uint8)


@dataclass(frozen=True)
class Corruption:
    """What was done to a label.

    Args:
        case_id: of which case.
        kind: of `KINDS`.
        structure: that it was done to; empty for all.
        amount: voxels (dilated, shifted), slices (missing_slices), else 0.
        wrong_voxels: that differ from the truth.
    """

    case_id: str
    kind: str
    structure: str
    amount: int
    wrong_voxels: int


def plan_corruptions(case_ids: list[str], share: float, seed: int) -> dict[str, str]:
    """Case -> kind for a share of the cases, drawn at random, the kinds equally often."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(case_ids)[: round(share * len(case_ids))]
    return {str(case_id): KINDS[number % len(KINDS)] for number, case_id in enumerate(chosen)}


def corrupt(label: Array, case_id: str, kind: str, rng: np.random.Generator) -> tuple[Array, Corruption]:
    """A wrong label, and the record of what is wrong with it.

    Args:
        label: true label, (D, H, W) uint8 in `STRUCTURES`.
        case_id: of the case.
        kind: of `KINDS`.
        rng: of structure and amount.
    """
    structure = int(rng.integers(1, len(STRUCTURES)))
    wrong, amount, of_one = _CORRUPTORS[kind](label, structure, rng)
    name = STRUCTURES[structure] if of_one else ""
    return wrong, Corruption(case_id, kind, name, amount, int(np.count_nonzero(wrong != label)))


_Corrupted = tuple[Array, int, bool]


def _dropped_part(label: Array, structure: int, rng: np.random.Generator) -> _Corrupted:
    inside = label == structure
    axis = int(rng.integers(0, 3))
    positions = np.arange(label.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
    middle = np.median(np.nonzero(inside)[axis])
    part = positions <= middle if rng.random() < 0.5 else positions > middle
    return np.where(inside & part, 0, label).astype(label.dtype), 0, True


def _swapped_sides(label: Array, structure: int, rng: np.random.Generator) -> _Corrupted:  # noqa: ARG001
    return _LEFT_TO_RIGHT[label], 0, False


def _dilated(label: Array, structure: int, rng: np.random.Generator) -> _Corrupted:
    amount = int(rng.integers(1, 3))
    grown = binary_dilation(label == structure, iterations=amount)
    return np.where(grown, structure, label).astype(label.dtype), amount, True


def _missing_slices(label: Array, structure: int, rng: np.random.Generator) -> _Corrupted:  # noqa: ARG001
    filled = np.flatnonzero(label.any(axis=(1, 2)))
    amount = max(2, round(len(filled) * float(rng.uniform(0.12, 0.25))))
    first = int(rng.integers(len(filled) // 4, 3 * len(filled) // 4 - amount + 1))
    wrong = label.copy()
    wrong[filled[first] : filled[first] + amount] = 0
    return wrong, amount, False


def _shifted(label: Array, structure: int, rng: np.random.Generator) -> _Corrupted:  # noqa: ARG001
    amount = int(rng.integers(2, 4))
    axis = int(rng.integers(1, 3))  # within the slices, whatever their thickness
    wrong = np.roll(label, amount if rng.random() < 0.5 else -amount, axis=axis)
    return wrong, amount, False


def _wrong_label(label: Array, structure: int, rng: np.random.Generator) -> _Corrupted:  # noqa: ARG001
    other = structure + 2 if structure <= 2 else structure - 2
    table = np.arange(len(STRUCTURES), dtype=label.dtype)
    table[structure], table[other] = other, structure
    return table[label], 0, True


_CORRUPTORS: dict[str, Callable[[Array, int, np.random.Generator], _Corrupted]] = {
    "dropped_part": _dropped_part,
    "swapped_sides": _swapped_sides,
    "dilated": _dilated,
    "missing_slices": _missing_slices,
    "shifted": _shifted,
    "wrong_label": _wrong_label,
}
