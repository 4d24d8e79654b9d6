"""What a careful colleague would point out before an assessor does.

`check` reads and never changes. It reports all findings at once, each with a level:

    error      the answer cannot stand: a rule is broken, a document is gone or is not what was hashed
    warning    it can hardly be meant: a contradiction, a yes that nothing shows, something expired
    hint       worth a look before somebody else looks
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedvox_compliance.assessment import Answer, Assessment, Entry
from fedvox_compliance.catalogue import Catalogue, read_framework_file
from fedvox_compliance.errors import IntegrityError
from fedvox_compliance.evidence import EvidenceState, state_of
from fedvox_compliance.history import verify_history
from fedvox_compliance.rules import REFUSED_ON_WRITING, broken_rules
from fedvox_compliance.scope import holds, out_of_scope

SOON_DAYS = 60
"""How long before its last day an answer or a document is announced."""
SHARED_WIDELY = 25
"""From how many controls on one document looks like a cover sheet rather than evidence."""

_POSITIVE = frozenset({Answer.YES, Answer.ALTERNATIVE})
_NEGATIVE = frozenset({Answer.NO, Answer.PLANNED})


class Level(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"
    HINT = "hint"


class Topic(StrEnum):
    """What a finding is about; decides the exit code of `check`."""

    RULE = "rule"
    CONTRADICTION = "contradiction"
    EVIDENCE = "evidence"
    EXPIRY = "expiry"
    INTEGRITY = "integrity"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. Its wording is in the message catalogues under `finding.<code>` (rules: `rule.<code>`).

    Attributes:
        where: a control, a scope question, or empty for the assessment as a whole.
        details: what the wording needs, such as the other control or a date.
    """

    level: Level
    topic: Topic
    code: str
    where: str
    details: dict[str, str] = field(default_factory=dict)


def check(
    assessment: Assessment, catalogue: Catalogue, *, on: dt.date, folder: Path | None = None
) -> tuple[Finding, ...]:
    """Find what cannot stand, contradicts itself, is not shown, or has expired.

    Args:
        assessment: the answers.
        catalogue: the questions they answer.
        on: the day of the check.
        folder: the assessment's folder; with it, documents are hashed again and the history is replayed.

    Returns:
        All findings: errors first, then by place in the catalogue.
    """
    outside = out_of_scope(catalogue, assessment.stated_scope)
    found: list[Finding] = []
    for control_id, entry in assessment.entries.items():
        found += _about_rules(control_id, entry, catalogue, on)
        if control_id not in outside and entry.answer is not None:
            found += _about_expiry(control_id, entry, on)
            found += _about_showing(control_id, entry, catalogue)
    found += _about_contradictions(assessment, outside)
    found += _about_scope(assessment, catalogue)
    found += _about_patterns(assessment)
    if folder is not None:
        found += _about_files(assessment, folder)
        found += _about_history(folder)
    place = {name: n for n, name in enumerate([*catalogue.scope_questions, *catalogue.controls])}
    rank = list(Level)
    return tuple(sorted(found, key=lambda f: (rank.index(f.level), place.get(f.where, -1), f.code)))


def _about_rules(control_id: str, entry: Entry, catalogue: Catalogue, on: dt.date) -> Iterator[Finding]:
    for broken in broken_rules(control_id, entry, catalogue, on):
        level = Level.ERROR if broken.rule in REFUSED_ON_WRITING else Level.WARNING
        yield Finding(level, Topic.RULE, broken.rule.value, control_id, broken.details)


def _about_expiry(control_id: str, entry: Entry, on: dt.date) -> Iterator[Finding]:
    last_day = entry.last_day
    if last_day is not None:
        yield from _expiry("answer", control_id, last_day, on)
    if entry.answer is Answer.PLANNED and entry.due is not None and entry.due < on:
        yield Finding(Level.WARNING, Topic.EXPIRY, "plan_overdue", control_id, {"day": entry.due.isoformat()})
    in_effect = [e for e in entry.evidence if e.effective <= on]
    if in_effect:
        yield from _expiry("evidence", control_id, max(e.last_day for e in in_effect), on)
    for document in entry.evidence:
        if document.effective > on:
            details = {"path": document.path, "day": document.effective.isoformat()}
            yield Finding(Level.HINT, Topic.EVIDENCE, "evidence_not_yet", control_id, details)


