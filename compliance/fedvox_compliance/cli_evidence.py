"""`evidence` and `confirm`: what shows an answer, and who else has read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvox_compliance.cli_common import (
    AuthorOption,
    FolderArgument,
    JsonOption,
    LanguageOption,
    day_or_today,
    emit,
    parse_day,
    require_author,
)

app = typer.Typer()
_evidence = typer.Typer(no_args_is_help=True)
app.add_typer(
    _evidence, name="evidence", help="Attach, detach and list documents. Files stay in your clinic."
)

_ControlArgument = Annotated[str, typer.Argument(help="The control's id.", show_default=False)]
_Sha256Argument = Annotated[
    str, typer.Argument(help="The document's SHA-256, or its first 8 digits or more.", show_default=False)
]


@_evidence.command(
    epilog="Example: fedvox-compliance evidence add clinic-a GDPR.35.1 dpia.pdf --effective 2026-03-01"
)
def add(
    folder: FolderArgument,
    control: _ControlArgument,
    file: Annotated[Path, typer.Argument(help="The document; it is copied.", show_default=False)],
    effective: Annotated[
        str | None,
        typer.Option("--effective", help="Since when it holds; today if left out.", show_default=False),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", help="Until when it holds; three years if left out.", show_default=False),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="What it is.")] = "",
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Copy a document into the assessment's folder, hash it, and attach it to a control."""
    from fedvox_compliance.assessment import to_jsonable
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    document = Workspace.open(folder).add_evidence(
        control,
        file,
        author=require_author(author, no_input=True),
        effective=day_or_today(effective),
        expires=parse_day(expires, "--expires") if expires else None,
        title=title,
    )
    text = load_interface(language)("cli.attached", path=document.path, sha256=document.sha256)
    emit({"schema": "fedvox.evidence/1", "control": control, **to_jsonable(document)}, text, as_json=json)


@_evidence.command(epilog="Example: fedvox-compliance evidence remove clinic-a GDPR.35.1 3fa94c01")
def remove(
    folder: FolderArgument,
    control: _ControlArgument,
    sha256: _Sha256Argument,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Detach a document from a control. The file itself stays, and the history names it."""
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    digest = _only_match(sha256, [e.sha256 for e in space.entry(control).evidence], control)
    space.remove_evidence(control, digest, author=require_author(author, no_input=True))
    text = load_interface(language)("cli.detached", control=control)
    emit({"schema": "fedvox.evidence/1", "control": control, "removed": digest}, text, as_json=json)


@_evidence.command(name="list", epilog="Example: fedvox-compliance evidence list clinic-a --json")
def list_documents(folder: FolderArgument, language: LanguageOption = "en", json: JsonOption = False) -> None:
    """List all documents with the controls they are attached to, and whether each is still what was hashed."""
    from fedvox_compliance.evidence import inventory
    from fedvox_compliance.interface import format_date, load_interface
    from fedvox_compliance.workspace import Workspace

    space, say = Workspace.open(folder), load_interface(language)
    documents = inventory(space.assessment, space.folder)
    lines = [
        f"{d.sha256[:12]}  {say(f'evidence_state.{d.state}')}  {format_date(d.last_day, language)}  {d.path}"
        f"  ({', '.join(d.controls)})"
        for d in documents
    ]
    emit(
        {"schema": "fedvox.documents/1", "documents": [d.to_dict() for d in documents]},
        "\n".join(lines) or say("cli.no_documents"),
        as_json=json,
    )


@_evidence.command(epilog="Example: fedvox-compliance evidence suggest clinic-a GDPR.32.1.a")
def suggest(
    folder: FolderArgument,
    control: _ControlArgument,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Name documents of related controls that may show this one too. Nothing is attached by it."""
    from fedvox_compliance.assessment import to_jsonable
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.sharing import suggest_documents
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    found = suggest_documents(space.assessment, space.catalogue, control, on=space.today())
    value = [{"source": s.source, "by_nist": s.by_nist, **to_jsonable(s.document)} for s in found]
    lines = [f"{s.document.sha256[:12]}  {s.document.path}  ({s.source})" for s in found]
    text = "\n".join(lines) or load_interface(language)("cli.no_suggestions")
    emit({"schema": "fedvox.suggestions/1", "control": control, "suggestions": value}, text, as_json=json)


@_evidence.command(epilog="Example: fedvox-compliance evidence share clinic-a GDPR.32.1.a 3fa94c01")
def share(
    folder: FolderArgument,
    control: _ControlArgument,
    sha256: _Sha256Argument,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Attach a suggested document: you say that it shows this control too."""
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.sharing import suggest_documents
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    found = suggest_documents(space.assessment, space.catalogue, control, on=space.today(), limit=1000)
    digest = _only_match(sha256, [s.document.sha256 for s in found], control)
    chosen = next(s for s in found if s.document.sha256 == digest)
    space.attach_evidence(control, chosen.taken_over(), author=require_author(author, no_input=True))
    text = load_interface(language)("cli.attached", path=chosen.document.path, sha256=digest)
    emit({"schema": "fedvox.evidence/1", "control": control, "sha256": digest}, text, as_json=json)


@app.command(epilog="Example: fedvox-compliance confirm clinic-a GDPR.6.1 GDPR.9.2 --author 'B. Beck'")
def confirm(
    folder: FolderArgument,
    controls: Annotated[list[str], typer.Argument(help="The controls' ids.", show_default=False)],
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Confirm as a second person that you have read these answers and their documents."""
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    name = require_author(author, no_input=True)
    space.confirm_all(controls, name=name)
    text = load_interface(language)("cli.confirmed", count=len(controls), name=name)
    emit({"schema": "fedvox.confirmed/1", "controls": controls, "name": name}, text, as_json=json)


def _only_match(start: str, digests: list[str], control: str) -> str:
    from fedvox_compliance.errors import EvidenceError

    found = sorted({d for d in digests if len(start) >= 8 and d.startswith(start.lower())})
    if len(found) != 1:
        raise EvidenceError(
            f"{control}: {len(found)} documents begin with {start!r}",
            "Give at least 8 digits; see `evidence list`.",
        )
    return found[0]
