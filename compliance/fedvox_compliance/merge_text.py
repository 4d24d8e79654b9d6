"""What a merge came to, in words and as JSON values."""

from __future__ import annotations

from typing import Any

from fedvox_compliance.assessment import Entry, ScopeAnswer, to_jsonable
from fedvox_compliance.merge import Conflict, Merged, MergeReport
from fedvox_compliance.messages import Messages


def describe_merge(source: str, report: MergeReport, say: Messages) -> str:
    """The merge of one file or folder as lines."""
    taken = len(report.entries.taken) + len(report.scope.taken)
    kept = len(report.entries.kept) + len(report.scope.kept)
    lines = [say("merge.done", source=source, taken=taken, kept=kept, conflicts=report.conflicts)]
    lines += [_conflict_line(c, say) for c in report.scope.conflicts]
    lines += [_conflict_line(c, say) for c in report.entries.conflicts]
    lines += ["  " + say("merge.missing", path=path) for path in report.missing_documents]
    return "\n".join(lines)


def merge_to_dict(source: str, report: MergeReport) -> dict[str, Any]:
    """The merge of one file or folder as JSON values."""
    return {
        "source": source,
        "entries": _merged(report.entries),
        "scope": _merged(report.scope),
        "missing_documents": list(report.missing_documents),
    }


def _conflict_line(conflict: Conflict[Entry] | Conflict[ScopeAnswer], say: Messages) -> str:
    ours, theirs = _said(conflict.ours, say), _said(conflict.theirs, say)
    return "  " + say("merge.conflict", where=conflict.where, ours=ours, theirs=theirs)


def _merged(merged: Merged[Entry] | Merged[ScopeAnswer]) -> dict[str, Any]:
    return {
        "taken": sorted(merged.taken),
        "kept": sorted(merged.kept),
        "conflicts": [_conflict(c) for c in merged.conflicts],
    }


def _conflict(conflict: Conflict[Entry] | Conflict[ScopeAnswer]) -> dict[str, Any]:
    return {
        "where": conflict.where,
        "ours": None if conflict.ours is None else to_jsonable(conflict.ours),
        "theirs": None if conflict.theirs is None else to_jsonable(conflict.theirs),
    }


def _said(item: Entry | ScopeAnswer | None, say: Messages) -> str:
    if item is None:
        return say("answer.none")
    if isinstance(item, ScopeAnswer):
        return f"{say('answer.yes' if item.applies else 'answer.no')} ({item.author}, {item.answered_on})"
    if item.answer is None:
        return say("answer.none")
    return f"{say(f'answer.{item.answer}')} ({item.author}, {item.answered_on})"
