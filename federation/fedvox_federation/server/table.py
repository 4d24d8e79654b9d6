"""A round's table as text, for the server's log and for `fedvox-federation status`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("clinic", "clinic", "{}"),
    ("tier", "tier", "{}"),
    ("noise", "noise_multiplier", "{:.3g}"),
    ("ε spent", "epsilon", "{:.3g}"),
    ("weight", "weight", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("Dice before", "dice_before", "{:.4f}"),
    ("after", "dice_after", "{:.4f}"),
    ("seconds", "seconds", "{:.1f}"),
    ("verdict", "verdict", "{}"),
)


def round_table(rows: Iterable[Mapping[str, Any]], line: Mapping[str, Any] | None = None) -> str:
    """The clinics of a round, one below the other, and the round as a whole in the last line.

    Args:
        rows: of `clinics.jsonl`.
        line: of `rounds.jsonl`.
    """
    cells = [[title for title, _, _ in _COLUMNS]]
    for row in rows:
        told = [_text(row.get(key), pattern) for _, key, pattern in _COLUMNS]
        if why := ", ".join(text for text in (row.get("reason"), row.get("note")) if text):
            told[-1] += f" ({why})"
        cells.append(told)
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([*lines, *([_summary(line)] if line is not None else [])])


def _summary(line: Mapping[str, Any]) -> str:
    epsilon = line["epsilon"]
    spent = "no guarantee" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.3g}"
    who = f" ({line['worst_clinic']})" if line["worst_clinic"] else ""
    judged = line.get("dice_global")
    dice = f", Dice of the new model {judged:.4f}" if judged is not None and math.isfinite(judged) else ""
    return (
        f"round {line['round']} {line['outcome']}: {line['accepted']} of {line['asked']} updates{dice}, "
        f"ε of the federation {spent}{who}, {line['seconds']:.1f} s"
    )


def _text(value: Any, pattern: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return pattern.format(value)
