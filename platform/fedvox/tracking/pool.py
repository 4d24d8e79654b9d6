"""All sources of lesions of a training as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fedvox.data.philox import Stream, philox
from fedvox.tracking.config import LesionConfig
from fedvox.tracking.examples import Example, ExampleSource
from fedvox.training.run_directory import RunDirectory

_MARGIN = 1.42  # by how much the simulated box is larger than the patch, whose middle strays
_SPACING_MM = 2.0  # of simulated heads, and of patches that keep each scan's own spacing


@dataclass(frozen=True, eq=False)
class PooledSource:
    """Several sources, drawn from by weight.

    Args:
        sources: at least one.
        weights: of each; they sum to 1.
        seed: of the draw.
    """

    sources: Sequence[ExampleSource]
    weights: Sequence[float]
    seed: int

    @property
    def lesions(self) -> int | None:
        """Together; None where one has no end."""
        counts = [s.lesions for s in self.sources]
        known = [c for c in counts if c is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def digest(self) -> str:
        """Of all."""
        return hashlib.sha256("\n".join(s.digest for s in self.sources).encode()).hexdigest()

    def example(self, index: int) -> Example:
        """See `ExampleSource`."""
        rng = philox(self.seed, index, Stream.NOISE)
        return self.sources[int(rng.choice(len(self.sources), p=self.weights))].example(index)

    def held_out(self, index: int) -> Example:
        """See `ExampleSource`; from each source in turn."""
        count = len(self.sources)
        return self.sources[index % count].held_out(index // count)


def open_pool(config: LesionConfig) -> PooledSource:
    """The sources that a configuration names.

    Lesions of stores are looked up in the run's directory, and found and noted there the first time.

    Raises:
        FedvoxError: a store cannot be used, or the brain is not installed.
    """
    data, run = config.data, RunDirectory.of(config)
    spacing = config.spacing_mm or (_SPACING_MM,) * 3
    d, h, w = (n * s * _MARGIN for n, s in zip(config.patch_size, spacing, strict=True))
    sources: list[ExampleSource] = []
    sizes: list[float] = []
    for number, section in enumerate(data.stores):
        from fedvox.tracking.store_lesions import described, open_store

        note = ("lesions", f"store_{number}.json")
        known = run.read_json(*note)
        source = open_store(section, config.seed, (d, h, w), follow_ups=data.follow_ups, known=known)
        if known is None:
            run.write_json(described(source), *note)
        sources.append(source)
        sizes.append(source.lesions ** (1 / data.temperature))
    weights = [size / sum(sizes) for size in sizes]
    if data.synthetic is not None:
        from fedvox.tracking.simulated_examples import SyntheticSource

        share = data.synthetic.share if sources else 1.0
        weights = [(1 - share) * weight for weight in weights] + [share]
        sources.append(SyntheticSource(data.synthetic, config.seed, (d, h, w), min(spacing), data.follow_ups))
    return PooledSource(sources, weights, config.seed)
