"""The wording of reports and of the web form, on top of the shared messages; dates and numbers as people write them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from functools import lru_cache

from fedvox_compliance.messages import Messages, load_messages, read_texts


@lru_cache(maxsize=4)
def load_interface(language: str = "en") -> Messages:
    """All messages of a language, those of reports and forms included.

    Raises:
        UsageError: there is no such language.
    """
    shared = load_messages(language)
    own = read_texts(f"interface.{language}")
    english = read_texts("interface.en")
    return dataclasses.replace(
        shared, _texts={**own, **shared._texts}, _english={**english, **shared._english}
    )


def format_date(day: dt.date | None, language: str) -> str:
    """2026-11-24 in English (unambiguous everywhere), 24.11.2026 in German; a dash for no date."""
    if day is None:
        return "–"
    return f"{day:%d.%m.%Y}" if language == "de" else day.isoformat()


def format_number(value: float | None, language: str, digits: int = 2) -> str:
    """A number cut, not rounded, to some digits, so that no display overstates a score; a dash for none."""
    if value is None:
        return "–"
    scale = 10**digits
    text = f"{int(value * scale + 1e-9) / scale:.{digits}f}"
    return text.replace(".", ",") if language == "de" else text
