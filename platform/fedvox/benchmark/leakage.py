"""Do test images occur in the training data, as they are or slightly changed?

- *exact*: two images with the same voxels, whatever their file, compression, name, orientation or data type;
- *near*: two images that look alike once both are cut to the body, brought to the same contrast and shrunk to 16³:
  re-exported, rescaled, resampled, noisy, smoothed, padded or mirrored copies.

Scans of the same body part all look alike at that size. So what all images of the comparison have in common, their
mean, is taken away first, and similarity is the correlation of what is left, the largest over the 8 flips. On
synthetic bodies strangers stay below 0.66, and the copies named above are above 0.91; a copy that was cropped by a
tenth on every side is at 0.63 and is not found. Every pair is named with its similarity, for a person to look at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedvox.data.readers import read_volume

FloatArray = npt.NDArray[np.float32]
_SIDE = 16
NEAR = 0.85
_AIR = 0.15


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image.

    Attributes:
        sha256: of shape and voxels in RAS+ order, as float32.
        thumbnail: `(16³,)` with mean 0 and length 1; zero for a constant image.
    """

    sha256: str
    thumbnail: FloatArray

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `{"sha256": …, "thumbnail": [numbers]}`."""
        return cls(values["sha256"], np.array(values["thumbnail"], np.float32))


@dataclass(frozen=True)
class Leak:
    """A test image and the training (or other test) image that it is like."""

    test_case: str
    other_case: str
    kind: str
    similarity: float


def fingerprint(path: Path) -> Fingerprint:
    """Read an image (first channel) and take its fingerprint.

    Raises:
        DataError: the image cannot be read.
    """
    return fingerprint_of(read_volume(str(path)).data[0])


def fingerprint_of(volume: npt.NDArray[np.generic]) -> Fingerprint:
    """Fingerprint of a volume `(D, H, W)` in RAS+ order."""
    data = np.ascontiguousarray(volume, dtype=np.float32)
    digest = hashlib.sha256(str(data.shape).encode() + data.tobytes()).hexdigest()
    step = max(1, round((data.size / 1e6) ** (1 / 3)))
    low, high = np.percentile(data[::step, ::step, ::step], (1, 99))
    if not high > low:
        return Fingerprint(digest, np.zeros(_SIDE**3, np.float32))
    small = _shrunk(_body(np.clip((data - low) / (high - low), 0, 1)))
    centred = ndimage.gaussian_filter(small, 0.8).reshape(-1)
    centred -= centred.mean()
    length = float(np.linalg.norm(centred))
    return Fingerprint(digest, (centred / length if length > 0 else centred).astype(np.float32))


def _body(volume: FloatArray) -> FloatArray:
    """Cut to the slices that hold more than 5 % of what the fullest slice holds of anything but air."""
    inside = ndimage.uniform_filter(volume, 3) > _AIR
    spans = []
    for axis in range(3):
        filled = inside.sum(axis=tuple(a for a in range(3) if a != axis))
        kept = np.flatnonzero(filled > 0.05 * filled.max())
        spans.append(slice(int(kept[0]), int(kept[-1]) + 1) if len(kept) else slice(None))
    return volume[tuple(spans)]


def _shrunk(volume: FloatArray) -> npt.NDArray[np.float64]:
    """Mean over each of 16³ equal boxes, whatever the shape: voxels at an edge count in part."""
    means = volume.astype(np.float64)
    for axis, size in enumerate(volume.shape):
        total = np.concatenate([np.zeros_like(means.take([0], axis)), means.cumsum(axis)], axis)
        edges = np.linspace(0, size, _SIDE + 1)
        below = np.minimum(edges.astype(np.intp), size)
        part = (edges - below).reshape([-1 if a == axis else 1 for a in range(3)])
        above = np.minimum(below + 1, size)
        means = (
            np.diff(total.take(below, axis) * (1 - part) + total.take(above, axis) * part, axis=axis)
            * _SIDE
            / size
        )
    return means


def find_leaks(
    tests: Mapping[str, Fingerprint], others: Mapping[str, Fingerprint], *, near: float = NEAR
) -> list[Leak]:
    """Test images that occur among the others, most similar first.

    Args:
        tests: case -> fingerprint.
        others: case -> fingerprint of the training data, or of another test set.
        near: similarity from which two images are called near duplicates.
    """
    if not tests or not others:
        return []
    similarity = _similarity(list(tests.values()), list(others.values()))
    leaks = []
    other_names, test_names = list(others), list(tests)
    by_hash: dict[str, str] = {f.sha256: name for name, f in others.items()}
    for row, name in enumerate(test_names):
        if (twin := by_hash.get(tests[name].sha256)) is not None:
            leaks.append(Leak(name, twin, "exact", 1.0))
            continue
        column = int(similarity[row].argmax())
        if similarity[row, column] >= near:
            leaks.append(Leak(name, other_names[column], "near", float(similarity[row, column])))
    return sorted(leaks, key=lambda leak: (-leak.similarity, leak.test_case))


def _similarity(tests: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> FloatArray:
    """Correlations `(tests, others)` of what is particular to each image, the largest over all flips."""
    flips = [
        (slice(None, None, a), slice(None, None, b), slice(None, None, c))
        for a, b, c in product((1, -1), repeat=3)
    ]
    images = np.stack([f.thumbnail for f in (*tests, *others)]).reshape(-1, _SIDE, _SIDE, _SIDE)
    blank = ~images.any(axis=(1, 2, 3))
    common = np.mean([images.mean(axis=0)[flip] for flip in flips], axis=0)
    particular = images - common
    lengths = np.sqrt((particular**2).sum(axis=(1, 2, 3), keepdims=True))
    particular /= np.where(lengths > 0, lengths, 1)
    particular[blank] = 0
    columns = particular[len(tests) :].reshape(len(others), -1).T
    best = np.full((len(tests), len(others)), -1, np.float32)
    for flip in flips:
        turned = particular[: len(tests)][(slice(None), *flip)].reshape(len(tests), -1)
        np.maximum(best, turned @ columns, out=best)
    return best
