"""Which patch is sample *i* of a run: a pure function of (seed, i).

    i ──> epoch, position ──keyed permutation──> slot ──> source ──> case        (exactly once an epoch)
    i ──> forced foreground?                                                     (exactly one sample in three)
    i ──Philox(seed, i)──> structure, voxel or corner of the patch

Nothing else enters: not the number of workers, not the batch size, not what was drawn before. So step *n*
of a resumed run sees what step *n* of the uninterrupted run would have seen, a run that goes on with other
workers sees the same samples, and any one sample can be drawn again alone. Of a global batch of B samples
(step n: i = nB … nB + B - 1), worker r of w takes those with i - nB ≡ r (mod w).

Virtual epochs. An epoch has as many samples as there are cases. Each source is allotted slots in proportion
to m^(1/T) for its m cases and the temperature T, rounded by largest remainders. At T = 1 every case is
drawn exactly once an epoch. At T > 1 a source cuts its slots into passes over its cases, each in a new
random order, which need not end with the epoch; at the end of every epoch its cases have been drawn equally
often, give or take one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from fedvox.data.permutation import KeyedPermutation
from fedvox.data.philox import Stream, raw, uniforms
from fedvox.errors import ConfigError

Array = np.ndarray[Any, Any]
Size3 = tuple[int, int, int]

_EPOCH_ORDER = 0  # permutation domain of epochs; source s has domain 1 + s
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn.

    Args:
        seed: of the run; another seed is another order, other patches and other augmentation.
        patch_size: (D, H, W) in voxels.
        foreground_fraction: share of the patches that are centred on an annotated structure; nnU-Net: 1/3.
        source_temperature: T ≥ 1; a source of m cases gets a share ~ m^(1/T). 1 draws cases uniformly,
            infinity draws sources uniformly.

    Raises:
        ConfigError: a value is out of range.
    """

    seed: int
    patch_size: Size3
    foreground_fraction: float = 1 / 3
    source_temperature: float = 1.0

    def __post_init__(self) -> None:
        _require(0 <= self.seed <= _LARGEST_SEED, f"seed is {self.seed}", "Choose one in [0, 2^63).")
        _require(
            len(self.patch_size) == 3 and all(int(n) == n and n >= 1 for n in self.patch_size),
            f"patch_size is {self.patch_size}",
            "Give three positive whole numbers of voxels, (D, H, W).",
        )
        _require(
            0 <= self.foreground_fraction <= 1,
            f"foreground_fraction is {self.foreground_fraction}",
            "Give a share between 0 and 1.",
        )
        _require(
            self.source_temperature >= 1,
            f"source_temperature is {self.source_temperature}",
            "Give 1 (cases drawn uniformly) or more (small sources drawn more often).",
        )


class StoreView(Protocol):
    """What the sampler needs of a brick store; `fedvox.data.store.BrickStore` is one."""

    @property
    def sources(self) -> Array:
        """Source code of each row, `(N,)` integers."""

    @property
    def shapes(self) -> Array:
        """Size of each row's volume, `(N, 3)` integers as (D, H, W)."""

    def __len__(self) -> int: ...

    def annotated(self, i: int) -> Array:
        """Structures that the source of row `i` annotates, `(K,)` bool."""

    def foreground(self, i: int) -> Mapping[int, Array]:
        """Structure -> sample of its voxels in row `i`, `(n, 3)` as (z, y, x)."""


