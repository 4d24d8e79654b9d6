"""`assign`, `export`, `import`, `merge` and `upgrade`: several people, several files, one assessment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvox_compliance.cli_common import (
    AuthorOption,
    FolderArgument,
    JsonOption,
    LanguageOption,
    emit,
    require_author,
    tell,
)

if TYPE_CHECKING:
    from fedvox_compliance.merge import MergeReport, Side
    from fedvox_compliance.workspace import Workspace

app = typer.Typer()

_PreferOption = Annotated[
    str | None,
    typer.Option(
        "--prefer",
        help="In conflicts follow ours or theirs; left out, they are reported.",
        show_default=False,
    ),
]
_TakeOption = Annotated[
    list[str] | None,
    typer.Option("--take", help="Decide one conflict: GDPR.6.1=theirs; may be repeated.", show_default=False),
]


@app.command(
    epilog="Example: fedvox-compliance assign clinic-a 'IT department' --theme network --author 'A. Meyer'"
)
def assign(
    folder: FolderArgument,
    owner: Annotated[str, typer.Argument(help="Who is to answer; a dash takes it back.", show_default=False)],
    controls: Annotated[list[str] | None, typer.Argument(help="Controls' ids.", show_default=False)] = None,
    theme: Annotated[
        list[str] | None, typer.Option("--theme", help="All controls of a theme; may be repeated.")
    ] = None,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Say who in the clinic is to answer some questions."""
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    unknown = [t for t in theme or () if t not in space.catalogue.themes]
    if unknown:
        raise UsageError(f"there is no theme {unknown[0]!r}", f"Themes: {', '.join(space.catalogue.themes)}.")
    chosen = list(dict.fromkeys([*(controls or ()), *_of_themes(space, theme or [])]))
    if not chosen:
        raise UsageError("no controls were named", "Give ids or --theme.")
    space.assign(chosen, None if owner == "-" else owner, author=require_author(author, no_input=True))
    text = load_interface(language)("cli.assigned", count=len(chosen), owner=owner)
    emit({"schema": "fedvox.assigned/1", "owner": owner, "controls": chosen}, text, as_json=json)


def _of_themes(space: Workspace, themes: list[str]) -> list[str]:
    return [c.id for c in space.catalogue.controls.values() if c.theme in themes]


