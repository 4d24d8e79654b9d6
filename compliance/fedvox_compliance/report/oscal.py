"""OSCAL 1.1.3 assessment results (NIST), for governance tools that read them.

An answer becomes an observation (who said what, on which documents, until when); a question in scope becomes a finding
that is satisfied or not. OSCAL knows no score, no partial fulfilment and no assurance level, so these are properties in
a namespace of their own, and nothing is called satisfied that a document does not show.

Identifiers are derived from the assessment (UUID version 5), so exporting twice gives the same document.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterator
from typing import Any

from fedvox_compliance.assessment import Answer, Entry, Evidence
from fedvox_compliance.judgement import Assurance, Status
from fedvox_compliance.report.view import ControlRow, ReportView

OSCAL_VERSION = "1.1.3"
PROPERTY_NAMESPACE = "urn:fedvox:oscal:1"


def render_oscal(view: ReportView) -> str:
    """OSCAL assessment results as JSON text with a line break at its end."""
    return json.dumps(oscal_document(view), indent=1, ensure_ascii=False) + "\n"


def oscal_document(view: ReportView) -> dict[str, Any]:
    """OSCAL assessment results as JSON values."""
    return {
        "assessment-results": {
            "uuid": _uuid(view, f"document/{view.assessment.sha256}/{view.report.on}"),
            "metadata": _metadata(view),
            "import-ap": {
                "href": "#" + _uuid(view, "plan"),
                "remarks": "The question catalogue is the assessment plan.",
            },
            "results": [_result(view)],
            "back-matter": {"resources": [_plan_resource(view), *_documents(view)]},
        }
    }


def _metadata(view: ReportView) -> dict[str, Any]:
    return {
        "title": view.title,
        "last-modified": _moment(view.report.on),
        "version": str(view.assessment.history.length),
        "oscal-version": OSCAL_VERSION,
        "parties": [{"uuid": _uuid(view, "clinic"), "type": "organization", "name": view.clinic}],
        "remarks": f"{view.self_assessed}. {view.disclaimer}",
    }


def _result(view: ReportView) -> dict[str, Any]:
    answered = [row for row in view.rows if row.score.answer is not None]
    applicable = [row for row in view.rows if row.status in (Status.SCORED, Status.OPEN)]
    result = {
        "uuid": _uuid(view, f"result/{view.report.on}"),
        "title": f"{view.title}: {view.headline} ({view.self_assessed})",
        "description": view.disclaimer,
        "start": view.assessment.created.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "end": _moment(view.report.on),
        "props": _result_props(view),
        "reviewed-controls": {"control-selections": [_selection(view)]},
        "observations": [_observation(view, row) for row in answered],
        "findings": [_finding(view, row) for row in applicable],
    }
    return {name: value for name, value in result.items() if value != []}


def _selection(view: ReportView) -> dict[str, Any]:
    chosen = [{"control-id": row.control} for row in view.rows if row.status is not Status.OUT_OF_SCOPE]
    left_out = [{"control-id": row.control} for row in view.rows if row.status is Status.OUT_OF_SCOPE]
    selection: dict[str, Any] = {"include-controls": chosen} if chosen else {"include-all": {}}
    return selection | ({"exclude-controls": left_out} if left_out else {})


def _result_props(view: ReportView) -> list[dict[str, str]]:
    report = view.report
    values = {
        "score": f"{report.overall:.6f}",
        "score-low": f"{report.interval.low:.6f}",
        "score-high": f"{report.interval.high:.6f}",
        "tier": str(report.tier),
        "assurance": report.assurance.label,
        "eligible": str(report.eligible).lower(),
        "complete": str(report.complete).lower(),
        "profile": report.profile,
        "catalogue-version": report.catalogue_version,
        "catalogue-sha256": report.catalogue_sha256,
        "law-as-of": report.law_as_of.isoformat(),
        "answers-sha256": view.assessment.sha256,
        "history-head": view.assessment.history.head,
    }
    parts = {f"score-{name.replace(':', '-')}": p.score for name, p in report.frameworks.items()}
    return _props(values | {name: f"{score:.6f}" for name, score in parts.items() if score is not None})


def _observation(view: ReportView, row: ControlRow) -> dict[str, Any]:
    entry = view.assessment.entries[row.control]
    observation: dict[str, Any] = {
        "uuid": _uuid(view, f"observation/{row.control}"),
        "title": row.title,
        "description": f"{row.question} {row.answer}.",
        "props": _props(_claim_props(row, entry)),
        "methods": ["EXAMINE" if row.score.assurance >= Assurance.DOCUMENT else "INTERVIEW"],
        "types": ["finding" if row.score.assurance is Assurance.VERIFIED else "self-assessment"],
        "collected": _moment(entry.answered_on or view.report.on),
    }
    if entry.evidence:
        observation["relevant-evidence"] = [
            {"href": "#" + _uuid(view, f"document/{e.sha256}"), "description": e.title or e.path}
            for e in entry.evidence
        ]
    if entry.last_day is not None:
        observation["expires"] = _moment(entry.last_day)
    if entry.reason.strip():
        observation["remarks"] = entry.reason
    return observation


def _claim_props(row: ControlRow, entry: Entry) -> dict[str, str]:
    values = {"answer": entry.answer.value if entry.answer else "", "author": entry.author or ""}
    if entry.maturity is not None:
        values["maturity"] = str(entry.maturity)
    if entry.second_person is not None:
        values["second-person"] = entry.second_person.name
    return values | {"assurance": row.score.assurance.label}


def _finding(view: ReportView, row: ControlRow) -> dict[str, Any]:
    score = row.score
    finding: dict[str, Any] = {
        "uuid": _uuid(view, f"finding/{row.control}"),
        "title": row.title,
        "description": row.question,
        "props": _props(
            {
                "framework": score.framework.replace(":", "-"),
                "theme": score.theme,
                "weight": f"{score.weight:g}",
                "value": f"{score.value:.6f}",
                "points": f"{score.points:.6f}",
                "assurance": score.assurance.label,
            }
        ),
        "target": {"type": "objective-id", "target-id": row.control, "status": _status(row)},
    }
    if score.answer is not None:
        finding["related-observations"] = [{"observation-uuid": _uuid(view, f"observation/{row.control}")}]
    if row.notes:
        finding["remarks"] = " ".join(row.notes)
    return finding


def _status(row: ControlRow) -> dict[str, str]:
    """Satisfied needs the full answer and a document that is current; everything else is not."""
    score = row.score
    full = score.answer in (Answer.YES, Answer.ALTERNATIVE) and score.answer_value >= 0.9
    if full and score.assurance >= Assurance.DOCUMENT and score.value > 0:
        return {"state": "satisfied", "reason": "pass" if score.assurance is Assurance.VERIFIED else "other"}
    return {"state": "not-satisfied", "reason": "fail" if score.answer is not None else "other"}


def _plan_resource(view: ReportView) -> dict[str, Any]:
    return {
        "uuid": _uuid(view, "plan"),
        "title": f"Fedvox question catalogue {view.report.catalogue_version}, profile {view.report.profile}",
        "description": "\n".join(view.sources),
    }


def _documents(view: ReportView) -> Iterator[dict[str, Any]]:
    seen: dict[str, Evidence] = {}
    for entry in view.assessment.entries.values():
        for document in entry.evidence:
            seen.setdefault(document.sha256, document)
    for digest, document in seen.items():
        yield {
            "uuid": _uuid(view, f"document/{digest}"),
            "title": document.title or document.path,
            "rlinks": [{"href": document.path, "hashes": [{"algorithm": "SHA-256", "value": digest}]}],
        }


def _props(values: dict[str, str]) -> list[dict[str, str]]:
    """Properties in our namespace. Values are single, trimmed lines, as OSCAL's strings must be."""
    lines = {name: " ".join(value.split()) for name, value in values.items()}
    return [
        {"name": name, "ns": PROPERTY_NAMESPACE, "value": value} for name, value in lines.items() if value
    ]


def _moment(day: dt.date) -> str:
    return f"{day.isoformat()}T00:00:00Z"


def _uuid(view: ReportView, name: str) -> str:
    return str(uuid.uuid5(uuid.UUID(hex=view.assessment.id), name))
