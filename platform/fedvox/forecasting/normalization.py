"""Intensities to the range of about 0 to 1 that models see, and back on output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Normalization:
    """A linear map of intensities, one for all scans of a patient, so that change stays change.

    Attributes:
        low: per channel, becomes 0.
        high: per channel, becomes 1.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, volumes: np.ndarray, ends: tuple[float, float] = (0.5, 99.5)) -> Normalization:
        """From two percentiles of the context scans `(T, C, D, H, W)`, which become 0 and 1."""
        found = np.nanpercentile(volumes, ends, axis=(0, 2, 3, 4))
        low, high = found[0], np.where(found[1] > found[0], found[1], found[0] + 1.0)
        return cls(tuple(float(v) for v in low), tuple(float(v) for v in high))

    def onto(self, ends: tuple[float, float]) -> Normalization:
        """The map that takes to `ends` what this one takes to 0 and 1."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        range_ = (high - low) / (ends[1] - ends[0])
        first = low - ends[0] * range_
        return Normalization(tuple(map(float, first)), tuple(map(float, first + range_)))

    def apply(self, volumes: np.ndarray) -> np.ndarray:
        """`(…, C, D, H, W)` in normalised units, float32; values outside are kept."""
        low, range_ = self._columns()
        return np.asarray((volumes - low) / range_, dtype=np.float32)

    def undo(self, volumes: np.ndarray) -> np.ndarray:
        """The inverse of `apply`."""
        low, range_ = self._columns()
        return np.asarray(volumes * range_ + low, dtype=np.float32)

    def undo_spread(self, spread: np.ndarray) -> np.ndarray:
        """Standard deviations in the units of the images."""
        return np.asarray(spread * self._columns()[1], dtype=np.float32)

    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        low = np.asarray(self.low, np.float32)[:, None, None, None]
        return low, np.asarray(self.high, np.float32)[:, None, None, None] - low
