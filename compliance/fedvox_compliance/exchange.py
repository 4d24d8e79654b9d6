"""Answers as files for people: YAML for those who like text, CSV for those who work in spreadsheets.

Both carry the questions beside the answers, both can hold everybody's part or one owner's, and both come back by
`import_sheet`, all of it or nothing. Beside each answer stands the fingerprint of what it was when the file was written
(`base`), so that coming back is a merge and not an overwriting.

A CSV cell that a spreadsheet would take for a formula is written with a leading apostrophe and read back without it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedvox_compliance.assessment import Assessment, Entry, Evidence, ScopeAnswer
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.errors import AssessmentError, UsageError
from fedvox_compliance.evidence import copy_into_folder, inside, place_of
from fedvox_compliance.files import read_limited
from fedvox_compliance.merge import Merged, MergeReport, Side, copy_documents, merge_items
from fedvox_compliance.workspace import Workspace

MAX_SHEET_BYTES = 16 * 2**20


@dataclass(frozen=True)
class DocumentNote:
    """A document as a sheet names it: by path, without a hash."""

    path: str
    effective: dt.date
    expires: dt.date | None = None
    title: str = ""


@dataclass(frozen=True)
class Sheet:
    """What was read from a file.

    Attributes:
        source: the file, for messages.
        catalogue_sha256: the questions it was written for, where it says so.
        scope: statements by scope question, raw.
        entries: raw fields by control, as JSON values; nothing is validated yet.
        bases: fingerprints at the time of writing, by control or scope question.
        documents: by control, those named by path alone.
    """

    source: str
    catalogue_sha256: str | None = None
    scope: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    entries: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, tuple[DocumentNote, ...]] = field(default_factory=dict)


def owned_by(assessment: Assessment, catalogue: Catalogue, owner: str) -> tuple[str, ...]:
    """The controls that are assigned to somebody, in catalogue order.

    Raises:
        AssessmentError: nothing is assigned to that name.
    """
    wanted = " ".join(owner.split()).casefold()
    found = tuple(
        i
        for i in catalogue.controls
        if (e := assessment.entries.get(i)) and e.owner and " ".join(e.owner.split()).casefold() == wanted
    )
    if not found:
        names = sorted({e.owner for e in assessment.entries.values() if e.owner})
        raise AssessmentError(
            f"nothing is assigned to {owner!r}", f"Owners: {', '.join(names) or 'none yet; use `assign`'}."
        )
    return found


def read_sheet(path: Path) -> Sheet:
    """Read a YAML or CSV file; its ending decides which.

    Raises:
        AssessmentError: the file cannot be read or understood; every problem is named.
    """
    data = read_limited(path, MAX_SHEET_BYTES)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        from fedvox_compliance.exchange_yaml import parse_yaml

        return parse_yaml(data, source=str(path))
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        from fedvox_compliance.exchange_csv import parse_csv

        return parse_csv(data, source=str(path))
    raise AssessmentError(f"{path}: neither YAML nor CSV by its ending", "Use .yaml or .csv.")


def export_text(
    assessment: Assessment,
    catalogue: Catalogue,
    file: Path,
    *,
    only: Collection[str] | None = None,
    language: str = "en",
    delimiter: str = ",",
    force: bool = False,
) -> bytes:
    """What an export to `file` shall hold; its ending decides between YAML and CSV, `-` stands for YAML.

    Raises:
        UsageError: another ending or delimiter, or the file exists and `force` was not given.
    """
    if str(file) != "-" and file.exists() and not force:
        raise UsageError(f"{file}: exists already", "Choose another name, or give --force.")
    if delimiter not in (",", ";", "\t"):
        raise UsageError(f"the delimiter is {delimiter!r}", "Give a comma or a semicolon.")
    if str(file) == "-" or file.suffix.lower() in (".yaml", ".yml"):
        from fedvox_compliance.exchange_yaml import write_yaml

        return write_yaml(assessment, catalogue, only=only, language=language).encode("utf-8")
    if file.suffix.lower() == ".csv":
        from fedvox_compliance.exchange_csv import write_csv

        text = write_csv(assessment, catalogue, only=only, language=language, delimiter=delimiter)
        return text.encode("utf-8-sig")  # without the mark, Excel takes it for Windows-1252
    raise UsageError(f"{file}: neither YAML nor CSV by its ending", "Use .yaml or .csv.")


def import_sheet(
    workspace: Workspace,
    sheet: Sheet,
    *,
    author: str,
    prefer: Side | None = None,
    decided: Mapping[str, Side] | None = None,
    documents: Path | None = None,
) -> MergeReport:
    """Merge a sheet into an assessment. Conflicts are left as they are here and reported.

    Args:
        workspace: where it goes.
        sheet: what was read.
        author: who imports; also the author of answers that name none.
        prefer: whom to follow in conflicts; None leaves them open.
        decided: whom to follow in single conflicts.
        documents: a folder with the documents that the sheet names.

    Raises:
        AssessmentError: an entry cannot be used, or breaks a rule; every problem is named and nothing is changed.
    """
    if sheet.catalogue_sha256 not in (None, workspace.catalogue.sha256):
        raise AssessmentError(
            f"{sheet.source}: was written for other questions ({str(sheet.catalogue_sha256)[:12]})",
            "Export it again from this version, or `upgrade` the assessment.",
        )
    ours = workspace.reload()
    incoming: dict[str, Path] = {}
    entries = _validated_entries(workspace, sheet, author, documents, incoming)
    scope = _validated_scope(workspace, sheet, author)
    merged = merge_items(ours.entries, entries, sheet.bases, prefer=prefer, decided=decided)
    said = merge_items(ours.scope, scope, sheet.bases, prefer=prefer, decided=decided)
    missing = _bring_documents(workspace, merged.taken, incoming, documents)
    statements = {i: s for i, s in said.taken.items() if s is not None}
    workspace.apply(merged.taken, scope=statements, action="import", author=author)
    return MergeReport(merged, said, missing)


def _bring_documents(
    workspace: Workspace,
    taken: Mapping[str, Entry | None],
    incoming: Mapping[str, Path],
    documents: Path | None,
) -> tuple[str, ...]:
    """Copy the documents of what was taken over; return the paths of those that could not be found."""
    for path in {d.path for e in taken.values() if e for d in e.evidence} & set(incoming):
        copy_into_folder(workspace.folder, incoming[path])
    return copy_documents(taken, documents or workspace.folder, workspace.folder)


def parts_of(catalogue: Catalogue, only: Collection[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The scope questions and controls that a file shall hold: all, or some controls without scope."""
    if only is None:
        return tuple(catalogue.scope_questions), tuple(catalogue.controls)
    return (), tuple(i for i in catalogue.controls if i in only)


