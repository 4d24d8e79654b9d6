"""Two ways to talk in a terminal: plain lines that every terminal and screen reader can do, and a styled one.

Both ask by numbers and single letters, on a line of its own, ended by Enter. Nothing moves about on the
screen, no arrow keys, nothing is told by colour alone.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap
import unicodedata
from contextlib import suppress
from typing import Literal, Protocol, TextIO

Style = Literal["plain", "heading", "question", "choice", "note", "problem"]
_WIDEST = 92
PLAIN_LETTERS = "fedvox_plain_letters"
"""Name of the error handler for output streams that do not know all letters."""
_SPELLED = str.maketrans(
    dict(zip("Łł–—−„“”‚‘’·×", "Ll---\"\"\"'''-x", strict=True))
    | {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "…": "..."}
)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """Spell what a stream's encoding lacks: ae for ä, the letter for an accented one, a question mark for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = unicodedata.normalize("NFKD", error.object[error.start : error.end].translate(_SPELLED))
    letters = "".join(c if c.isascii() else "?" for c in lacking if not unicodedata.combining(c))
    return letters, error.end


codecs.register_error(PLAIN_LETTERS, _in_plain_letters)


class EndOfInput(Exception):
    """The person closed the input (Ctrl-D), or the other end of a pipe is gone."""


class Terminal(Protocol):
    """What a conversation needs."""

    def say(self, text: str, style: Style = "plain") -> None:
        """Show some text."""

    def ask(self, prompt: str) -> str:
        """Show a prompt and return the line that was typed, without surrounding spaces.

        Raises:
            EndOfInput: nothing more will come.
        """

    def progress(self, done: int, total: int, text: str) -> None:
        """Say how far things are."""


class PlainTerminal:
    """Lines of text, nothing else."""

    def __init__(self) -> None:
        _tolerate_bad_bytes()

    def say(self, text: str, style: Style = "plain") -> None:
        """Show some text, wrapped where a person looks at it."""
        if style in ("heading", "question"):
            sys.stdout.write("\n")
        for line in text.split("\n"):
            sys.stdout.write(wrapped(line) + "\n")

    def ask(self, prompt: str) -> str:
        """Show a prompt and read a line."""
        return _read_line(prompt)

    def progress(self, done: int, total: int, text: str) -> None:  # noqa: ARG002
        """Say how far things are, in words."""
        self.say(text, "note")


class StyledTerminal:
    """The same lines with weight, colour and a bar, for those who see and like it."""

    def __init__(self) -> None:
        from rich.console import Console

        _tolerate_bad_bytes()
        self._console = Console(highlight=False, soft_wrap=False)
        self._styles = {
            "plain": "",
            "heading": "bold underline",
            "question": "bold",
            "choice": "cyan",
            "note": "dim",
            "problem": "bold red",
        }

    def say(self, text: str, style: Style = "plain") -> None:
        """Show some text. It is never read as markup, whoever wrote it."""
        from rich.text import Text

        if style in ("heading", "question"):
            self._console.print()
        self._console.print(Text(text, style=self._styles[style]), width=min(_WIDEST, self._console.width))

    def ask(self, prompt: str) -> str:
        """Show a prompt and read a line."""
        return _read_line(prompt)

    def progress(self, done: int, total: int, text: str) -> None:
        """Say how far things are, in words and as a bar."""
        cells = 30
        filled = cells * done // max(1, total)
        self.say(f"{'█' * filled}{'░' * (cells - filled)}  {text}", "note")


def is_capable() -> bool:
    """Whether a styled terminal would work here: a real terminal on both ends that knows more than lines."""
    return (
        sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    )


def wrapped(line: str, stream: TextIO | None = None) -> str:
    """A line broken at words where it is shown on a terminal; untouched for pipes and files."""
    if not (stream or sys.stdout).isatty():
        return line
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def _read_line(prompt: str) -> str:
    sys.stdout.flush()
    try:
        return input(f"{prompt} ").strip()
    except EOFError:
        sys.stdout.write("\n")
        raise EndOfInput from None


def _tolerate_bad_bytes() -> None:
    """A stray byte from a mistyped key or a wrong locale must not end a sitting."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, PLAIN_LETTERS)):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)
    if sys.stdin.isatty():
        with suppress(ImportError):  # not there on Windows; `input` works without
            import readline  # noqa: F401  (gives `input` line editing)
