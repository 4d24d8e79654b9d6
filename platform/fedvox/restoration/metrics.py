"""How good a restoration is: against the truth, against the data, and against its own patch grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the truth's maximum."""
    mse = float((image - truth).double().square().mean())
    return 10 * math.log10(float(truth.max()) ** 2 / max(mse, 1e-20))


def nmse(image: Tensor, truth: Tensor) -> float:
    """Squared error divided by the truth's energy."""
    return float((image - truth).square().sum() / truth.square().sum())


def ssim(image: Tensor, truth: Tensor) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), mean over an image `(…)` in 2D or 3D."""
    x, y = (np.asarray(a.detach().cpu(), np.float64).squeeze() for a in (image, truth))
    extent = float(y.max() - y.min())
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2

    def mean(a: np.ndarray) -> np.ndarray:
        found: np.ndarray = gaussian_filter(a, 1.5, truncate=3.5)
        return found

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    values = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    margin = tuple(slice(5, -5) if n > 10 else slice(None) for n in values.shape)
    return float(values[margin].mean())


def data_consistency(physics: Any, image: Tensor, y: Tensor) -> float:
    """`‖A x - y‖ / ‖y‖`."""
    with torch.no_grad():
        return float((physics.A(image) - y).norm() / y.norm().clamp_min(1e-12))


@dataclass(frozen=True)
class SeamScore:
    """Whether a patch grid shows in an image.

    Attributes:
        ratio: gradient energy across the grid's lines divided by that beside them; about 1 without seams.
        z: of that ratio among those of every other position of the same grid; beyond 3 the grid shows.
    """

    ratio: float
    z: float


def seam_score(image: Tensor, edges: Sequence[int]) -> SeamScore:
    """Gradient energy across the borders of a patch grid against elsewhere.

    Differences between neighbours are squared and summed along each line of the image; a line's energy is compared
    with that of the lines around it, which see the same anatomy. The grid is then moved to every other position: an
    image without seams shows no preference for the true one.

    Args:
        image: `(H, W)` or `(D, H, W)`, or the error of one, which is more sensitive.
        edges: of the patches, per axis; an axis as long as its patch has no borders.

    Raises:
        ValueError: no axis has a border inside the image.
    """
    data = image.detach().double().cpu()
    excess = []  # per axis: log energy of each line relative to the lines around it
    for axis, (length, edge) in enumerate(zip(data.shape, edges, strict=True)):
        if edge < length:
            others = [a for a in range(data.ndim) if a != axis]
            energy = data.diff(dim=axis).square().mean(dim=others).numpy()
            excess.append((edge, _relative(energy)))
    if not excess:
        raise ValueError(f"patches of {tuple(edges)} have no border inside an image of {tuple(data.shape)}")
    period = max(edge for edge, _ in excess)
    found = [
        float(np.mean([_on_grid(lines, edge, shift) for edge, lines in excess])) for shift in range(period)
    ]
    others_ = np.asarray(found[1:])
    return SeamScore(math.exp(found[0]), float((found[0] - others_.mean()) / max(others_.std(), 1e-9)))


def _relative(energy: np.ndarray) -> np.ndarray:
    """Logarithm of each line's energy over the mean of its six neighbours, which leave out itself."""
    floor = max(float(energy.mean()) * 1e-3, 1e-30)
    padded = np.pad(energy, 3, mode="reflect")
    around = sum(padded[3 + k : 3 + k + len(energy)] for k in (-3, -2, -1, 1, 2, 3)) / 6
    found: np.ndarray = np.log((energy + floor) / (around + floor))
    return found


def _on_grid(lines: np.ndarray, edge: int, shift: int) -> float:
    """Mean over the lines that a grid with that shift crosses: difference i lies between voxels i and i + 1."""
    return float(lines[(edge - 1 + shift) % edge :: edge].mean())
