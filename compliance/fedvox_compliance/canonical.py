"""Canonical JSON (RFC 8785) and a strict reader: one document has exactly one byte string.

A signature is over bytes, so two readers must never see different documents in the same bytes, and the same
document must never exist as different bytes. The writer sorts keys by UTF-16 code units, prints numbers as
ECMAScript does and escapes only what JSON requires; the reader refuses duplicate keys, non-finite numbers,
lone surrogates, byte order marks and, where asked, anything that is not already canonical.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Never

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader represents exactly (RFC 8785, section 3.2.2.3)."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_DEPTH = 64
"""Deeper documents are refused before they can exhaust the stack."""


class NotCanonical(ValueError):
    """The bytes are not strict, canonical JSON, or the value has no canonical form."""


def canonical_json(value: Any) -> bytes:
    """Serialise a value to its only canonical form (RFC 8785).

    Args:
        value: null, booleans, integers up to 2**53 - 1 in size, finite floats, strings, sequences, and
            mappings with string keys.

    Returns:
        UTF-8 bytes without whitespace.

    Raises:
        NotCanonical: the value, or a part of it, has no canonical form.
    """
    try:
        return _encode(value, 0).encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotCanonical(f"a string holds a lone surrogate ({error.reason})") from error


def sha256_of(value: Any) -> str:
    """SHA-256 of the canonical form of a value, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def parse_strict(data: bytes) -> Any:
    """Read JSON with none of the tolerances that let two readers disagree.

    Args:
        data: UTF-8 bytes of one JSON document, whitespace allowed.

    Returns:
        The document as plain Python objects.

    Raises:
        NotCanonical: not UTF-8, not JSON, a duplicate key, NaN or Infinity, an integer beyond 2**53 - 1, or
            nested too deep.
    """
    try:
        text = data.decode("utf-8")
        if text.startswith("\ufeff"):
            raise NotCanonical("the document starts with a byte order mark")
        value = json.loads(
            text,
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_int=_safe_integer,
            parse_float=_finite_number,
        )
    except UnicodeDecodeError as error:
        raise NotCanonical(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise NotCanonical(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # CPython refuses integers of more than 4300 digits with a plain ValueError
        raise NotCanonical(str(error)) from error
    _refuse_depth(value)
    if _SURROGATE.search(text):  # half of a pair, or a whole one, which is an ordinary character
        canonical_json(value)  # refuses halves
    return value


def parse_canonical(data: bytes) -> Any:
    """Read JSON that must already be in canonical form, byte for byte.

    Raises:
        NotCanonical: see `parse_strict`; also for any spelling other than the canonical one.
    """
    value = parse_strict(data)
    if canonical_json(value) != data:
        raise NotCanonical("valid JSON, but not in canonical form (RFC 8785)")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise NotCanonical(f"the key {twice!r} occurs twice in one object")
    return result


def _safe_integer(digits: str) -> int:
    value = int(digits)
    _integer(value)
    return value


def _finite_number(text: str) -> float:
    value = float(text)
    _number(value)
    return value


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
        if not below:
            return
        level = below
    raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels")


def _refuse_constant(name: str) -> Never:
    raise NotCanonical(f"{name} is not a JSON number")


def _encode(value: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return "[" + ",".join(_encode(item, depth + 1) for item in value) + "]"
    raise NotCanonical(f"{type(value).__name__} has no JSON form")


def _object(value: Mapping[Any, Any], depth: int) -> str:
    for key in value:
        if not isinstance(key, str):
            raise NotCanonical(f"object keys must be strings, found {key!r}")
    # RFC 8785, section 3.2.3: by UTF-16 code units, which differs from code points above the basic plane.
    ordered = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(f"{_string(key)}:{_encode(item, depth + 1)}" for key, item in ordered) + "}"


def _string(value: str) -> str:
    # Python escapes exactly the set that RFC 8785 names: \b \t \n \f \r \" \\ and \u00xx for other controls.
    return json.dumps(str(value), ensure_ascii=False)


def _integer(value: int) -> str:
    if abs(value) > MAX_SAFE_INTEGER:
        raise NotCanonical("an integer is beyond 2**53 - 1; write it as a string")
    return str(int(value))


def _number(value: float) -> str:
    """Number::toString of ECMAScript, which RFC 8785, section 3.2.2.3, prescribes."""
    if not math.isfinite(value):
        raise NotCanonical(f"{value} is not a JSON number")
    if value == 0:
        return "0"  # also for -0
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")  # repr gives the shortest digits that round-trip
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    return sign + _place_point(digits.rstrip("0"), point)


def _place_point(digits: str, point: int) -> str:
    """Set the decimal point `point` digits from the left, in exponent form outside 1e-6 .. 1e21."""
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    head = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
    return f"{head}e{point - 1:+d}"
