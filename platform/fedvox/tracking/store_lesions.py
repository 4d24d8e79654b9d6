"""The lesions of a brick store, one by one: found once, then drawn each alone.

A label names structures; which of them are lesions, and whether one structure is many lesions (what hangs together is
one) or each value of the label is a lesion of its own (an instance map), the configuration says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from fedvox.data.philox import Stream, philox
from fedvox.data.split import split_cases
from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError, DataError
from fedvox.tracking.config import StoreSection
from fedvox.tracking.examples import Example, TrainingScan
from fedvox.tracking.lesion_scan import LesionScan
from fedvox.tracking.simulated_examples import later_of
from fedvox.training.config import expand

Size3 = tuple[int, int, int]

_LEAST_VOXELS = 5  # fewer are no lesion that could be learnt from
_ROOM = 1.6  # by how much the box that is read is larger than the lesion
_TISSUE = 0.2  # share of the range of intensities above which a voxel is tissue


@dataclass(frozen=True)
class StoredLesion:
    """One lesion of a store.

    Args:
        row: of its case.
        at: one of its voxels (D, H, W).
        middle: of its box.
        size: of its box.
    """

    row: int
    at: Size3
    middle: Size3
    size: Size3


@dataclass(frozen=True, eq=False)
class StoreSource:
    """The lesions of one store.

    Args:
        store: opened.
        section: which of its structures are lesions.
        training: lesions that are learnt from.
        validation: lesions of held-out cases.
        seed: of the run.
        box_mm: (D, H, W) that is read around a lesion, or more where it is larger.
        follow_ups: simulate later scans.
    """

    store: BrickStore
    section: StoreSection
    training: Sequence[StoredLesion]
    validation: Sequence[StoredLesion]
    seed: int
    box_mm: tuple[float, float, float]
    follow_ups: bool

    @property
    def lesions(self) -> int:
        """That are learnt from."""
        return len(self.training)

    @property
    def digest(self) -> str:
        """Of the store's cases."""
        return self.store.cases_digest

    def example(self, index: int) -> Example:
        """See `ExampleSource`."""
        number = int(philox(self.seed, index, Stream.CASE).integers(len(self.training)))
        return self._read(self.training[number], philox(self.seed, index, Stream.AUGMENT))

    def held_out(self, index: int) -> Example:
        """See `ExampleSource`."""
        lesions = self.validation or self.training
        return self._read(lesions[index % len(lesions)], philox(0, index, Stream.AUGMENT))

    def _read(self, lesion: StoredLesion, rng: np.random.Generator) -> Example:
        spacing = self.store.record(lesion.row).spacing_mm
        size = [
            int(np.ceil(max(box / mm, _ROOM * n)))
            for box, mm, n in zip(self.box_mm, spacing, lesion.size, strict=True)
        ]
        start = [m - n // 2 for m, n in zip(lesion.middle, size, strict=True)]
        image, label = self.store.read_patch(lesion.row, start, size)
        assert label is not None  # it has lesions
        ids = instances(label, self.store, self.section)
        here = int(ids[tuple(a - s for a, s in zip(lesion.at, start, strict=True))])
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        scan = TrainingScan(
            np.flip(image[0].astype(np.float32), axes).copy(), np.flip(ids, axes).copy(), spacing
        )
        return Example(scan, here, later_of(_anatomy(scan), here, rng) if self.follow_ups else None)


def _anatomy(scan: TrainingScan) -> LesionScan:
    """A scan as an anatomy in which lesions can take their course: the scanner's intensities between 0 and 1."""
    values = scan.image.astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
    image = np.clip((values - low) / max(high - low, 1e-6), 0, None)
    tissue = (image > _TISSUE) | (scan.lesions > 0)
    return LesionScan(image, scan.lesions.astype(np.uint16), tissue, scan.spacing_mm)


def instances(label: npt.NDArray[Any], store: BrickStore, section: StoreSection) -> npt.NDArray[np.int32]:
    """The lesions of a label, numbered.

    Args:
        label: (D, H, W) structures.
        store: names them.
        section: which are lesions.
    """
    wanted = label_values(store, section)
    if section.instances == "values":
        return np.where(np.isin(label, wanted), label, 0).astype(np.int32)
    mask = np.ascontiguousarray(np.isin(label, wanted))
    return np.asarray(cc3d.connected_components(mask, connectivity=26)).astype(np.int32)


def label_values(store: BrickStore, section: StoreSection) -> list[int]:
    """The values that are lesions.

    Raises:
        ConfigError: the store has no such structure.
    """
    names = list(store.meta.structures)
    if section.structures is None:
        return list(range(1, len(names)))
    for name in section.structures:
        if name not in names[1:]:
            raise ConfigError(
                f"data.stores: {section.uri} has no structure {name!r}", f"It has {', '.join(names[1:])}."
            )
    return [names.index(name) for name in section.structures]


def find_lesions(
    store: BrickStore, section: StoreSection, *, on_case: Callable[[int], None] = lambda _: None
) -> list[StoredLesion]:
    """Every lesion of every case, in the order of cases.

    Args:
        store: opened.
        section: which structures are lesions.
        on_case: told the row of each case that was read.

    Raises:
        ConfigError: see `label_values`.
        DamagedCase: a case cannot be read.
    """
    wanted = label_values(store, section)
    found = []
    for row in range(len(store)):
        if store.annotated(row)[wanted].any():
            shape = store.record(row).shape
            label = store.read_patch(row, (0, 0, 0), shape)[1]
            if label is not None:
                found += _of_case(row, instances(label, store, section))
        on_case(row)
    return found


def _of_case(row: int, ids: npt.NDArray[np.int32]) -> list[StoredLesion]:
    statistics = cc3d.statistics(ids.astype(np.uint32))
    found = []
    for lesion in np.flatnonzero(statistics["voxel_counts"] >= _LEAST_VOXELS):
        if lesion == 0:
            continue
        box = statistics["bounding_boxes"][lesion]
        at = np.argwhere(ids[box] == lesion)
        first = at[len(at) // 2]
        found.append(
            StoredLesion(
                row,
                _three(b.start + int(v) for b, v in zip(box, first, strict=True)),
                _three((b.start + b.stop) // 2 for b in box),
                _three(b.stop - b.start for b in box),
            )
        )
    return found


def _three(values: Any) -> Size3:
    d, h, w = (int(v) for v in values)
    return d, h, w


def open_store(
    section: StoreSection,
    seed: int,
    box_mm: tuple[float, float, float],
    *,
    follow_ups: bool,
    known: list[dict[str, Any]] | None = None,
) -> StoreSource:
    """A store's lesions, split by case into those that teach and those that judge.

    Args:
        section: of the configuration.
        seed: of the run.
        box_mm: see `StoreSource`.
        follow_ups: simulate later scans.
        known: `described` of an earlier time, so that not every label is read again.

    Raises:
        ConfigError: see `label_values`.
        DataError: the store cannot be opened, or has no lesion to learn from.
    """
    store = BrickStore.open(expand(section.uri))
    lesions = find_lesions(store, section) if known is None else [_from_dict(k) for k in known]
    split = split_cases(store.case_ids, store.sources, named=None, fraction=section.validation_fraction)
    held_out = set(split.validation.tolist())
    training = [x for x in lesions if x.row not in held_out]
    if not training:
        raise DataError(
            f"{section.uri} has no lesion to learn from",
            "Name its lesion structures (structures), or give another store.",
            code="empty_prompt",
        )
    validation = [x for x in lesions if x.row in held_out]
    return StoreSource(store, section, training, validation, seed, box_mm, follow_ups)


def described(source: StoreSource) -> list[dict[str, Any]]:
    """All lesions of a source as plain data."""
    return [asdict(x) for x in sorted((*source.training, *source.validation), key=lambda x: (x.row, x.at))]


def _from_dict(value: dict[str, Any]) -> StoredLesion:
    return StoredLesion(int(value["row"]), *(_three(value[k]) for k in ("at", "middle", "size")))
