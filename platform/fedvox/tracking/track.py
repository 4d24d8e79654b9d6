"""Lesions through a series of scans: forward, backward, with corrections, one scan at a time.

    tracker = Tracker(prompted(build_segmenter("random-walker")))
    states = track(scans, {0: Anchor(first_masks)}, tracker)

One step goes from a scan whose lesions are known to the next: the scans are registered, the lesions are carried over as
masks, an observer says what is there now, and `fedvox.tracking.events` links the two. A lesion that vanishes stays
remembered where it was, and may return. A step depends on the state of the scan before and on the two scans alone, so
that a scan done again by itself gives what it gave within the series.

What a reader says is an anchor: the first marks, and every later correction. Anchors rule over what was computed, and
what follows is computed from them; a lesion first marked on a later scan is also followed back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedvox.data.geometry import Volume
from fedvox.errors import DataError
from fedvox.tracking.events import Event, LinkPolicy, link
from fedvox.tracking.observers import Observer
from fedvox.tracking.registration import (
    Quality,
    QualityGate,
    Registration,
    RegistrationConfig,
    register,
    require_same_patient,
)
from fedvox.tracking.step_cache import StepCache

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Anchor:
    """What a reader says of one scan.

    Args:
        lesions: (D, H, W) ids; lesions that are not in it are left as they were computed.
        absent: ids of lesions that are not there.
    """

    lesions: Labels
    absent: frozenset[int] = frozenset()

    @property
    def ids(self) -> list[int]:
        """Of the lesions that are marked."""
        return [int(i) for i in np.unique(self.lesions) if i]


@dataclass(frozen=True, eq=False)
class TrackState:
    """What is known of one scan.

    Args:
        lesions: (D, H, W) uint16, the ids that are there.
        dormant: (D, H, W) uint16, where vanished lesions were.
        next_id: the first id that was never used.
        events: since the scan that it was computed from.
        direction: whether it was computed from the scan before or after, or marked.
        quality: of the registration; None for a first mark.
    """

    lesions: npt.NDArray[np.uint16]
    dormant: npt.NDArray[np.uint16]
    next_id: int
    events: tuple[Event, ...] = ()
    direction: Literal["marked", "forward", "backward"] = "marked"
    quality: Quality | None = None

    @property
    def ids(self) -> list[int]:
        """Of the lesions that are there."""
        return [int(i) for i in np.unique(self.lesions) if i]

    def only(self, ids: Iterable[int]) -> TrackState:
        """The same, with some of the lesions alone."""
        kept = list(ids)
        return replace(
            self,
            lesions=np.where(np.isin(self.lesions, kept), self.lesions, 0).astype(np.uint16),
            dormant=np.where(np.isin(self.dormant, kept), self.dormant, 0).astype(np.uint16),
        )


@dataclass(frozen=True)
class Tracker:
    """How lesions are followed.

    Args:
        observe: what is there on a scan; see `fedvox.tracking.observers`.
        registration: of a scan to the one before.
        gate: what registrations must reach; None accepts any.
        policy: when two lesions are the same.
        register: of `fedvox.tracking.registration`, or one that remembers.
        cache: of steps that were done before a run was cut short.
    """

    observe: Observer
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    gate: QualityGate | None = field(default_factory=QualityGate)
    policy: LinkPolicy = field(default_factory=LinkPolicy)
    register: Callable[[Volume, Volume, RegistrationConfig], Registration] = register
    cache: StepCache | None = None


def track(
    scans: Sequence[Volume],
    anchors: Mapping[int, Anchor],
    tracker: Tracker,
    *,
    on_step: Callable[[int], None] = lambda _: None,
) -> list[TrackState]:
    """Follows lesions through a series.

    Args:
        scans: in order of time.
        anchors: index of a scan -> what a reader says of it; at least one.
        tracker: how.
        on_step: told the index of each scan that is done.

    Returns:
        A state a scan.

    Raises:
        DataError: no anchor, an anchor of another shape or without a lesion, or scans that do not fit
            (another_patient).
    """
    check_anchors(scans, anchors)
    first = min(anchors)
    states: dict[int, TrackState] = {first: begin(anchors[first])}
    on_step(first)
    for index in range(first + 1, len(scans)):
        known = states[index - 1]
        states[index] = step(known, scans[index - 1], scans[index], tracker)
        if index in anchors:
            fresh = [i for i in anchors[index].ids if i >= known.next_id or not _known(i, states[index])]
            states[index] = corrected(states[index], anchors[index])
            _follow_back(states, scans, index, fresh, tracker)
        on_step(index)
    for index in range(first - 1, -1, -1):
        states[index] = step(states[index + 1], scans[index + 1], scans[index], tracker, direction="backward")
        on_step(index)
    return [states[index] for index in range(len(scans))]


def correct(
    scans: Sequence[Volume],
    states: Sequence[TrackState],
    index: int,
    anchor: Anchor,
    tracker: Tracker,
) -> list[TrackState]:
    """Takes a reader's correction of one scan, and computes anew what follows from it.

    Args:
        scans: in order of time.
        states: of all scans, as `track` gave them.
        index: of the scan that was corrected.
        anchor: the correction.
        tracker: how.

    Returns:
        The states: those before the scan stay, those after it are computed from the correction.
    """
    check_anchors(scans, {index: anchor})
    done = list(states[:index])
    done.append(corrected(states[index], anchor))
    for later in range(index + 1, len(scans)):
        done.append(step(done[-1], scans[later - 1], scans[later], tracker))
    return done


def begin(anchor: Anchor) -> TrackState:
    """The state of the first scan that was marked."""
    lesions = anchor.lesions.astype(np.uint16)
    return TrackState(lesions, np.zeros_like(lesions), int(lesions.max()) + 1)


def corrected(state: TrackState, anchor: Anchor) -> TrackState:
    """A state in which the anchor's lesions are as the reader says, and the others as they were."""
    touched = [*anchor.ids, *anchor.absent]
    lesions = np.where(np.isin(state.lesions, touched), 0, state.lesions)
    dormant = np.where(np.isin(state.dormant, touched), 0, state.dormant)
    gone = np.isin(state.lesions, list(anchor.absent))
    dormant = np.where(gone, state.lesions, dormant)
    lesions = np.where(anchor.lesions > 0, anchor.lesions, lesions)
    next_id = max([state.next_id, *(i + 1 for i in anchor.ids)])
    kept = tuple(e for e in state.events if e.lesion not in touched)
    return replace(
        state,
        lesions=lesions.astype(np.uint16),
        dormant=np.where(lesions > 0, 0, dormant).astype(np.uint16),
        next_id=next_id,
        events=kept,
    )


