"""A score report as JSON values."""

from __future__ import annotations

from typing import Any

from fedvox_compliance.score_report import ControlScore, Interval, PartScore, ScoreReport

SCHEMA = "fedvox.score/1"
_DIGITS = 6


def report_to_dict(report: ScoreReport, *, explain: bool) -> dict[str, Any]:
    """The report as JSON values; with `explain`, every control's part in it."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "clinic": report.clinic,
        "assessment": report.assessment_id,
        "profile": report.profile,
        "catalogue": {
            "version": report.catalogue_version,
            "sha256": report.catalogue_sha256,
            "law_as_of": report.law_as_of.isoformat(),
        },
        "on": report.on.isoformat(),
        "overall": round(report.overall, _DIGITS),
        "interval": _interval(report.interval),
        "uncapped": round(report.uncapped, _DIGITS),
        "capped": report.capped,
        "tier": report.tier,
        "eligible": report.eligible,
        "assurance": report.assurance.label,
        "assurance_shares": {a.label: round(s, _DIGITS) for a, s in report.assurance_shares.items()},
        "complete": report.complete,
        "open": list(report.open_controls),
        "open_scope": list(report.open_scope),
        "expired": list(report.expired_controls),
        "gates": [{"control": g.control, "gate": g.gate.value, "state": g.state.value} for g in report.gates],
        "frameworks": {name: _part(part) for name, part in report.frameworks.items()},
        "themes": {name: _part(part) for name, part in report.themes.items()},
    }
    if explain:
        found["controls"] = [control_score_to_dict(c) for c in report.controls]
    return found


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(interval.low, _DIGITS), round(interval.high, _DIGITS)]


def _part(part: PartScore) -> dict[str, Any]:
    return {
        "score": None if part.score is None else round(part.score, _DIGITS),
        "interval": _interval(part.interval),
        "weight": part.weight,
        "excluded_weight": part.excluded_weight,
        "excess_weight": round(part.excess_weight, _DIGITS),
        "maturity": None if part.maturity is None else round(part.maturity, 2),
        "answered": part.answered,
        "applicable": part.applicable,
    }


def control_score_to_dict(control: ControlScore) -> dict[str, Any]:
    """One control's part in the score as JSON values."""
    return {
        "id": control.control,
        "framework": control.framework,
        "theme": control.theme,
        "weight": control.weight,
        "status": control.status.value,
        "answer": control.answer.value if control.answer else None,
        "answer_value": control.answer_value,
        "factor": round(control.factor, _DIGITS),
        "assurance": control.assurance.label,
        "value": round(control.value, _DIGITS),
        "points": round(control.points, _DIGITS),
        "lost": round(control.lost, _DIGITS),
        "notes": [n.value for n in control.notes],
    }
