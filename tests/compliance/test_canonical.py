"""Canonical JSON against the published vectors of RFC 8785 and against Python's own reader."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox_compliance.canonical import (
    MAX_DEPTH,
    NotCanonical,
    canonical_json,
    parse_canonical,
    parse_strict,
    sha256_of,
)

# RFC 8785, appendix B: IEEE 754 bits and the ECMAScript text.
RFC_8785_NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]

documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
    | st.floats(1e21, 1e300)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("bits", "text"), RFC_8785_NUMBERS)
def test_numbers_print_as_rfc_8785_appendix_b_says(bits: str, text: str) -> None:
    value = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert canonical_json(value).decode() == text


def test_keys_sort_by_utf16_code_units_as_the_rfc_example_does() -> None:
    # RFC 8785, section 3.2.3: the emoji (a surrogate pair, d83d…) sorts before U+FB33.
    source = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    order = list(json.loads(canonical_json(source)))
    assert order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_the_rfc_sample_document_has_its_published_bytes() -> None:
    # RFC 8785, sections 3.2.2 and 3.2.4.
    source = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_json(source).decode() == expected


@given(documents)
def test_canonical_form_reads_back_and_is_a_fixed_point(document: Any) -> None:
    data = canonical_json(document)
    assert json.loads(data) == document
    assert canonical_json(parse_canonical(data)) == data


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=6), st.randoms())
def test_the_order_of_insertion_does_not_matter(mapping: dict[str, int], random: Any) -> None:
    items = list(mapping.items())
    random.shuffle(items)
    try:
        expected = sha256_of(mapping)
    except NotCanonical:
        return  # a lone surrogate, refused either way
    assert sha256_of(dict(items)) == expected


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_read_never_a_traceback(data: bytes) -> None:
    with contextlib.suppress(NotCanonical):
        parse_strict(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":{"b":1,"b":1}}', "twice"),
        (b"NaN", "not a JSON number"),
        (b"[Infinity]", "not a JSON number"),
        (b'"\\ud800"', "surrogate"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'"\xff"', "UTF-8"),
        (b"{} {}", "not JSON"),
        (b"9007199254740992", "2\\*\\*53"),
        (b"1" * 5000, "digits|2\\*\\*53"),
        (b"[" * 100_000, "deeper|not JSON"),
        (b"[" * 80 + b"]" * 80, "deeper"),
    ],
)
def test_what_two_readers_could_disagree_on_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(NotCanonical, match=why):
        parse_strict(data)


@pytest.mark.parametrize(
    "data", [b'{"b":1,"a":2}', b'{"a": 1}', b'"\\u0041"', b"1.0", b"1e0", b"-0", b'{"a":1}\n']
)
def test_other_spellings_of_the_same_document_are_refused(data: bytes) -> None:
    parse_strict(data)
    with pytest.raises(NotCanonical, match="canonical form"):
        parse_canonical(data)


@pytest.mark.parametrize("value", [{1: 2}, b"bytes", {"a", "b"}, float("nan"), 2**53, "\ud800"])
def test_values_without_a_canonical_form_are_refused(value: Any) -> None:
    with pytest.raises(NotCanonical):
        canonical_json(value)


def test_escaped_pairs_are_letters_escaped_halves_are_refused_and_an_escaped_backslash_is_neither() -> None:
    assert parse_strict(rb'"\uD83D\ude00"') == "\U0001f600"
    assert parse_strict(rb'"\\ud800"') == "\\ud800"
    for half in (rb'"\ud800"', rb'["\uDFFF a"]', rb'{"\udc00": 1}', rb'"\ud83d \ude00"'):
        with pytest.raises(NotCanonical, match="surrogate"):
            parse_strict(half)


def test_depth_is_counted_alike_by_reader_and_writer() -> None:
    deepest: object = 1
    for _ in range(MAX_DEPTH):
        deepest = [deepest]
    text = canonical_json(deepest)
    assert parse_strict(text) == deepest
    for deeper in (b"[" + text + b"]", b'{"a":' + text + b"}"):
        with pytest.raises(NotCanonical, match="deeper"):
            parse_strict(deeper)


@pytest.mark.parametrize("number", [b"1e999", b"-1e400", b"9007199254740992", b"-9007199254740992"])
def test_numbers_that_readers_would_round_are_refused_anywhere(number: bytes) -> None:
    for place in (b"%s", b"[%s]", b'{"a":{"b":[0,%s]}}'):
        with pytest.raises(NotCanonical):
            parse_strict(place % number)