def step(
    known: TrackState,
    earlier: Volume,
    later: Volume,
    tracker: Tracker,
    *,
    direction: Literal["forward", "backward"] = "forward",
) -> TrackState:
    """From one scan to its neighbour.

    Args:
        known: state of the scan that is known.
        earlier: that scan.
        later: its neighbour, in either direction of time.
        tracker: how.
        direction: of time, for the record.

    Raises:
        DataError: the scans do not fit (another_patient, registration).
    """
    key = "" if tracker.cache is None else tracker.cache.key(known, earlier, later, direction)
    done = None if tracker.cache is None else tracker.cache.read(key)
    if done is not None:
        return done
    registration = tracker.register(later, earlier, tracker.registration)
    if tracker.gate is not None:
        require_same_patient(registration.quality, later.path, earlier.path, tracker.gate)
    state = _step(known, registration, later, tracker, direction)
    if tracker.cache is not None:
        tracker.cache.write(key, state)
    return state


def _step(
    known: TrackState,
    registration: Registration,
    later: Volume,
    tracker: Tracker,
    direction: Literal["forward", "backward"],
) -> TrackState:
    carried = registration.carry(known.lesions, later.geometry)
    dormant = registration.carry(known.dormant, later.geometry)
    expected = np.where(carried > 0, carried, dormant)
    observed = tracker.observe(later, expected)
    found = link(
        expected,
        observed,
        later.geometry.spacing_mm,
        next_id=known.next_id,
        policy=tracker.policy,
        registration=min(1.0, registration.quality.correlation),
    )
    lesions = _renamed(observed, found.ids)
    asleep = {int(i) for i in np.unique(known.dormant) if i}
    gone = [e.lesion for e in found.events if e.kind == "vanished"]
    lost = [
        i for i in known.ids if i not in set(np.unique(carried).tolist())
    ]  # out of view, or below a voxel
    events = (*_told(found.events, asleep), *(Event("vanished", i, 0, 0.0) for i in lost))
    return TrackState(
        lesions=lesions,
        dormant=np.where(np.isin(expected, gone) & (lesions == 0), expected, 0).astype(np.uint16),
        next_id=max([known.next_id, *(i + 1 for i in found.ids.values())]),
        events=events,
        direction=direction,
        quality=registration.quality,
    )


