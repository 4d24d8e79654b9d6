"""The fingerprint of a data set: spacings, shapes, and intensities of the foreground, and the spacing that follows.

Each case is measured once, alone, on any machine; joining the cases is a pure function of the set of their
fingerprints, so that neither the order nor the number of workers changes a digit. A case carries its exact mean,
deviation, extremes and 1001 quantiles; in the data set every case weighs the same, as in nnU-Net, which draws
equally many voxels from each.

Source: Isensee et al. 2021, nnU-Net, supplementary notes 2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedvox.data.intensity import CaseIntensity, ChannelIntensity
from fedvox.data.resample import ANISOTROPY_THRESHOLD

QUANTILES = np.linspace(0, 1, 1001)
_P005, _MEDIAN, _P995 = 5, 500, 995  # their places in `QUANTILES`
_FLOAT_SAMPLE = 1 << 21  # voxels of which the quantiles of a float image are taken
_WIDEST_HISTOGRAM = 1 << 20
_JOINED_CASES = 20_000  # cases whose quantiles are pooled, spread evenly over the sorted ids


@dataclass(frozen=True, eq=False)
class ChannelSample:
    """One channel's intensities over a region, in the image's own units.

    Args:
        count: voxels in the region.
        mean: arithmetic mean.
        std: population standard deviation.
        min: smallest value.
        max: largest value.
        quantiles: float32 (1001,), at 0, 0.1, ..., 100 %.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: np.ndarray

    @property
    def intensity(self) -> ChannelIntensity:
        """The part of it that normalisation needs."""
        return ChannelIntensity(
            self.mean, self.std, self.min, self.max, *map(float, self.quantiles[[_P005, _P995]])
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; nine digits hold a float32."""
        return {**asdict(self), "quantiles": [float(f"{value:.9g}") for value in self.quantiles]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ChannelSample:
        """The inverse of `to_dict`."""
        return cls(**{**fields, "quantiles": np.asarray(fields["quantiles"], dtype=np.float32)})


@dataclass(frozen=True)
class CaseFingerprint:
    """What the plan needs to know of a case.

    Args:
        case_id: which one.
        shape: (D, H, W) in the file's own spacing, cropped where cropping is on.
        full_shape: (D, H, W) before cropping.
        spacing_mm: (D, H, W).
        foreground: a sample for each channel over the annotated structures; empty where there are none.
        whole: the same over the whole image, where there is no foreground.
    """

    case_id: str
    shape: tuple[int, int, int]
    full_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    foreground: tuple[ChannelSample, ...]
    whole: tuple[ChannelSample, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            **{name: getattr(self, name) for name in ("case_id", "shape", "full_shape", "spacing_mm")},
            "foreground": [sample.to_dict() for sample in self.foreground],
            "whole": [sample.to_dict() for sample in self.whole],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CaseFingerprint:
        """The inverse of `to_dict`."""
        samples = [
            tuple(ChannelSample.from_dict(sample) for sample in fields[key])
            for key in ("foreground", "whole")
        ]
        shape, full_shape, spacing = (tuple(fields[key]) for key in ("shape", "full_shape", "spacing_mm"))
        return cls(fields["case_id"], shape, full_shape, spacing, *samples)


@dataclass(frozen=True)
class DatasetFingerprint:
    """What the plan needs to know of a data set.

    Args:
        spacings_mm: (D, H, W) of each case.
        shapes: (D, H, W) of each case.
        relative_size: median of cropped over full volume.
        intensity: one entry a channel over the foreground, every case weighing the same.
        medians: median intensity of each channel over the same.
    """

    spacings_mm: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    relative_size: float
    intensity: tuple[ChannelIntensity, ...]
    medians: tuple[float, ...]

    def to_nnunet(self) -> dict[str, Any]:
        """As nnU-Net's dataset_fingerprint.json."""
        channels = {
            str(index): {
                "max": channel.max,
                "mean": channel.mean,
                "median": median,
                "min": channel.min,
                "percentile_00_5": channel.p005,
                "percentile_99_5": channel.p995,
                "std": channel.std,
            }
            for index, (channel, median) in enumerate(zip(self.intensity, self.medians, strict=True))
        }
        return {
            "foreground_intensity_properties_per_channel": channels,
            "median_relative_size_after_cropping": self.relative_size,
            "shapes_after_crop": [list(shape) for shape in self.shapes],
            "spacings": [list(spacing) for spacing in self.spacings_mm],
        }


# ---- one case ----------------------------------------------------------------------------------------------


def sample_case(
    image: np.ndarray, inside: np.ndarray | None
) -> tuple[tuple[ChannelSample, ...], tuple[ChannelSample, ...]]:
    """Samples of the foreground (empty where there is none) and of the whole image, a channel each.

    Args:
        image: (C, D, H, W).
        inside: bool (D, H, W), the foreground; None where nothing is annotated.
    """
    whole = tuple(sample_channel(channel) for channel in image)
    if inside is None or not inside.any():
        return (), whole
    return tuple(sample_channel(channel, inside) for channel in image), whole


def sample_channel(channel: np.ndarray, inside: np.ndarray | None = None) -> ChannelSample:
    """Measures one channel, exactly for integers; quantiles of floats from at most 2 million voxels.

    Args:
        channel: (D, H, W), finite.
        inside: bool (D, H, W) with at least one voxel; None for all of them.
    """
    planes = (
        list(channel) if inside is None else [p[m] for p, m in zip(channel, inside, strict=True) if m.any()]
    )
    if channel.dtype.kind in "iu" and int(channel.max()) - int(channel.min()) < _WIDEST_HISTOGRAM:
        return _sample_integers(planes)
    return _sample_floats(planes)


def _sample_integers(planes: Sequence[np.ndarray]) -> ChannelSample:
    low, high = min(int(p.min()) for p in planes), max(int(p.max()) for p in planes)
    histogram = np.zeros(high - low + 1, dtype=np.int64)
    for plane in planes:
        histogram += np.bincount(plane.reshape(-1).astype(np.int64) - low, minlength=len(histogram))
    values = np.arange(low, high + 1, dtype=np.float64)
    count = int(histogram.sum())
    mean = float(values @ histogram) / count
    variance = float(((values - mean) ** 2) @ histogram) / count
    ranks = QUANTILES * (count - 1)
    below = np.cumsum(histogram)
    floor = values[np.searchsorted(below, np.floor(ranks), side="right")]
    ceiling = values[np.searchsorted(below, np.ceil(ranks), side="right")]
    quantiles = floor + (ceiling - floor) * (ranks - np.floor(ranks))
    return ChannelSample(count, mean, variance**0.5, low, high, quantiles.astype(np.float32))


def _sample_floats(planes: Sequence[np.ndarray]) -> ChannelSample:
    count = sum(plane.size for plane in planes)
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in planes) / count
    variance = sum(float(((plane - mean) ** 2).sum(dtype=np.float64)) for plane in planes) / count
    step = -(-count // _FLOAT_SAMPLE)
    kept = np.concatenate([plane.reshape(-1)[::step] for plane in planes])
    low, high = min(float(p.min()) for p in planes), max(float(p.max()) for p in planes)
    return ChannelSample(
        count, mean, variance**0.5, low, high, np.quantile(kept, QUANTILES).astype(np.float32)
    )


def case_intensity(foreground: Sequence[ChannelSample], whole: Sequence[ChannelSample]) -> CaseIntensity:
    """The record's intensities; where nothing is annotated the whole image stands for the foreground."""
    everywhere = tuple(sample.intensity for sample in whole)
    return CaseIntensity(tuple(sample.intensity for sample in foreground) or everywhere, everywhere)


# ---- all cases ---------------------------------------------------------------------------------------------


def join_fingerprints(cases: Sequence[CaseFingerprint]) -> DatasetFingerprint:
    """Joins the fingerprints of cases; their order does not matter.

    Cases without foreground say nothing about intensities, unless none has any: then whole images count.

    Args:
        cases: at least one, of equally many channels.
    """
    ordered = sorted(cases, key=lambda case: case.case_id)
    samples = [case.foreground for case in ordered if case.foreground] or [case.whole for case in ordered]
    channels = [_join_channel(channel) for channel in zip(*samples, strict=True)]
    cropped = [float(np.prod(case.shape) / np.prod(case.full_shape)) for case in ordered]
    return DatasetFingerprint(
        spacings_mm=tuple(case.spacing_mm for case in ordered),
        shapes=tuple(case.shape for case in ordered),
        relative_size=float(np.median(cropped)),
        intensity=tuple(intensity for intensity, _ in channels),
        medians=tuple(median for _, median in channels),
    )


def _join_channel(samples: Sequence[ChannelSample]) -> tuple[ChannelIntensity, float]:
    means = np.array([sample.mean for sample in samples])
    spreads = np.array([sample.std for sample in samples])
    mean = float(means.mean())
    variance = float((spreads**2 + (means - mean) ** 2).mean())  # within the cases, and between them
    pooled = samples[:: -(-len(samples) // _JOINED_CASES)]
    quantiles = np.concatenate([sample.quantiles for sample in pooled])
    p005, median, p995 = (float(q) for q in np.percentile(quantiles, (0.5, 50, 99.5)))
    low, high = min(sample.min for sample in samples), max(sample.max for sample in samples)
    return ChannelIntensity(mean, variance**0.5, low, high, p005, p995), median


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """The spacing to resample to, by nnU-Net's rule.

    The median of each axis. If the coarsest axis is more than 3 times as coarse as the others and has fewer than
    a third of their voxels, most cases are stacks of thick slices: then that axis takes its 10th percentile, so
    that the thinner ones keep their detail, but stays the coarsest.

    Args:
        spacings_mm: (D, H, W) of each case.
        shapes: (D, H, W) of each case.
    """
    table, sizes = np.asarray(spacings_mm, dtype=float), np.asarray(shapes, dtype=float)
    target, size = np.median(table, axis=0), np.median(sizes, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    is_coarse = target[worst] > ANISOTROPY_THRESHOLD * target[others].max()
    is_short = size[worst] * ANISOTROPY_THRESHOLD < size[others].min()
    if is_coarse and is_short:
        fine = float(np.percentile(table[:, worst], 10))
        in_plane = float(target[others].max())
        target[worst] = fine if fine >= in_plane else in_plane + 1e-5
    depth, height, width = (float(n) for n in target)
    return depth, height, width
