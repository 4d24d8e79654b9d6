"""What changed between two states of an assessment, and what each change did to the score.

Within a framework the points of all controls add up to its score, so the differences in points add up to the
difference in score: nothing is left unexplained. A change without a new answer is shown too, since documents expire
and answers age.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedvox_compliance.assessment import Assessment, Entry
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.errors import AssessmentError
from fedvox_compliance.history import read_lines, replay, verify_history
from fedvox_compliance.score_report import ControlScore, ScoreReport
from fedvox_compliance.scoring import score

SCHEMA = "fedvox.diff/1"


class Kind(StrEnum):
    """What sort of change it is."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    AGED = "aged"
    """The entry is the same; its worth is not: time passed, or a scope statement or an exclusion changed."""


@dataclass(frozen=True)
class ControlChange:
    """One control that is not what it was.

    Attributes:
        fields: names of what differs in the entry.
        points: what the change did to its framework's score, in [-1, 1].
    """

    control: str
    framework: str
    kind: Kind
    fields: tuple[str, ...]
    before: ControlScore
    after: ControlScore

    @property
    def points(self) -> float:
        """The difference that it makes to the framework's score."""
        return self.after.points - self.before.points


@dataclass(frozen=True)
class ScopeChange:
    """A scope statement that is not what it was; None stands for no statement."""

    question: str
    before: bool | None
    after: bool | None


@dataclass(frozen=True)
class Diff:
    """Two states compared.

    Attributes:
        changes: the control changes, those with the greatest effect first.
    """

    before: ScoreReport
    after: ScoreReport
    scope: tuple[ScopeChange, ...]
    changes: tuple[ControlChange, ...]

    @property
    def overall(self) -> float:
        """The difference in the overall score."""
        return self.after.overall - self.before.overall

    def framework(self, name: str) -> float:
        """The difference in one framework's score; a framework that does not apply counts as 0."""
        return (self.after.frameworks[name].score or 0.0) - (self.before.frameworks[name].score or 0.0)


def compare(
    before: Assessment, after: Assessment, catalogue: Catalogue, *, before_on: dt.date, after_on: dt.date
) -> Diff:
    """Compare two states, each scored on its own day.

    Args:
        before: the earlier state.
        after: the later state.
        catalogue: the questions that both answer.
        before_on: the day of the earlier score.
        after_on: the day of the later score.

    Raises:
        AssessmentError: they answer different catalogues.
    """
    if before.catalogue.sha256 != after.catalogue.sha256:
        raise AssessmentError(
            f"the two answer different questions (catalogue {before.catalogue.version} and {after.catalogue.version})",
            "Bring the older one up to date with `fedvox-compliance upgrade` first.",
        )
    old, new = score(before, catalogue, on=before_on), score(after, catalogue, on=after_on)
    changes = tuple(_changes(before, after, old, new))
    return Diff(
        old, new, tuple(_scope_changes(before, after)), tuple(sorted(changes, key=lambda c: -abs(c.points)))
    )


def state_on(folder: Path, day: dt.date) -> Assessment:
    """The assessment as it stood at the end of a day, from its verified history.

    Raises:
        IntegrityError: the history does not hold.
        AssessmentError: the assessment did not exist yet.
    """
    verify_history(folder)
    lines, _ = read_lines(folder)
    until = [line for line in lines if line.at.astimezone().date() <= day]
    if not until:
        raise AssessmentError(
            f"{folder}: there was no assessment yet on {day}", f"It was started on {lines[0].at.date()}."
        )
    return replay(until)


def diff_to_dict(diff: Diff) -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        "schema": SCHEMA,
        "clinic": diff.after.clinic,
        "before": _state_to_dict(diff.before),
        "after": _state_to_dict(diff.after),
        "overall": round(diff.overall, 6),
        "frameworks": {name: round(diff.framework(name), 6) for name in diff.after.frameworks},
        "scope": [{"question": s.question, "before": s.before, "after": s.after} for s in diff.scope],
        "changes": [_change_to_dict(change) for change in diff.changes],
    }


def _state_to_dict(report: ScoreReport) -> dict[str, Any]:
    return {
        "on": report.on.isoformat(),
        "overall": round(report.overall, 6),
        "tier": report.tier,
        "assurance": report.assurance.label,
    }


def _change_to_dict(change: ControlChange) -> dict[str, Any]:
    return {
        "control": change.control,
        "framework": change.framework,
        "kind": change.kind.value,
        "fields": list(change.fields),
        "answer": [_value(change.before), _value(change.after)],
        "assurance": [change.before.assurance.label, change.after.assurance.label],
        "points": round(change.points, 6),
    }


def _value(scored: ControlScore) -> str | None:
    return scored.answer.value if scored.answer else None


def _changes(
    before: Assessment, after: Assessment, old: ScoreReport, new: ScoreReport
) -> Iterator[ControlChange]:
    for was, now in zip(old.controls, new.controls, strict=True):
        mine, theirs = before.entries.get(was.control), after.entries.get(was.control)
        fields = tuple(_differing_fields(mine or Entry(), theirs or Entry()))
        if fields or abs(now.points - was.points) > 1e-12 or was.status is not now.status:
            yield ControlChange(was.control, was.framework, _kind(mine, theirs, fields), fields, was, now)


def _kind(before: Entry | None, after: Entry | None, fields: tuple[str, ...]) -> Kind:
    if not fields:
        return Kind.AGED
    answered_before, answered_after = (e is not None and e.answer is not None for e in (before, after))
    if answered_before == answered_after:
        return Kind.CHANGED
    return Kind.ADDED if answered_after else Kind.REMOVED


def _differing_fields(before: Entry, after: Entry) -> Iterator[str]:
    return (name for name in Entry.model_fields if getattr(before, name) != getattr(after, name))


def _scope_changes(before: Assessment, after: Assessment) -> Iterator[ScopeChange]:
    for question in sorted(set(before.scope) | set(after.scope)):
        was, now = before.stated_scope.get(question), after.stated_scope.get(question)
        if was is not now:
            yield ScopeChange(question, was, now)
