"""What happens to each sample: parameters drawn as a pure function of (seed, sample), before any voxel is read.

Drawing first has two uses. The loader reads exactly the voxels which a sample's rotation and scaling need
(`read_box`), where nnU-Net reads an enlarged box for every patch; and the voxels may be worked on anywhere, in any
batch, on CPU or GPU, without changing what happens to them.

Each sample reads a fixed layout of uniform numbers, whatever is then applied: 24 of its own, and 16 for each
channel. So neither a probability, nor a range, nor the number of channels shifts what the other numbers decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fedvox.data.augment_config import AugmentConfig, Range
from fedvox.data.philox import Stream, raw, uniforms

Array = np.ndarray[Any, Any]
Size3 = tuple[int, int, int]

_OF_SAMPLE = 24
_OF_CHANNEL = 16


@dataclass(frozen=True, eq=False)
class AugmentParameters:
    """What is done to each of B samples of C channels; the neutral value of each field leaves a sample alone.

    Attributes:
        spatial: `(B,)` bool, whether the sample is interpolated at all.
        matrix: `(B, 3, 3)` float64, voxel offset from the patch's centre -> offset in the volume (before mirroring).
        mirror: `(B, 3)` bool, axes to mirror.
        noise_std: `(B,)` float64, neutral 0.
        noise_seed: `(B,)` uint64, for the generator of the noise.
        blur_sigma: `(B, C, 3)` float64 in voxels, neutral 0.
        brightness: `(B, C)` float64, neutral 1.
        contrast: `(B, C)` float64, neutral 1.
        low_resolution: `(B, C, 3)` float64, scale of each axis, neutral 1.
        inverted_gamma: `(B, C)` float64, neutral 1.
        gamma: `(B, C)` float64, neutral 1.
    """

    spatial: Array
    matrix: Array
    mirror: Array
    noise_std: Array
    noise_seed: Array
    blur_sigma: Array
    brightness: Array
    contrast: Array
    low_resolution: Array
    inverted_gamma: Array
    gamma: Array

    def __len__(self) -> int:
        return len(self.spatial)

    def row(self, sample: int) -> AugmentParameters:
        """The parameters of one sample, as a batch of one."""
        one = slice(sample, sample + 1) if sample >= 0 else slice(sample, sample + 1 or None)
        return AugmentParameters(**{field.name: getattr(self, field.name)[one] for field in fields(self)})


def draw(
    config: AugmentConfig, seed: int, indices: Sequence[int], patch_size: Size3, channels: int
) -> AugmentParameters:
    """Draws the augmentation of the samples `indices` of a run.

    Args:
        config: which augmentations there are.
        seed: of the run.
        indices: B samples; each row depends on its own index alone.
        patch_size: (D, H, W); decides whether rotations stay in the planes.
        channels: C.
    """
    width = _OF_SAMPLE + _OF_CHANNEL * channels
    drawn = [uniforms(seed, index, Stream.AUGMENT, width) for index in indices]
    numbers = np.stack(drawn) if drawn else np.empty((0, width))
    sample = numbers[:, :_OF_SAMPLE]
    channel = numbers[:, _OF_SAMPLE:].reshape(len(numbers), channels, _OF_CHANNEL)
    seeds = [raw(seed, index, Stream.NOISE, 1)[0] for index in indices]
    in_plane = max(patch_size) / patch_size[0] > config.in_plane_above
    return AugmentParameters(
        **_spatial(config, sample, in_plane),
        noise_std=np.where(
            _happens(config, config.noise_probability, sample[:, 6]),
            _uniform(config.noise_std, sample[:, 7]),
            0,
        ),
        noise_seed=np.asarray(seeds, np.uint64),
        **_intensity(config, sample, channel, in_plane),
    )


def read_box(params: AugmentParameters, patch_size: Size3) -> Size3:
    """Size of the box that must be read for a sample: the patch itself unless it is rotated or scaled.

    Args:
        params: of one sample (`AugmentParameters.row`).
        patch_size: (D, H, W).

    Returns:
        (D, H, W), differing from the patch's by even numbers, so that both have the same centre. All points which
        the patch samples lie at least one voxel inside; a patch that is enlarged may need less than its own size.
    """
    if not params.spatial[0]:
        return patch_size
    patch = np.asarray(patch_size)
    reach = np.abs(params.matrix[0]) @ (
        patch - 1
    )  # between the outermost sampled points, per axis of the volume
    half = np.ceil((reach + 3 - patch) / 2 - 1e-6).astype(int)
    box = patch + 2 * half
    return (int(box[0]), int(box[1]), int(box[2]))


def _spatial(config: AugmentConfig, sample: Array, in_plane: bool) -> dict[str, Array]:
    rotated = _happens(config, config.rotation_probability, sample[:, 0])
    scaled = _happens(config, config.scaling_probability, sample[:, 4])
    if in_plane:
        angles = np.zeros((len(sample), 3))
        angles[:, 0] = _uniform(config.in_plane_rotation_degrees, sample[:, 3])
    else:
        angles = _uniform(config.rotation_degrees, sample[:, 1:4])
    angles = np.where(rotated[:, None], np.deg2rad(angles), 0)
    factor = np.where(scaled, _uniform(config.scaling, sample[:, 5]), 1)
    factors = np.stack([np.ones_like(factor) if in_plane else factor, factor, factor], axis=1)
    mirror = np.zeros((len(sample), 3), bool)
    for axis in config.mirror_axes:
        mirror[:, axis] = _happens(config, config.mirror_probability, sample[:, 14 + axis])
    return {"spatial": rotated | scaled, "matrix": _rotations(angles) * factors[:, None, :], "mirror": mirror}


def _rotations(angles: Array) -> Array:
    """R₂ R₁ R₀ of angles about the axes 0, 1 and 2, `(B, 3)` radians -> `(B, 3, 3)`."""
    cos, sin = np.cos(angles), np.sin(angles)
    total = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for axis in range(3):
        first, second = [a for a in range(3) if a != axis]
        turn = np.zeros((len(angles), 3, 3))
        turn[:, axis, axis] = 1
        turn[:, first, first] = turn[:, second, second] = cos[:, axis]
        sign = -1 if axis == 1 else 1  # right-handed: about axis 1, axis 2 turns into axis 0
        turn[:, second, first], turn[:, first, second] = sign * sin[:, axis], -sign * sin[:, axis]
        total = turn @ total
    return total


def _intensity(config: AugmentConfig, sample: Array, channel: Array, in_plane: bool) -> dict[str, Array]:
    def chosen(probability: float, place: int) -> Array:
        return _happens(config, probability, sample[:, place])[:, None]

    def some(probability: float, place: int) -> Array:
        return channel[:, :, place] < probability

    blurred = chosen(config.blur_probability, 8) & some(config.blur_channel_probability, 0)
    reduced = chosen(config.low_resolution_probability, 11) & some(
        config.low_resolution_channel_probability, 8
    )
    scale = np.repeat(_uniform(config.low_resolution_scale, channel[:, :, 9])[:, :, None], 3, axis=2)
    if in_plane:
        scale[:, :, 0] = 1
    two_sided = {
        "brightness": (config.brightness_probability, 9, config.brightness, 4),
        "contrast": (config.contrast_probability, 10, config.contrast, 6),
        "inverted_gamma": (config.inverted_gamma_probability, 12, config.gamma, 10),
        "gamma": (config.gamma_probability, 13, config.gamma, 12),
    }
    return {
        "blur_sigma": np.where(blurred[:, :, None], _uniform(config.blur_sigma, channel[:, :, 1:4]), 0),
        "low_resolution": np.where(reduced[:, :, None], scale, 1),
        **{
            name: np.where(
                chosen(probability, place), _two_sided(limits, channel[:, :, at], channel[:, :, at + 1]), 1
            )
            for name, (probability, place, limits, at) in two_sided.items()
        },
    }


def _happens(config: AugmentConfig, probability: float, number: Array) -> Array:
    happens: Array = (number < probability) & config.enabled
    return happens


def _uniform(limits: Range, number: Array) -> Array:
    scaled: Array = limits[0] + (limits[1] - limits[0]) * number
    return scaled


def _two_sided(limits: Range, side: Array, number: Array) -> Array:
    """Below 1 or above it with equal chances (always above if the range has nothing below), uniform on either side."""
    low, high = limits
    return np.where(
        (side < 0.5) & (low < 1), _uniform((low, 1), number), _uniform((max(low, 1), high), number)
    )
