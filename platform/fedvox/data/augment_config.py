"""Which augmentations are applied, how often and how strongly: nnU-Net's list as the defaults.

This module imports neither torch nor numpy, so that run configurations can be read fast.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedvox.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]

_RANGES = (
    "rotation_degrees",
    "in_plane_rotation_degrees",
    "scaling",
    "noise_std",
    "blur_sigma",
    "brightness",
    "contrast",
    "low_resolution_scale",
    "gamma",
)


class AugmentConfig(Config):
    """nnU-Net's training augmentation, in its order (Isensee et al. 2021, as of nnU-Net v2.8).

    Every range is (lowest, highest) of a uniform distribution, with one exception: `brightness`, `contrast` and
    `gamma` fall below 1 or above it with equal chances, and are uniform on either side.
    """

    enabled: bool = True
    """False takes patches as they are."""

    rotation_probability: Probability = 0.2
    rotation_degrees: Range = (-30.0, 30.0)
    """About each of the three axes."""
    in_plane_rotation_degrees: Range = (-180.0, 180.0)
    """About the first axis alone, for anisotropic patches."""
    in_plane_above: float = Field(3.0, ge=1)
    """A patch whose longest axis exceeds its first by more than this factor is rotated, scaled and reduced in
    resolution within its planes only."""
    scaling_probability: Probability = 0.2
    scaling: Range = (0.7, 1.4)
    """One factor for all axes; above 1 the patch shows more, and smaller, anatomy."""

    noise_probability: Probability = 0.1
    noise_std: Range = (0.0, 0.1)
    """Of Gaussian noise, in units of the normalised image, one for all channels. nnU-Net calls this number a
    variance and uses it as a standard deviation."""
    blur_probability: Probability = 0.2
    blur_channel_probability: Probability = 0.5
    blur_sigma: Range = (0.5, 1.0)
    """In voxels, for each channel and axis."""
    brightness_probability: Probability = 0.15
    brightness: Range = (0.75, 1.25)
    """Factor of each channel."""
    contrast_probability: Probability = 0.15
    contrast: Range = (0.75, 1.25)
    """Factor about each channel's mean; the channel's range is kept."""
    low_resolution_probability: Probability = 0.25
    low_resolution_channel_probability: Probability = 0.5
    low_resolution_scale: Range = (0.5, 1.0)
    """Of a channel's size: it is reduced by nearest neighbours and enlarged again linearly."""
    inverted_gamma_probability: Probability = 0.1
    gamma_probability: Probability = 0.3
    gamma: Range = (0.7, 1.5)
    """Exponent on each channel scaled to [0, 1] (its negative for the inverted kind); mean and standard deviation
    are kept."""
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    mirror_probability: Probability = 0.5
    """For each of `mirror_axes`."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in _RANGES:
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: a range is [lowest, highest], got {[low, high]}")
        positive = ("scaling", "blur_sigma", "low_resolution_scale", "gamma", "brightness", "contrast")
        for name in positive:
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name}: must be above 0, got {list(getattr(self, name))}")
        if self.noise_std[0] < 0:
            raise ValueError(f"noise_std: must not be negative, got {list(self.noise_std)}")
        if self.low_resolution_scale[1] > 1:
            raise ValueError(
                f"low_resolution_scale: must not exceed 1, got {list(self.low_resolution_scale)}"
            )
        for name in ("brightness", "contrast", "gamma"):
            if getattr(self, name)[1] < 1:
                raise ValueError(f"{name}: the highest must be at least 1, got {list(getattr(self, name))}")
        if not set(self.mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"mirror_axes: must be among 0, 1, 2 (D, H, W), got {list(self.mirror_axes)}")
        return self
