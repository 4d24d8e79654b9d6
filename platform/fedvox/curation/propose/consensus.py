"""One label map out of several: by majority, or by STAPLE, which weighs the proposers by how reliable they are."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Method = Literal["majority", "staple"]


def votes(masks: Array, structures: int) -> Array:
    """How many proposers call each voxel each structure.

    Args:
        masks: label maps, (M, D, H, W).
        structures: K, background included.

    Returns:
        (K, D, H, W) uint8.
    """
    counts = np.zeros((structures, *masks.shape[1:]), np.uint8)
    for mask in masks:
        for index in np.unique(mask):
            if index < structures:  # beyond are voxels that nobody judged
                counts[index] += mask == index
    return counts


def consensus(masks: Array, structures: int, method: Method = "majority") -> Array:
    """The label map that the proposers support together.

    Args:
        masks: label maps, (M, D, H, W), at least one.
        structures: K, background included.
        method: `majority` (where two structures have as many votes, that of the earliest proposer among them), or
            `staple` (Warfield et al. 2004, for many labels: Rohlfing et al. 2004; needs SimpleITK).

    Returns:
        (D, H, W), of the masks' type.
    """
    if method == "staple" and len(masks) > 2 and len(np.unique(masks)) > 1:
        return _staple(masks, structures)
    counts = votes(masks, structures)
    most = counts.max(axis=0)
    chosen: Array = masks[-1].copy()
    for mask in masks[::-1]:  # the earliest comes last, and wins
        named = np.minimum(mask, structures - 1).astype(np.intp)
        supported = np.take_along_axis(counts, named[None], axis=0)[0] == most
        chosen = np.where(supported & (mask < structures), mask, chosen)
    return chosen


def _staple(masks: Array, structures: int) -> Array:
    """STAPLE over all labels within the box that holds anything; outside, all agree on background."""
    import SimpleITK

    box = _box(np.asarray(masks.any(axis=0)))
    images = [
        SimpleITK.GetImageFromArray(np.ascontiguousarray(mask[box]).astype(np.uint16)) for mask in masks
    ]
    undecided = structures  # a value of no structure
    found = SimpleITK.GetArrayFromImage(SimpleITK.MultiLabelSTAPLE(images, undecided))
    majority = consensus(masks[(slice(None), *box)], structures)
    result = np.zeros(masks.shape[1:], masks.dtype)
    result[box] = np.where(found == undecided, majority, found).astype(masks.dtype)
    return result


def _box(inside: Array) -> tuple[slice, slice, slice]:
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(inside.any(axis=others))
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1], spans[2]
