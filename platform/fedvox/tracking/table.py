"""The lesion table: every lesion at every scan, and the response to treatment.

    rows = lesion_rows(states_labels, volumes, days, events)
    write_tables(folder, rows, responses)

`lesions.csv` has a row a lesion and scan, `response.csv` a row a scan, `lesions.json` both, for programs. A lesion that
is not there has a row that says so: a table without it would look like one in which nobody looked.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvox.benchmark.volumes import write_json, write_text
from fedvox.data.geometry import Volume
from fedvox.errors import ConfigError
from fedvox.tracking.events import Event
from fedvox.tracking.measure import measure_lesion
from fedvox.tracking.recist import (
    Assessment,
    NonTarget,
    RecistVisit,
    Size,
    TargetLesion,
    assess,
    choose_targets,
)

Labels = npt.NDArray[np.integer[Any]]

_CHANGED = 0.25  # share of the volume from which on a lesion grows or shrinks


@dataclass(frozen=True)
class LesionRow:
    """One lesion at one scan.

    Args:
        lesion: id.
        scan: index.
        day: since the first scan.
        state: baseline, stable, growing or shrinking (by 25 % of its volume since the scan before), new, returned,
            split_from:ID, merged_into:ID, disappeared, absent (since longer).
        present: whether it is there.
        volume_mm3: None where it is not.
        volume_change_pct: since the scan on which it was first seen.
        long_mm: longest axial diameter.
        short_mm: the longest perpendicular to it.
        slice_index: on which both are measured: first axis of the RAS+ volume.
        x_mm: of the centroid, RAS+.
        y_mm: likewise.
        z_mm: likewise.
        mean_intensity: of the image.
        target: it is a RECIST target.
        confidence: of the event; None where it was marked.
    """

    lesion: int
    scan: int
    day: float
    state: str
    present: bool
    volume_mm3: float | None = None
    volume_change_pct: float | None = None
    long_mm: float | None = None
    short_mm: float | None = None
    slice_index: int | None = None
    x_mm: float | None = None
    y_mm: float | None = None
    z_mm: float | None = None
    mean_intensity: float | None = None
    target: bool = False
    confidence: float | None = None


@dataclass(frozen=True)
class Reading:
    """What only a reader can say of the lesions of a series.

    Args:
        nodes: ids of lymph nodes.
        organs: lesion id -> organ, for the choice of targets (two an organ); without one, every lesion counts as in
            an organ of its own.
        non_targets: ids that are never chosen as targets.
        progressed: indices of scans on which non-target disease has progressed unequivocally.
        not_evaluable: (lesion id, index of the scan) that cannot be measured there, such as for an artefact.
    """

    nodes: Collection[int] = ()
    organs: Mapping[int, str] = field(default_factory=dict)
    non_targets: Collection[int] = ()
    progressed: Collection[int] = ()
    not_evaluable: Collection[tuple[int, int]] = ()

    def require_known(self, ids: Collection[int], scans: int) -> None:
        """Refuses what does not exist in the series.

        Raises:
            ConfigError: a lesion or a scan that there is not.
        """
        named = {*self.nodes, *self.organs, *self.non_targets, *(lesion for lesion, _ in self.not_evaluable)}
        for lesion in sorted(named - set(ids)):
            raise ConfigError(f"there is no lesion {lesion}", f"Lesions: {', '.join(map(str, sorted(ids)))}.")
        for scan in sorted({*self.progressed, *(index for _, index in self.not_evaluable)}):
            if not 0 <= scan < scans:
                raise ConfigError(f"there is no scan {scan}", f"Scans are numbered from 0 to {scans - 1}.")


NOTHING_SAID = Reading()


@dataclass(frozen=True)
class LesionTable:
    """Every lesion at every scan, and the response.

    Args:
        rows: by scan and lesion.
        targets: RECIST targets, chosen at the first scan.
        responses: one a scan; empty where the first scan has no lesion.
    """

    rows: tuple[LesionRow, ...]
    targets: tuple[TargetLesion, ...]
    responses: tuple[Assessment, ...]


def lesion_table(
    labels: Sequence[Labels],
    scans: Sequence[Volume],
    days: Sequence[float],
    *,
    events: Sequence[Sequence[Event]] | None = None,
    reading: Reading = NOTHING_SAID,
) -> LesionTable:
    """Measures every lesion of a series.

    Args:
        labels: (D, H, W) ids, one a scan.
        scans: the images.
        days: of the scans.
        events: since the scan before, one list a scan, as tracking gave them; None reads them off the ids.
        reading: what a reader says, for RECIST.

    Raises:
        ConfigError: the reading names a lesion or scan that there is not.
    """
    ids = sorted({int(i) for a in labels for i in np.unique(a) if i})
    reading.require_known(ids, len(scans))
    rows: list[LesionRow] = []
    last: dict[int, LesionRow] = {}
    first_volume: dict[int, float] = {}
    for index, (found, scan, day) in enumerate(zip(labels, scans, days, strict=True)):
        told = {e.lesion: e for e in (events[index] if events is not None else ())}
        for lesion in ids:
            row = _row(lesion, index, day, found == lesion, scan, last.get(lesion), told.get(lesion))
            if row is None:
                continue
            if row.volume_mm3 is not None:
                base = first_volume.setdefault(lesion, row.volume_mm3)
                row = LesionRow(**{**asdict(row), "volume_change_pct": 100 * (row.volume_mm3 / base - 1)})
            last[lesion] = row
            rows.append(row)
    targets, responses = _response(rows, scans, days, reading)
    chosen = {t.lesion for t in targets}
    marked = tuple(LesionRow(**{**asdict(r), "target": r.lesion in chosen}) for r in rows)
    return LesionTable(marked, targets, responses)


def _row(
    lesion: int,
    index: int,
    day: float,
    mask: npt.NDArray[np.bool_],
    scan: Volume,
    before: LesionRow | None,
    event: Event | None,
) -> LesionRow | None:
    """None for a lesion that was never seen yet."""
    confidence = event.confidence if event else None
    if not mask.any():
        if before is None:
            return None
        merged = event is not None and event.kind == "merged"
        state = f"merged_into:{event.other}" if event and merged else "disappeared"
        if not before.present:
            state = before.state if before.state.startswith("merged") else "absent"
        return LesionRow(lesion, index, day, state, present=False, confidence=confidence)
    found = measure_lesion(mask, scan.geometry, scan.data[0])
    x, y, z = found.centroid_ras_mm
    return LesionRow(
        lesion,
        index,
        day,
        _state(index, found.volume_mm3, before, event),
        present=True,
        volume_mm3=found.volume_mm3,
        long_mm=found.diameters.long_mm,
        short_mm=found.diameters.short_mm,
        slice_index=found.diameters.slice_index,
        x_mm=x,
        y_mm=y,
        z_mm=z,
        mean_intensity=found.mean_intensity,
        confidence=confidence,
    )


def _state(index: int, volume: float, before: LesionRow | None, event: Event | None) -> str:
    if before is None:
        if event is not None and event.kind == "split":
            return f"split_from:{event.other}"
        return "baseline" if index == 0 else "new"
    if before.volume_mm3 is None:
        return "returned"
    change = volume / before.volume_mm3 - 1
    if change >= _CHANGED:
        return "growing"
    return "shrinking" if change <= -_CHANGED else "stable"


def _response(
    rows: Sequence[LesionRow],
    scans: Sequence[Volume],
    days: Sequence[float],
    reading: Reading,
) -> tuple[tuple[TargetLesion, ...], tuple[Assessment, ...]]:
    """RECIST 1.1 with the largest measurable lesions of the first scan as targets.

    A lesion in pieces counts the sum of its pieces; one that merged into another is absent, and the other has the
    diameter of the whole. Other lesions of the first scan are non-target: they are CR once all are gone.
    """
    at_first = {r.lesion: _size(r) for r in rows if r.scan == 0}
    if not at_first:
        return (), ()
    candidates = [
        TargetLesion(i, reading.organs.get(i, f"lesion {i}"), is_node=i in reading.nodes)
        for i in at_first
        if i not in reading.non_targets
    ]
    thickness = scans[0].geometry.spacing_mm[0]
    targets = choose_targets(candidates, at_first, slice_thickness_mm=thickness)
    others = set(at_first) - {t.lesion for t in targets}
    origin = {r.lesion: int(r.state.split(":")[1]) for r in rows if r.state.startswith("split_from:")}
    visits = []
    for index, day in enumerate(days):
        here = [r for r in rows if r.scan == index]
        present = {r.lesion for r in here if r.present}
        sizes = {t.lesion: _summed(t.lesion, here, origin) for t in targets}
        blurred = {i: Size(state="not_evaluable") for i in sizes if (i, index) in reading.not_evaluable}
        non_target: NonTarget = "none" if not others else "non-CR/non-PD" if others & present else "CR"
        visits.append(
            RecistVisit(
                day,
                {**sizes, **blurred},
                non_target="PD" if index in reading.progressed else non_target,
                new_lesions=sum(r.state == "new" for r in here),
            )
        )
    return targets, assess(targets, visits)


def _size(row: LesionRow) -> Size:
    if row.long_mm is None or row.short_mm is None:
        return Size(state="absent")
    return Size(row.long_mm, row.short_mm)


def _summed(lesion: int, rows: Sequence[LesionRow], origin: Mapping[int, int]) -> Size:
    pieces = [r for r in rows if r.lesion == lesion or origin.get(r.lesion) == lesion]
    sizes = [_size(r) for r in pieces if r.present]
    if not sizes:
        return Size(state="absent")
    return Size(sum(s.long_mm for s in sizes), sum(s.short_mm for s in sizes))


def write_tables(folder: Path, table: LesionTable, *, about: Mapping[str, Any]) -> None:
    """Writes `lesions.csv`, `response.csv` and `lesions.json`, each atomically.

    Args:
        folder: where.
        table: what.
        about: the patient, the scans and how they were segmented, for the JSON.
    """
    write_text(
        folder / "lesions.csv", _csv([asdict(r) for r in table.rows], [f.name for f in fields(LesionRow)])
    )
    responses = [{**asdict(a), "scan": i} for i, a in enumerate(table.responses)]
    write_text(folder / "response.csv", _csv(responses, ["scan", *(f.name for f in fields(Assessment))]))
    write_json(
        folder / "lesions.json",
        {
            **about,
            "lesions": [asdict(r) for r in table.rows],
            "targets": [asdict(t) for t in table.targets],
            "responses": responses,
        },
    )


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
