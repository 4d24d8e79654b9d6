"""Points in time, in one spelling: UTC, whole seconds, `2026-11-24T08:00:00Z`."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_SPELLING = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)


def format_instant(moment: dt.datetime) -> str:
    """Write an aware datetime in UTC, cut to whole seconds."""
    if moment.tzinfo is None:
        raise ValueError("a point in time needs its time zone")
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(value: Any) -> Any:
    """Read the one spelling; aware datetimes pass, cut to whole seconds in UTC.

    Raises:
        ValueError: another spelling, or a moment without a time zone.
    """
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise ValueError("a point in time needs its time zone")
        return value.astimezone(dt.UTC).replace(microsecond=0)
    if not isinstance(value, str) or not _SPELLING.fullmatch(value):
        raise ValueError("a point in time is written like 2026-11-24T08:00:00Z")
    return dt.datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)


Instant = Annotated[
    dt.datetime, BeforeValidator(parse_instant), PlainSerializer(format_instant, return_type=str)
]
"""A pydantic field in that spelling."""
