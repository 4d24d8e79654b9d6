"""Confident learning over voxels: which given labels the models, with good reason, believe to be others.

Northcutt et al. 2021, "Confident Learning", J. Artif. Intell. Res. 70: a voxel labelled i counts as truly j where the
predicted probability of j is largest and at least t_j, the mean probability of j over the voxels that are labelled j.
The probabilities must come from models that were not trained on the case.

The thresholds need all cases, the counts need the probabilities again. So a case is kept as a histogram over (given
label, predicted label, its probability in 256 steps) and the means' sums: a few kilobytes, however large it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BINS = 256


@dataclass(frozen=True)
class LabelEvidence:
    """What one case contributes.

    Args:
        histogram: (K, K, BINS) voxels by given label, predicted label and predicted probability.
        own_probability: (K,) sum over the voxels given k of the probability of k.
        voxel_mm3: volume of a voxel.
    """

    histogram: Array
    own_probability: Array
    voxel_mm3: float

    def __add__(self, other: LabelEvidence) -> LabelEvidence:
        """The evidence of two parts of a case."""
        return LabelEvidence(
            self.histogram + other.histogram, self.own_probability + other.own_probability, self.voxel_mm3
        )


def label_evidence(given: Array, probability: Array, voxel_mm3: float) -> LabelEvidence:
    """The evidence of a case.

    Args:
        given: label map; voxels of K and more are not judged. Any shape.
        probability: (K, *shape).
        voxel_mm3: volume of a voxel.
    """
    structures = len(probability)
    flat = given.reshape(-1).astype(np.intp)
    judged = flat < structures
    flat, rows = flat[judged], probability.reshape(structures, -1)[:, judged]
    predicted = rows.argmax(axis=0)
    largest = rows.max(axis=0) if rows.size else np.zeros(0)
    bins = np.minimum((largest * BINS).astype(np.intp), BINS - 1)
    keys = (flat * structures + predicted) * BINS + bins
    histogram = np.bincount(keys, minlength=structures * structures * BINS).reshape(
        structures, structures, BINS
    )
    own = rows[flat, np.arange(flat.size)]
    return LabelEvidence(histogram, np.bincount(flat, own, structures), voxel_mm3)


def thresholds(cases: Sequence[LabelEvidence]) -> Array:
    """(K,) mean probability of each structure over the voxels that carry its label; infinite where there are none."""
    voxels = sum(case.histogram.sum(axis=(1, 2)) for case in cases)
    own = sum(case.own_probability for case in cases)
    return np.where(voxels > 0, own / np.maximum(voxels, 1), np.inf)


def confident_joint(case: LabelEvidence, threshold: Array) -> Array:
    """Volume by given label and confidently believed label.

    Args:
        case: the case.
        threshold: as `thresholds` gives it.

    Returns:
        (K, K) mm³; what is off the diagonal is probably wrong.
    """
    first = np.clip(np.ceil(np.where(np.isinf(threshold), BINS, threshold * BINS)), 0, BINS).astype(int)
    joint = np.zeros(case.histogram.shape[:2])
    for believed, begin in enumerate(first):
        joint[:, believed] = case.histogram[:, believed, begin:].sum(axis=-1)
    return joint * case.voxel_mm3
