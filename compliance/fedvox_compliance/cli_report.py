"""`report` and `diff`: what an assessment looks like, and what has changed in it."""

from __future__ import annotations

import datetime as dt
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvox_compliance.cli_common import (
    FolderArgument,
    JsonOption,
    LanguageOption,
    OnOption,
    day_or_today,
    emit,
    parse_day,
    show_disclaimer,
    tell,
)

if TYPE_CHECKING:
    from fedvox_compliance.assessment import Assessment
    from fedvox_compliance.catalogue import Catalogue
    from fedvox_compliance.diff import Diff
    from fedvox_compliance.messages import Messages
    from fedvox_compliance.report import ReportView

app = typer.Typer(rich_markup_mode=None)


class Form(StrEnum):
    """The forms of a report."""

    HTML = "html"
    PDF = "pdf"
    JSON = "json"
    OSCAL = "oscal"


_SUFFIX = {Form.HTML: ".html", Form.PDF: ".pdf", Form.JSON: ".json", Form.OSCAL: ".oscal.json"}


@app.command(epilog="Example: fedvox-compliance report clinic-a --format html -o clinic-a.html")
def report(
    folder: FolderArgument,
    form: Annotated[Form, typer.Option("--format", "-f", help="html, pdf, json or oscal.")] = Form.HTML,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; - for stdout.", show_default=False)
    ] = None,
    on: OnOption = None,
    language: LanguageOption = "en",
) -> None:
    """Write a report: HTML for screen and paper, PDF, JSON, or OSCAL assessment results."""
    from fedvox_compliance.files import write_atomic
    from fedvox_compliance.report import build_view
    from fedvox_compliance.scoring import score
    from fedvox_compliance.workspace import Workspace

    space, day = Workspace.open(folder), day_or_today(on)
    scored = score(space.assessment, space.catalogue, on=day)
    view = build_view(space.assessment, space.catalogue, scored, language=language, folder=folder)
    data = _render(view, form)
    if str(output) == "-":
        sys.stdout.buffer.write(data)
        return
    target = output or Path(f"{folder.resolve().name}-{day}{_SUFFIX[form]}")
    write_atomic(target, data)  # mode 0600: a report lists a clinic's weaknesses
    tell(f"{target}: {view.headline} ({view.self_assessed}). {view.disclaimer}")


def _render(view: ReportView, form: Form) -> bytes:
    from fedvox_compliance.report import render_html, render_json, render_oscal

    if form is Form.PDF:
        from fedvox_compliance.report.pdf import render_pdf

        return render_pdf(view)
    renderers = {Form.HTML: render_html, Form.JSON: render_json, Form.OSCAL: render_oscal}
    return renderers[form](view).encode("utf-8")


@app.command(
    epilog="Examples: fedvox-compliance diff clinic-a --from 2026-05-01; fedvox-compliance diff last-year this-year"
)
def diff(
    before: Annotated[Path, typer.Argument(help="The assessment, or the older of two.", show_default=False)],
    after: Annotated[Path | None, typer.Argument(help="The newer one.", show_default=False)] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Compare with the state on this day.", show_default=False)
    ] = None,
    on: OnOption = None,
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """Compare an assessment on two dates, or two assessments, and say what each change did to the score."""
    from fedvox_compliance.diff import compare, diff_to_dict
    from fedvox_compliance.errors import UsageError

    if after is None and since is None:
        raise UsageError(
            "there is nothing to compare with", "Give a second assessment, or --from 2026-05-01."
        )
    day = day_or_today(on)
    earlier_day = parse_day(since, "--from") if since else day
    earlier = _state(before, earlier_day if since else None)
    later = _state(after or before, day if on else None)
    catalogue = _catalogue(later)
    found = compare(earlier, later, catalogue, before_on=earlier_day, after_on=day)
    show_disclaimer(language)
    emit(diff_to_dict(found), _diff_text(found, language), as_json=as_json)


def _state(path: Path, day: dt.date | None) -> Assessment:
    from fedvox_compliance.diff import state_on
    from fedvox_compliance.files import load_assessment

    return state_on(path, day) if day is not None and path.is_dir() else load_assessment(path)


def _catalogue(assessment: Assessment) -> Catalogue:
    from fedvox_compliance.catalogue import load_catalogue

    return load_catalogue(assessment.profile, assessment.overlays)


def _diff_text(found: Diff, language: str) -> str:
    from fedvox_compliance.interface import format_date, format_number, load_interface

    say = load_interface(language)

    def points(value: float) -> str:
        return ("+" if value >= 0 else "−") + format_number(abs(value), language, 4)

    lines = [
        say("diff.title", clinic=found.after.clinic),
        say(
            "diff.between",
            before=format_date(found.before.on, language),
            after=format_date(found.after.on, language),
        ),
        say(
            "diff.score",
            before=format_number(found.before.overall, language),
            after=format_number(found.after.overall, language),
            delta=points(found.overall),
        ),
        say("report.self_assessed", assurance=say(f"assurance.{found.after.assurance.label}")),
    ]
    lines += [f"  {name}: {points(found.framework(name))}" for name in found.after.frameworks]
    lines += [f"{s.question}: {_stated(s.before, say)} -> {_stated(s.after, say)}" for s in found.scope]
    for change in found.changes:
        was, now = (
            say(f"answer.{c.answer.value}" if c.answer else "answer.none")
            for c in (change.before, change.after)
        )
        what = f"{was} -> {now}" if was != now else ", ".join(change.fields)
        unit = say("diff.unit", framework=change.framework)
        lines.append(
            f"{points(change.points)} {unit}  {change.control}  {say(f'diff.{change.kind.value}')}  {what}".rstrip()
        )
    return "\n".join(lines if found.changes or found.scope else [*lines[:4], say("diff.none")])


def _stated(value: bool | None, say: Messages) -> str:
    return say("web.open" if value is None else "web.yes" if value else "web.no")
