"""A plan: what to do next so that the score rises most for the days spent.

Each control that is not yet worth its most is given the next thing a clinic can do about it by itself:

    answer      an open question; a tenth of a day to look, whatever the answer
    implement   no, planned, refused: put it in place and file a document
    complete    partly: the rest of it, and a document
    document    a claim without a current document
    renew       an answer or a document past its last day
    confirm     a documented answer that no second person has read

Gates come first, eligibility gates before all: while one is not passed, nothing else can lift the score above its cap.
Then the plan is greedy: the step with the most gain per day, with the score recomputed after each, since the weakest
framework changes on the way. Gains assume an honest yes where an answer is open; the plan says what would help, not
what is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fedvox_compliance.aggregate import blend
from fedvox_compliance.assessment import Answer
from fedvox_compliance.catalogue import Catalogue, Gate
from fedvox_compliance.judgement import ASSURANCE_FACTOR, Assurance, Status
from fedvox_compliance.score_report import ControlScore, ScoreReport
from fedvox_compliance.scoring import GATE_CAP

_DOCUMENTED = ASSURANCE_FACTOR[Assurance.DOCUMENT]
_CONFIRMED = ASSURANCE_FACTOR[Assurance.SECOND_PERSON]
_ANSWER_ENOUGH = 0.9  # from an alternative measure on, an answer needs showing rather than doing
_SMALL_STEP_DAYS = 0.1
_PAPER_STEP_DAYS = 0.5


class Action(StrEnum):
    """What is to be done; the wording is in the message catalogues under `gap.<action>`."""

    ANSWER = "answer"
    IMPLEMENT = "implement"
    COMPLETE = "complete"
    DOCUMENT = "document"
    RENEW = "renew"
    CONFIRM = "confirm"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the plan.

    Attributes:
        effort_days: person-days, as a rough class.
        gain: what the step adds to the score before gates, at its place in the plan.
        score_after: the overall score once this and all steps before it are done, gates included.
        gate: set when the control is a gate that is not passed.
    """

    control: str
    action: Action
    effort_days: float
    gain: float
    score_after: float
    gate: Gate | None

    @property
    def gain_per_day(self) -> float:
        """What the plan is ordered by, after gates."""
        return self.gain / self.effort_days


@dataclass(frozen=True, slots=True)
class _Todo:
    control: str
    framework: str
    action: Action
    effort_days: float
    points: float
    gate: Gate | None


def plan(report: ScoreReport, catalogue: Catalogue, *, limit: int | None = None) -> tuple[Step, ...]:
    """Order what is left to do by score gained for the effort.

    Args:
        report: where the clinic stands.
        catalogue: the questions it was scored by.
        limit: how many steps to return; all if left out. The order is the same.
    """
    failing = {g.control: g.gate for g in report.gates if not g.passed}
    todo = [t for c in report.controls if (t := _next_step(c, catalogue, failing)) is not None]
    scores = {n: p.score for n, p in report.frameworks.items() if p.score is not None}
    gates = [t for t in todo if t.gate is not None]
    gates.sort(key=lambda t: (t.gate is not Gate.ELIGIBILITY, t.effort_days, t.control))
    rest = [t for t in todo if t.gate is None and t.points > 0]
    still_failing = set(failing)
    steps: list[Step] = []
    while (gates or rest) and (limit is None or len(steps) < limit):
        chosen = gates.pop(0) if gates else _best(rest, scores)
        steps.append(_take(chosen, scores, still_failing))
    return tuple(steps)


def _next_step(scored: ControlScore, catalogue: Catalogue, failing: Mapping[str, Gate]) -> _Todo | None:
    control = catalogue.controls[scored.control]
    found = _action(scored)
    if found is None or control.informative:
        return None
    action, target = found
    days = {Action.IMPLEMENT: float(control.effort), Action.COMPLETE: max(0.5, control.effort / 2)}.get(
        action, _SMALL_STEP_DAYS if action in (Action.ANSWER, Action.CONFIRM) else _PAPER_STEP_DAYS
    )
    share = (scored.points + scored.lost) * (target - scored.value)
    return _Todo(scored.control, scored.framework, action, days, share, failing.get(scored.control))


def _action(scored: ControlScore) -> tuple[Action, float] | None:
    """The next thing to do, and what the entry is worth once it is done."""
    if scored.status is Status.OPEN:
        return Action.ANSWER, _DOCUMENTED
    if scored.status is not Status.SCORED:
        return None
    if scored.answer_value == 0 or scored.answer is Answer.PLANNED:
        return Action.IMPLEMENT, _DOCUMENTED
    if scored.answer_value < _ANSWER_ENOUGH:
        return Action.COMPLETE, max(_DOCUMENTED, scored.factor)
    if scored.assurance < Assurance.DOCUMENT:
        return Action.DOCUMENT, scored.answer_value * _DOCUMENTED
    if scored.factor < ASSURANCE_FACTOR[scored.assurance]:
        return Action.RENEW, scored.answer_value * ASSURANCE_FACTOR[scored.assurance]
    if scored.assurance < Assurance.SECOND_PERSON:
        return Action.CONFIRM, scored.answer_value * _CONFIRMED
    return None


def _best(rest: list[_Todo], scores: Mapping[str, float]) -> _Todo:
    before = blend(list(scores.values()))

    def rate(todo: _Todo) -> tuple[float, float]:
        after = blend([s + todo.points if n == todo.framework else s for n, s in scores.items()])
        return (after - before) / todo.effort_days, todo.points

    chosen = max(rest, key=rate)
    rest.remove(chosen)
    return chosen


def _take(todo: _Todo, scores: dict[str, float], still_failing: set[str]) -> Step:
    before = blend(list(scores.values()))
    scores[todo.framework] = min(1.0, scores[todo.framework] + max(0.0, todo.points))
    still_failing.discard(todo.control)
    after = blend(list(scores.values()))
    overall = min(after, GATE_CAP) if still_failing else after
    return Step(todo.control, todo.action, todo.effort_days, after - before, overall, todo.gate)
