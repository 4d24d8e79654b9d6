"""Findings of a check in words and as JSON values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fedvox_compliance.checks import Finding, Topic
from fedvox_compliance.messages import Messages


def describe_finding(finding: Finding, say: Messages) -> str:
    """One finding as a sentence that begins with where it is."""
    if finding.topic is Topic.RULE:
        return say(f"rule.{finding.code}", control=finding.where, **finding.details)
    where = f"{finding.where}: " if finding.where else ""
    return where + say(f"finding.{finding.code}", **finding.details)


def describe_findings(findings: Sequence[Finding], say: Messages) -> str:
    """All findings, by level."""
    if not findings:
        return say("finding.none")
    lines: list[str] = []
    for level, group in groupby(findings, key=lambda f: f.level):
        members = list(group)
        lines.append(say(f"finding.level_{level}", count=len(members)))
        lines += [f"  {describe_finding(f, say)}" for f in members]
    return "\n".join(lines)


def findings_to_dict(findings: Sequence[Finding], on: dt.date) -> dict[str, Any]:
    """All findings as JSON values (schema `fedvox.findings/1`)."""
    return {
        "schema": "fedvox.findings/1",
        "on": on.isoformat(),
        "findings": [
            {
                "level": f.level.value,
                "topic": f.topic.value,
                "code": f.code,
                "where": f.where,
                "details": f.details,
            }
            for f in findings
        ],
    }
