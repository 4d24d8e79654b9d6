"""Lesion-wise (instance) metrics: connected components of the two masks, matched one to one.

A lesion is a connected component. A pair of lesions can match when their intersection over union reaches a
threshold; of all one-to-one matchings the one with the most pairs, and among these the largest summed IoU, is
taken (above IoU 0.5 there is only one: Kirillov et al. 2019, *Panoptic segmentation*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LesionPolicy:
    """What counts as a lesion, and when two lesions are the same.

    Attributes:
        f1_iou: threshold of lesion-wise precision, recall and F1.
        pq_iou: threshold of panoptic quality.
        connectivity: neighbours that belong to a lesion: 6 (faces), 18 (edges) or 26 (corners).
        min_volume_mm3: components below this are ignored, in the reference as in the prediction.
    """

    f1_iou: float = 0.1
    pq_iou: float = 0.5
    connectivity: Literal[6, 18, 26] = 26
    min_volume_mm3: float = 0.0


@dataclass(frozen=True)
class LesionOverlap:
    """Overlaps of all pairs of lesions that touch.

    Attributes:
        num_reference: lesions in the reference.
        num_prediction: lesions in the prediction.
        pairs: `(n, 2)` indices (reference, prediction), from 0.
        iou: `(n,)` intersection over union of the pairs.
    """

    num_reference: int
    num_prediction: int
    pairs: npt.NDArray[np.intp]
    iou: FloatArray

    def matched(self, threshold: float) -> FloatArray:
        """IoU of the matched pairs at a threshold, `(true positives,)`."""
        valid = self.iou >= threshold * (1 - 1e-9)
        rows, row = np.unique(self.pairs[valid, 0], return_inverse=True)
        columns, column = np.unique(self.pairs[valid, 1], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = min(gain.shape, default=0) + self.iou[valid]  # one pair more outweighs any IoU
        chosen = gain[linear_sum_assignment(gain, maximize=True)]
        ious: FloatArray = chosen[chosen > 0] - min(gain.shape, default=0)
        return ious

    def detection(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1; all are 0 where only one side has lesions."""
        if not self.num_reference or not self.num_prediction:
            return 0.0, 0.0, 0.0
        hits = len(self.matched(threshold))
        f1 = 2 * hits / (self.num_reference + self.num_prediction)
        return hits / self.num_prediction, hits / self.num_reference, f1

    def panoptic(self, threshold: float) -> tuple[float, float, float]:
        """Panoptic quality and its factors, segmentation and recognition quality; 0 where nothing matches."""
        ious = self.matched(threshold)
        if not len(ious):
            return 0.0, 0.0, 0.0
        segmentation = float(ious.mean())
        recognition = 2 * len(ious) / (self.num_reference + self.num_prediction)
        return segmentation * recognition, segmentation, recognition


def lesion_overlap(
    reference: Mask, prediction: Mask, voxel_mm3: float, policy: LesionPolicy
) -> LesionOverlap:
    """Find the lesions of two masks `(D, H, W)` and the overlaps between them."""
    (a, size_a), (b, size_b) = (_lesions(mask, voxel_mm3, policy) for mask in (reference, prediction))
    both = np.flatnonzero((a > 0) & (b > 0))
    codes = a.reshape(-1)[both].astype(np.int64) * (len(size_b) + 1) + b.reshape(-1)[both]
    unique, shared = np.unique(codes, return_counts=True)
    pairs = np.stack(np.divmod(unique, len(size_b) + 1), axis=1).astype(np.intp) - 1
    union = size_a[pairs[:, 0]] + size_b[pairs[:, 1]] - shared
    return LesionOverlap(len(size_a), len(size_b), pairs, shared / union)


def _lesions(
    mask: Mask, voxel_mm3: float, policy: LesionPolicy
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """Components numbered from 1, and their voxel counts; components that are too small become background."""
    labels = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=policy.connectivity)
    counts = np.bincount(labels.reshape(-1))[1:]
    keep = counts * voxel_mm3 >= policy.min_volume_mm3
    if keep.all():
        return labels, counts.astype(np.int64)
    numbers = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)])
    return numbers[labels], counts[keep].astype(np.int64)