@app.command(epilog="Example: fedvox-compliance export clinic-a it.csv --owner 'IT department' --language de")
def export(
    folder: FolderArgument,
    file: Annotated[
        Path, typer.Argument(help="A .yaml or .csv file, or - for stdout (YAML).", show_default=False)
    ],
    owner: Annotated[
        str | None, typer.Option("--owner", help="One owner's part only.", show_default=False)
    ] = None,
    delimiter: Annotated[
        str, typer.Option("--delimiter", help="CSV: comma or semicolon (German Excel).")
    ] = ",",
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Write questions and answers to a file for people to work in."""
    from fedvox_compliance.exchange import export_text, owned_by
    from fedvox_compliance.files import load_assessment, write_atomic
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    only = owned_by(space.assessment, space.catalogue, owner) if owner else None
    data = export_text(
        load_assessment(folder),
        space.catalogue,
        file,
        only=only,
        language=language,
        delimiter=delimiter,
        force=force,
    )
    if str(file) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)  # UTF-8 like every file, whatever the terminal's letters are
        return
    write_atomic(file, data)
    count = len(space.catalogue.controls) if only is None else len(only)
    text = load_interface(language)("cli.exported", count=count, file=file)
    emit({"schema": "fedvox.exported/1", "file": str(file), "controls": count}, text, as_json=json)


@app.command(name="import", epilog="Example: fedvox-compliance import clinic-a it.csv --documents it-files/")
def import_answers(
    folder: FolderArgument,
    files: Annotated[list[Path], typer.Argument(help="YAML or CSV files.", show_default=False)],
    documents: Annotated[
        Path | None, typer.Option("--documents", help="Where the named documents lie.", show_default=False)
    ] = None,
    prefer: _PreferOption = None,
    take: _TakeOption = None,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Read answers from files. What somebody changed here meanwhile is a conflict, reported and left as it is."""
    from fedvox_compliance.exchange import import_sheet, read_sheet
    from fedvox_compliance.workspace import Workspace

    side, decided = _sides(prefer, take)
    space, name = Workspace.open(folder), require_author(author, no_input=True)
    _require_known(space, decided)
    sheets = [read_sheet(file) for file in files]  # all are readable before the first is taken in
    reports = [
        import_sheet(space, sheet, author=name, prefer=side, decided=decided, documents=documents)
        for sheet in sheets
    ]
    _report(dict(zip(map(str, files), reports, strict=True)), language, as_json=json)


@app.command(
    epilog="Example: fedvox-compliance merge clinic-a copy-of-clinic-a --prefer theirs --author 'A. Meyer'"
)
def merge(
    folder: FolderArgument,
    other: Annotated[
        Path, typer.Argument(help="A copy of the folder that was worked on.", show_default=False)
    ],
    prefer: _PreferOption = None,
    take: _TakeOption = None,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Bring the work done in a copy of the folder back into it; conflicts are reported and left."""
    from fedvox_compliance.merge import merge_folders
    from fedvox_compliance.workspace import Workspace

    side, decided = _sides(prefer, take)
    space = Workspace.open(folder)
    _require_known(space, decided)
    report = merge_folders(
        space, other, author=require_author(author, no_input=True), prefer=side, decided=decided
    )
    _report({str(other): report}, language, as_json=json)


@app.command(epilog="Example: fedvox-compliance upgrade clinic-a --profile combined --author 'A. Meyer'")
def upgrade(
    folder: FolderArgument,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Change the profile as well.", show_default=False)
    ] = None,
    overlay: Annotated[
        list[str] | None,
        typer.Option("--overlay", help="Change the overlays; none for no overlay.", show_default=False),
    ] = None,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Carry answers over to this version's questions. Confirmations were given to the former ones and end."""
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.upgrade import upgrade_folder

    overlays = None if overlay is None else tuple(o for o in overlay if o != "none")
    done = upgrade_folder(
        folder, author=require_author(author, no_input=True), profile=profile, overlays=overlays
    )
    say = load_interface(language)
    text = say("cli.upgraded", kept=done.kept, dropped=len(done.dropped), ended=done.confirmations_ended)
    emit(
        {"schema": "fedvox.upgraded/1", **done.to_dict()},
        text if done.changed else say("cli.up_to_date"),
        as_json=json,
    )


def _sides(prefer: str | None, take: list[str] | None) -> tuple[Side | None, dict[str, Side]]:
    from fedvox_compliance.errors import UsageError

    pairs = [t.rpartition("=") for t in take or ()]
    wrong = [
        s
        for s in ([prefer] if prefer else []) + [side for _, _, side in pairs]
        if s not in ("ours", "theirs")
    ]
    if wrong:
        raise UsageError(
            f"{wrong[0]!r} is no side", "Give ours or theirs; --take takes ID=ours or ID=theirs."
        )
    decided: dict[str, Side] = {where: "ours" if side == "ours" else "theirs" for where, _, side in pairs}
    return ("ours" if prefer == "ours" else "theirs") if prefer else None, decided


def _require_known(space: Workspace, decided: dict[str, Side]) -> None:
    """A conflict that is decided by a mistyped id would silently stay open."""
    for where in decided:
        name = where.removeprefix("scope.")
        if where == name or name not in space.catalogue.scope_questions:
            space.catalogue.control(where)


def _report(reports: dict[str, MergeReport], language: str, *, as_json: bool) -> None:
    """Say what was taken and what is left to decide; leaves with exit code 3 if something is."""
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.merge_text import describe_merge, merge_to_dict

    say = load_interface(language)
    text = "\n".join(describe_merge(source, report, say) for source, report in reports.items())
    value = {"schema": "fedvox.merge/1", "merged": [merge_to_dict(s, r) for s, r in reports.items()]}
    emit(value, text, as_json=as_json)
    conflicts = sum(r.conflicts for r in reports.values())
    if conflicts:
        tell(say("cli.conflicts_left", count=conflicts))
        raise typer.Exit(3)
