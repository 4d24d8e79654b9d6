"""Dice per structure from integer label volumes, with the empty cases told apart.

The full set of metrics lives in `fedvox.evaluation.metrics`; this is the small part that validation during
training needs, on plain tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DiceCounts:
    """Voxel counts per structure, summed over cases or kept per case.

    Attributes:
        intersection: `(..., K)` voxels where both agree.
        reference: `(..., K)` voxels of the reference.
        prediction: `(..., K)` voxels of the prediction.
    """

    intersection: torch.Tensor
    reference: torch.Tensor
    prediction: torch.Tensor

    def dice(self) -> torch.Tensor:
        """Dice `(..., K)`; NaN where reference and prediction are both empty, 0 where only one is."""
        total = self.reference + self.prediction
        return torch.where(total > 0, 2 * self.intersection / total.clamp(min=1), torch.nan)


def dice_counts(reference: torch.Tensor, prediction: torch.Tensor, num_classes: int) -> DiceCounts:
    """Counts for Dice of every class in one pass over the volume.

    Args:
        reference: integer labels `(D, H, W)`, each in `[0, num_classes)`.
        prediction: integer labels of the same shape.
        num_classes: K, background included.

    Returns:
        Counts of shape `(K,)` as float64.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(
            f"reference {tuple(reference.shape)} and prediction {tuple(prediction.shape)} differ"
        )
    pairs = reference.reshape(-1).long() * num_classes + prediction.reshape(-1).long()
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    return DiceCounts(confusion.diagonal().clone(), confusion.sum(1), confusion.sum(0))
