"""The result of scoring, as plain frozen data: every number with what it was made of."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from fedvox_compliance.assessment import Answer, Assessment
from fedvox_compliance.catalogue import Catalogue, Control, Gate
from fedvox_compliance.judgement import Assurance, Judgement, Note, Status
from fedvox_compliance.scope import open_scope_questions

EXPIRED_NOTES = frozenset({Note.ANSWER_EXPIRED, Note.EVIDENCE_EXPIRED})
"""The notes that say that something is past its last day."""
TIER_ABOVE = (0.20, 0.40, 0.55, 0.80)
"""Tier n is reached strictly above its bound: claims alone stay in tier 1, a failed gate (0.40) in tier 1,
documents alone (0.60) in tier 3; tier 4 (above 0.80) is out of reach without an assessor's verification."""


class GateState(StrEnum):
    """Where a gate stands. Only `passed` passes."""

    PASSED = "passed"
    UNDOCUMENTED = "undocumented"
    EXPIRED = "expired"
    FAILED = "failed"
    REFUTED = "refuted"
    OPEN = "open"
    OUT_OF_SCOPE = "out_of_scope"


@dataclass(frozen=True, slots=True)
class Interval:
    """From all open questions answered no, to all of them answered yes and verified."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """How much the open questions leave undecided."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class PartScore:
    """The score of one framework or theme.

    Attributes:
        interval: its low end is the score; None when nothing in this part applies to the clinic.
        weight: of all controls in scope.
        excluded_weight: of those answered `not applicable` with a reason.
        excess_weight: the part of it above the allowance, which counts as missing (frameworks only).
        credited: the weight that earns anything, by `Assurance`.
        maturity: the mean of the clinic's own ratings, None without one. It is reported beside the score.
        answered, applicable: how many controls have an answer, of how many in scope.
    """

    interval: Interval | None
    weight: float
    excluded_weight: float
    excess_weight: float
    credited: tuple[float, ...]
    maturity: float | None
    answered: int
    applicable: int

    @property
    def score(self) -> float | None:
        """What the answers are worth now: open questions count nothing."""
        return None if self.interval is None else self.interval.low


class GateResult(NamedTuple):
    """One gate."""

    control: str
    gate: Gate
    state: GateState

    @property
    def passed(self) -> bool:
        """Whether nothing follows from this gate."""
        return self.state in (GateState.PASSED, GateState.OUT_OF_SCOPE)


@dataclass(frozen=True, slots=True)
class ControlScore:
    """The explanation of one control's part in the score.

    Attributes:
        value: in [0, 1]; answer_value x factor.
        points: what it adds to its framework's score.
        lost: what it could still add there if it were verified.
    """

    control: str
    framework: str
    theme: str
    weight: float
    status: Status
    answer: Answer | None
    answer_value: float
    factor: float
    assurance: Assurance
    value: float
    points: float
    lost: float
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class ScoreReport:
    """A clinic's score on one day.

    Attributes:
        on: the day it holds for.
        interval: of the overall score; `overall` is its low end.
        uncapped: the overall score before gates.
        capped: whether a gate holds the score down.
        eligible: every eligibility gate in scope is passed. Nothing else makes a clinic eligible.
        assurance: the level that all gates and 80 % of the credited weight reach.
        judgements: by control id, in catalogue order; `controls` is the readable form.
    """

    clinic: str
    assessment_id: str
    profile: str
    catalogue_version: str
    catalogue_sha256: str
    law_as_of: dt.date
    on: dt.date
    interval: Interval
    uncapped: float
    capped: bool
    tier: int
    frameworks: Mapping[str, PartScore]
    gates: tuple[GateResult, ...]
    eligible: bool
    assurance: Assurance
    assurance_shares: Mapping[Assurance, float]
    weights: Mapping[str, float] = field(repr=False)
    judgements: Mapping[str, Judgement] = field(repr=False)
    _assessment: Assessment = field(repr=False, compare=False)
    _catalogue: Catalogue = field(repr=False, compare=False)

    @property
    def overall(self) -> float:
        """The score in [0, 1]: what the answers are worth now, after gates."""
        return self.interval.low

    @cached_property
    def themes(self) -> Mapping[str, PartScore]:
        """By theme, for reading; the overall score is made of frameworks."""
        from fedvox_compliance.aggregate import part_score, ratings_of

        members: dict[str, list[tuple[str, float]]] = {t: [] for t in self._catalogue.themes}
        for control in self._catalogue.controls.values():
            members[control.theme].append((control.id, self.weights[control.id]))
        ratings = ratings_of(self._assessment)
        return {
            theme: part_score(found, self.judgements, ratings, allowance=1.0)
            for theme, found in members.items()
        }

    @cached_property
    def open_controls(self) -> tuple[str, ...]:
        """The controls in scope without an answer, in catalogue order."""
        return tuple(i for i, j in self.judgements.items() if j.status is Status.OPEN)

    @cached_property
    def open_scope(self) -> tuple[str, ...]:
        """The scope questions without an answer."""
        stated = self._assessment.scope_stated_by(self.on)
        return tuple(q.id for q in open_scope_questions(self._catalogue, stated))

    @cached_property
    def expired_controls(self) -> tuple[str, ...]:
        """The controls whose answer, or whose newest document, is past its last day."""
        return tuple(i for i, j in self.judgements.items() if not EXPIRED_NOTES.isdisjoint(j.notes))

    @property
    def complete(self) -> bool:
        """Whether every question in scope, and every scope question, has an answer."""
        return not self.open_controls and not self.open_scope

    @property
    def failed_gates(self) -> tuple[GateResult, ...]:
        """The gates that hold the score down, eligibility gates first."""
        return tuple(
            sorted((g for g in self.gates if not g.passed), key=lambda g: g.gate is not Gate.ELIGIBILITY)
        )

    @property
    def ineligible_because(self) -> tuple[GateResult, ...]:
        """The eligibility gates that are not passed."""
        return tuple(g for g in self.failed_gates if g.gate is Gate.ELIGIBILITY)

    @cached_property
    def controls(self) -> tuple[ControlScore, ...]:
        """The explanation, control by control, in catalogue order."""
        return tuple(self._explain(c, self.judgements[c.id]) for c in self._catalogue.controls.values())

    def _explain(self, control: Control, judged: Judgement) -> ControlScore:
        part = self.frameworks[control.framework]
        divisor = part.weight - part.excluded_weight + part.excess_weight
        counts = judged.status in (Status.SCORED, Status.OPEN) and divisor > 0
        share = self.weights[control.id] / divisor if counts else 0.0
        entry = self._assessment.entries.get(control.id)
        return ControlScore(
            control=control.id,
            framework=control.framework,
            theme=control.theme,
            weight=self.weights[control.id],
            status=judged.status,
            answer=entry.answer if entry else None,
            answer_value=judged.answer_value,
            factor=judged.factor,
            assurance=judged.assurance,
            value=judged.value,
            points=share * judged.value,
            lost=share * (1.0 - judged.value),
            notes=judged.notes,
        )

    def to_dict(self, *, explain: bool = False) -> dict[str, Any]:
        """As JSON values, for `--json` (schema `fedvox.score/1`)."""
        from fedvox_compliance.score_json import report_to_dict

        return report_to_dict(self, explain=explain)
