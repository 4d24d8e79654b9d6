"""What the commands share: the same option with the same meaning everywhere, and one way out for results."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from fedvox_compliance.errors import UsageError

FolderArgument = Annotated[Path, typer.Argument(help="The assessment's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
LanguageOption = Annotated[
    str,
    typer.Option(
        "--language", "-l", envvar="FEDVOX_LANGUAGE", help="en or de; answers in files stay the same."
    ),
]
AuthorOption = Annotated[
    str | None,
    typer.Option(
        "--author", envvar="FEDVOX_AUTHOR", help="Your name, recorded with every change.", show_default=False
    ),
]
OnOption = Annotated[
    str | None,
    typer.Option("--on", help="The day it holds for, YYYY-MM-DD; today if left out.", show_default=False),
]
NoInputOption = Annotated[bool, typer.Option("--no-input", help="Never ask; fail instead.")]


def parse_day(text: str, what: str) -> dt.date:
    """Read a date.

    Raises:
        UsageError: it is not written like 2026-11-24.
    """
    try:
        return dt.date.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{what}: {text!r} is no date", "Write it like 2026-11-24.") from None


def day_or_today(text: str | None) -> dt.date:
    """The day of an `--on` option, or today."""
    return dt.datetime.now().astimezone().date() if text is None else parse_day(text, "--on")


def require_author(author: str | None, *, no_input: bool = False) -> str:
    """The author's name, asked for on a terminal if it was not given.

    Raises:
        UsageError: it was not given, and nobody can be asked.
    """
    if author and author.strip():
        return author.strip()
    if no_input or not sys.stdin.isatty():
        raise UsageError("who does this is not said", "Give --author 'Your Name', or set FEDVOX_AUTHOR.")
    sys.stderr.write("Your name (recorded with every change): ")
    sys.stderr.flush()
    name = sys.stdin.readline().strip()
    if not name:
        raise UsageError("no name was given", "Give --author 'Your Name'.")
    return name


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Write a result to stdout, as JSON or as text for people."""
    if as_json:
        all_letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        sys.stdout.write(json.dumps(value, ensure_ascii=not all_letters, indent=1) + "\n")
    else:
        _write(sys.stdout, text.rstrip("\n"))


def tell(text: str) -> None:
    """Say something about the work on stderr, so that it never mixes with a result."""
    _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    from fedvox_compliance.terminal import wrapped

    stream.write("".join(wrapped(line, stream) + "\n" for line in text.split("\n")))


def show_disclaimer(language: str) -> None:
    """Say what this is not, before the first result and never in the way of it."""
    from fedvox_compliance.messages import load_messages

    tell(load_messages(language)("disclaimer") + "\n")
