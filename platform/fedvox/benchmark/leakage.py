"""Do test images occur in the training data, as they are or slightly changed?

- *exact*: two images with the same voxels, whatever their file, compression, name, orientation or data type;
- *near*: two images that look alike once both are cropped to the body and shrunk to 16³: re-exported, resampled,
  cropped, intensity-shifted, noisy or mirrored copies. Similarity is the correlation of the shrunken images, the
  largest over the 8 flips.

Unrelated scans of the same body part correlate too, below 0.95 in practice; `near` starts at 0.98, and every pair is
named with its similarity, for a person to look at.
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
NEAR = 0.98


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image.

    Attributes:
        sha256: of shape and voxels in RAS+ order, as float32.
        thumbnail: `(16³,)` normalised to mean 0 and length 1; zero for a constant image.
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
    low, high = np.percentile(data[:: max(1, data.shape[0] // 64), ::2, ::2], (1, 99))
    if high <= low:
        return Fingerprint(digest, np.zeros(_SIDE**3, np.float32))
    clipped = np.clip((data - low) / (high - low), 0, 1)
    inside = np.argwhere(clipped > 0.1)
    first, last = inside.min(axis=0), inside.max(axis=0) + 1
    body = clipped[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    smooth = ndimage.uniform_filter(body, [max(1, round(n / _SIDE)) for n in body.shape])
    small = ndimage.zoom(smooth, [_SIDE / n for n in smooth.shape], order=1, grid_mode=True, mode="nearest")
    centred = (small - small.mean()).reshape(-1).astype(np.float32)
    length = float(np.linalg.norm(centred))
    return Fingerprint(digest, centred / length if length > 0 else centred)


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
    """Correlations `(tests, others)`, the largest over all flips of the test image."""
    images = np.stack([f.thumbnail for f in tests]).reshape(-1, _SIDE, _SIDE, _SIDE)
    columns = np.stack([f.thumbnail for f in others]).T
    best = np.full((len(tests), len(others)), -1, np.float32)
    for flips in product((1, -1), repeat=3):
        turned = images[:, :: flips[0], :: flips[1], :: flips[2]].reshape(len(images), -1)
        np.maximum(best, turned @ columns, out=best)
    return best
