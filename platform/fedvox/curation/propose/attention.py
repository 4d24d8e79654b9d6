"""Where proposers are at odds, as maps and as volumes in mm³.

    disagreement   share of the proposers that do not say what the consensus says
    entropy        of the votes, or of the models' probabilities, as a share of its largest value, log K
    overlap        share of the proposers beyond the first that claim the voxel for another structure than the
                   consensus does, background aside: two structures want the same voxel

Each map is between 0 and 1 by its definition, whatever the case; none is divided by its own maximum. A volume is the
sum of a map times the volume of a voxel, so that it can be compared between cases of any size and spacing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox.curation.propose.consensus import votes

Array = np.ndarray[Any, Any]

MAPS = ("disagreement", "entropy", "overlap")


@dataclass(frozen=True)
class Attention:
    """The maps of a case.

    Args:
        disagreement: (D, H, W) float32 in [0, 1].
        entropy: the same.
        overlap: the same.
    """

    disagreement: Array
    entropy: Array
    overlap: Array

    def encoded(self) -> Array:
        """All maps in 8 bits, (3, D, H, W) uint8, in the order of `MAPS`."""
        return np.stack([np.rint(255 * getattr(self, name)).astype(np.uint8) for name in MAPS])

    def volumes(self, mask: Array, structures: int, voxel_mm3: float) -> dict[str, Array]:
        """Each map's volume per structure.

        Args:
            mask: whose structures the voxels are assigned to (the consensus), (D, H, W).
            structures: K, background included.
            voxel_mm3: volume of a voxel.

        Returns:
            Map -> (K,) mm³.
        """
        flat = np.minimum(mask.reshape(-1), structures - 1).astype(np.intp)
        return {
            name: np.bincount(flat, getattr(self, name).reshape(-1), structures)[:structures] * voxel_mm3
            for name in MAPS
        }


def attention(masks: Array, agreed: Array, structures: int, *, entropy: Array | None = None) -> Attention:
    """The maps of a case's proposals.

    Args:
        masks: label maps, (M, D, H, W).
        agreed: their consensus, (D, H, W).
        structures: K, background included.
        entropy: of the models' mean probabilities as a share of log K, (D, H, W); where it is not known, that of the
            votes is used.
    """
    counts = votes(masks, structures)
    total = np.maximum(counts.sum(axis=0, dtype=np.float32), 1)
    index = np.minimum(agreed, structures - 1).astype(np.intp)[None]
    for_it = np.take_along_axis(counts, index, axis=0)[0]
    disagreement = (total - for_it) / total
    claims = counts[1:].sum(axis=0, dtype=np.float32)
    strongest = counts[1:].max(axis=0).astype(np.float32) if structures > 1 else claims
    overlap = (claims - strongest) / np.maximum(total - 1, 1)
    if entropy is None:
        entropy = vote_entropy(counts, total)
    return Attention(
        disagreement.astype(np.float32),
        np.clip(entropy, 0, 1).astype(np.float32),
        np.clip(overlap, 0, 1).astype(np.float32),
    )


def vote_entropy(counts: Array, total: Array) -> Array:
    """Entropy of votes (K, D, H, W) as a share of log K, (D, H, W) float32."""
    result = np.zeros(total.shape, np.float32)
    for count in counts:
        share = count / total
        result -= np.where(count > 0, share * np.log(np.maximum(share, 1e-12)), 0).astype(np.float32)
    return result / math.log(max(len(counts), 2))
