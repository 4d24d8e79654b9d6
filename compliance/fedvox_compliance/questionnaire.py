"""Which questions are put, in which order, and where one stands: the questionnaire without any terminal.

Scope statements come first, since each may make the rest shorter. Then the controls, theme by theme and within a theme
in the order of the frameworks, so that related questions of different laws stand together. A selection narrows it: the
quick mode asks for gates and critical controls only.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum

from fedvox_compliance.assessment import Assessment, Entry
from fedvox_compliance.catalogue import Catalogue, Control, ScopeQuestion
from fedvox_compliance.judgement import Note, judge
from fedvox_compliance.scope import holds, in_scope

_STALE = {Note.ANSWER_EXPIRED, Note.EVIDENCE_EXPIRED, Note.EVIDENCE_NOT_YET, Note.PLAN_OVERDUE}


class Only(StrEnum):
    """Which answers are looked for."""

    ALL = "all"
    OPEN = "open"
    EXPIRED = "expired"
    UNDOCUMENTED = "undocumented"


@dataclass(frozen=True, slots=True)
class Selection:
    """What part of the questionnaire is put.

    Attributes:
        quick: gates and critical controls only.
        theme, framework, owner: one of them only, where given.
    """

    quick: bool = False
    only: Only = Only.ALL
    theme: str | None = None
    framework: str | None = None
    owner: str | None = None

    @property
    def is_part(self) -> bool:
        """Whether single themes, frameworks or owners were asked for; scope questions are then left out."""
        return bool(self.theme or self.framework or self.owner)


Step = ScopeQuestion | Control


def steps_of(
    assessment: Assessment, catalogue: Catalogue, selection: Selection, on: dt.date
) -> tuple[Step, ...]:
    """The questions to be put, in order, as things stand now."""
    stated = assessment.stated_scope
    scope: list[Step] = []
    if not selection.is_part and selection.only in (Only.ALL, Only.OPEN):
        for question in catalogue.scope_questions.values():
            ruled_out = question.after is not None and stated.get(question.after) is False
            if not ruled_out and (selection.only is Only.ALL or holds(question, stated) is None):
                scope.append(question)
    by_theme = {theme: n for n, theme in enumerate(catalogue.themes)}
    controls = [
        c
        for c in catalogue.controls.values()
        if in_scope(c, catalogue, stated) and _is_selected(c, assessment.entries.get(c.id), selection, on)
    ]
    controls.sort(key=lambda c: by_theme[c.theme])  # stable: catalogue order within a theme
    return (*scope, *controls)


def is_answered(assessment: Assessment, step: Step) -> bool:
    """Whether a question has an answer."""
    if isinstance(step, ScopeQuestion):
        return step.id in assessment.scope
    entry = assessment.entries.get(step.id)
    return entry is not None and entry.answer is not None


class Progress:
    """Where one stands in a list of questions that may grow or shrink on the way.

    Attributes:
        steps: the questions; `replan` exchanges them.
        position: of the question at hand; as long as `steps` when all were put.
    """

    def __init__(self, steps: tuple[Step, ...], assessment: Assessment) -> None:
        self.steps = steps
        first_open = next((n for n, s in enumerate(steps) if not is_answered(assessment, s)), 0)
        self.position = first_open

    @property
    def current(self) -> Step | None:
        """The question at hand; None when all were put."""
        return self.steps[self.position] if self.position < len(self.steps) else None

    def forward(self) -> None:
        """Go on to the next question."""
        self.position += 1

    def back(self) -> bool:
        """Go back to the question before; False at the first."""
        if self.position == 0:
            return False
        self.position -= 1
        return True

    def replan(self, steps: tuple[Step, ...]) -> None:
        """Take other questions and stay at the one at hand, or at the next that is still put."""
        order = {s.id: n for n, s in enumerate(steps)}
        following = [s.id for s in self.steps[self.position :]]
        self.position = next((order[i] for i in following if i in order), len(steps))
        self.steps = steps


def _is_selected(control: Control, entry: Entry | None, selection: Selection, on: dt.date) -> bool:
    if selection.quick and control.gate is None and control.severity != "critical":
        return False
    if selection.theme is not None and control.theme != selection.theme:
        return False
    if selection.framework is not None and control.framework != selection.framework:
        return False
    if selection.owner is not None and not _owned(entry, selection.owner):
        return False
    return _is_wanted(control, entry, selection.only, on)


def _owned(entry: Entry | None, owner: str) -> bool:
    return (
        entry is not None
        and entry.owner is not None
        and " ".join(entry.owner.split()).casefold() == " ".join(owner.split()).casefold()
    )


def _is_wanted(control: Control, entry: Entry | None, only: Only, on: dt.date) -> bool:
    if only is Only.ALL:
        return True
    if entry is None or entry.answer is None:
        return only is Only.OPEN
    if only is Only.EXPIRED:
        return not _STALE.isdisjoint(judge(control, entry, on, frozenset()).notes)
    return only is Only.UNDOCUMENTED and not entry.evidence
