"""`fedvox-compliance`: the door. It knows the commands by name and opens a module only when its command is called.

A module named here holds `app = typer.Typer()` with its commands (or groups added by `add_typer`); what it needs beyond
typer it imports inside the commands. So `--help` stays as quick as typer itself, and a clinic's PC starts at once.

Results go to stdout, everything said about them to stderr. Exit codes, for all commands:

    0 done                    3 questions open          6 signature, hash or history does not hold
    1 an error of our own     4 below the threshold     7 expired
    2 wrong use or input      5 a gate is not passed    130 stopped by the user
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperGroup

from fedvox_compliance import __version__
from fedvox_compliance.errors import ComplianceError

typer.core.HAS_RICH = False  # help in plain lines for all commands, whatever is installed beside it

DISCLAIMER = (
    "Self-assessment aid. Not legal advice, not an audit, not a certification and no proof of compliance with any law "
    "or standard."
)


_STOPPED = 130


class _Command(NamedTuple):
    module: str
    section: str
    help: str


COMMANDS = {
    "new": _Command("cli_answers", "Answering", "Start an assessment in a folder."),
    "answer": _Command(
        "cli_answers", "Answering", "Answer the questions, one by one; stop and go on at any time."
    ),
    "set": _Command("cli_answers", "Answering", "Give one answer or one scope statement, without questions."),
    "show": _Command("cli_answers", "Answering", "Show one question with its answer."),
    "evidence": _Command("cli_evidence", "Answering", "Attach, detach and list documents."),
    "confirm": _Command("cli_evidence", "Answering", "Confirm answers as a second person."),
    "assign": _Command("cli_exchange", "Sharing the work", "Say who is to answer which questions."),
    "export": _Command(
        "cli_exchange", "Sharing the work", "Write answers to YAML or to a CSV sheet, all or one owner's."
    ),
    "import": _Command("cli_exchange", "Sharing the work", "Read answers back from YAML or CSV."),
    "merge": _Command("cli_exchange", "Sharing the work", "Bring together two copies of an assessment."),
    "upgrade": _Command(
        "cli_exchange", "Sharing the work", "Carry an assessment over to this version's questions."
    ),
    "check": _Command(
        "cli_score", "Looking at it", "Find contradictions, missing reasons, changed and expired evidence."
    ),
    "score": _Command("cli_score", "Looking at it", "Score the answers, explained to the last question."),
    "gaps": _Command("cli_score", "Looking at it", "List what raises the score most for the effort."),
    "sensitivity": _Command("cli_score", "Looking at it", "Show how far the score depends on the weights."),
    "history": _Command(
        "cli_score", "Looking at it", "List every change, and verify that none was tampered with."
    ),
    "frameworks": _Command(
        "cli_catalogue", "Looking at it", "List profiles, frameworks, questions and scope questions."
    ),
    "report": _Command("cli_report", "Reporting", "Write a report: HTML, PDF, JSON or OSCAL."),
    "diff": _Command("cli_report", "Reporting", "Compare an assessment on two dates, or two assessments."),
    "serve": _Command("cli_web", "Reporting", "Answer in a web form on this computer."),
    "keygen": _Command("cli_assurance", "Attesting", "Make an assessor's signing key."),
    "assess": _Command(
        "cli_assurance", "Attesting", "Draw a sample, look at the evidence, record what was found."
    ),
    "sign": _Command("cli_assurance", "Attesting", "Recompute the score and sign an attestation."),
    "verify": _Command("cli_assurance", "Attesting", "Verify an attestation against a trust store."),
    "trust": _Command("cli_assurance", "Attesting", "Manage the assessors' keys that are trusted."),
    "revoke": _Command("cli_assurance", "Attesting", "Withdraw one attestation by its serial."),
}


class LazyCommands(TyperGroup):
    """A group that imports a command's module when the command is called, and not for its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The command names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module that holds a command, and take it from there."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found: typer.Typer = import_module(f"fedvox_compliance.{entry.module}").app
        command = typer.main.get_group(found).commands.get(cmd_name)
        if command is not None:
            _complete(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands by section, from the table alone."""
        for section in dict.fromkeys(c.section for c in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(n, c.help) for n, c in COMMANDS.items() if c.section == section])


def _complete(command: click.Command) -> None:
    """Give a command, and those of its group, what all have in common.

    Every command takes `--no-input`, so that a script need not know which ones could ask. And arguments get their help
    back, which typer 0.20 loses under click 8.4 and later, where arguments have a help text of their own.
    """
    if isinstance(command, click.Group):
        for part in command.commands.values():
            _complete(part)
        return
    if not any("--no-input" in p.opts for p in command.params):
        never = "Never ask; this command never does."
        command.params.append(click.Option(["--no-input"], is_flag=True, expose_value=False, help=never))
    hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    for parameter in command.params:
        said = getattr(hints.get(parameter.name or ""), "__metadata__", ())
        if isinstance(parameter, TyperArgument) and said:
            parameter.help = said[0].help
    vars(command)["format_arguments"] = lambda *_: None  # click's own list of them; typer writes one as well


app = typer.Typer(
    cls=LazyCommands,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Answer what HIPAA, the GDPR and ISO/IEC 27001:2022 ask of a clinic in federated training, and see where you "
    f"stand.\n\n{DISCLAIMER}\n\nExample: fedvox-compliance new clinic-a --clinic 'Clinic A' --profile combined",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedvox-compliance {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback when something goes wrong."),
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _speak_plainly_where_needed()
    try:
        code = app(args=arguments, prog_name="fedvox-compliance", standalone_mode=False)
        if code == _STOPPED:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
        raise SystemExit(code if isinstance(code, int) else 0)
    except ComplianceError as error:
        if "--debug" in arguments:
            raise
        _report(error, as_json="--json" in arguments)
        raise SystemExit(error.exit_code) from None
    except click.ClickException as error:
        if "--json" in arguments:
            _write_json("UsageError", error.format_message(), "See the command's --help.", 2)
        error.show()
        raise SystemExit(2) from None
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("\nStopped. What was answered is saved.\n")
        raise SystemExit(_STOPPED) from None
    except BrokenPipeError:  # `| head` closed the pipe; that is no failure of ours
        raise SystemExit(0) from None
    except Exception as error:
        if "--debug" in arguments:
            raise
        sys.stderr.write(
            f"Error of the program itself ({type(error).__name__}: {error}). Nothing was changed by it.\n"
            "  -> Run again with --debug first, and report what it shows.\n"
        )
        raise SystemExit(1) from None


def _report(error: ComplianceError, *, as_json: bool) -> None:
    if as_json:
        _write_json(type(error).__name__, error.message, error.remedy, error.exit_code)
    sys.stderr.write(f"Error: {error}\n")


def _write_json(name: str, message: str, remedy: str, exit_code: int) -> None:
    import json

    found: dict[str, Any] = {
        "schema": "fedvox.error/1",
        "error": name,
        "message": message,
        "remedy": remedy,
        "exit_code": exit_code,
    }
    sys.stdout.write(json.dumps(found) + "\n")


def _speak_plainly_where_needed() -> None:
    """On a terminal or pipe that is not UTF-8, show what it lacks in its own letters instead of failing over it."""
    for stream in (sys.stdout, sys.stderr):
        if (stream.encoding or "").lower().replace("-", "") != "utf8" and hasattr(stream, "reconfigure"):
            from fedvox_compliance.terminal import PLAIN_LETTERS

            stream.reconfigure(errors=PLAIN_LETTERS)
