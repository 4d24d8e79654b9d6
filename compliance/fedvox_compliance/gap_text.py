"""A plan and a sensitivity report in words and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.gaps import Step
from fedvox_compliance.interface import format_number
from fedvox_compliance.messages import Messages
from fedvox_compliance.score_report import ScoreReport
from fedvox_compliance.sensitivity import Sensitivity


def describe_plan(report: ScoreReport, steps: Sequence[Step], catalogue: Catalogue, say: Messages) -> str:
    """The plan as numbered lines."""
    if not steps:
        return say("gap.nothing")
    lines = [say("gap.intro", score=format_number(report.overall, say.language))]
    for number, step in enumerate(steps, start=1):
        control = catalogue.controls[step.control]
        mark = say("gap.gate_mark") + " " if step.gate is not None else ""
        lines.append(
            f"{number:3d}. {mark}{say(f'gap.{step.action}')}: {say.title(control)} ({control.id}) – "
            + say(
                "gap.effect",
                days=format_number(step.effort_days, say.language, 1),
                gain=format_number(step.gain, say.language, 4),
                after=format_number(step.score_after, say.language),
            )
        )
    days = format_number(sum(s.effort_days for s in steps), say.language, 1)
    lines.append(say("gap.sum", days=days, after=format_number(steps[-1].score_after, say.language)))
    return "\n".join(lines)


def plan_to_dict(report: ScoreReport, steps: Sequence[Step]) -> dict[str, Any]:
    """The plan as JSON values (schema `fedvox.plan/1`)."""
    return {
        "schema": "fedvox.plan/1",
        "on": report.on.isoformat(),
        "overall": round(report.overall, 6),
        "steps": [
            {
                "control": s.control,
                "action": s.action.value,
                "effort_days": s.effort_days,
                "gain": round(s.gain, 6),
                "gain_per_day": round(s.gain_per_day, 6),
                "score_after": round(s.score_after, 6),
                "gate": s.gate.value if s.gate else None,
            }
            for s in steps
        ],
    }


def describe_sensitivity(found: Sensitivity, say: Messages) -> str:
    """How far the score hangs on the weights."""

    def number(value: float) -> str:
        return format_number(value, say.language, 3)

    lines = [
        say("sensitivity.base", score=number(found.overall), tier=found.tier),
        say(
            "sensitivity.random",
            draws=found.draws,
            spread=format_number(found.spread, say.language, 1),
            seed=found.seed,
            low=number(found.low),
            high=number(found.high),
            kept=format_number(100 * found.tier_kept, say.language, 0),
        ),
        say("sensitivity.extremes", least=number(found.least), most=number(found.most)),
    ]
    lines += [f"  {v.name:20} {number(v.overall)}  {say(f'tier.{v.tier}')}" for v in found.variants]
    return "\n".join(lines)
