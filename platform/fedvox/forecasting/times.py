"""Times of different units, and the time that a forecast is asked for."""

from __future__ import annotations

import math
import re

from fedvox.errors import ConfigError, DataError
from fedvox.forecasting.loaders.layouts import days_between, parse_date
from fedvox.forecasting.sequence import UNITS, Sequence4D

_SECONDS = {
    "seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0, "weeks": 604800.0,
    "months": 365.25 / 12 * 86400.0, "years": 365.25 * 86400.0,
}  # fmt: skip
"""`cycle` and `frames` are no lengths of time and convert to nothing."""


def converted(time: float, unit: str, to: str) -> float:
    """A time in another unit.

    Raises:
        DataError: there is no such unit, or no way from one to the other.
    """
    if unit == to:
        return time
    if unit not in _SECONDS or to not in _SECONDS:
        known = ", ".join(UNITS)
        raise DataError(
            f"times in {unit!r} cannot be given in {to!r}",
            f"Use a model and data of one kind of time ({known}).",
            code="units_differ",
        )
    return time * _SECONDS[unit] / _SECONDS[to]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ConfigError(f"--time {text} is no time", "Give a number, or a date such as 2024-01-31.")
    return number


def asked_time(text: str, unit: str | None, sequence: Sequence4D) -> float:
    """The time that a user asks for, in the sequence's unit.

    Args:
        text: a number, or a date; eight digits are a date where the scans have dates and no unit is given.
        unit: of a number; None takes the sequence's.
        sequence: the patient.

    Raises:
        ConfigError: neither a finite number nor a date, or a date where the scans have none.
    """
    dated = sequence.origin is not None and unit is None and re.fullmatch(r"\d{8}(\d{6})?", text.strip())
    if not dated:
        try:
            return converted(_finite(text), unit or sequence.unit, sequence.unit)
        except ValueError:
            pass
    try:
        date = parse_date(text, "--time")
    except DataError as error:
        raise ConfigError(error.message, "Give a number, or a date such as 2024-01-31.") from None
    if sequence.origin is None:
        raise ConfigError(
            f"--time {text} is a date, but the scans of {sequence.patient} have times in {sequence.unit}",
            f"Give a number of {sequence.unit}.",
        )
    return days_between(sequence.origin, date)
