"""The next visit of a patient, simulated from one scan with lesion masks, with its exact truth.

    later = follow_up(scan, {1: Change(volume=2.0), 2: Change(volume=0)}, [NewLesion("ring", 900.0)], rng)
    later.scan.lesions, later.events

A lesion grows or shrinks along the levels of its distance map: the mask takes in, or gives up, voxels in the order of
their distance until its volume is the wanted one, and the image is drawn along the same way, so that the tissue beside
it is pushed aside or follows. Growth goes where tissue is: not through the edge of the organ, and not into another
lesion. A lesion that vanishes leaves tissue like that around it. What the mask says is the truth by construction.

Lesions of one scan that grow into each other become one: the larger keeps its id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, map_coordinates

from fedvox.data.simulated_scanner import smooth_field
from fedvox.errors import ConfigError
from fedvox.tracking.lesion_scan import (
    BoolVolume,
    FloatVolume,
    LesionScan,
    box_around,
    cut_out,
    field_knots,
    level_mm,
    pasted,
)
from fedvox.tracking.lesion_types import LesionType, lesion_type, paint

_ANY = np.ones((3, 3, 3), dtype=bool)
_NECROTIC = 0.3  # of healthy tissue's level
_UNEVEN = 0.2  # by how much the speed of growth varies from place to place
_APART_MM = 6.0  # least gap between a new lesion and the others
_TRIES = 200


@dataclass(frozen=True)
class Change:
    """What becomes of one lesion until the next visit.

    Args:
        volume: factor; 0 lets it vanish.
        contrast: factor of its difference from the tissue around it.
        necrosis: share of its volume, from the middle, that dies and turns dark.
        splits: it breaks in two across its long axis; the smaller part gets a new id.
    """

    volume: float = 1.0
    contrast: float = 1.0
    necrosis: float = 0.0
    splits: bool = False

    def __post_init__(self) -> None:
        if self.volume < 0 or not 0 <= self.necrosis <= 1:
            raise ConfigError(f"{self} has no meaning", "volume must be 0 or more, necrosis between 0 and 1.")


@dataclass(frozen=True)
class NewLesion:
    """A lesion that was not there before.

    Args:
        kind: see `fedvox.tracking.lesion_types`; a name, or one of one's own.
        volume_mm3: of it; less where the tissue has no room.
        at: its middle (D, H, W); None for anywhere in the tissue, apart from other lesions.
    """

    kind: str | LesionType
    volume_mm3: float
    at: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class TrueEvent:
    """What happened to a lesion, as the simulation did it.

    Args:
        kind: `vanished`, `appeared`, `split` (`lesion` came off `other`), `merged` (`lesion` went into `other`).
        lesion: its id.
        other: see there; 0 otherwise.
    """

    kind: Literal["vanished", "appeared", "split", "merged"]
    lesion: int
    other: int = 0


@dataclass(frozen=True, eq=False)
class FollowUp:
    """The next visit.

    Args:
        scan: anatomy and lesions then; ids go on from the visit before.
        events: what happened in between.
    """

    scan: LesionScan
    events: tuple[TrueEvent, ...]


def follow_up(
    scan: LesionScan,
    changes: Mapping[int, Change],
    new: Sequence[NewLesion],
    rng: np.random.Generator,
    *,
    first_new_id: int | None = None,
) -> FollowUp:
    """Lets time pass.

    Args:
        scan: the visit before.
        changes: lesion id -> what becomes of it; lesions that are not named stay as they are.
        new: lesions that appear, in this order.
        rng: of all chance; the same generator gives the same visit.
        first_new_id: for lesions that appear or split off; None is one above the highest id of the scan. In a series
            it must be above every id there ever was.

    Raises:
        ConfigError: a change names a lesion that is not there.
    """
    unknown = sorted(set(changes) - set(scan.ids))
    if unknown:
        raise ConfigError(f"the scan has no lesion {unknown[0]}", f"It has {scan.ids}.")
    next_id = first_new_id or max(scan.ids, default=0) + 1
    events: list[TrueEvent] = []
    for lesion, change in sorted(changes.items()):
        scan = _changed(scan, lesion, change, rng)
        if change.splits and change.volume:
            scan, did = _split(scan, lesion, next_id, rng)
            events += [TrueEvent("split", next_id, lesion)] if did else []
            next_id += did
        if lesion not in scan.ids:
            events.append(TrueEvent("vanished", lesion))
    for lesion_to_be in new:
        scan, did = insert_lesion(scan, lesion_to_be, next_id, rng)
        events += [TrueEvent("appeared", next_id)] if did else []
        next_id += did
    scan, merged = _merge_touching(scan)
    return FollowUp(scan, (*events, *merged))


# ---- growing and shrinking -----------------------------------------------------------------------------------


def _changed(scan: LesionScan, lesion: int, change: Change, rng: np.random.Generator) -> LesionScan:
    mask = scan.lesions == lesion
    wanted = round(change.volume * np.count_nonzero(mask))
    if wanted == 0:
        return _without(scan, mask, rng)
    box = box_around(mask, scan.spacing_mm, _reach_mm(mask, wanted, scan.spacing_mm))
    part = cut_out(scan, box)
    part = _resized(part, lesion, wanted, rng)
    part = _relit(part, lesion, change)
    return pasted(scan, part, box)


def _resized(scan: LesionScan, lesion: int, wanted: int, rng: np.random.Generator) -> LesionScan:
    mask = scan.lesions == lesion
    level = level_mm(mask, scan.spacing_mm)
    knots = field_knots(mask.shape, scan.spacing_mm)
    uneven = np.exp(_UNEVEN * smooth_field(mask.shape, knots, rng))
    level = np.where(mask, level, level * uneven)  # the sign stays
    if wanted == np.count_nonzero(mask):
        return scan
    free = scan.tissue & (scan.lesions == 0)
    candidates = np.flatnonzero(mask | free)
    order = candidates[np.argsort(level.reshape(-1)[candidates], kind="stable")][:wanted]
    grown = np.zeros(mask.size, dtype=bool)
    grown[order] = True
    threshold = float(level.reshape(-1)[order[-1]])
    movable = free | mask
    image = np.where(movable, _drawn(scan.image, level, threshold, scan.spacing_mm), scan.image)
    image = np.where((scan.lesions > 0) & ~mask, scan.image, image)
    lesions = np.where(mask, 0, scan.lesions).astype(np.uint16)
    lesions[grown.reshape(mask.shape)] = lesion
    return replace(scan, image=image.astype(np.float32), lesions=lesions)


def _drawn(
    image: FloatVolume,
    level: npt.NDArray[np.floating],
    threshold: float,
    spacing_mm: tuple[float, float, float],
) -> FloatVolume:
    """The image drawn along the gradient of `level`, so that what was at level 0 comes to `threshold`."""
    smooth = gaussian_filter(level, 1.0)
    slope = np.stack(np.gradient(smooth, *spacing_mm))
    slope /= np.maximum(np.linalg.norm(slope, axis=0), 1e-6)
    deepest = float(level.min())
    margin = max(6.0, 2 * abs(threshold))
    far = margin + max(threshold, 0.0)
    before = np.interp(level, [deepest, threshold, far], [deepest, 0.0, far], right=np.inf)
    way = np.where(np.isfinite(before), level - before, 0.0)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in image.shape), indexing="ij"))
    source = grid - slope * way / np.asarray(spacing_mm)[:, None, None, None]
    return np.asarray(map_coordinates(image, source, order=1, mode="nearest"), dtype=np.float32)


def _relit(scan: LesionScan, lesion: int, change: Change) -> LesionScan:
    mask = scan.lesions == lesion
    if change.contrast == 1 and not change.necrosis:
        return scan
    shell = binary_dilation(mask, _ANY, iterations=2) & scan.tissue & (scan.lesions == 0)
    around = float(scan.image[shell].mean()) if shell.any() else float(scan.image[scan.tissue].mean())
    image = scan.image + gaussian_filter(mask.astype(np.float32), 0.4) * (change.contrast - 1) * (
        scan.image - around
    )
    if change.necrosis:
        depth = -level_mm(mask, scan.spacing_mm)
        inside = np.flatnonzero(mask)
        count = round(change.necrosis * inside.size)
        core = np.zeros(mask.size, dtype=np.float32)
        core[inside[np.argsort(-depth.reshape(-1)[inside], kind="stable")][:count]] = 1
        opacity = gaussian_filter(core.reshape(mask.shape), 0.5)
        image = image + opacity * (_NECROTIC * around - image)
    return replace(scan, image=np.maximum(image, 0).astype(np.float32))


def _without(scan: LesionScan, mask: BoolVolume, rng: np.random.Generator) -> LesionScan:
    """Healthy tissue in place of a lesion: the average of what is around, with its texture."""
    box = box_around(mask, scan.spacing_mm, 15.0)
    part, gone = cut_out(scan, box), mask[box]
    healthy = (part.tissue & (part.lesions == 0)).astype(np.float32)
    sigma = [5.0 / s for s in scan.spacing_mm]
    weight = np.maximum(gaussian_filter(healthy, sigma), 1e-6)
    average = gaussian_filter(part.image * healthy, sigma) / weight
    rest = (part.image - average)[healthy > 0]
    texture = gaussian_filter(rng.standard_normal(gone.shape), 0.7)
    texture *= (float(rest.std()) if rest.size else 0.0) / max(float(texture.std()), 1e-6) * 0.5
    edge = gaussian_filter(binary_dilation(gone, _ANY).astype(np.float32), 0.5)
    edge = np.where(part.tissue & ((part.lesions == 0) | gone), edge, 0)
    image = part.image + edge * (average + texture - part.image)
    lesions = np.where(gone, 0, part.lesions).astype(np.uint16)
    return pasted(scan, replace(part, image=image.astype(np.float32), lesions=lesions), box)


# ---- new, split and merged -----------------------------------------------------------------------------------


def insert_lesion(
    scan: LesionScan, new: NewLesion, lesion: int, rng: np.random.Generator
) -> tuple[LesionScan, bool]:
    """Paints a lesion into a scan.

    Args:
        scan: where.
        new: what.
        lesion: its id.
        rng: of place, outline and texture.

    Returns:
        The scan with the lesion, and whether there was room for it.
    """
    kind = lesion_type(new.kind) if isinstance(new.kind, str) else new.kind
    radius = (3 * new.volume_mm3 / (4 * np.pi)) ** (1 / 3)
    middle = new.at if new.at is not None else _place(scan, radius, rng)
    if middle is None or not scan.tissue[middle] or scan.lesions[middle]:
        return scan, False
    seed = np.zeros(scan.image.shape, dtype=bool)
    seed[middle] = True
    box = box_around(seed, scan.spacing_mm, 3 * radius)
    part = cut_out(scan, box)
    free = part.tissue & ~binary_dilation(part.lesions > 0, _ANY)
    mask = _outline(seed[box], free, new.volume_mm3 / scan.voxel_mm3, kind.irregular, scan.spacing_mm, rng)
    depth = np.maximum(-level_mm(mask, scan.spacing_mm), 0)
    healthy = scan.image[scan.tissue & (scan.lesions == 0)]
    image = paint(part.image, mask, depth, kind, scan.spacing_mm, float(np.median(healthy)), rng)
    image = np.where(part.tissue & ((part.lesions == 0) | mask), image, part.image)
    lesions = np.where(mask, lesion, part.lesions).astype(np.uint16)
    return pasted(scan, replace(part, image=image.astype(np.float32), lesions=lesions), box), True


def _place(scan: LesionScan, radius: float, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """A voxel deep enough in the tissue and far enough from other lesions."""
    inside = distance_transform_edt(scan.tissue, sampling=scan.spacing_mm) >= min(radius, 6.0)
    if scan.lesions.any():
        apart = distance_transform_edt(scan.lesions == 0, sampling=scan.spacing_mm)
        inside &= apart >= 1.5 * radius + _APART_MM
    candidates = np.flatnonzero(inside)
    if not candidates.size:
        return None
    d, h, w = np.unravel_index(candidates[rng.integers(candidates.size)], scan.image.shape)
    return int(d), int(h), int(w)


def _outline(
    seed: BoolVolume,
    free: BoolVolume,
    voxels: float,
    irregular: float,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> BoolVolume:
    """The voxels nearest to the seed, by a distance that is longer in some directions, in one piece."""
    apart = distance_transform_edt(~seed, sampling=spacing_mm)
    rough = smooth_field(seed.shape, field_knots(seed.shape, spacing_mm), rng)
    apart = apart * np.exp(irregular * rough)
    order = np.flatnonzero(free | seed)
    order = order[np.argsort(apart.reshape(-1)[order], kind="stable")][: max(1, round(voxels))]
    mask = np.zeros(seed.size, dtype=bool)
    mask[order] = True
    parts = cc3d.connected_components(mask.reshape(seed.shape), connectivity=6)
    return np.asarray(parts == parts[seed].max())


def _split(scan: LesionScan, lesion: int, new_id: int, rng: np.random.Generator) -> tuple[LesionScan, bool]:
    mask = scan.lesions == lesion
    voxels = np.argwhere(mask)
    in_mm = (voxels - voxels.mean(0)) * np.asarray(scan.spacing_mm)
    axis = np.linalg.eigh(in_mm.T @ in_mm)[1][:, -1]
    along = in_mm @ axis
    gap = np.abs(along) <= max(scan.spacing_mm) * 1.01
    sides = [voxels[(along > 0) & ~gap], voxels[(along < 0) & ~gap]]
    if min(map(len, sides)) < 3:
        return scan, False
    cut = np.zeros(mask.shape, dtype=bool)
    cut[tuple(voxels[gap].T)] = True
    scan = _without(scan, cut, rng)
    lesions = scan.lesions.copy()
    lesions[tuple(min(sides, key=len).T)] = new_id
    return replace(scan, lesions=lesions), True


def _merge_touching(scan: LesionScan) -> tuple[LesionScan, list[TrueEvent]]:
    lesions, events = scan.lesions.copy(), []
    sizes = dict(zip(*(v.tolist() for v in np.unique(lesions, return_counts=True)), strict=True))
    for lesion in sorted(scan.ids, key=lambda i: (sizes[i], -i)):  # the smallest first
        mask = lesions == lesion
        ring = binary_dilation(mask, _ANY) & ~mask & (lesions > 0)
        neighbours = [int(i) for i in np.unique(lesions[ring])]
        if neighbours:
            home = max(neighbours, key=lambda i: (sizes[i], -i))
            lesions[mask] = home
            sizes[home] += sizes[lesion]
            events.append(TrueEvent("merged", lesion, home))
    return replace(scan, lesions=lesions), events


def _reach_mm(mask: BoolVolume, wanted: int, spacing_mm: tuple[float, float, float]) -> float:
    """How far the changed lesion and what it pushes aside can reach."""
    volume = max(wanted, int(np.count_nonzero(mask))) * float(np.prod(spacing_mm))
    return float(2.5 * (3 * volume / (4 * np.pi)) ** (1 / 3) + 12.0)
