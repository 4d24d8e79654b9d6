"""Counter-based random numbers, against an independent implementation with published test vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedvox.data.philox import _KEY_TAG, Stream, philox, raw, uniforms

MASK = 2**64 - 1
WORDS = st.integers(0, MASK)


def philox4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64 with ten rounds, written from the paper (Salmon et al. 2011, section 3.3)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(p1 >> 64) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 64) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def test_the_independent_implementation_gives_the_published_answers():
    zeros = philox4x64_10([0] * 4, [0] * 2)
    ones = philox4x64_10([MASK] * 4, [MASK] * 2)
    assert [f"{word:016x}" for word in zeros] == [
        "16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b",
    ]  # fmt: skip
    assert [f"{word:016x}" for word in ones] == [
        "87b092c3013fe90b", "438c3c67be8d0224", "9cc7d7c69cd777b6", "a09caebf594f0ba0",
    ]  # fmt: skip


@settings(deadline=None)
@given(seed=WORDS, index=WORDS, stream=st.sampled_from(Stream), attempt=st.integers(0, 20))
def test_words_are_those_of_philox_at_the_sample_s_own_counter(seed, index, stream, attempt):
    expected = [
        word
        for block in (1, 2, 3)
        for word in philox4x64_10([block, attempt, stream, index], [seed, _KEY_TAG])
    ]
    assert raw(seed, index, stream, 12, attempt=attempt).tolist() == expected


@settings(deadline=None)
@given(seed=WORDS, index=WORDS, stream=st.sampled_from(Stream))
def test_the_generator_and_the_raw_words_are_one_stream(seed, index, stream):
    words = philox(seed, index, stream).bit_generator.random_raw(5)
    assert words.tolist() == raw(seed, index, stream, 5).tolist()
    assert uniforms(seed, index, stream, 5).tolist() == [(int(word) >> 11) / 2**53 for word in words]


def test_no_two_samples_streams_or_attempts_share_a_word():
    words = np.concatenate(
        [raw(7, index, stream, 4, attempt=a) for index in range(300) for stream in Stream for a in range(3)]
    )
    assert len(np.unique(words)) == len(words)


def test_numbers_of_neighbouring_samples_are_uniform_and_unrelated():
    numbers = np.stack([uniforms(3, index, Stream.AUGMENT, 8) for index in range(4000)])
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        assert stats.pearsonr(column[:-1], column[1:]).pvalue > 1e-4
    assert stats.pearsonr(numbers[:, 0], numbers[:, 1]).pvalue > 1e-4


@pytest.mark.parametrize("argument", ["seed", "index", "stream", "attempt"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_numbers_that_do_not_fit_the_counter_are_refused_by_name(argument, value):
    arguments = {"seed": 0, "index": 0, "stream": 0, "attempt": 0, argument: value}
    with pytest.raises(ValueError, match=argument):
        philox(arguments["seed"], arguments["index"], arguments["stream"], attempt=arguments["attempt"])
