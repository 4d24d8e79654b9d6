"""The statistics of a case's intensities that normalisation needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox.data.ignore import is_foreground

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ChannelIntensity:
    """One channel's statistics, in the image's own units (HU for CT).

    Args:
        mean: arithmetic mean.
        std: population standard deviation.
        min: smallest value.
        max: largest value.
        p005: 0.5th percentile.
        p995: 99.5th percentile.
    """

    mean: float
    std: float
    min: float
    max: float
    p005: float
    p995: float


FIELDS = ("mean", "std", "min", "max", "p005", "p995")


@dataclass(frozen=True)
class CaseIntensity:
    """A case's statistics, one entry a channel.

    Args:
        foreground: over the voxels of any structure; over the whole image where there are none.
        whole: over the whole image.
    """

    foreground: tuple[ChannelIntensity, ...]
    whole: tuple[ChannelIntensity, ...]


def measure_intensity(image: Array, label: Array | None) -> CaseIntensity:
    """Statistics of an image (C, D, H, W) over its labelled voxels and over all.

    Args:
        image: (C, D, H, W).
        label: (D, H, W), or None.
    """
    whole = tuple(measure_channel(channel.reshape(-1)) for channel in image)
    inside = None if label is None else is_foreground(label)
    if inside is None or not inside.any():
        return CaseIntensity(whole, whole)
    return CaseIntensity(tuple(measure_channel(channel[inside]) for channel in image), whole)


def measure_channel(values: Array) -> ChannelIntensity:
    """Statistics of a flat array of intensities."""
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelIntensity(
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        min=float(values.min()),
        max=float(values.max()),
        p005=float(low),
        p995=float(high),
    )
