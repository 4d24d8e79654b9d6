"""One module a command of `fedvox`; each is a plain function that typer turns into a command line, or a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CommandGroup:
    """Commands under one name: `fedvox lesion track`.

    Args:
        help: of the group, with an example.
        functions: each is a command of its own name.
    """

    help: str
    functions: tuple[Callable[..., Any], ...]
