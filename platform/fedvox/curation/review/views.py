"""What the page is told of a case.

A second reader (`double`) and a blind re-read see what the first reader saw and what the models propose. Who read the
case before, what they decided and what they drew stays out of the answer: the browser is never told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox.curation.exchange.colors import structure_colors
from fedvox.curation.review.slices import Array, Slices
from fedvox.curation.store import Case, Finding, LabelStore, Person, QueueItem, Version
from fedvox.curation.store.records import PURPOSES_ALONE
from fedvox.errors import DataError

_MACHINES = ("import", "model", "consensus")


@dataclass(frozen=True)
class Reading:
    """A case as one person gets to see it.

    Args:
        case: the case.
        item: of the queue, that the person holds; None outside of it.
        shown: number of the version that is judged; None where the case has none.
        versions: that the person may look at and choose.
        blind: whether what others did is withheld.
    """

    case: Case
    item: QueueItem | None
    shown: int | None
    versions: tuple[Version, ...]
    blind: bool

    def version(self, number: int) -> Version:
        """One of the versions that the person may see.

        Raises:
            DataError: unknown_version.
        """
        for version in self.versions:
            if version.number == number:
                return version
        raise DataError(
            f"case {self.case.case_id!r} has no version {number} for this reading",
            "Choose one of the versions on the page.",
            code="unknown_version",
        )


def read_case(store: LabelStore, person: Person, case_id: str) -> Reading:
    """A case for a person, whether or not the queue gave it to them.

    Raises:
        DataError: unknown_case or case_deleted.
    """
    case = store.case(case_id)
    if case.deleted:
        raise DataError(
            f"case {case_id!r} was taken out of the collection meanwhile",
            "Go on with the next case.",
            code="case_deleted",
        )
    held = [
        i for i in store.queue.items(state="leased") if i.case_id == case_id and i.reviewer == person.name
    ]
    item = held[0] if held else None
    blind = item is not None and item.purpose in PURPOSES_ALONE
    shown = case.head if item is None else store.shown_version(item)
    versions = store.versions(case_id)
    if blind:
        versions = [v for v in versions if v.number == shown or v.source.kind in _MACHINES]
    return Reading(case, item, shown, tuple(versions), blind)


def case_view(store: LabelStore, slices: Slices, person: Person, reading: Reading) -> dict[str, Any]:
    """Everything that the page needs to show a case, as JSON holds it."""
    case = reading.case
    low, high, least, most = slices.window(case.case_id)
    colors = structure_colors(len(store.structures)).tolist()
    findings = _findings(store, reading)
    return {
        "case_id": case.case_id,
        "site": case.site,
        "gold": case.gold,
        "revision": case.revision,
        "shown": reading.shown,
        "blind": reading.blind,
        "item": None if reading.item is None else _item(reading.item),
        "shape": case.shape,
        "spacing_mm": case.spacing_mm,
        "window": {"low": low, "high": high, "min": least, "max": most},
        "modality": store.images.store.meta.modality,
        "structures": [
            {"value": value, "name": name, "color": colors[value]}
            for value, name in enumerate(store.structures)
        ],
        "versions": [_version(version, reading) for version in reversed(reading.versions)],
        "findings": [_finding(finding, number) for number, finding in enumerate(findings)],
        "maps": slices.maps(case.case_id),
        "may_decide": person.role != "reader" and not case.gold,
    }


def _findings(store: LabelStore, reading: Reading) -> list[Finding]:
    """Those of the newest round that has any, about versions which the person may see."""
    numbers = {version.number for version in reading.versions}
    found = [f for f in store.findings.of(case_id=reading.case.case_id) if f.version in numbers]
    newest = max((f.round for f in found), default=0)
    return [f for f in found if f.round == newest]


def finding_of(store: LabelStore, reading: Reading, number: int) -> Finding:
    """A finding by its place in the page's list.

    Raises:
        DataError: unknown_finding.
    """
    found = _findings(store, reading)
    if not 0 <= number < len(found):
        raise DataError(
            f"case {reading.case.case_id!r} has no finding {number}", "Reload.", code="unknown_finding"
        )
    return found[number]


def place(
    structures: tuple[str, ...], slices: Slices, reading: Reading, finding: Finding
) -> list[int] | None:
    """The voxel (z, y, x) at which a finding is seen best; None where there is nothing to see.

    It is what the check says (`place` in its evidence); else the middle of where the checked version and the consensus
    disagree on the structure; else the middle of the structure.
    """
    told = finding.evidence.get("place")
    if isinstance(told, list) and len(told) == 3:
        return [min(max(int(v), 0), size - 1) for v, size in zip(told, reading.case.shape, strict=True)]
    if finding.structure not in structures:
        return None
    value = structures.index(finding.structure)
    mine = slices.mask(reading.version(finding.version)) == value
    consensus = [v for v in reading.versions if v.source.kind == "consensus"]
    if consensus:
        theirs = slices.mask(consensus[-1]) == value
        if (mine != theirs).any():
            return _middle(mine != theirs)
    return _middle(mine) if mine.any() else None


def _middle(region: Array) -> list[int]:
    """A voxel of a region near the middle of its fullest plane."""
    z = int(region.sum(axis=(1, 2)).argmax())
    inside = np.argwhere(region[z])
    nearest = np.linalg.norm(inside - inside.mean(axis=0), axis=1).argmin()
    return [z, *(int(v) for v in inside[nearest])]


def _item(item: QueueItem) -> dict[str, Any]:
    return {"id": item.id, "purpose": item.purpose, "minutes": item.minutes, "round": item.round}


def _version(version: Version, reading: Reading) -> dict[str, Any]:
    person = version.source.kind == "person"
    hidden = reading.blind and person
    return {
        "number": version.number,
        "kind": "label" if hidden else version.source.kind,
        "name": "" if hidden else version.source.name,
        "round": version.round,
        "parent": None if reading.blind else version.parent,
        "reason": "" if reading.blind else version.reason,
        "created": "" if reading.blind else version.created,
        "shown": version.number == reading.shown,
    }


def _finding(finding: Finding, number: int) -> dict[str, Any]:
    told = {key: value for key, value in finding.evidence.items() if key != "place"}
    return {
        "number": number,
        "structure": finding.structure,
        "rule": finding.rule.replace("_", " "),
        "severity": finding.severity,
        "version": finding.version,
        "evidence": [[key.replace("_", " "), _text(value)] for key, value in told.items()],
        "picture": bool(finding.picture),
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value)
    return str(value)


def status_view(store: LabelStore, person: Person) -> dict[str, Any]:
    """How far the round is, and what this person has done in it."""
    current = store.rounds.current
    counts = store.queue.counts()
    mine = [review for review in store.reviews(round=current) if review.reviewer == person.name]
    total = sum(count for state, count in counts.items() if state != "dropped")
    return {
        "collection": store.name,
        "round": current,
        "done": counts.get("done", 0),
        "leased": counts.get("leased", 0),
        "total": total,
        "mine": len(mine),
        "my_minutes": round(sum(review.seconds for review in mine) / 60, 1),
    }
