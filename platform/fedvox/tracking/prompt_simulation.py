"""Prompts as readers would give them, from the true mask of a lesion: to train with and to evaluate by.

A click is rarely at the exact middle, a box is rarely tight, a stroke follows the lesion's long axis but not to its
ends, and a mask that was carried over from another scan is shifted, grown or shrunken. The same generator gives the
same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, shift

from fedvox.errors import DataError
from fedvox.tracking.config import PromptKind
from fedvox.tracking.prompts import Box, Mask, Point, Prompt, Scribble, Voxel

BoolVolume = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Jitter:
    """How far simulated readers stray.

    Args:
        depth: a click falls on a voxel that lies at least this share of the greatest depth within the lesion.
        box: each face of a box is moved by up to this share of the lesion's extent, outwards or half as much inwards.
        stroke: share of the long axis that a stroke covers, at most.
        shift_mm: standard deviation of a carried mask's displacement an axis; altogether no more than half the depth.
        size_mm: standard deviation of how far a carried mask's surface is moved, no more than a third of the depth.
    """

    depth: float = 0.5
    box: float = 0.15
    stroke: float = 0.8
    shift_mm: float = 2.0
    size_mm: float = 1.0


NO_JITTER = Jitter(depth=1.0, box=0.0, stroke=1.0, shift_mm=0.0, size_mm=0.0)


def simulate_prompt(
    lesion: BoolVolume,
    kind: PromptKind,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    jitter: Jitter = Jitter(),
) -> Prompt:
    """One positive prompt for a lesion.

    Args:
        lesion: bool (D, H, W), its true mask.
        kind: of prompt.
        spacing_mm: (D, H, W).
        rng: of the reader's hand.
        jitter: how far it strays.

    Raises:
        DataError: the mask is empty.
    """
    if not lesion.any():
        raise DataError("a lesion without a voxel has no prompt", "Leave it out.", code="empty_prompt")
    if kind == "box":
        return _box(lesion, rng, jitter)
    if kind == "mask":
        return Mask(_carried(lesion, spacing_mm, rng, jitter))
    depth = _depth(lesion, spacing_mm)
    if kind == "point":
        return Point(_click(depth, rng, jitter.depth))
    return _stroke(lesion, depth, spacing_mm, rng, jitter)


def simulate_correction(
    lesion: BoolVolume,
    prediction: BoolVolume,
    spacing_mm: tuple[float, float, float],
    round_: int,
    rng: np.random.Generator,
    jitter: Jitter = Jitter(),
) -> Point | None:
    """The next click of a reader who sees a prediction: within the largest region that is wrong.

    Args:
        lesion: bool (D, H, W), the true mask.
        prediction: bool (D, H, W).
        spacing_mm: (D, H, W).
        round_: of corrections, from 1.
        rng: of the reader's hand.
        jitter: how far it strays.

    Returns:
        Positive where the region was missed, negative where it is too much; None where nothing is wrong.
    """
    best: tuple[int, bool, BoolVolume] | None = None
    for wrong, positive in ((lesion & ~prediction, True), (prediction & ~lesion, False)):
        parts = cc3d.connected_components(np.ascontiguousarray(wrong), connectivity=6)
        sizes = np.bincount(parts.reshape(-1))[1:]
        if len(sizes) and (best is None or sizes.max() > best[0]):
            best = int(sizes.max()), positive, parts == int(sizes.argmax()) + 1
    if best is None:
        return None
    _, positive, region = best
    return Point(_click(_depth(region, spacing_mm), rng, jitter.depth), positive, round_)


def _depth(mask: BoolVolume, spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Distance to the outside in mm; what lies beyond the volume is outside."""
    padded = distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)
    return np.asarray(padded[1:-1, 1:-1, 1:-1])


def _click(depth: npt.NDArray[np.float64], rng: np.random.Generator, share: float) -> Voxel:
    candidates = np.argwhere(depth >= share * depth.max() - 1e-9)
    d, h, w = candidates[rng.integers(len(candidates))]
    return float(d), float(h), float(w)


def _box(lesion: BoolVolume, rng: np.random.Generator, jitter: Jitter) -> Box:
    voxels = np.argwhere(lesion)
    start, stop = voxels.min(0), voxels.max(0) + 1
    size = stop - start
    moved = rng.uniform(-0.5, 1.0, (2, 3)) * jitter.box * size
    low = np.clip(np.rint(start - moved[0]), 0, np.array(lesion.shape) - 1).astype(int)
    high = np.clip(np.rint(stop + moved[1]), low + 1, lesion.shape).astype(int)
    (a, b, c), (d, e, f) = low.tolist(), high.tolist()
    return Box((a, b, c), (d, e, f))


def _stroke(
    lesion: BoolVolume,
    depth: npt.NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    jitter: Jitter,
) -> Scribble:
    """Along the long axis of the slice in which the lesion is largest, bent into the lesion where it leaves it."""
    plane = int(lesion.sum((1, 2)).argmax())
    voxels = np.argwhere(lesion[plane])
    weights = depth[plane][tuple(voxels.T)]
    in_mm = voxels * np.asarray(spacing_mm[1:])
    middle = np.average(in_mm, axis=0, weights=weights)
    centred = in_mm - middle
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ axis
    half = rng.uniform(0.5, 1.0) * jitter.stroke if jitter.stroke < 1 else 1.0
    wanted = np.linspace(along.min() * half, along.max() * half, 5)
    through = []
    for offset in wanted:
        apart = np.linalg.norm(in_mm - (middle + offset * axis), axis=1)
        h, w = voxels[int(apart.argmin())]
        through.append((float(plane), float(h), float(w)))
    return Scribble(tuple(dict.fromkeys(through)))


def _carried(
    lesion: BoolVolume, spacing_mm: tuple[float, float, float], rng: np.random.Generator, jitter: Jitter
) -> BoolVolume:
    """The mask, displaced and with its surface moved; a lesion does not vanish by that."""
    outside = np.asarray(distance_transform_edt(~lesion, sampling=spacing_mm))
    level = np.where(lesion, -_depth(lesion, spacing_mm), outside)
    deepest = -float(level.min())
    drift = rng.normal(0, 1, 3) * jitter.shift_mm
    drift *= min(1.0, deepest / 2 / max(float(np.linalg.norm(drift)), 1e-9))
    threshold = rng.normal(0, 1) * min(jitter.size_mm, deepest / 3)
    if not jitter.shift_mm and not jitter.size_mm:
        return lesion.copy()
    moved = shift(level, drift / np.asarray(spacing_mm), order=1, mode="nearest")
    return np.asarray(moved <= max(threshold, float(moved.min())))
