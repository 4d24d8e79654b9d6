"""Lesions simulated for training: painted into brains, and what becomes of any lesion until a later scan.

Everything happens in a box around the lesion, a little larger than the patch that a network sees, so that a sample
costs some tens of milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from fedvox.data.demo import load_brain
from fedvox.data.philox import Stream, philox
from fedvox.data.resample import resample_label
from fedvox.data.simulated_scanner import Acquisition, Head, deformed_grid, scan, with_spacing
from fedvox.tracking.config import SyntheticSection
from fedvox.tracking.examples import HELD_OUT_SEED, Example, Later, TrainingScan
from fedvox.tracking.lesion_scan import LesionScan
from fedvox.tracking.lesion_types import LESION_TYPES, LesionType, lesion_type
from fedvox.tracking.synthetic import Change, NewLesion, follow_up, insert_lesion
from fedvox.tracking.synthetic_series import SeriesOptions, patient_anatomy

Size3 = tuple[int, int, int]

_COURSES = ("growing", "shrinking", "stable", "dying", "vanishing", "breaking")
_OFTEN = (0.33, 0.27, 0.14, 0.08, 0.12, 0.06)
_NEW = 0.2  # how often a lesion appears beside the marked one
_THICK = 0.2  # how often slices are twice as thick
_TRIES = 20


@dataclass(frozen=True, eq=False)
class SyntheticSource:
    """Lesions in simulated heads, without end or as many as `distinct` says.

    Args:
        section: what they are like.
        seed: of the run.
        box_mm: (D, H, W) around each lesion that is simulated.
        spacing_mm: of the heads.
        follow_ups: simulate later scans.
    """

    section: SyntheticSection
    seed: int
    box_mm: tuple[float, float, float]
    spacing_mm: float = 2.0
    follow_ups: bool = True
    _kept: dict[int, Example] = field(default_factory=dict)

    @property
    def lesions(self) -> int | None:
        """Distinct ones."""
        return self.section.distinct

    @property
    def digest(self) -> str:
        """A simulation is described by the configuration alone."""
        return "simulated lesions"

    def example(self, index: int) -> Example:
        """See `ExampleSource`."""
        distinct = self.section.distinct
        if distinct is None:
            return self._draw(self.seed, index)
        number = int(philox(self.seed, index, Stream.CASE).integers(distinct))
        if number not in self._kept:
            self._kept[number] = self._draw(self.seed, number)
        return self._kept[number]

    def held_out(self, index: int) -> Example:
        """See `ExampleSource`."""
        return self._draw(HELD_OUT_SEED, index)

    def _draw(self, seed: int, number: int) -> Example:
        rng = philox(seed, number, Stream.LOCATION)
        head = _head(int(rng.integers(self.section.heads)), seed, self.spacing_mm)
        for _ in range(_TRIES):
            part, did = self._painted(head, rng)
            if did:
                return with_later(part, 1, rng) if self.follow_ups else Example(scanned(part, rng), 1)
        raise AssertionError("a brain has room for a lesion")

    def _painted(self, head: LesionScan, rng: np.random.Generator) -> tuple[LesionScan, bool]:
        """A box of the head, mirrored at random, with a lesion in its middle and others beside it."""
        inside = np.argwhere(head.tissue)
        at = inside[rng.integers(len(inside))]
        size = [
            min(round(b / self.spacing_mm), n) for b, n in zip(self.box_mm, head.image.shape, strict=True)
        ]
        start = np.clip(at - np.asarray(size) // 2, 0, np.asarray(head.image.shape) - size)
        box = tuple(slice(int(a), int(a) + n) for a, n in zip(start, size, strict=True))
        part = replace(head, image=head.image[box], lesions=head.lesions[box], tissue=head.tissue[box])
        part, did = insert_lesion(part, self._lesion(rng, _three(at - start)), 1, rng)
        number = 2
        for _ in range(int(rng.integers(self.section.others + 1))):
            part, more = insert_lesion(part, self._lesion(rng, None), number, rng)
            number += more
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        flipped = {name: np.flip(getattr(part, name), axes).copy() for name in ("image", "lesions", "tissue")}
        return replace(part, **flipped), did

    def _lesion(self, rng: np.random.Generator, at: Size3 | None) -> NewLesion:
        names = self.section.kinds or tuple(LESION_TYPES)
        kind = varied(lesion_type(names[int(rng.integers(len(names)))]), self.section.variation, rng)
        low, high = self.section.radius_mm
        radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return NewLesion(kind, 4 / 3 * np.pi * radius**3, at)


def _three(values: npt.NDArray[np.integer[Any]]) -> Size3:
    d, h, w = (int(v) for v in values)
    return d, h, w


@lru_cache(maxsize=32)
def _head(number: int, seed: int, spacing_mm: float) -> LesionScan:
    """One shape of the brain, kept."""
    options = SeriesOptions(resolution_mm=spacing_mm, seed=seed)
    return patient_anatomy(_brain(), options, number, philox(seed, number, Stream.AUGMENT))


@lru_cache(maxsize=1)
def _brain() -> Head:
    return load_brain()


def varied(kind: LesionType, by: float, rng: np.random.Generator) -> LesionType:
    """A kind that strays from the given one by up to a share of every number."""
    factors = rng.uniform(1 - by, 1 + by, 7)
    names = ("core", "rim", "rim_share", "texture", "irregular", "opacity", "soft_mm")
    changed = {n: getattr(kind, n) * float(f) for n, f in zip(names, factors, strict=True)}
    return replace(kind, **{**changed, "opacity": min(1.0, changed["opacity"])})


def with_later(part: LesionScan, lesion: int, rng: np.random.Generator) -> Example:
    """A lesion now and later, each as a scanner sees it.

    Args:
        part: a box around it.
        lesion: its id.
        rng: of all chance.
    """
    now = scanned(part, rng)
    if lesion not in np.unique(now.lesions):  # thick slices lost it
        now = TrainingScan(part.image, part.lesions, part.spacing_mm)
    return Example(now, lesion, later_of(part, lesion, rng))


def later_of(part: LesionScan, lesion: int, rng: np.random.Generator) -> Later:
    """What becomes of a lesion, on a later scan that is registered, though not perfectly."""
    course = _COURSES[int(rng.choice(len(_COURSES), p=_OFTEN))]
    changes = {i: _change(course if i == lesion else "stable", rng) for i in part.ids}
    news = [NewLesion("enhancing", float(rng.uniform(200, 2000)))] if rng.random() < _NEW else []
    after = follow_up(part, changes, news, rng)
    mine = {lesion}
    for event in after.events:
        if event.kind == "split" and event.other in mine:
            mine.add(event.lesion)
        if event.kind == "merged" and event.lesion in mine:
            mine.add(event.other)
    seen = scanned(after.scan, rng, moved=True)
    return Later(seen, np.isin(seen.lesions, list(mine)))


def _change(course: str, rng: np.random.Generator) -> Change:
    contrast = float(rng.uniform(0.85, 1.15))
    if course == "growing":
        return Change(volume=float(rng.uniform(1.2, 3.0)), contrast=contrast)
    if course == "shrinking":
        return Change(volume=float(rng.uniform(0.2, 0.85)), contrast=contrast)
    if course == "dying":
        return Change(volume=float(rng.uniform(0.9, 1.2)), necrosis=float(rng.uniform(0.2, 0.5)))
    if course == "vanishing":
        return Change(volume=0.0)
    return Change(volume=float(rng.uniform(0.85, 1.15)), contrast=contrast, splits=course == "breaking")


def scanned(part: LesionScan, rng: np.random.Generator, *, moved: bool = False) -> TrainingScan:
    """The box as some scanner sees it.

    Args:
        part: a box of an anatomy.
        rng: of the scanner.
        moved: a later scan, which registration has brought here with a rest of rotation and deformation.
    """
    thick = part.spacing_mm[0] * (2 if rng.random() < _THICK and part.image.shape[0] % 2 == 0 else 1)
    turn = rng.normal(0, 1.5, 3) if moved else np.zeros(3)
    acquisition = Acquisition(
        case_id="",
        site="",
        rotation_degrees=(float(turn[0]), float(turn[1]), float(turn[2])),
        scale=(1.0, 1.0, 1.0),
        deformation_mm=float(rng.uniform(0.3, 2.0)) if moved else 0.0,
        bias=float(rng.uniform(0.05, 0.35)),
        gamma=float(rng.uniform(0.75, 1.3)),
        contrast=float(rng.uniform(0.75, 1.25)),
        noise=float(rng.uniform(0.01, 0.06)),
        noise_kind="rician",
        slice_mm=thick,
        gain=1.0,
        orientation="RAS",
        key=(0, 0),
    )
    image, lesions = part.image, part.lesions
    if moved:
        grid = deformed_grid(image.shape, part.spacing_mm, acquisition, rng)
        image = map_coordinates(image, grid, order=1, mode="nearest")
        lesions = map_coordinates(lesions, grid, order=0, mode="nearest")
    head = Head(image, image, image, part.spacing_mm, part.origin_mm)
    if thick != part.spacing_mm[0]:
        head = with_spacing(head, (thick, *part.spacing_mm[1:]))
        lesions = resample_label(lesions, head.t1.shape)
    return TrainingScan(scan(head.t1, acquisition, rng).astype(np.float32), lesions, head.spacing_mm)
