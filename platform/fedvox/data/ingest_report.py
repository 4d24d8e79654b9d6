"""What became of every case, for people (text), spreadsheets (CSV) and scripts (JSON)."""

from __future__ import annotations

import collections
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedvox.data.ingest_case import CaseOutcome
from fedvox.data.raw_dataset import Rejected
from fedvox.errors import DataError, FedvoxError, RunError, StorageError

SCHEMA = "fedvox.ingest/1"
_SHOWN_PER_REASON = 3
_COLUMNS = (
    "case_id", "source", "status", "code", "file", "message", "remedy",
    "shape", "spacing_mm", "num_bytes", "was_done", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class IngestReport:
    """The result of an ingest.

    Args:
        output: URI of the store.
        found: one line a data set: what was detected.
        outcomes: of every case, sorted by id.
        structures: canonical names, background first.
        absent: structures which no accepted case contains.
        spacing_mm: (D, H, W) of the store, None where each case keeps its own.
        spacing_reason: how it was decided.
        num_bytes: of all stored cases.
        seconds: in all.
        contact_sheet: the picture for quality control, where one was made.
        notes: what else a user should know.
    """

    output: str
    found: tuple[str, ...]
    outcomes: tuple[CaseOutcome, ...]
    structures: tuple[str, ...]
    absent: tuple[str, ...]
    spacing_mm: tuple[float, float, float] | None
    spacing_reason: str
    num_bytes: int
    seconds: float
    contact_sheet: str | None = None
    notes: tuple[str, ...] = ()

    def of_status(self, status: str) -> list[CaseOutcome]:
        """The outcomes with a status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def accepted(self) -> list[CaseOutcome]:
        """Cases in the store."""
        return self.of_status("accepted")

    @property
    def rejected(self) -> list[CaseOutcome]:
        """Cases whose files are at fault."""
        return self.of_status("rejected")

    @property
    def failed(self) -> list[CaseOutcome]:
        """Cases which a fault of the program or the death of a worker kept out."""
        return self.of_status("failed")

    def error(self, *, strict: bool = False) -> FedvoxError | None:
        """What the command has to end with, None for success.

        Args:
            strict: any rejected case is an error.
        """
        refused = f"{len(self.rejected)} of {len(self.outcomes)} cases were rejected"
        if not self.accepted:
            told = _told([*self.rejected, *self.failed], self.outcomes)
            kind = RunError if self.failed and not self.rejected else DataError
            return kind(
                f"no case can be used of {len(self.outcomes)}\n{told}", "Mend the files, and run it again."
            )
        if self.failed:
            told = _told(self.failed, self.outcomes)
            return RunError(
                f"{len(self.failed)} cases failed\n{told}", "Run the same command again: it goes on."
            )
        if strict and self.rejected:
            return DataError(f"{refused}, and strict is on", "Mend or remove them; see the report.")
        return None

    def summary(self) -> str:
        """For a terminal."""
        spacing = "each case's own" if self.spacing_mm is None else f"{_mm(self.spacing_mm)} (D × H × W)"
        done = sum(outcome.was_done for outcome in self.accepted)
        again = f", {done} of them done before" if done else ""
        lines = [
            f"accepted   {len(self.accepted)} of {len(self.outcomes)} cases{again}",
            f"store      {self.output} ({_bytes(self.num_bytes)})",
            f"spacing    {spacing}: {self.spacing_reason}",
            f"structures {len(self.structures) - 1}: {_listed(self.structures[1:])}",
        ]
        if self.absent:
            lines.append(f"absent     {_listed(self.absent)} (in no case)")
        if self.contact_sheet:
            lines.append(f"look at    {self.contact_sheet}")
        lines += [f"note       {note}" for note in self.notes]
        tolerated = collections.Counter(w.code for outcome in self.accepted for w in outcome.warnings)
        lines += [f"tolerated  {code} in {count} cases" for code, count in tolerated.items()]
        for status in ("rejected", "failed"):
            if outcomes := self.of_status(status):
                lines += [
                    f"{status:<10} {len(outcomes)} of {len(self.outcomes)} cases",
                    _told(outcomes, outcomes),
                ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `schema` names the layout."""
        return {
            "schema": SCHEMA,
            "output": self.output,
            "sources": list(self.found),
            "counts": {s: len(self.of_status(s)) for s in ("accepted", "rejected", "failed")},
            "structures": list(self.structures),
            "absent_structures": list(self.absent),
            "spacing_mm": self.spacing_mm,
            "spacing_reason": self.spacing_reason,
            "num_bytes": self.num_bytes,
            "seconds": round(self.seconds, 1),
            "contact_sheet": self.contact_sheet,
            "notes": list(self.notes),
            "cases": [_case_dict(outcome) for outcome in self.outcomes],
        }

    def to_json(self) -> bytes:
        """`to_dict` as a file."""
        return json.dumps(self.to_dict(), indent=1).encode()

    def to_csv(self) -> bytes:
        """A row a case, and a row a reason where a case has several."""
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for outcome in self.outcomes:
            fields = _case_dict(outcome)
            common = {name: fields[name] for name in _COLUMNS if name in fields}
            common |= {name: " ".join(map(str, fields[name] or ())) for name in ("shape", "spacing_mm")}
            for reason in [*fields["errors"], *fields["warnings"]] or [{}]:
                writer.writerow(common | reason)
        return text.getvalue().encode()


def rejected_outcome(rejected: Rejected) -> CaseOutcome:
    """The outcome of a case that was rejected before any voxel was read."""
    return CaseOutcome(rejected.case_id, rejected.source, "rejected", rejected.errors)


def _case_dict(outcome: CaseOutcome) -> dict[str, Any]:
    names = ("case_id", "source", "status", "shape", "spacing_mm", "num_bytes", "was_done", "seconds")
    return {
        **{name: getattr(outcome, name) for name in names},
        "errors": [_reason(error) for error in outcome.errors],
        "warnings": [_reason(warning) for warning in outcome.warnings],
    }


def _reason(error: DataError | StorageError) -> dict[str, str]:
    code, file = (error.code, error.file) if isinstance(error, DataError) else ("storage", "")
    return {"code": code, "file": file, "message": error.message, "remedy": error.remedy}


def _told(outcomes: Sequence[CaseOutcome], every: Sequence[CaseOutcome]) -> str:
    """The reasons, the commonest first, each with a few cases; all of them where there are few."""
    by_code = collections.defaultdict(list)
    for outcome in outcomes:
        for reason in map(_reason, outcome.errors):
            by_code[reason["code"]].append((outcome.case_id, reason))
    shown = _SHOWN_PER_REASON if len(every) > 2 * _SHOWN_PER_REASON else len(every)
    lines = []
    for code, cases in sorted(by_code.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {code}: {len(cases)}")
        for case_id, reason in cases[:shown]:
            lines += [f"    {case_id}: {reason['message']}", f"      -> {reason['remedy']}"]
        if len(cases) > shown:
            lines.append(f"    ... and {len(cases) - shown} more, see the report")
    return "\n".join(lines)


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _mm(spacing_mm: Sequence[float]) -> str:
    return " × ".join(f"{n:.4g}" for n in spacing_mm) + " mm"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
