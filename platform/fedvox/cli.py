"""`fedvox`: a thin door to the library.

Commands are imported when they are called, so that `fedvox --help` imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperCommand, TyperGroup

import fedvox
from fedvox.commands import CommandGroup
from fedvox.errors import FedvoxError

COMMANDS: dict[str, str] = {
    "backbones": "Compare backbones from scratch under one compute budget, and what pretraining adds.",
    "benchmark": "Run a third-party benchmark: scores, fairness checks, statistics, leaderboard.",
    "crossval": "Score trained folds on their held-out cases, choose configuration and postprocessing.",
    "curate": "Curate labels: models propose, checks find errors, people review, models retrain.",
    "demo": "Pretrain on the embedded MNI152 brain through a local Ray, and look at the result.",
    "doctor": "Check this machine: versions, devices, Ray, storage, what each environment variable does.",
    "evaluate": "Score a folder of predictions against references; nothing missing is dropped.",
    "forecast": "Forecast a patient's scan at any time from past scans, or train a model that does.",
    "finetune": "Fine-tune pretrained weights on a brick store with other channels, classes or patch.",
    "export": "Write a released model as ONNX or as a MONAI bundle, and check it.",
    "ingest": "Turn raw volumes (nnU-Net, Decathlon, manifest) into a brick store.",
    "lesion": "Lesions: segment what is marked, follow it through later scans, measure it.",
    "models": "List the backbones with their parameter counts.",
    "plan": "Plan spacing, patch, batch and topology for a data set and a memory, with reasons.",
    "predict": "Segment images with trained models, in this process or over Ray.",
    "pretrain": "Pretrain a backbone on a brick store, or resume where a run stopped.",
    "restore": "Restore an MR image from k-space, noise, few voxels or holes with a diffusion prior.",
    "status": "Show where a run is: step, loss, Dice, time left.",
    "submit": "Submit a job to Ray, follow it with a progress bar, and leave with its own exit code.",
}
"""Name -> help; each lives in `fedvox.commands.NAME`, as a function (or a `CommandGroup`) of that name."""

EPILOG = "Every command takes --debug, which shows tracebacks. Exit codes: 0 done, 1 failed, 2 wrong input."


class _LazyGroup(TyperGroup):
    """Imports a command's module only when that command is called or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


def _load(name: str) -> click.Command:
    found = getattr(importlib.import_module(f"fedvox.commands.{name}"), name)
    command = _group(found) if isinstance(found, CommandGroup) else _single(found)
    command.name = name
    return command


def _copyable(help_: str | None) -> str:
    """Help whose examples can be copied: one line each, however narrow the terminal."""
    paragraphs = inspect.cleandoc(help_ or "").split("\n\n")
    return "\n\n".join("\b\n" + p if "    " in p and "\b" not in p else p for p in paragraphs)


class _Command(TyperCommand):
    """A command with examples in its help."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = _copyable(self.help)
        super().format_help_text(ctx, formatter)

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")  # typer escapes for a renderer that is not used here


class _Group(TyperGroup):
    """A group with examples in its help."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = _copyable(self.help)
        super().format_help_text(ctx, formatter)


def _single(function: Callable[..., Any]) -> click.Command:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = getattr(function, "context_settings", None)
    app.command(cls=_Command, epilog=EPILOG, context_settings=settings)(function)
    return typer.main.get_command(app)


def _group(group: CommandGroup) -> click.Command:
    app = typer.Typer(
        cls=_Group,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog=EPILOG,
        help=group.help,
    )
    for function in group.functions:
        name = function.__name__.rstrip("_").replace("_", "-")  # `next_` is `next`
        app.command(name, cls=_Command, epilog=EPILOG)(function)
    return typer.main.get_command(app)


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EPILOG,
    help="Distributed pretraining of 3D medical segmentation backbones.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fedvox {fedvox.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Entry point of the `fedvox` command."""
    _run(typer.main.get_command(app))


def run_command(function: Callable[..., Any]) -> NoReturn:
    """Runs one command function as a program: what the scripts in `jobs/` do."""
    _run(_single(function))


def _run(command: click.Command) -> NoReturn:
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=debug, omit_repeated_times=False)],
    )
    for noisy in ("matplotlib", "fsspec", "s3fs", "botocore", "aiobotocore", "asyncio", "urllib3", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    leave_with_code(command, arguments, debug=debug)


def leave_with_code(
    command: click.Command,
    arguments: list[str],
    *,
    debug: bool,
    prog_name: str | None = None,
    expected: tuple[type[Exception], ...] = (FedvoxError,),
) -> NoReturn:
    """Runs a command and leaves the program: one line and the error's own exit code for what may go wrong.

    Args:
        command: that is run.
        arguments: of it, without `--debug`.
        debug: expected errors come with their traceback.
        prog_name: as help names the program.
        expected: errors with an `exit_code`, which are told without a traceback.
    """
    try:
        code = command.main(arguments, prog_name=prog_name, standalone_mode=False)
    except expected as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
