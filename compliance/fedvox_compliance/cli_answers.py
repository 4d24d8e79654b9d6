"""`new`, `answer`, `set` and `show`: starting an assessment and answering it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedvox_compliance.cli_common import (
    AuthorOption,
    FolderArgument,
    JsonOption,
    LanguageOption,
    NoInputOption,
    emit,
    parse_day,
    require_author,
    show_disclaimer,
    tell,
)

if TYPE_CHECKING:
    from fedvox_compliance.questionnaire import Only
    from fedvox_compliance.workspace import Workspace

app = typer.Typer()


@app.command(epilog="Example: fedvox-compliance new clinic-a --clinic 'Clinic A' --author 'A. Meyer'")
def new(
    folder: FolderArgument,
    clinic: Annotated[str, typer.Option("--clinic", help="The clinic's name.", show_default=False)],
    profile: Annotated[str, typer.Option("--profile", help="hipaa, gdpr, iso or combined.")] = "combined",
    overlay: Annotated[
        list[str] | None, typer.Option("--overlay", help="hipaa-nprm-2025, iso-clauses; may be repeated.")
    ] = None,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    no_input: NoInputOption = False,
    json: JsonOption = False,
) -> None:
    """Start an assessment in a new folder that only you can read."""
    from fedvox_compliance.interface import format_date, load_interface
    from fedvox_compliance.workspace import Workspace

    say = load_interface(language)
    show_disclaimer(language)
    space = Workspace.create(
        folder,
        clinic=clinic,
        profile=profile,
        overlays=tuple(overlay or ()),
        author=require_author(author, no_input=no_input),
    )
    catalogue = space.catalogue
    result = {
        "schema": "fedvox.new/1",
        "folder": str(folder),
        "assessment": space.assessment.id,
        "catalogue": {"version": catalogue.version, "sha256": catalogue.sha256},
        "controls": len(catalogue.controls),
        "gates": len(catalogue.gates),
    }
    text = say(
        "cli.new",
        folder=folder,
        controls=len(catalogue.controls),
        scope=len(catalogue.scope_questions),
        gates=len(catalogue.gates),
        version=catalogue.version,
        law=format_date(catalogue.law_as_of, language),
    )
    emit(result, text, as_json=json)


@app.command(epilog="Example: fedvox-compliance answer clinic-a --quick --language de")
def answer(
    folder: FolderArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Gates and critical controls only.")] = False,
    only: Annotated[str, typer.Option("--only", help="all, open, expired or undocumented.")] = "all",
    theme: Annotated[str | None, typer.Option("--theme", help="One theme only.", show_default=False)] = None,
    framework: Annotated[
        str | None, typer.Option("--framework", help="One framework only.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option("--owner", help="One owner's part only.", show_default=False)
    ] = None,
    maturity: Annotated[
        bool, typer.Option("--maturity", help="Ask for the maturity, 0 to 5, as well.")
    ] = False,
    documents: Annotated[bool, typer.Option("--documents/--no-documents", help="Ask for documents.")] = True,
    rich: Annotated[
        bool, typer.Option("--rich/--plain", help="Styled prompts where the terminal can.")
    ] = False,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    no_input: NoInputOption = False,
    json: JsonOption = False,
) -> None:
    """Answer the questions one by one, each saved as you give it. Stop with q and go on later where you were."""
    from fedvox_compliance.dialogue import Asking, Dialogue
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.questionnaire import Selection
    from fedvox_compliance.terminal import PlainTerminal, StyledTerminal, is_capable
    from fedvox_compliance.workspace import Workspace

    say = load_interface(language)
    space = Workspace.open(folder)
    selection = Selection(
        quick,
        _only(only),
        _theme(space.catalogue.themes, theme),
        _framework(tuple(space.catalogue.frameworks), framework),
        _owner(space, owner),
    )
    if not no_input:
        show_disclaimer(language)
        asking = Asking(require_author(author), selection, maturity, documents)
        if rich and not is_capable():
            tell(say("cli.not_capable"))
        terminal = StyledTerminal() if rich and is_capable() else PlainTerminal()
        Dialogue(space, terminal, say, asking).run()
    _summarise(space, language, as_json=json)


def _only(text: str) -> Only:
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.questionnaire import Only as Wanted

    try:
        return Wanted(text)
    except ValueError:
        raise UsageError(f"--only is {text!r}", f"Choose one of {', '.join(Wanted)}.") from None


def _theme(themes: tuple[str, ...], text: str | None) -> str | None:
    from fedvox_compliance.errors import UsageError

    if text is not None and text not in themes:
        raise UsageError(f"there is no theme {text!r}", f"Choose one of {', '.join(themes)}.")
    return text


def _framework(frameworks: tuple[str, ...], text: str | None) -> str | None:
    from fedvox_compliance.errors import UsageError

    if text is not None and text not in frameworks:
        raise UsageError(f"there is no framework {text!r}", f"Choose one of {', '.join(frameworks)}.")
    return text


def _owner(space: Workspace, text: str | None) -> str | None:
    from fedvox_compliance.exchange import owned_by

    if text is not None:
        owned_by(space.assessment, space.catalogue, text)  # refuses an owner of nothing
    return text


def _summarise(space: Workspace, language: str, *, as_json: bool) -> None:
    """Where the assessment stands; leaves with exit code 3 while questions are open."""
    from fedvox_compliance.score_text import describe_standing
    from fedvox_compliance.scoring import score

    report = score(space.assessment, space.catalogue, on=space.today())
    emit(report.to_dict(), describe_standing(report, language), as_json=as_json)
    if not report.complete:
        raise typer.Exit(3)


@app.command(name="set", epilog="Example: fedvox-compliance set clinic-a GDPR.6.1 yes --author 'A. Meyer'")
def set_answer(
    folder: FolderArgument,
    what: Annotated[str, typer.Argument(help="A control, or scope.NAME.", show_default=False)],
    value: Annotated[
        str,
        typer.Argument(
            help="yes, partly, no, planned, alternative, not_applicable; or clear.", show_default=False
        ),
    ],
    reason: Annotated[str, typer.Option("--reason", help="Needed for alternative and not_applicable.")] = "",
    maturity: Annotated[
        int | None, typer.Option("--maturity", min=0, max=5, help="0 to 5.", show_default=False)
    ] = None,
    due: Annotated[
        str | None, typer.Option("--due", help="For planned: until when.", show_default=False)
    ] = None,
    review_on: Annotated[
        str | None, typer.Option("--review-on", help="When to look again.", show_default=False)
    ] = None,
    author: AuthorOption = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Give one answer or one scope statement. Documents stay; confirmations of a former answer do not."""
    from fedvox_compliance.assessment import Answer, to_jsonable
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    say = load_interface(language)
    space = Workspace.open(folder)
    name = require_author(author, no_input=True)
    if what.startswith("scope."):
        if value not in ("yes", "no"):
            raise UsageError(f"a scope statement is yes or no, not {value!r}", "Give yes or no.")
        space.state_scope(what.removeprefix("scope."), value == "yes", author=name, reason=reason)
        entry: dict[str, object] = {"applies": value == "yes"}
    elif value == "clear":
        space.clear(what, author=name)
        entry = {}
    else:
        if value not in {a.value for a in Answer}:
            raise UsageError(f"there is no answer {value!r}", f"Choose one of {', '.join(Answer)}, or clear.")
        entry = to_jsonable(
            space.answer(
                what,
                Answer(value),
                author=name,
                reason=reason,
                maturity=maturity,
                due=parse_day(due, "--due") if due else None,
                review_on=parse_day(review_on, "--review-on") if review_on else None,
            )
        )
    emit({"schema": "fedvox.set/1", "id": what, "entry": entry}, say("cli.set", what=what), as_json=json)


@app.command(epilog="Example: fedvox-compliance show clinic-a HIPAA.164.312.a.2.iv")
def show(
    folder: FolderArgument,
    control: Annotated[str, typer.Argument(help="The control's id.", show_default=False)],
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Show one question with guidance, its answer, and what that is worth today."""
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.score_text import control_to_dict, describe_control
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    space.catalogue.control(control)
    emit(
        control_to_dict(space, control),
        describe_control(space, control, load_interface(language)),
        as_json=json,
    )
