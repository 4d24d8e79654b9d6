"""How `fedvox curate` tells what it found."""

from __future__ import annotations

import json
from typing import Any


def show(found: dict[str, Any], as_json: bool) -> None:
    """Prints fields: one a line for people, or JSON."""
    if as_json:
        print(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        print(f"{key:<{width}}  {short(value)}")


def short(value: Any) -> str:
    """A value in few characters, for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(short, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items()) or "none"
    return "-" if value is None else str(value)
