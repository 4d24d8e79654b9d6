"""What happened to lesions between two scans: continued, vanished, appeared, split, merged.

    links = link(expected, observed, spacing_mm)

`expected` are the lesions of the scan before, carried onto the later scan; `observed` is what is there. Both are
instance maps. A pair belongs together where its overlap is a good share of the smaller of the two (expected lesions
count with a rim around them, for registration is not perfect); lesion by lesion, the links make chains, and a chain's
form is the event.

Every event has a confidence between 0 and 1. It is a score, not a calibrated probability: it falls with poor overlap,
with a poor registration, and, for what is no longer there, with small lesions, which a bad slice can hide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

EventKind = Literal["continued", "vanished", "appeared", "split", "merged", "returned"]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Event:
    """One event.

    Args:
        kind: `continued`; `vanished`; `appeared`; `split`: `lesion` came off `other`; `merged`: `lesion` went into
            `other`; `returned`: a vanished lesion is there again.
        lesion: its id.
        other: see there; 0 otherwise.
        confidence: 0 to 1.
    """

    kind: EventKind
    lesion: int
    other: int = 0
    confidence: float = 1.0


@dataclass(frozen=True)
class LinkPolicy:
    """When an expected and an observed lesion are the same.

    Args:
        rim_mm: expected lesions reach this much further.
        share: least share of the smaller of the two that overlaps.
    """

    rim_mm: float = 3.0
    share: float = 0.25


@dataclass(frozen=True, eq=False)
class Links:
    """How observed lesions are to be called.

    Args:
        ids: observed instance -> lesion id.
        events: one for every expected lesion, and one for every new or split-off one.
    """

    ids: Mapping[int, int]
    events: tuple[Event, ...]


def link(
    expected: Labels,
    observed: Labels,
    spacing_mm: tuple[float, float, float],
    *,
    next_id: int,
    policy: LinkPolicy = LinkPolicy(),
    registration: float = 1.0,
) -> Links:
    """Gives the observed lesions their ids, and says what happened.

    Args:
        expected: (D, H, W) ids of the scan before, on the grid of the later one.
        observed: (D, H, W) instances of the later scan, in any numbering.
        spacing_mm: (D, H, W).
        next_id: the first id that was never used.
        policy: see there.
        registration: how good it was, 0 to 1; lowers every confidence.
    """
    overlaps = _overlaps(expected, observed, spacing_mm, policy)
    sizes = _sizes(observed)
    owner = _owners(overlaps)
    ids: dict[int, int] = dict(owner)
    events: list[Event] = []
    for lesion in _present(expected):
        mine = sorted((o for o, e in owner.items() if e == lesion), key=lambda o: (-sizes[o], o))
        linked = [o for (e, o) in overlaps if e == lesion]
        if not linked:
            events.append(Event("vanished", lesion, 0, registration * _seen(expected == lesion, spacing_mm)))
        elif not mine:  # all that it overlaps belongs to others
            home = max(linked, key=lambda o: (overlaps[lesion, o].voxels, -o))
            events.append(Event("merged", lesion, owner[home], registration * overlaps[lesion, home].share))
        else:
            confidence = registration * max(overlaps[lesion, o].share for o in mine)
            events.append(Event("continued", lesion, 0, confidence))
            for piece in mine[1:]:
                ids[piece] = next_id
                events.append(Event("split", next_id, lesion, registration * overlaps[lesion, piece].share))
                next_id += 1
    for instance in sorted(set(sizes) - set(owner)):
        ids[instance] = next_id
        seen = _seen(observed == instance, spacing_mm)
        events.append(Event("appeared", next_id, 0, registration * seen))
        next_id += 1
    return Links(ids, tuple(events))


@dataclass(frozen=True)
class _Overlap:
    """Of an expected lesion and an observed instance: voxels, and their share of the smaller of the two."""

    voxels: int
    share: float


def _owners(overlaps: Mapping[tuple[int, int], _Overlap]) -> dict[int, int]:
    """Observed instance -> the expected lesion that it continues.

    An instance belongs to the lesion that it overlaps most. A lesion that so loses all its instances is merged, if
    what it overlaps is another's; the instance keeps one owner.
    """
    owner: dict[int, int] = {}
    for lesion, instance in sorted(overlaps, key=lambda pair: (-overlaps[pair].voxels, pair)):
        owner.setdefault(instance, lesion)
    return owner


def _overlaps(
    expected: Labels, observed: Labels, spacing_mm: tuple[float, float, float], policy: LinkPolicy
) -> dict[tuple[int, int], _Overlap]:
    """(expected, observed) -> how they overlap, where it is enough."""
    if not expected.any() or not observed.any():
        return {}
    wide = _with_rim(expected, spacing_mm, policy.rim_mm)
    here = (wide > 0) & (observed > 0)
    pairs, counts = np.unique(np.stack([wide[here], observed[here]]), axis=1, return_counts=True)
    size_e, size_o = _sizes(expected), _sizes(observed)
    found = {}
    for (lesion, instance), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        share = min(1.0, count / min(size_e[lesion], size_o[instance]))
        if share >= policy.share:
            found[lesion, instance] = _Overlap(count, share)
    return found


def _with_rim(labels: Labels, spacing_mm: tuple[float, float, float], rim_mm: float) -> Labels:
    """Labels that reach further by a rim, each up to where another is nearer."""
    apart, nearest = distance_transform_edt(labels == 0, sampling=spacing_mm, return_indices=True)
    return np.where(apart <= rim_mm, labels[tuple(nearest)], 0)


def _seen(mask: npt.NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> float:
    """How hard a lesion is to overlook: near 0 for a voxel, near 1 from a centimetre on."""
    volume = np.count_nonzero(mask) * float(np.prod(spacing_mm))
    radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
    return float(1 - np.exp(-radius / max(spacing_mm)))


def _present(labels: Labels) -> list[int]:
    return [int(i) for i in np.unique(labels) if i]


def _sizes(labels: Labels) -> dict[int, int]:
    ids, counts = np.unique(labels, return_counts=True)
    return {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i}
