"""Answers as a CSV sheet: one row a question, safe to open in a spreadsheet, kind to what spreadsheets do to it."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from fedvox_compliance.assessment import Answer, Assessment, Entry
from fedvox_compliance.catalogue import Catalogue, Control
from fedvox_compliance.errors import AssessmentError
from fedvox_compliance.exchange import DocumentNote, Sheet, parts_of
from fedvox_compliance.merge import fingerprint
from fedvox_compliance.messages import Messages, load_messages
from fedvox_compliance.rules import allowed_answers

COLUMNS = (
    "id", "framework", "citation", "theme", "severity", "gate", "title", "question", "allowed",
    "answer", "reason", "maturity", "due", "author", "answered_on", "review_on", "owner", "documents", "base",
)  # fmt: skip
_SCOPE_PREFIX = "scope."
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "|", "%")
_DATES = ("due", "answered_on", "review_on")
_DELIMITERS = ",;\t"
_MAX_ROWS = 5000


def write_csv(
    assessment: Assessment,
    catalogue: Catalogue,
    *,
    only: Collection[str] | None = None,
    language: str = "en",
    delimiter: str = ",",
) -> str:
    """An assessment, or some of its controls, as CSV. Write it to disk as UTF-8 with a byte order mark for Excel."""
    say = load_messages(language)
    questions, controls = parts_of(catalogue, only)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, delimiter=delimiter, lineterminator="\r\n", restval="")
    writer.writeheader()
    for name in questions:
        said = assessment.scope.get(name)
        row = {
            "id": _SCOPE_PREFIX + name,
            "question": say.scope_question(catalogue.scope_questions[name]),
            "allowed": "yes no",
            "base": fingerprint(said),
        }
        if said is not None:
            row |= {"answer": "yes" if said.applies else "no", "reason": said.reason, "author": said.author}
            row["answered_on"] = said.answered_on.isoformat()
        writer.writerow({k: guard_cell(v) for k, v in row.items()})
    for control_id in controls:
        entry = assessment.entries.get(control_id)
        row = _control_row(catalogue.controls[control_id], say) | _entry_row(entry or Entry())
        row["base"] = fingerprint(entry)
        writer.writerow({k: guard_cell(v) for k, v in row.items()})
    return out.getvalue()


def parse_csv(data: bytes, *, source: str) -> Sheet:
    """Read such a sheet back, whatever a spreadsheet made of its encoding, separators and dates.

    An empty answer says nothing: what is in the assessment stays. Columns that only show things are not read.

    Raises:
        AssessmentError: not a sheet of answers; every problem is named with its row.
    """
    rows = _rows(_decode(data, source), source)
    scope: dict[str, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    bases: dict[str, str] = {}
    documents: dict[str, tuple[DocumentNote, ...]] = {}
    problems: list[str] = []
    for number, row in rows:
        name = row.get("id", "").strip()
        where = name.removeprefix(_SCOPE_PREFIX)
        if not name or not row.get("answer", "").strip():
            if name and row.get("owner", "").strip():
                entries.setdefault(name, {"owner": row["owner"].strip()})
                bases[name] = row.get("base", "").strip()
            continue
        if where in bases:
            problems.append(f"row {number}: {name} occurs twice")
            continue
        bases[where] = row.get("base", "").strip()
        try:
            if name.startswith(_SCOPE_PREFIX):
                scope[where] = _scope_fields(row)
            else:
                entries[name] = _entry_fields(row)
                if "documents" in row:
                    documents[name] = _documents(row["documents"])
        except ValueError as wrong:
            problems.append(f"row {number}, {name}: {wrong}")
    if problems:
        raise AssessmentError(
            "\n  ".join([f"{source}: nothing was changed", *problems[:20]]), "Correct these rows."
        )
    return Sheet(source=source, scope=scope, entries=entries, bases=bases, documents=documents)


def guard_cell(text: str) -> str:
    """Keep a spreadsheet from taking a cell for a formula; `unguard_cell` undoes it."""
    return "'" + text if text.lstrip("'").startswith(_FORMULA_STARTS) else text


def unguard_cell(text: str) -> str:
    """Undo `guard_cell`."""
    text = text.replace("\r\n", "\n")
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA_STARTS) else text


def _control_row(control: Control, say: Messages) -> dict[str, str]:
    return {
        "id": control.id,
        "framework": control.framework,
        "citation": control.citation,
        "theme": control.theme,
        "severity": control.severity,
        "gate": control.gate.value if control.gate else "",
        "title": say.title(control),
        "question": say.question(control),
        "allowed": " ".join(a.value for a in allowed_answers(control)),
    }


def _entry_row(entry: Entry) -> dict[str, str]:
    return {
        "answer": entry.answer.value if entry.answer else "",
        "reason": entry.reason,
        "maturity": "" if entry.maturity is None else str(entry.maturity),
        **{name: _day_text(getattr(entry, name)) for name in _DATES},
        "author": entry.author or "",
        "owner": entry.owner or "",
        "documents": "\n".join(
            " | ".join([e.path, _day_text(e.effective), _day_text(e.expires), e.title])
            for e in entry.evidence
        ),
    }


def _day_text(day: dt.date | None) -> str:
    return day.isoformat() if day else ""


def _entry_fields(row: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"answer": _answer(row["answer"]), "reason": row.get("reason", "")}
    for name in ("author", "owner"):
        if row.get(name, "").strip():
            fields[name] = row[name].strip()
    for name in _DATES:
        if row.get(name, "").strip():
            fields[name] = _day(row[name], name).isoformat()
    if row.get("maturity", "").strip():
        text = row["maturity"].strip().removesuffix(".0")
        if text not in ("0", "1", "2", "3", "4", "5"):
            raise ValueError(f"maturity is {text!r}, not 0 to 5")
        fields["maturity"] = int(text)
    return fields


def _scope_fields(row: dict[str, str]) -> dict[str, Any]:
    answer = _answer(row["answer"])
    if answer not in (Answer.YES.value, Answer.NO.value):
        raise ValueError("a scope question is answered yes or no")
    fields: dict[str, Any] = {"applies": answer == Answer.YES.value, "reason": row.get("reason", "")}
    if row.get("author", "").strip():
        fields["author"] = row["author"].strip()
    if row.get("answered_on", "").strip():
        fields["answered_on"] = _day(row["answered_on"], "answered_on").isoformat()
    return fields


def _answer(text: str) -> str:
    """A spreadsheet may turn yes into TRUE, and people write capitals and spaces."""
    word = "_".join(text.strip().casefold().split())
    word = {"true": "yes", "false": "no", "n/a": "not_applicable", "na": "not_applicable"}.get(word, word)
    if word not in {a.value for a in Answer}:
        raise ValueError(f"the answer is {text.strip()[:40]!r}, not one of {', '.join(Answer)}")
    return word


def _day(text: str, what: str) -> dt.date:
    """ISO, or day.month.year as German spreadsheets write it. Slashes are ambiguous and refused."""
    clean = text.strip()
    for form in ("%Y-%m-%d", "%d.%m.%Y"):
        try:
            return dt.datetime.strptime(clean, form).date()
        except ValueError:
            continue
    raise ValueError(f"{what} is {clean[:20]!r}; write days like 2026-11-24")


def _documents(cell: str) -> tuple[DocumentNote, ...]:
    notes = []
    for line in cell.splitlines():
        if line.strip():
            path, effective, expires, title = (*(part.strip() for part in line.split("|", 3)), "", "", "")[:4]
            if not effective:
                raise ValueError(f"the document {path[:40]!r} needs the day from which it holds: path | day")
            until = _day(expires, "documents") if expires else None
            notes.append(DocumentNote(path, _day(effective, "documents"), until, title))
    return tuple(notes)


def _decode(data: bytes, source: str) -> str:
    """UTF-8 as we write it; UTF-16 and Windows-1252 as Excel may save it."""
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ["utf-16"] if utf16 else ["utf-8-sig", "cp1252"]:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssessmentError(f"{source}: its encoding is not known", "Save it as CSV UTF-8.")


def _rows(text: str, source: str) -> list[tuple[int, dict[str, str]]]:
    """The rows by column name, with their numbers as a spreadsheet shows them."""
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [n.strip() for n in next(reader, [])]
        _require_columns(names, source)
        rows = [
            (n, dict(zip(names, map(unguard_cell, cells), strict=False)))
            for n, cells in enumerate(reader, start=2)
        ]
    except csv.Error as wrong:
        raise AssessmentError(f"{source}: not readable as CSV: {wrong}", "Save it again as CSV.") from None
    if len(rows) > _MAX_ROWS:
        raise AssessmentError(f"{source}: more than {_MAX_ROWS} rows", "Choose the right file.")
    return rows


def _require_columns(names: list[str], source: str) -> None:
    missing = {"id", "answer"} - set(names)
    unknown = [n for n in names if n and n not in COLUMNS]
    if len(set(names)) != len(names) and not missing:
        raise AssessmentError(f"{source}: a column occurs twice", "Compare it with a fresh export.")
    if missing or unknown:
        said = [f"the column {n!r} is missing" for n in sorted(missing)]
        for name in unknown[:5]:
            near = get_close_matches(name, COLUMNS, n=1)
            said.append(
                f"the column {name[:40]!r} is unknown" + (f" (did you mean {near[0]!r}?)" if near else "")
            )
        raise AssessmentError(f"{source}: {'; '.join(said)}", "Compare it with a fresh export.")
