"""The JSON report: the score explained to the last question, in a versioned schema, with its caveat inside."""

from __future__ import annotations

import json
from typing import Any

from fedvox_compliance import __version__
from fedvox_compliance.gaps import Step
from fedvox_compliance.report.view import ControlRow, ReportView
from fedvox_compliance.score_json import report_to_dict

SCHEMA = "fedvox.report/1"


def render_json(view: ReportView) -> str:
    """A report as JSON text with a line break at its end."""
    return json.dumps(json_document(view), indent=1, ensure_ascii=False) + "\n"


def json_document(view: ReportView) -> dict[str, Any]:
    """A report as JSON values."""
    return {
        "schema": SCHEMA,
        "language": view.language,
        "notice": view.disclaimer,
        "statement": f"{view.headline} ({view.self_assessed})",
        "engine": {"name": "fedvox-compliance", "version": __version__},
        "answers": {
            "sha256": view.assessment.sha256,
            "history": {"length": view.assessment.history.length, "head": view.assessment.history.head},
        },
        "score": report_to_dict(view.report, explain=True),
        "questions": [_question(row) for row in view.rows],
        "plan": [_step(row.step) for row in view.plan],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "control": step.control,
        "action": step.action.value,
        "effort_days": step.effort_days,
        "gain": round(step.gain, 6),
        "score_after": round(step.score_after, 6),
        "gate": step.gate.value if step.gate else None,
    }


def _question(row: ControlRow) -> dict[str, Any]:
    return {
        "id": row.control,
        "citation": row.citation,
        "title": row.title,
        "question": row.question,
        "answer": row.score.answer.value if row.score.answer else None,
        "reason": row.reason,
        "by": row.by,
        "evidence": [
            {
                "title": d.title,
                "path": d.path,
                "sha256": d.sha256,
                "period": d.period,
                "problem": d.state or None,
            }
            for d in row.documents
        ],
    }
