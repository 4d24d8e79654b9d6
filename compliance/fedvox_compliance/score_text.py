"""A score in words, for terminals: what it is, what holds it down, and each question's part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedvox_compliance.assessment import to_jsonable
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.interface import format_date, format_number, load_interface
from fedvox_compliance.messages import Messages
from fedvox_compliance.score_json import control_score_to_dict
from fedvox_compliance.score_report import ControlScore, PartScore, ScoreReport
from fedvox_compliance.scoring import score

if TYPE_CHECKING:
    from fedvox_compliance.workspace import Workspace

_BAR_CELLS = 20


def describe_score(report: ScoreReport, catalogue: Catalogue, say: Messages, *, explain: bool = False) -> str:
    """The whole report as lines of text."""
    lines = [*_headline(report, say), "", *_parts(report, say), "", *_gates(report, catalogue, say)]
    if report.expired_controls:
        lines += ["", say("score.expired", count=len(report.expired_controls))]
        lines += [f"  {i}" for i in report.expired_controls]
    if explain:
        lines += ["", say("score.explanation")]
        lines += [_explained(c, say) for c in report.controls]
    return "\n".join(lines)


def describe_standing(report: ScoreReport, language: str) -> str:
    """Where an assessment stands, in three lines."""
    say = load_interface(language)
    return "\n".join(_headline(report, say))


def describe_control(space: Workspace, control_id: str, say: Messages) -> str:
    """One question with guidance, answer and present worth."""
    control, entry = space.catalogue.control(control_id), space.entry(control_id)
    lines = [
        f"{control.id} – {say.title(control)}",
        f"{control.citation} · {say(f'severity.{control.severity}')} · {say(f'obligation.{control.obligation}')}",
        say.question(control),
        say.guidance(control),
        say("ask.expects", items=", ".join(say.expected(control))),
    ]
    if entry.answer is not None and entry.author is not None:
        day = format_date(entry.answered_on, say.language)
        lines.append(say("show.answer", answer=say(f"answer.{entry.answer}"), author=entry.author, day=day))
        lines += [f"  {entry.reason}"] if entry.reason else []
        lines += [
            f"  {d.sha256[:12]}  {format_date(d.last_day, say.language)}  {d.path}" for d in entry.evidence
        ]
    report = score(space.assessment, space.catalogue, on=space.today())
    lines.append(_explained(next(c for c in report.controls if c.control == control_id), say))
    return "\n".join(lines)


def control_to_dict(space: Workspace, control_id: str) -> dict[str, Any]:
    """One question with its answer and present worth, as JSON values (schema `fedvox.control/1`)."""
    control = space.catalogue.control(control_id)
    report = score(space.assessment, space.catalogue, on=space.today())
    return {
        "schema": "fedvox.control/1",
        "id": control.id,
        "citation": control.citation,
        "question": control.question,
        "guidance": control.guidance,
        "entry": to_jsonable(space.entry(control_id)),
        "score": control_score_to_dict(next(c for c in report.controls if c.control == control_id)),
    }


def _headline(report: ScoreReport, say: Messages) -> list[str]:
    language = say.language
    lines = [
        say(
            "score.headline",
            clinic=report.clinic,
            score=format_number(report.overall, language),
            tier=report.tier,
            assurance=say(f"assurance.{report.assurance.label}"),
            version=report.catalogue_version,
            law=format_date(report.law_as_of, language),
            day=format_date(report.on, language),
        )
    ]
    if report.interval.width > 0 or not report.complete:
        low, high = (
            format_number(report.interval.low, language),
            format_number(report.interval.high, language),
        )
        count = len(report.open_controls) + len(report.open_scope)
        lines.append(say("score.interval", low=low, high=high, count=count))
    if report.capped:
        lines.append(say("score.capped", uncapped=format_number(report.uncapped, language)))
    reasons = report.ineligible_because
    lines.append(say("score.eligible") if report.eligible else say("score.not_eligible", count=len(reasons)))
    return lines


def _parts(report: ScoreReport, say: Messages) -> list[str]:
    lines = [say("score.by_framework")]
    lines += [_part(name, part, say) for name, part in report.frameworks.items()]
    lines += ["", say("score.by_theme")]
    lines += [
        _part(say(f"theme.{name}"), part, say) for name, part in report.themes.items() if part.weight > 0
    ]
    return lines


def _part(name: str, part: PartScore, say: Messages) -> str:
    value = format_number(part.score, say.language)
    filled = 0 if part.score is None else int(part.score * _BAR_CELLS + 1e-9)
    bar = "#" * filled + "." * (_BAR_CELLS - filled)
    maturity = (
        ""
        if part.maturity is None
        else say("score.maturity", level=format_number(part.maturity, say.language, 1))
    )
    return f"  {name:24} {value:>5}  [{bar}]  {part.answered}/{part.applicable}  {maturity}".rstrip()


def _gates(report: ScoreReport, catalogue: Catalogue, say: Messages) -> list[str]:
    failed = report.failed_gates
    if not failed:
        return [say("score.gates_passed", count=len(report.gates))]
    lines = [say("score.gates_failed", count=len(failed), total=len(report.gates))]
    for gate in failed:
        title = say.title(catalogue.controls[gate.control])
        lines.append(
            f"  {gate.control}  {title}: {say(f'gate.{gate.state}')} ({say(f'gate_kind.{gate.gate}')})"
        )
    return lines


def _explained(scored: ControlScore, say: Messages) -> str:
    answer = say(f"answer.{scored.answer}") if scored.answer else say("answer.none")
    parts = [
        f"{scored.control}: {answer}",
        say("score.worth", value=format_number(scored.value, say.language), weight=int(scored.weight)),
        say("score.points", points=format_number(scored.points, say.language, 4), framework=scored.framework),
    ]
    if scored.status.value != "scored":
        parts = [parts[0], say(f"status.{scored.status}")]
    parts += [say(f"note.{note}") for note in scored.notes]
    return "  " + " · ".join(parts)
