"""What is on a scan, given what is expected there: by prompting a segmenter, or from masks made elsewhere.

prompted(build_segmenter("random-walker"), detect=unprompted)
given({"followup.nii.gz": instances})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from fedvox.data.geometry import Volume
from fedvox.tracking.prompts import Mask
from fedvox.tracking.segmenters import Request, Segmenter

Labels = npt.NDArray[np.integer[Any]]
Observer = Callable[[Volume, Labels], Labels]
"""Of a scan and the ids expected there, (D, H, W): instances that are there, in any numbering."""

Detector = Callable[[npt.NDArray[np.generic], tuple[float, float, float]], Labels]

_SAME_SHARE = 0.5  # two lesions whose masks overlap by this share of the smaller are one
_PIECE_SHARE = 0.1  # of a lesion's voxels: smaller loose pieces are dropped


def given(masks: Mapping[str, Labels]) -> Observer:
    """What was segmented elsewhere: identities alone are wanted.

    Args:
        masks: path of a scan -> its instances (D, H, W).
    """

    def observe(scan: Volume, expected: Labels) -> Labels:  # noqa: ARG001 - an observer's signature
        return masks[scan.path]

    return observe


def prompted(segment: Segmenter, *, detect: Detector | None = None, min_volume_mm3: float = 20.0) -> Observer:
    """Segments every expected lesion from its carried mask, and finds new ones.

    Args:
        segment: one lesion from its prompts; gives an empty mask where it is gone.
        detect: instances without a prompt, for lesions that appear; None finds none.
        min_volume_mm3: what is smaller is no lesion.
    """

    def observe(scan: Volume, expected: Labels) -> Labels:
        spacing = scan.geometry.spacing_mm
        image = scan.data[0]
        masks = {
            int(i): segment(Request(image, spacing, (Mask(expected == i),))) for i in np.unique(expected) if i
        }
        observed = _instances(masks, expected, min_volume_mm3 / float(np.prod(spacing)), spacing)
        if detect is not None:
            observed = _with_new(observed, detect(image, spacing), expected)
        return observed

    return observe


def _instances(
    masks: Mapping[int, npt.NDArray[np.bool_]],
    expected: Labels,
    least_voxels: float,
    spacing_mm: tuple[float, float, float],
) -> npt.NDArray[np.int32]:
    """One instance map from one mask a lesion.

    Lesions whose masks are mostly the same are one instance; a lesion in pieces is several; a voxel that two lesions
    claim goes to the one that was expected nearer.
    """
    groups = _groups({i: m for i, m in masks.items() if np.count_nonzero(m) >= least_voxels})
    claims = np.zeros(expected.shape, dtype=np.int32)
    nearest = np.full(expected.shape, np.inf)
    for number, members in enumerate(groups, 1):
        mask = np.logical_or.reduce([masks[i] for i in members])
        apart = distance_transform_edt(~np.isin(expected, members), sampling=spacing_mm)
        mine = mask & (apart < nearest)
        claims[mine], nearest[mine] = number, apart[mine]
    found = np.zeros(expected.shape, dtype=np.int32)
    for number in range(1, len(groups) + 1):
        parts = cc3d.connected_components(np.ascontiguousarray(claims == number), connectivity=26)
        sizes = np.bincount(parts.reshape(-1))
        least = max(least_voxels, _PIECE_SHARE * sizes[1:].sum())
        for part in np.flatnonzero(sizes >= least):
            if part:
                found[parts == part] = found.max() + 1
    return found


def _groups(masks: Mapping[int, npt.NDArray[np.bool_]]) -> list[list[int]]:
    """Lesions that have become one, together."""
    groups: list[list[int]] = []
    for lesion, mask in sorted(masks.items()):
        size = np.count_nonzero(mask)
        home = next(
            (
                group
                for group in groups
                if any(
                    np.count_nonzero(mask & masks[i]) >= _SAME_SHARE * min(size, np.count_nonzero(masks[i]))
                    for i in group
                )
            ),
            None,
        )
        if home is None:
            groups.append([lesion])
        else:
            home.append(lesion)
    return groups


def _with_new(observed: npt.NDArray[np.int32], candidates: Labels, expected: Labels) -> npt.NDArray[np.int32]:
    """Adds candidates that touch neither a lesion nor a place where one was."""
    taken = np.unique(candidates[(observed > 0) | (expected > 0)])
    found = observed.copy()
    for candidate in np.unique(candidates):
        if candidate and candidate not in taken:
            found[candidates == candidate] = found.max() + 1
    return found
