"""Random numbers as a pure function of (seed, sample, purpose): any sample can be drawn alone, in any order.

A stateful generator ties sample *i* to everything that was drawn before it, and so to the number of workers
and to where a run was interrupted. Here each sample gets a generator of its own: Philox4x64-10 (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by the run's seed, with the sample's index
and the purpose in the counter. Two samples, or two purposes of one sample, lie 2^64 blocks apart in the
counter and never meet.

`raw` and `uniforms` read the generator's words directly: numpy guarantees the stream of a bit generator for
ever, but not that of `Generator`'s distributions.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Second word of the key: keeps these streams apart from other uses of Philox with the same seed.
_KEY_TAG = 0x466564766F78


class Stream(IntEnum):
    """What a sample's random numbers are for; part of a run's identity: append, never renumber."""

    CASE = 0
    LOCATION = 1
    AUGMENT = 2
    NOISE = 3
    RETRY = 4
    FOREGROUND = 5


def philox(seed: int, index: int, stream: int, *, attempt: int = 0) -> np.random.Generator:
    """The generator of one sample for one purpose.

    Args:
        seed: of the run, in [0, 2^64).
        index: of the sample in the run, in [0, 2^64).
        stream: see `Stream`.
        attempt: counts the substitutes for a damaged case; 0 is the sample itself.

    Raises:
        ValueError: an argument is negative or too large.
    """
    return np.random.Generator(_bits(seed, index, stream, attempt))


def raw(seed: int, index: int, stream: int, count: int, *, attempt: int = 0) -> Array:
    """`count` words of 64 random bits, `(count,)` uint64; arguments as for `philox`."""
    return np.asarray(_bits(seed, index, stream, attempt).random_raw(count), np.uint64)


def uniforms(seed: int, index: int, stream: int, count: int, *, attempt: int = 0) -> Array:
    """`count` numbers in [0, 1) with 53 random bits, `(count,)` float64; arguments as for `philox`."""
    return (raw(seed, index, stream, count, attempt=attempt) >> np.uint64(11)) * 2.0**-53


def _bits(seed: int, index: int, stream: int, attempt: int) -> np.random.Philox:
    for name, value in (("seed", seed), ("index", index), ("stream", stream), ("attempt", attempt)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be in [0, 2^64), got {value}")
    # The generator counts up in the lowest word, so the other three name the stream.
    key = np.array([seed, _KEY_TAG], np.uint64)
    counter = np.array([0, attempt, stream, index], np.uint64)
    return np.random.Philox(key=key, counter=counter)
