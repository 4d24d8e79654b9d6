"""Where a training's examples come from: sample i of a run is a pure function of its seed and i."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from fedvox.data.philox import Stream, philox
from fedvox.forecasting.config import ForecastConfig, ForecastDataSection
from fedvox.forecasting.examples import Examples
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.sequence import Sequence4D
from fedvox.forecasting.simulation import SIMULATIONS, TEST, Schedule, Simulated


class ExampleSource(Protocol):
    """Draws training examples, and always the same ones for validation."""

    @property
    def channels(self) -> int:
        """Of the images."""

    @property
    def unit(self) -> str:
        """Of times."""

    @property
    def time_scale(self) -> float:
        """The range of times in training."""

    @property
    def horizon(self) -> float:
        """The latest time that training has seen."""

    @property
    def intensities(self) -> tuple[float, float]:
        """See `ForecastInfo`."""

    @property
    def digest(self) -> str:
        """Tells whether a run goes on with the data it began with."""

    def examples(self, indices: Sequence[int]) -> Examples:
        """The samples of these numbers."""

    def held_out(self, count: int) -> list[Examples]:
        """Up to `count` examples of held-out patients, in batches of volumes of one size."""


@dataclass(frozen=True)
class SimulatedSource:
    """Simulated patients without end."""

    simulated: Simulated
    channels: int = 1

    @property
    def unit(self) -> str:
        """Of the simulation."""
        return self.simulated.simulation.unit

    @property
    def time_scale(self) -> float:
        """Length of a whole history."""
        return self.simulated.simulation.duration

    @property
    def horizon(self) -> float:
        """Of the schedule; a regular one reaches the end of the history."""
        schedule = self.simulated.schedule
        return (1.0 if schedule.kind == "regular" else schedule.horizon) * self.time_scale

    @property
    def intensities(self) -> tuple[float, float]:
        """As simulated, on average over some patients: they are not normalised."""
        found = self.simulated.examples(range(_AT_ONCE))
        ends = [
            Normalization.of(scans[there].numpy())
            for scans, there in zip(found.scans, found.valid, strict=True)
        ]
        return float(np.mean([one.low for one in ends])), float(np.mean([one.high for one in ends]))

    @property
    def digest(self) -> str:
        """A simulation is described by the configuration alone."""
        return f"simulated {self.simulated.simulation.name}"

    def examples(self, indices: Sequence[int]) -> Examples:
        """See `ExampleSource`."""
        return self.simulated.examples(indices)

    def held_out(self, count: int) -> list[Examples]:
        """See `ExampleSource`."""
        patients, end = replace(self.simulated, seed=VALIDATION_SEED), TEST + count
        return [patients.examples(range(n, min(n + _AT_ONCE, end))) for n in range(TEST, end, _AT_ONCE)]


VALIDATION_SEED = 1_000_003
"""Of simulated patients that validate, whatever the run's seed is."""
_AT_ONCE = 16
"""Simulated patients of one batch of `held_out`, for the sake of memory."""


