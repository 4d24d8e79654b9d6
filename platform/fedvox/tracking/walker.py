"""Where a random walker sent out from every voxel meets the marks before the surroundings, as a channel for networks.

A network that is shown this beside the marks need not learn how far intensities reach from a click: it learns where the
walker errs. (Wang et al., DeepIGeoS, IEEE TPAMI 2019, and Luo et al., MIDeepSeg, Med. Image Anal. 2021, show geodesic
distances to the same end: it carries over to kinds of structures that were never trained on.) The walker is Grady's
(2006).
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import random_walker

FloatVolume = npt.NDArray[np.float32]
BoolVolume = npt.NDArray[np.bool_]

_BETA = 1000.0  # how much an edge hinders, the image's deviation being 1/6
_DEEP = 0.6  # a mask's seed is what lies at least this share of its greatest depth within it


def walker_channel(
    image: FloatVolume, channels: FloatVolume, spacing_mm: tuple[float, float, float]
) -> FloatVolume:
    """The probability to meet the marks first.

    Args:
        image: (D, H, W), zero mean and unit deviation.
        channels: (7, D, H, W) of `fedvox.tracking.prompts.encode`.
        spacing_mm: (D, H, W).

    Returns:
        (D, H, W) in [0, 1]; zero where nothing is marked.
    """
    seed, outside = _marks(channels > 0.5, spacing_mm)
    if not seed.any():
        return np.zeros(image.shape, dtype=np.float32)
    markers = np.zeros(image.shape, dtype=np.int8)
    markers[outside] = 2
    markers[seed] = 1
    if not (markers == 0).any():
        return np.asarray(markers == 1, dtype=np.float32)
    scaled = np.clip(image / 6 + 0.5, 0, 1)
    spacing = np.asarray(spacing_mm) / min(spacing_mm)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The probability range is outside"
        )  # they are clipped below
        met = random_walker(
            scaled, markers, beta=_BETA, mode="cg_j", tol=1e-3, spacing=spacing, return_full_prob=True
        )
    return np.asarray(np.clip(met[0], 0, 1), dtype=np.float32)


def _marks(on: BoolVolume, spacing_mm: tuple[float, float, float]) -> tuple[BoolVolume, BoolVolume]:
    """What is certainly lesion, and what is certainly not: at the least, the border of the patch."""
    outside = np.ones(on.shape[1:], dtype=bool)
    outside[1:-1, 1:-1, 1:-1] = False
    outside |= on[1] | on[3] | on[5]
    seed = on[0] | on[4]
    box, mask = on[2], on[6]
    if box.any():
        outside |= ~box
        seed = seed if seed.any() else _inner(box)
    if mask.any():
        far = np.asarray(distance_transform_edt(~mask, sampling=spacing_mm))
        radius = (3 * mask.sum() * float(np.prod(spacing_mm)) / (4 * np.pi)) ** (1 / 3)
        outside |= far > max(3.0, 0.6 * radius)
        if not seed.any():
            depth = distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
            seed = np.asarray(depth >= _DEEP * depth.max())
    return seed & ~(on[1] | on[3] | on[5]), outside


def _inner(box: BoolVolume) -> BoolVolume:
    """The middle third of what is marked."""
    inner = np.zeros_like(box)
    part = []
    for axis in range(3):
        used = np.flatnonzero(box.any(axis=tuple(a for a in range(3) if a != axis)))
        third = len(used) / 3
        part.append(slice(int(used[0] + third), int(np.ceil(used[-1] + 1 - third))))
    inner[tuple(part)] = True
    return inner
