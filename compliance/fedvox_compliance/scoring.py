"""From an assessment to a score: pure, deterministic, and the same on every machine.

    of an entry        value = answer x assurance x currency                         (`judgement.py`)
    of a framework     S_f = sum(weight x value) / (sum(weight of what applies) + excess)
    overall            S = 0.5 min_f S_f + 0.5 mean_f S_f, and at most 0.40 while a gate is not passed

`excess` is the weight answered `not applicable` beyond 15 % of the framework: it counts as missing. Below
that, a control that does not apply leaves the sum on both sides, so it neither rewards nor punishes. Half of
the overall score is the weakest framework's: security cannot pay for missing privacy.

Sums run in catalogue order, so the order in which answers were given or stored cannot matter, not even in
the last bit; and every step is monotone in floating point, so no better answer can lower a score.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from types import MappingProxyType

from fedvox_compliance.aggregate import NA_ALLOWANCE, blend, part_score, ratings_of
from fedvox_compliance.assessment import Assessment
from fedvox_compliance.catalogue import Catalogue, Gate, Protection
from fedvox_compliance.errors import AssessmentError
from fedvox_compliance.judgement import Assurance, Judgement, Note, Status, judge_all
from fedvox_compliance.scope import out_of_scope
from fedvox_compliance.score_report import (
    EXPIRED_NOTES,
    TIER_ABOVE,
    GateResult,
    GateState,
    Interval,
    PartScore,
    ScoreReport,
)

GATE_CAP = 0.40
"""The most that a clinic can reach while a gate is not passed."""
ASSURANCE_MAJORITY = 0.8
"""The share of the credited weight that must reach a level before the whole assessment is said to."""

_OUT_OF_SCOPE = Judgement(Status.OUT_OF_SCOPE)


def score(
    assessment: Assessment,
    catalogue: Catalogue,
    *,
    on: dt.date,
    weights: Mapping[str, float] | None = None,
    trusted_assessors: AbstractSet[str] = frozenset(),
) -> ScoreReport:
    """Score an assessment.

    Args:
        assessment: the answers.
        catalogue: the questions; must be the ones that were answered.
        on: the day of the score. Nothing is read from a clock.
        weights: other weights by control id, for sensitivity analysis; the rest stays at the catalogue's.
        trusted_assessors: whose confirmations count as `verified`. By default nobody's: a clinic can write an
            assessor's name into its own file, so only an assessor's own program passes one here.

    Returns:
        The report, explained down to each control.

    Raises:
        AssessmentError: the assessment answers another catalogue.
    """
    require_same_catalogue(assessment, catalogue)
    used = _weights(catalogue, weights)
    judgements = _judge_all(assessment, catalogue, on, trusted_assessors)
    ratings = ratings_of(assessment)
    frameworks = {
        name: part_score(members, judgements, ratings, allowance=NA_ALLOWANCE)
        for name, members in _members(catalogue, used).items()
    }
    gates = tuple(GateResult(c.id, c.gate, _gate_state(judgements[c.id])) for c in catalogue.gates if c.gate)
    interval, uncapped = _overall(frameworks.values(), gates)
    shares = _assurance_shares(frameworks.values())
    return ScoreReport(
        clinic=assessment.clinic,
        assessment_id=assessment.id,
        profile=catalogue.profile,
        catalogue_version=catalogue.version,
        catalogue_sha256=catalogue.sha256,
        law_as_of=catalogue.law_as_of,
        on=on,
        interval=interval,
        uncapped=uncapped,
        capped=uncapped > interval.low,
        tier=tier_of(interval.low),
        frameworks=MappingProxyType(frameworks),
        gates=gates,
        eligible=_is_eligible(catalogue, gates),
        assurance=_overall_assurance(judgements, gates, shares),
        assurance_shares=MappingProxyType(shares),
        weights=used,
        judgements=MappingProxyType(judgements),
        _assessment=assessment,
        _catalogue=catalogue,
    )


def tier_of(overall: float) -> int:
    """The tier, 0 to 4, of an overall score: what a noise policy sees, so that one answer hardly moves it."""
    return sum(overall > bound for bound in TIER_ABOVE)


def require_same_catalogue(assessment: Assessment, catalogue: Catalogue) -> None:
    """Refuse to judge answers by other questions than those that were asked.

    Raises:
        AssessmentError: profile, overlays or content differ.
    """
    asked = assessment.catalogue
    if asked.sha256 != catalogue.sha256:
        raise AssessmentError(
            f"the assessment answers catalogue {asked.version} ({asked.sha256[:12]}, {assessment.profile}), "
            f"not {catalogue.version} ({catalogue.sha256[:12]}, {catalogue.profile})",
            "Bring it up to date with `fedvox-compliance upgrade`, or use the version that asked.",
        )


def _weights(catalogue: Catalogue, changed: Mapping[str, float] | None) -> Mapping[str, float]:
    base = _catalogue_weights(catalogue)
    if not changed:
        return base
    for control_id, weight in changed.items():
        catalogue.control(control_id)
        if not 0 <= weight < float("inf"):
            raise AssessmentError(
                f"the weight of {control_id} is {weight}", "Weights are finite and not negative."
            )
    return MappingProxyType({i: float(changed.get(i, w)) for i, w in base.items()})


@lru_cache(maxsize=32)
def _catalogue_weights(catalogue: Catalogue) -> Mapping[str, float]:
    return MappingProxyType({c.id: float(c.weight) for c in catalogue.controls.values()})


def _members(catalogue: Catalogue, weights: Mapping[str, float]) -> dict[str, tuple[tuple[str, float], ...]]:
    """The controls of each framework with their weights."""
    if weights is _catalogue_weights(catalogue):
        return _catalogue_members(catalogue)
    return _group(catalogue, weights)


@lru_cache(maxsize=32)
def _catalogue_members(catalogue: Catalogue) -> dict[str, tuple[tuple[str, float], ...]]:
    return _group(catalogue, _catalogue_weights(catalogue))


def _group(catalogue: Catalogue, weights: Mapping[str, float]) -> dict[str, tuple[tuple[str, float], ...]]:
    return {
        name: tuple((c.id, weights[c.id]) for c in catalogue.controls.values() if c.framework == name)
        for name in catalogue.frameworks
    }


@lru_cache(maxsize=1024)
def _out_of_scope(catalogue: Catalogue, stated: frozenset[tuple[str, bool]]) -> frozenset[str]:
    return out_of_scope(catalogue, dict(stated))


def _judge_all(
    assessment: Assessment, catalogue: Catalogue, on: dt.date, trusted: AbstractSet[str]
) -> dict[str, Judgement]:
    stated = frozenset(assessment.scope_stated_by(on).items())
    outside = _out_of_scope(catalogue, stated)
    found = judge_all(catalogue.controls, assessment.entries, on, trusted)
    for control_id in outside:
        found[control_id] = _OUT_OF_SCOPE
    return found


def _gate_state(judged: Judgement) -> GateState:
    if judged.status is Status.OUT_OF_SCOPE:
        return GateState.OUT_OF_SCOPE
    if judged.status is Status.OPEN:
        return GateState.OPEN
    if Note.REFUTED in judged.notes:
        return GateState.REFUTED
    if judged.answer_value < 1.0:  # anything but a yes that its own maturity does not contradict
        return GateState.FAILED
    if not EXPIRED_NOTES.isdisjoint(judged.notes):
        return GateState.EXPIRED
    return GateState.PASSED if judged.assurance >= Assurance.DOCUMENT else GateState.UNDOCUMENTED


def _overall(parts: Iterable[PartScore], gates: tuple[GateResult, ...]) -> tuple[Interval, float]:
    intervals = [p.interval for p in parts if p.interval is not None]
    low, high = blend([i.low for i in intervals]), blend([i.high for i in intervals])
    uncapped = low
    holding = [g.state for g in gates if not g.passed]
    if holding:
        low = min(low, GATE_CAP)
        if any(state is not GateState.OPEN for state in holding):
            high = min(high, GATE_CAP)
    return Interval(low, max(low, high)), uncapped


def _is_eligible(catalogue: Catalogue, gates: tuple[GateResult, ...]) -> bool:
    """Fails closed: a catalogue that does not ask for encryption and a legal basis makes nobody eligible."""
    passed = {g.control for g in gates if g.state is GateState.PASSED}
    shown = {c.protects for c in catalogue.gates if c.id in passed}
    if not shown.issuperset(Protection):
        return False
    return all(g.passed for g in gates if g.gate is Gate.ELIGIBILITY)


def _assurance_shares(parts: Collection[PartScore]) -> dict[Assurance, float]:
    """The share of the credited weight at each level."""
    by_level = [sum(p.credited[level] for p in parts) for level in Assurance]
    total = sum(by_level)
    return {level: by_level[level] / total if total else 0.0 for level in Assurance}


def _overall_assurance(
    judgements: Mapping[str, Judgement], gates: tuple[GateResult, ...], shares: Mapping[Assurance, float]
) -> Assurance:
    in_scope = [judgements[g.control].assurance for g in gates if g.state is not GateState.OUT_OF_SCOPE]
    weakest_gate = min(in_scope, default=Assurance.NONE)
    at_least = 0.0
    for level in (Assurance.VERIFIED, Assurance.SECOND_PERSON, Assurance.DOCUMENT, Assurance.CLAIM):
        at_least += shares[level]
        if at_least >= ASSURANCE_MAJORITY:
            return max(Assurance.CLAIM, min(weakest_gate, level))
    return Assurance.NONE