def _expiry(what: str, control_id: str, last_day: dt.date, on: dt.date) -> Iterator[Finding]:
    details = {"day": last_day.isoformat()}
    if last_day < on:
        yield Finding(Level.WARNING, Topic.EXPIRY, f"{what}_expired", control_id, details)
    elif (last_day - on).days <= SOON_DAYS:
        yield Finding(Level.HINT, Topic.EXPIRY, f"{what}_expires_soon", control_id, details)


def _about_showing(control_id: str, entry: Entry, catalogue: Catalogue) -> Iterator[Finding]:
    control = catalogue.controls.get(control_id)
    if control is None or entry.evidence or entry.answer not in _POSITIVE | {Answer.PARTLY}:
        return
    level = Level.WARNING if control.gate is not None else Level.HINT
    code = "gate_without_evidence" if control.gate is not None else "no_evidence"
    yield Finding(level, Topic.EVIDENCE, code, control_id)


def _about_contradictions(assessment: Assessment, outside: frozenset[str]) -> Iterator[Finding]:
    rules = _consistency()
    answers = {i: e.answer for i, e in assessment.entries.items() if i not in outside}
    for first, others in rules["implies"].items():
        for second in others:
            if answers.get(first) in _POSITIVE and answers.get(second) in _NEGATIVE:
                yield Finding(Level.WARNING, Topic.CONTRADICTION, "implies", first, {"other": second})
    for group in rules["same"]:
        yes = [i for i in group if answers.get(i) in _POSITIVE]
        no = [i for i in group if answers.get(i) in _NEGATIVE]
        if yes and no:
            details = {"other": ", ".join(no)}
            yield Finding(Level.WARNING, Topic.CONTRADICTION, "same_fact", yes[0], details)


def _about_scope(assessment: Assessment, catalogue: Catalogue) -> Iterator[Finding]:
    stated = assessment.stated_scope
    asked = catalogue.scope_questions

    def value(name: str) -> bool | None:
        return holds(asked[name], stated)

    for rule in _consistency()["scope"]:
        names = [n for n in (*rule.get("needs", ()), *rule.get("all_false", ())) if n in asked]
        if "while_yes" in rule:
            entry = assessment.entries.get(rule["while_yes"])
            broken = bool(names) and entry is not None and entry.answer is Answer.YES
            where = rule["while_yes"]
        else:
            broken = rule["true"] in asked and value(rule["true"]) is True
            where = rule["true"]
        if "conflicts" in rule:
            broken = broken and any(n in asked and value(n) is True for n in rule["conflicts"])
        else:
            broken = broken and bool(names) and all(value(n) is False for n in names)
        if broken:
            yield Finding(Level.WARNING, Topic.CONTRADICTION, f"scope_{rule['id']}", where)


def _about_patterns(assessment: Assessment) -> Iterator[Finding]:
    """What an assessor notices at a glance."""
    by_document: dict[str, list[str]] = defaultdict(list)
    for control_id, entry in assessment.entries.items():
        for document in entry.evidence:
            by_document[document.sha256].append(control_id)
    for uses in by_document.values():
        if len(uses) >= SHARED_WIDELY:
            details = {"count": str(len(uses))}
            yield Finding(Level.HINT, Topic.EVIDENCE, "document_shared_widely", uses[0], details)
    answered = [e for e in assessment.entries.values() if e.answer is not None]
    if len(answered) >= SHARED_WIDELY and all(e.answer is Answer.YES for e in answered):
        yield Finding(Level.HINT, Topic.CONTRADICTION, "all_yes", "", {"count": str(len(answered))})


def _about_files(assessment: Assessment, folder: Path) -> Iterator[Finding]:
    for control_id, entry in assessment.entries.items():
        for document in entry.evidence:
            state = state_of(document, folder)
            if state is not EvidenceState.UNCHANGED:
                topic = Topic.INTEGRITY if state is EvidenceState.CHANGED else Topic.EVIDENCE
                yield Finding(Level.ERROR, topic, f"evidence_{state}", control_id, {"path": document.path})


def _about_history(folder: Path) -> Iterator[Finding]:
    try:
        verify_history(folder)
    except IntegrityError as wrong:
        yield Finding(Level.ERROR, Topic.INTEGRITY, "history", "", {"problem": wrong.message})


@lru_cache(maxsize=1)
def _consistency() -> dict[str, Any]:
    found: dict[str, Any] = read_framework_file("consistency")
    return found
