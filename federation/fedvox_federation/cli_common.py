"""What the commands share: one way to describe options, one way out for results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import typer

EPILOG = (
    "Every command takes --debug, which shows tracebacks. Exit codes: 0 done, 1 failed, 2 wrong input, "
    "3 privacy budget exhausted, 4 unsafe model, 5 audit failed, 6 damaged ledger."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]


def new_app(help_text: str) -> typer.Typer:
    """A group of commands that behaves like every other one here."""
    return typer.Typer(
        help=help_text,
        epilog=EPILOG,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Write a result to stdout. Infinity is `null` in JSON, which knows no infinity."""
    if not as_json:
        print(text)
        return
    finite = {
        key: None if isinstance(item, float) and not math.isfinite(item) else item
        for key, item in value.items()
    }
    print(json.dumps(finite, ensure_ascii=False, indent=1, allow_nan=False))