@dataclass(frozen=True)
class SequenceSource:
    """Patients with files, all of one grid size.

    Attributes:
        training: the patients that are learnt from.
        validation: the held-out ones.
        data: how examples are drawn.
        seed: of the run.
        visits: T, context scans of an example.
        digest: of the patients' names and times.
    """

    training: tuple[Sequence4D, ...]
    validation: tuple[Sequence4D, ...]
    data: ForecastDataSection
    seed: int
    visits: int
    digest: str

    @property
    def channels(self) -> int:
        """Of the images."""
        return int(self.training[0].volumes.shape[1])

    @property
    def unit(self) -> str:
        """Of the times."""
        return self.training[0].unit

    @property
    def time_scale(self) -> float:
        """The latest time of a training scan."""
        return max(1e-6, *(float(np.abs(s.times[s.valid]).max()) for s in self.training))

    @property
    def horizon(self) -> float:
        """The latest time that training has seen."""
        return max(float(s.times[s.valid].max()) for s in self.training)

    @property
    def intensities(self) -> tuple[float, float]:
        """Sequences are normalised."""
        return 0.0, 1.0

    def examples(self, indices: Sequence[int]) -> Examples:
        """See `ExampleSource`."""
        drawn = []
        for index in indices:
            rng = philox(self.seed, index, Stream.CASE)
            sequence = self.training[int(rng.integers(len(self.training)))]
            drawn.append(draw_example(sequence, self.visits, self.data, rng))
        return collate(drawn)

    def held_out(self, count: int) -> list[Examples]:
        """See `ExampleSource`."""
        drawn = []
        for index in range(count):
            sequence = self.validation[index % len(self.validation)]
            rng = philox(VALIDATION_SEED, index, Stream.CASE)
            drawn.append(draw_example(sequence, self.visits, self.data, rng))
        return [collate([example]) for example in drawn]


@dataclass(frozen=True)
class Example:
    """One patient's example: indices into its scans.

    Attributes:
        sequence: normalised.
        context: `(T,)`, scans of the context, chronological.
        valid: `(T,)` bool.
        target: the scan to forecast.
    """

    sequence: Sequence4D
    context: np.ndarray
    valid: np.ndarray
    target: int


def draw_example(
    sequence: Sequence4D, visits: int, data: ForecastDataSection, rng: np.random.Generator
) -> Example:
    """A target of the patient, and of its other scans the context: up to `visits`, some of them left out.

    Args:
        sequence: at least two scans.
        visits: T.
        data: share of missing scans, whether targets between context scans are asked for.
        rng: of the draw.
    """
    there = np.flatnonzero(sequence.valid)
    target = int(rng.choice(there if data.interpolate else there[1:]))
    others = np.arange(len(sequence.times))
    others = others[others != target] if data.interpolate else others[:target]
    if len(others) > visits:
        first = int(rng.integers(len(others) - visits + 1))
        window = others[first : first + visits]
        others = window if sequence.valid[window].any() else others[sequence.valid[others]][:visits]
    valid = sequence.valid[others] & (rng.random(len(others)) >= data.missing)
    if not valid.any():
        valid[int(rng.choice(np.flatnonzero(sequence.valid[others])))] = True
    context = np.full(visits, others[-1])
    context[: len(others)] = others
    padded = np.zeros(visits, bool)
    padded[: len(others)] = valid
    return Example(sequence, context, padded, target)


def collate(drawn: Sequence[Example]) -> Examples:
    """Examples of volumes of one size as a batch."""

    def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays))

    rois = [None if e.sequence.roi is None else e.sequence.roi[e.target] for e in drawn]
    known = [roi for roi in rois if roi is not None]
    return Examples(
        scans=stacked([np.nan_to_num(e.sequence.volumes[e.context]) for e in drawn]),
        times=stacked([e.sequence.times[e.context].astype(np.float32) for e in drawn]),
        valid=stacked([e.valid for e in drawn]),
        target=stacked([e.sequence.volumes[e.target] for e in drawn]),
        target_time=torch.tensor([float(e.sequence.times[e.target]) for e in drawn]),
        roi=stacked([roi[None] for roi in known]) if len(known) == len(drawn) else None,
    )


def open_source(config: ForecastConfig) -> ExampleSource:
    """The source that a configuration names.

    Raises:
        DataError: sequences cannot be used; see `fedvox.forecasting.loaders`.
    """
    section = config.data.simulated
    if section is None:
        from fedvox.forecasting.loaders import open_sequences

        return open_sequences(config)
    schedule = Schedule(
        kind=section.schedule, visits=config.flow.slots, missing=config.data.missing, target=section.target
    )
    simulation = SIMULATIONS[section.kind]
    return SimulatedSource(
        Simulated(simulation, schedule, config.seed, section.size, section.noise, section.static)
    )
