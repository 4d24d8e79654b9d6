"""Small organs with lesions, seen twice."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fedvox.data.geometry import Geometry, Volume


class Phantom:
    """An organ with inner landmarks, lesions as balls, and the place where it lies."""

    shape = (28, 40, 40)
    spacing = (3.0, 2.0, 2.0)

    def __init__(self, seed=0, size=1.0):
        rng = np.random.default_rng(seed)
        self.size = size
        self.landmarks = rng.uniform(-20, 20, (14, 3))
        self.levels = rng.uniform(-0.25, 0.25, 14)

    def scan(self, lesions, *, shift_mm=(0, 0, 0), gain=100.0, noise=1.0, seed=0, name="scan"):
        """Image and instance map; lesions: id -> (middle in mm, radius in mm, level)."""
        index = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"), -1)
        at = ((index - (np.array(self.shape) - 1) / 2) * self.spacing - np.array(shift_mm)) / self.size
        radius = np.sqrt(((at / (34, 30, 27)) ** 2).sum(-1))
        image = np.where(radius < 1, 1.0, 0.05)
        for middle, level in zip(self.landmarks, self.levels, strict=True):
            image += level * np.exp(-((at - middle) ** 2).sum(-1) / (2 * 5**2)) * (radius < 1)
        labels = np.zeros(self.shape, np.uint16)
        for lesion, (middle, size, level) in lesions.items():
            inside = np.linalg.norm(at - middle, axis=-1) <= size
            labels[inside] = lesion
            image = np.where(inside, level, image)
        rng = np.random.default_rng(seed + 100)
        image = gaussian_filter(image, 0.5) * gain + rng.normal(0, noise, self.shape)
        affine = np.diag([*self.spacing[::-1], 1.0])
        geometry = Geometry.of_file(self.shape[::-1], affine)
        return Volume(image[None].astype(np.float32), geometry, name), labels


@pytest.fixture(scope="session")
def phantom():
    return Phantom


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


@pytest.fixture(scope="session")
def overlap():
    return dice