def _told(events: Iterable[Event], asleep: set[int]) -> tuple[Event, ...]:
    """What a vanished lesion does: it returns, or nothing is said of it again."""
    told = []
    for event in events:
        if event.lesion in asleep and event.kind in ("vanished", "merged"):
            continue
        is_back = event.lesion in asleep and event.kind == "continued"
        told.append(replace(event, kind="returned") if is_back else event)
    return tuple(told)


def _renamed(observed: Labels, ids: Mapping[int, int]) -> npt.NDArray[np.uint16]:
    table = np.zeros(int(observed.max()) + 1, dtype=np.uint16)
    for instance, lesion in ids.items():
        if lesion > np.iinfo(np.uint16).max:
            raise DataError(f"lesion id {lesion} is beyond 65535", "Number lesions from 1 on.", code="bad_id")
        table[instance] = lesion
    return table[observed]


def _known(lesion: int, state: TrackState) -> bool:
    return bool((state.lesions == lesion).any() or (state.dormant == lesion).any())


def _follow_back(
    states: dict[int, TrackState],
    scans: Sequence[Volume],
    index: int,
    ids: Sequence[int],
    tracker: Tracker,
) -> None:
    """Adds lesions that were first marked on a later scan to the scans before, as far back as they are seen."""
    source = states[index].only(ids)
    for before in range(index - 1, min(states) - 1, -1):
        if not source.ids:
            return
        found = step(source, scans[before + 1], scans[before], tracker, direction="backward").only(ids)
        here = states[before]
        lesions = np.where(here.lesions > 0, here.lesions, found.lesions).astype(np.uint16)
        states[before] = replace(here, lesions=lesions, next_id=max(here.next_id, found.next_id))
        source = found


def check_anchors(scans: Sequence[Volume], anchors: Mapping[int, Anchor]) -> None:
    """Refuses anchors that nothing can be followed from.

    Raises:
        DataError: none at all, of a scan that there is not, of another shape, or the first without a lesion.
    """
    if not anchors:
        raise DataError("no scan has marked lesions", "Mark them on at least one scan.", code="no_prompt")
    for index, anchor in anchors.items():
        if not 0 <= index < len(scans):
            raise DataError(
                f"scan {index} is marked, there are {len(scans)}", "Number scans from 0.", code="no_scan"
            )
        if anchor.lesions.shape != scans[index].geometry.shape:
            raise DataError(
                f"the marks of {scans[index].path} have {anchor.lesions.shape} voxels (D, H, W), "
                f"the scan has {scans[index].geometry.shape}",
                "Draw them on that scan.",
                code="shape_mismatch",
            )
    if not anchors[min(anchors)].lesions.any() and not anchors[min(anchors)].absent:
        raise DataError(
            f"the marks of {scans[min(anchors)].path} hold no lesion",
            "Mark at least one.",
            code="empty_prompt",
        )
