"""`check`, `score`, `gaps`, `sensitivity` and `history`: looking at an assessment without changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedvox_compliance.cli_common import (
    FolderArgument,
    JsonOption,
    LanguageOption,
    OnOption,
    day_or_today,
    emit,
    show_disclaimer,
    tell,
)

if TYPE_CHECKING:
    from fedvox_compliance.checks import Finding
    from fedvox_compliance.score_report import ScoreReport

app = typer.Typer()


@app.command(epilog="Example: fedvox-compliance check clinic-a --strict")
def check(
    folder: FolderArgument,
    on: OnOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors do.")] = False,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Find contradictions, missing reasons, missing or changed evidence, and what has expired.

    Leaves with 6 if history or evidence was changed outside the program, 2 if an answer cannot stand, 7 if only
    something expired, and 0 otherwise; hints and, without --strict, contradictions do not change it.
    """
    from fedvox_compliance.checks import check as find
    from fedvox_compliance.finding_text import describe_findings, findings_to_dict
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.workspace import Workspace

    space, day = Workspace.open(folder), day_or_today(on)
    found = find(space.assessment, space.catalogue, on=day, folder=space.folder)
    emit(findings_to_dict(found, day), describe_findings(found, load_interface(language)), as_json=json)
    code = exit_code_of(found, strict=strict)
    if code:
        raise typer.Exit(code)


def exit_code_of(findings: tuple[Finding, ...], *, strict: bool) -> int:
    """What `check` leaves with."""
    from fedvox_compliance.checks import Level, Topic

    serious = [f for f in findings if f.level is Level.ERROR or (strict and f.level is Level.WARNING)]
    if any(f.topic is Topic.INTEGRITY for f in serious):
        return 6
    if any(f.topic is not Topic.EXPIRY for f in serious):
        return 2
    expired = [f for f in findings if f.topic is Topic.EXPIRY and f.level is not Level.HINT]
    return 7 if expired else 0


@app.command(epilog="Example: fedvox-compliance score clinic-a --explain --require eligible --threshold 0.5")
def score(
    folder: FolderArgument,
    on: OnOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show each question's part.")] = False,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0.0, max=1.0, help="Leave with 4 below it.", show_default=False),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            help="eligible (else 5), complete (else 3), current (else 7); may be repeated.",
            show_default=False,
        ),
    ] = None,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Score the answers as the clinic gave them: self-assessed, explained down to each question.

    Without --threshold and --require it leaves with 0 whatever the score. Where several are missed, the exit code is
    the first of 5, 3, 7, 4.
    """
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.score_text import describe_score
    from fedvox_compliance.scoring import score as compute
    from fedvox_compliance.workspace import Workspace

    unknown = set(require or ()) - {"eligible", "complete", "current"}
    if unknown:
        raise UsageError(f"--require {unknown.pop()!r}", "Choose eligible, complete or current.")
    if threshold is not None and not 0 <= threshold <= 1:  # nan passes the option's own limits
        raise UsageError(f"--threshold is {threshold}", "Give a number from 0 to 1.")
    show_disclaimer(language)
    space = Workspace.open(folder)
    report = compute(space.assessment, space.catalogue, on=day_or_today(on))
    from fedvox_compliance.interface import load_interface

    say = load_interface(language)
    value = report.to_dict(explain=explain) | {"disclaimer": say("disclaimer")}
    emit(value, describe_score(report, space.catalogue, say, explain=explain), as_json=json)
    code, why = _missed(report, set(require or ()), threshold)
    if code:
        tell(say(why))
        raise typer.Exit(code)


def _missed(report: ScoreReport, required: set[str], threshold: float | None) -> tuple[int, str]:
    if "eligible" in required and not report.eligible:
        return 5, "cli.missed_eligible"
    if "complete" in required and not report.complete:
        return 3, "cli.missed_complete"
    if "current" in required and report.expired_controls:
        return 7, "cli.missed_current"
    if threshold is not None and report.overall < threshold:
        return 4, "cli.missed_threshold"
    return 0, ""


@app.command(epilog="Example: fedvox-compliance gaps clinic-a --limit 20")
def gaps(
    folder: FolderArgument,
    on: OnOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many steps to show.")] = 25,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """List what to do next: gates first, then what raises the score most for a day's work."""
    from fedvox_compliance.gap_text import describe_plan, plan_to_dict
    from fedvox_compliance.gaps import plan
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.scoring import score as compute
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    report = compute(space.assessment, space.catalogue, on=day_or_today(on))
    steps = plan(report, space.catalogue, limit=limit)
    say = load_interface(language)
    emit(plan_to_dict(report, steps), describe_plan(report, steps, space.catalogue, say), as_json=json)


@app.command(epilog="Example: fedvox-compliance sensitivity clinic-a --draws 1000 --seed 7")
def sensitivity(
    folder: FolderArgument,
    on: OnOption = None,
    draws: Annotated[int, typer.Option("--draws", min=20, max=20000, help="Random sets of weights.")] = 400,
    spread: Annotated[
        float, typer.Option("--spread", min=1.01, max=100.0, help="Largest factor of a weight.")
    ] = 2.0,
    seed: Annotated[int, typer.Option("--seed", help="Names the draws.")] = 0,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """Show how far the score and its tier hang on the weights, which are our judgement and not the law's."""
    import dataclasses

    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.gap_text import describe_sensitivity
    from fedvox_compliance.interface import load_interface
    from fedvox_compliance.sensitivity import sensitivity as compute
    from fedvox_compliance.workspace import Workspace

    space = Workspace.open(folder)
    if spread != spread:  # nan passes the option's own limits
        raise UsageError("--spread is nan", "Give a number from 1.01 to 100.")
    found = compute(
        space.assessment, space.catalogue, on=day_or_today(on), draws=draws, spread=spread, seed=seed
    )
    value = {"schema": "fedvox.sensitivity/1", **dataclasses.asdict(found)}
    emit(value, describe_sensitivity(found, load_interface(language)), as_json=json)


@app.command(epilog="Example: fedvox-compliance history clinic-a --verify")
def history(
    folder: FolderArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Replay all of it and compare; else 6.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of the last changes to list.")] = 20,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """List who changed what and when, and verify that nothing was altered."""
    from fedvox_compliance.history import read_lines, verify_history
    from fedvox_compliance.interface import load_interface

    say = load_interface(language)
    lines, _ = read_lines(folder)
    if verify:
        verify_history(folder)
    shown = lines[-limit:]
    text = "\n".join(
        f"{line.n:5d}  {line.at:%Y-%m-%d %H:%M}  {line.by}  {say(f'action.{line.action}')}  "
        + ", ".join(c.target for c in line.changes[:4] if c.target)
        + (f" +{len(line.changes) - 4}" if len(line.changes) > 4 else "")
        for line in shown
    )
    tail = say("cli.history_verified" if verify else "cli.history_read", count=len(lines))
    value = {
        "schema": "fedvox.history/1",
        "length": len(lines),
        "head": lines[-1].sha256 if lines else "0" * 64,
        "verified": verify,
        "lines": [line.model_dump(mode="json") for line in shown],
    }
    emit(value, f"{text}\n{tail}", as_json=json)
