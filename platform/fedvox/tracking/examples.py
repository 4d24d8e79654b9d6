"""What a promptable network learns from: one lesion on one scan, and what becomes of it on a later one.

Sample i is a function of the run's seed and of i, whatever the source, so that a run can go on at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedvox.data.philox import Stream, philox
from fedvox.errors import DataError

HELD_OUT_SEED = 1_000_003
"""Of samples that validate, whatever the run's seed is."""


@dataclass(frozen=True, eq=False)
class TrainingScan:
    """A scan, or a part of one, with its lesions.

    Args:
        image: (D, H, W).
        lesions: (D, H, W) ids.
        spacing_mm: (D, H, W).
    """

    image: npt.NDArray[np.generic]
    lesions: npt.NDArray[np.integer]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Later:
    """The same part of the patient at a later time, as registration brings it there.

    Args:
        scan: covers the same box of the patient, perhaps with other voxels.
        lesion: bool (D, H, W) on its grid, what became of the lesion; empty where it vanished.
    """

    scan: TrainingScan
    lesion: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Example:
    """One lesion.

    Args:
        scan: that it is on.
        lesion: its id.
        later: what becomes of it; None where that is not known.
    """

    scan: TrainingScan
    lesion: int
    later: Later | None = None


class ExampleSource(Protocol):
    """Draws lesions."""

    @property
    def lesions(self) -> int | None:
        """How many there are; None where they are simulated without end."""

    @property
    def digest(self) -> str:
        """Tells whether a run goes on with the data it began with."""

    def example(self, index: int) -> Example:
        """The lesion of sample `index`."""

    def held_out(self, index: int) -> Example:
        """A lesion that nothing is learnt from."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Scans in memory; all of them teach and judge.

    Args:
        scans: with their lesions.
        seed: of the draw.
    """

    scans: Sequence[TrainingScan]
    seed: int = 0
    _all: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        found = [(i, int(x)) for i, scan in enumerate(self.scans) for x in np.unique(scan.lesions) if x]
        if not found:
            raise DataError(
                "no scan has a lesion to learn from", "Give scans with lesion masks.", code="empty_prompt"
            )
        object.__setattr__(self, "_all", found)

    @property
    def lesions(self) -> int:
        """In all scans."""
        return len(self._all)

    @property
    def digest(self) -> str:
        """Of their number."""
        return f"{len(self.scans)} scans in memory with {self.lesions} lesions"

    def example(self, index: int) -> Example:
        """See `ExampleSource`."""
        scan, lesion = self._all[int(philox(self.seed, index, Stream.CASE).integers(self.lesions))]
        return Example(self.scans[scan], lesion)

    def held_out(self, index: int) -> Example:
        """See `ExampleSource`."""
        scan, lesion = self._all[index % self.lesions]
        return Example(self.scans[scan], lesion)
