"""A scanner for a head whose tissues are known: shape, coil, sequence, slices and noise, each a parameter.

    head (image and tissue maps) --deform--> --thicker slices--> --sequence, coil, noise--> image
                                                    └── tissue maps --> label

Image and label go through the same deformation and the same slices, so that they stay consistent; what happens to
intensities happens to the image alone. All randomness comes from the acquisition's own key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from fedvox.data.resample import resample_image, resampled_shape

_TISSUE_THRESHOLD = 0.5
_BRAIN = 0.05  # intensity above which a voxel of the skull-stripped image is brain
_KNOT_DISTANCE_MM = 40.0

Array = np.ndarray


@dataclass(frozen=True)
class Acquisition:
    """Everything that is done to the brain to make one case.

    Args:
        case_id: which case.
        site: where it is "scanned".
        rotation_degrees: about x, y and z.
        scale: of the head along z, y and x.
        deformation_mm: standard deviation of the displacement at its control points, 40 mm apart.
        bias: largest deviation of the coil's sensitivity from 1.
        gamma: exponent of the intensities, scaled to 0..1.
        contrast: factor of the intensities' distance from their mean within the brain.
        noise: standard deviation as a share of white matter's intensity.
        noise_kind: "rician" or "gaussian".
        slice_mm: voxel size along z.
        gain: of the scanner: white matter's intensity in the file.
        orientation: axis codes of the file.
        key: of the case's random numbers (Philox).
    """

    case_id: str
    site: str
    rotation_degrees: tuple[float, float, float]
    scale: tuple[float, float, float]
    deformation_mm: float
    bias: float
    gamma: float
    contrast: float
    noise: float
    noise_kind: str
    slice_mm: float
    gain: float
    orientation: str
    key: tuple[int, int]


@dataclass(frozen=True)
class Head:
    """An image with its tissue maps on one grid, (D, H, W), RAS+.

    Args:
        t1: intensities, white matter near 1.
        gray: probability.
        white: probability.
        spacing_mm: (D, H, W).
        origin_mm: (x, y, z) of the first voxel's centre.
    """

    t1: Array
    gray: Array
    white: Array
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def mapped(self, change: Any, **fields: Any) -> Head:
        """Applies one function to the image and both tissue maps."""
        return Head(
            **{
                **vars(self),
                "t1": change(self.t1),
                "gray": change(self.gray),
                "white": change(self.white),
                **fields,
            }
        )

    def label(self) -> Array:
        """The likelier tissue where it is likelier than not, within the brain: uint8 (D, H, W)."""
        likely = np.maximum(self.gray, self.white) > _TISSUE_THRESHOLD
        tissue = np.where(self.gray >= self.white, 1, 2)
        return np.where(likely & (self.t1 > _BRAIN), tissue, 0).astype(np.uint8)


def with_spacing(head: Head, spacing_mm: Sequence[float]) -> Head:
    """Resamples a head to larger voxels, each the average of what it covers.

    Background at the far ends is cut off, so that a whole number of voxels covers the rest.
    """
    if tuple(spacing_mm) == head.spacing_mm:
        return head
    kept = [
        _whole_voxels(n, s, t) for n, s, t in zip(head.t1.shape, head.spacing_mm, spacing_mm, strict=True)
    ]
    box = tuple(slice(0, n) for n in kept)
    ratio = np.asarray(spacing_mm) / np.asarray(head.spacing_mm)
    sigma = np.where(ratio > 1, 0.4 * ratio, 0)
    shape = resampled_shape(kept, head.spacing_mm, spacing_mm)
    shift = [(new - old) / 2 for new, old in zip(spacing_mm, head.spacing_mm, strict=True)]
    origin = tuple(float(o + s) for o, s in zip(head.origin_mm, shift[::-1], strict=True))

    def shrunk(volume: Array) -> Array:
        return resample_image(gaussian_filter(volume[box], sigma), shape, order=1)

    return head.mapped(shrunk, spacing_mm=tuple(float(n) for n in spacing_mm), origin_mm=origin)


def _whole_voxels(size: int, spacing_mm: float, target_mm: float) -> int:
    """The largest number of voxels up to `size` which a whole number of target voxels covers."""
    fits = (n for n in range(size, 0, -1) if abs(n * spacing_mm / target_mm % 1) < 1e-9)
    return next(fits, size)


def acquire(brain: Head, acquisition: Acquisition) -> tuple[Head, Array]:
    """Simulates one acquisition: anatomy first, then the scanner.

    Args:
        brain: whose image and tissue maps are deformed.
        acquisition: how.

    Returns:
        The deformed head on the scanner's grid (for the label), and the image it delivers, (D, H, W).
    """
    # apart from the draws that made the parameters
    rng = np.random.Generator(np.random.Philox(key=acquisition.key, counter=[0, 0, 0, 1]))
    coordinates = deformed_grid(brain.t1.shape, brain.spacing_mm, acquisition, rng)
    head = brain.mapped(lambda volume: map_coordinates(volume, coordinates, order=1, mode="constant"))
    spacing = (acquisition.slice_mm, brain.spacing_mm[1], brain.spacing_mm[2])
    if acquisition.slice_mm != brain.spacing_mm[0]:
        head = with_spacing(head, spacing)
    return head, scan(head.t1, acquisition, rng)


def scan(t1: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """What the scanner delivers of a head that lies in it: sequence, coil, noise, gain.

    Args:
        t1: (D, H, W), white matter near 1.
        acquisition: how.
        rng: of coil and noise.
    """
    signal = _sequence(t1, acquisition) * _coil(t1.shape, acquisition.bias, rng)
    return _noisy(signal, acquisition, rng) * acquisition.gain


def deformed_grid(
    shape: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    acquisition: Acquisition,
    rng: np.random.Generator,
) -> Array:
    """Where in the head each voxel of the case comes from: (3, D, H, W) voxel coordinates.

    Args:
        shape: (D, H, W) of head and case.
        spacing_mm: (D, H, W).
        acquisition: its rotation, scale and deformation.
        rng: of the deformation.
    """
    spacing = np.asarray(spacing_mm)
    extent = np.asarray(shape) * spacing
    knots = tuple(int(n) for n in np.maximum(4, np.ceil(extent / _KNOT_DISTANCE_MM)))
    turn = Rotation.from_euler("xyz", acquisition.rotation_degrees, degrees=True).as_matrix()
    turn = turn[::-1, ::-1]  # (x, y, z) -> (z, y, x)
    middle = (np.asarray(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    centred = (grid.reshape(3, -1) - middle[:, None]) * spacing[:, None]
    moved = (turn / np.asarray(acquisition.scale)) @ centred
    bend = [smooth_field(shape, knots, rng) * acquisition.deformation_mm for _ in range(3)]
    moved += np.stack([field.reshape(-1) for field in bend])
    source = moved / spacing[:, None] + middle[:, None]
    return np.asarray(source.reshape(3, *shape), dtype=np.float32)


def smooth_field(shape: tuple[int, ...], knots: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A smooth random field: a cubic spline through normal values on a coarse grid."""
    coarse = rng.standard_normal(knots).astype(np.float32)
    depth, height, width = shape
    return resample_image(coarse, (depth, height, width))


def _coil(shape: tuple[int, ...], bias: float, rng: np.random.Generator) -> Array:
    """The coil's sensitivity: smooth, 1 ± `bias`."""
    field = smooth_field(shape, (3, 3, 3), rng)
    return np.asarray(np.exp(np.log1p(bias) * field / np.abs(field).max()))


def _sequence(t1: Array, acquisition: Acquisition) -> Array:
    """Another contrast between the tissues; what is outside the brain stays dark."""
    brain = t1 > _BRAIN
    changed = np.where(brain, np.maximum(t1, 0) ** acquisition.gamma, 0)
    mean = changed[brain].mean()
    return np.where(brain, np.maximum(mean + acquisition.contrast * (changed - mean), 0), 0)


def _noisy(signal: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """Rician noise is what the magnitude of a complex signal has; Gaussian is its limit at high signal."""
    real = signal + acquisition.noise * rng.standard_normal(signal.shape)
    if acquisition.noise_kind == "gaussian":
        return np.asarray(np.maximum(real, 0))
    return np.asarray(np.hypot(real, acquisition.noise * rng.standard_normal(signal.shape)))