def _validated_entries(
    workspace: Workspace, sheet: Sheet, author: str, documents: Path | None, incoming: dict[str, Path]
) -> dict[str, Entry | None]:
    problems: list[str] = []
    found: dict[str, Entry | None] = {}
    for control_id, raw in sheet.entries.items():
        before = workspace.assessment.entries.get(control_id, Entry())
        try:
            workspace.catalogue.control(control_id)
            evidence = _evidence(sheet.documents.get(control_id), before, documents, incoming)
            found[control_id] = _entry(raw, before, evidence, author, workspace.today())
        except ValidationError as wrong:
            problems += [
                f"{control_id}: {'.'.join(map(str, e['loc']))}: {e['msg']}"
                for e in wrong.errors(include_url=False)
            ]
        except (TypeError, ValueError) as wrong:
            problems.append(f"{control_id}: {wrong}")
        except UsageError as wrong:
            problems.append(f"{control_id}: {wrong.message}")
    _raise_all(sheet, problems)
    return found


def _entry(
    raw: dict[str, Any], before: Entry, evidence: tuple[Evidence, ...] | None, author: str, today: dt.date
) -> Entry:
    """An entry from a sheet's fields. Owner, documents and confirmations that it does not carry are kept."""
    fields = dict(raw)
    if fields.get("answer") is not None:
        fields.setdefault("author", author)
        fields.setdefault("answered_on", today.isoformat())
    entry = Entry.model_validate_json(json.dumps(fields))
    if entry.answer is not None and _edited_in_place(entry, before):
        entry = _replaced(entry, author=author, answered_on=today)
    kept = {n: getattr(before, n) for n in ("owner", "evidence") if n not in raw}
    entry = _replaced(entry, **(kept | ({} if evidence is None else {"evidence": evidence})))
    if "second_person" in raw or "verification" in raw:
        return entry
    confirmed = _replaced(entry, second_person=before.second_person, verification=before.verification)
    return before if confirmed == before else entry


def _edited_in_place(entry: Entry, before: Entry) -> bool:
    """Whether the answer differs while author and day still are the former answer's, as in an edited sheet."""
    same_origin = (entry.author, entry.answered_on) == (before.author, before.answered_on)
    said = ("answer", "reason", "maturity", "due")
    return same_origin and any(getattr(entry, n) != getattr(before, n) for n in said)


def _replaced(entry: Entry, **fields: object) -> Entry:
    return Entry(**({n: getattr(entry, n) for n in Entry.model_fields} | fields))


def _evidence(
    notes: tuple[DocumentNote, ...] | None, before: Entry, documents: Path | None, incoming: dict[str, Path]
) -> tuple[Evidence, ...] | None:
    """The documents that a sheet names by path: known ones by their hash, new ones to be copied in later."""
    if notes is None:
        return None
    known = {e.path: e for e in before.evidence}
    found: list[Evidence] = []
    for note in notes:
        file = inside(documents, note.path) if documents is not None else None
        if note.path in known:
            path, digest, shared = note.path, known[note.path].sha256, known[note.path].shared_from
        elif file is not None:
            (path, digest), shared = place_of(file), None
            incoming[path] = file
        else:
            raise AssessmentError(f"the document {note.path!r} is not here; give its folder with --documents")
        found.append(
            Evidence(
                path=path,
                sha256=digest,
                title=note.title,
                effective=note.effective,
                expires=note.expires,
                shared_from=shared,
            )
        )
    return tuple(found)


def _validated_scope(workspace: Workspace, sheet: Sheet, author: str) -> dict[str, ScopeAnswer | None]:
    problems: list[str] = []
    found: dict[str, ScopeAnswer | None] = {}
    for name, raw in sheet.scope.items():
        if name not in workspace.catalogue.scope_questions:
            problems.append(f"{name}: this profile has no such scope question")
            continue
        fields = {"author": author, "answered_on": workspace.today().isoformat()} | raw
        try:
            found[name] = ScopeAnswer.model_validate_json(json.dumps(fields))
        except (ValidationError, TypeError, ValueError) as wrong:
            problems.append(f"{name}: {_short(wrong)}")
    _raise_all(sheet, problems)
    return found


def _short(wrong: Exception) -> str:
    if isinstance(wrong, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in wrong.errors(include_url=False)
        )
    return str(wrong)


def _raise_all(sheet: Sheet, problems: list[str]) -> None:
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise AssessmentError(
            "\n  ".join([f"{sheet.source}: {len(problems)} problem(s); nothing was changed", *shown]),
            "Correct the file and import it again.",
        )


__all__ = [
    "DocumentNote",
    "Merged",
    "Sheet",
    "import_sheet",
    "owned_by",
    "parts_of",
    "read_sheet",
]