class CounterSampler:
    """Draws sample *i* of a run; see the module's docstring.

    Args:
        store: where the cases are.
        config: how to draw them.
        rows: the store's rows to draw from, such as the training cases of a split; None for all.

    Raises:
        ConfigError: there are no rows.
    """

    def __init__(
        self, store: StoreView, config: SamplerConfig, rows: Sequence[int] | Array | None = None
    ) -> None:
        self.store = store
        self.config = config
        chosen = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
        _require(chosen.size > 0, "there are no cases to draw from", "Ingest some, or hold out fewer.")
        codes = np.asarray(store.sources)[chosen]
        order = np.argsort(codes, kind="stable")
        present, cases = np.unique(codes, return_counts=True)
        self.source_codes = present
        self._rows = chosen[order].astype(np.int32 if len(store) < 2**31 else np.int64)
        self._cases = [int(m) for m in cases]
        self._first_case = [int(b) for b in np.cumsum(cases) - cases]
        self.quota = allot(self._cases, config.source_temperature)
        self._first_slot = np.cumsum(self.quota) - self.quota
        share = Fraction(config.foreground_fraction).limit_denominator(1000)
        self._foreground, self._foreground_block = share.numerator, share.denominator

    @property
    def epoch_size(self) -> int:
        """Samples of a virtual epoch: as many as there are cases."""
        return len(self._rows)

    def case(self, index: int, *, attempt: int = 0) -> int:
        """Row of the store that sample `index` is taken from.

        Args:
            index: of the sample in the run.
            attempt: 0 for the sample itself; 1, 2, … for what takes its place when the cases of the attempts
                before are damaged: the other cases of the same source, from a random one on, then any others.
        """
        source, case = self._slot(index)
        first, cases = self._first_case[source], self._cases[source]
        if 0 < attempt < cases:
            case = self._other(index, case, cases, attempt)
        elif attempt >= cases and self.epoch_size > 1:
            return int(self._rows[self._other(index, first + case, self.epoch_size, attempt)])
        return int(self._rows[first + case])

    def source(self, index: int) -> int:
        """Source code of sample `index`."""
        return int(self.source_codes[self._slot(index)[0]])

    def force_foreground(self, index: int) -> bool:
        """Whether sample `index` is centred on an annotated structure.

        Of each block of samples (three, for one third) the same number is forced, so that training never goes
        long without. Which ones turns from block to block: a fixed pattern would give all of them to the same
        workers whenever the number of workers and the block have a common factor.
        """
        block, place = divmod(index, self._foreground_block)
        turn = int(raw(self.config.seed, block, Stream.FOREGROUND, 1)[0]) % self._foreground_block
        return (place + turn) * self._foreground % self._foreground_block < self._foreground

    def start(self, index: int, size: Size3 | None = None, *, attempt: int = 0) -> Size3:
        """First voxel of the box to read for sample `index`.

        Args:
            index: of the sample in the run.
            size: of the box, (D, H, W); it is centred on the patch and differs from it by even numbers
                (`read_box`). None for the patch itself.
            attempt: see `case`.

        Returns:
            (z, y, x), negative or beyond the volume where the box sticks out of it. The patch itself lies
            within the volume, or is centred over it along axes where the volume is smaller.
        """
        patch = self.config.patch_size
        row = self.case(index, attempt=attempt)
        room = [n - p for n, p in zip(self.store.shapes[row].tolist(), patch, strict=True)]
        draws = uniforms(self.config.seed, index, Stream.LOCATION, 5, attempt=attempt).tolist()
        centre = self._centre(row, draws[3], draws[4]) if self.force_foreground(index) else None
        if centre is None:
            wanted = [int(u * (r + 1)) for u, r in zip(draws, room, strict=False)]
        else:
            wanted = [c - p // 2 for c, p in zip(centre, patch, strict=True)]
        start = [min(max(s, 0), r) if r >= 0 else -(-r // 2) for s, r in zip(wanted, room, strict=True)]
        shift = [(p - b) // 2 for p, b in zip(patch, size or patch, strict=True)]
        return (start[0] + shift[0], start[1] + shift[1], start[2] + shift[2])

    def _slot(self, index: int) -> tuple[int, int]:
        """(position of the source, position of the case in it) of a sample."""
        seed, size = self.config.seed, self.epoch_size
        epoch, position = divmod(index, size)
        slot = KeyedPermutation.keyed(size, seed=seed, index=epoch, domain=_EPOCH_ORDER)(position)
        source = int(np.searchsorted(self._first_slot, slot, side="right")) - 1
        # Sources count their own slots through all epochs, and cut them into passes over their cases.
        within = epoch * int(self.quota[source]) + slot - int(self._first_slot[source])
        turn, place = divmod(within, self._cases[source])
        domain = 1 + int(self.source_codes[source])
        order = KeyedPermutation.keyed(self._cases[source], seed=seed, index=turn, domain=domain)
        return source, order(place)

    def _other(self, index: int, case: int, cases: int, attempt: int) -> int:
        """Walks through all of [0, cases) but `case`, from a random one on."""
        offset = int(raw(self.config.seed, index, Stream.RETRY, 1)[0]) % (cases - 1)
        return (case + 1 + (offset + attempt - 1) % (cases - 1)) % cases

    def _centre(self, row: int, structure: float, voxel: float) -> list[int] | None:
        """A stored voxel of a random annotated structure; None where the case has none."""
        annotated = self.store.annotated(row)
        sample = self.store.foreground(row)
        present = sorted(s for s, points in sample.items() if s > 0 and annotated[s] and len(points))
        if not present:
            return None
        points = sample[present[int(structure * len(present))]]
        return [int(x) for x in points[int(voxel * len(points))]]


def allot(cases: Sequence[int], temperature: float) -> Array:
    """Slots of each source in a virtual epoch.

    Args:
        cases: number of cases of each source, all at least 1.
        temperature: see `SamplerConfig`.

    Returns:
        `(S,)` int64 with the sum of `cases`: shares ~ cases^(1/T), rounded by largest remainders (ties go to
        the source that comes first), so that each is within 1 of its exact share.
    """
    counts = np.asarray(cases, np.float64)
    total = int(counts.sum())
    weight = counts ** (1 / temperature)
    exact = total * weight / weight.sum()
    slots: Array = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - slots), kind="stable")[: total - int(slots.sum())]
    slots[largest] += 1
    return slots


def worker_indices(step: int, *, global_batch_size: int, rank: int, world_size: int) -> range:
    """Samples of one worker in one step: i = nB + r, nB + r + w, … of nB … nB + B - 1.

    Raises:
        ConfigError: some worker would have no sample.
    """
    _require(
        0 <= rank < world_size <= global_batch_size,
        f"worker {rank} of {world_size} cannot share global batches of {global_batch_size}",
        "Every worker needs a sample: raise global_batch_size or take fewer workers.",
    )
    first = step * global_batch_size
    return range(first + rank, first + global_batch_size, world_size)


def _require(condition: bool, problem: str, remedy: str) -> None:
    if not condition:
        raise ConfigError(problem, remedy)
