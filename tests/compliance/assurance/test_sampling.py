"""Sampling: reproducible by anybody, steered by nobody, and with the stated power to find what is false."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox_compliance.errors import IntegrityError, UsageError
from fedvox_compliance.sampling import (
    MIN_DRAWN,
    check_commitment,
    commitment_of,
    detection_probability,
    draw,
    new_nonce,
    seed_of,
)

POOL = [f"C{n}" for n in range(220)]
GATES = ["G1", "G2", "G3"]
NONCE = "5a" * 32
ANSWERS = "c1" * 32

ids = st.lists(st.text("ABCDEFabcdef0123456789.", min_size=1, max_size=8), unique=True, max_size=60)


def test_the_draw_follows_its_written_rule() -> None:
    seed = hashlib.sha256(
        b"fedvox-compliance/sample/1/seed/" + bytes.fromhex(NONCE) + b"/" + ANSWERS.encode()
    ).hexdigest()
    assert seed_of(NONCE, ANSWERS) == seed
    by_hand = sorted(POOL, key=lambda c: hmac.digest(bytes.fromhex(seed), c.encode(), "sha256"))[:22]
    assert list(draw(GATES, POOL, seed=seed, share=0.1).drawn) == by_hand


@given(others=ids, gates=ids, share=st.floats(0.01, 1.0), random=st.randoms())
def test_the_order_of_the_answers_cannot_matter(
    others: list[str], gates: list[str], share: float, random: random.Random
) -> None:
    shuffled = others[:]
    random.shuffle(shuffled)
    seed = seed_of(NONCE, ANSWERS)
    first, second = draw(gates, others, seed=seed, share=share), draw(gates, shuffled, seed=seed, share=share)
    assert first == second
    assert set(first.gates) == set(gates)
    assert set(first.drawn) <= set(others) - set(gates)
    assert len(set(first.drawn)) == len(first.drawn)


@given(small=st.floats(0.01, 1.0), large=st.floats(0.01, 1.0))
def test_a_larger_share_extends_a_smaller_one(small: float, large: float) -> None:
    small, large = sorted((small, large))
    seed = seed_of(NONCE, ANSWERS)
    less, more = draw(GATES, POOL, seed=seed, share=small), draw(GATES, POOL, seed=seed, share=large)
    assert more.drawn[: len(less.drawn)] == less.drawn


def test_each_side_alone_leaves_the_sample_open() -> None:
    by_answers = {draw([], POOL, seed=seed_of(NONCE, f"{n:064x}")).drawn for n in range(50)}
    by_nonce = {draw([], POOL, seed=seed_of(f"{n:064x}", ANSWERS)).drawn for n in range(50)}
    assert len(by_answers) == len(by_nonce) == 50


def test_every_answer_is_drawn_equally_often() -> None:
    # Each of 220 has probability 22/220; over 2,000 draws 200 +- 13.4. Five sigma allows 67.
    counts = dict.fromkeys(POOL, 0)
    for n in range(2000):
        for control in draw([], POOL, seed=seed_of(f"{n:064x}", ANSWERS), share=0.1).drawn:
            counts[control] += 1
    assert min(counts.values()) > 200 - 67
    assert max(counts.values()) < 200 + 67


def test_small_questionnaires_get_at_least_ten() -> None:
    assert len(draw([], POOL[:30], seed=seed_of(NONCE, ANSWERS), share=0.1).drawn) == MIN_DRAWN
    assert len(draw([], POOL[:4], seed=seed_of(NONCE, ANSWERS), share=0.1).drawn) == 4
    assert draw(GATES, GATES, seed=seed_of(NONCE, ANSWERS)).drawn == ()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share"):
        draw(GATES, POOL, seed=seed_of(NONCE, ANSWERS), share=share)


def test_the_commitment_binds_the_assessor_and_hides_the_nonce() -> None:
    nonce = new_nonce()
    check_commitment(nonce, commitment_of(nonce))
    with pytest.raises(IntegrityError, match="does not match"):
        check_commitment(new_nonce(), commitment_of(nonce))
    assert nonce not in commitment_of(nonce)
    assert commitment_of(nonce) != seed_of(nonce, ANSWERS)


@pytest.mark.parametrize("nonce", ["", "ab", "zz" * 32, "AB" * 32, " " + "ab" * 32, "ab" * 33])
def test_what_is_no_nonce_is_refused(nonce: str) -> None:
    with pytest.raises(UsageError, match="64 lower-case"):
        commitment_of(nonce)


@pytest.mark.parametrize(
    ("population", "false", "drawn"), [(6, 2, 3), (7, 1, 2), (5, 0, 3), (5, 5, 1), (8, 3, 0)]
)
def test_the_detection_probability_is_the_share_of_samples_that_catch_one(
    population: int, false: int, drawn: int
) -> None:
    samples = list(itertools.combinations(range(population), drawn))
    caught = sum(any(item < false for item in sample) for sample in samples)
    assert math.isclose(detection_probability(population, false, drawn), caught / len(samples), abs_tol=1e-12)


def test_a_tenth_finds_a_tenth_of_lies_nine_times_in_ten() -> None:
    assert detection_probability(220, 22, 22) > 0.90


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="population"):
        detection_probability(5, 6, 1)
