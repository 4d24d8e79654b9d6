"""A random order of n things without a list of n things.

An epoch over a million cases needs a random order which every worker can look up at any position, after
any restart, without shuffling and holding a million numbers. A keyed Feistel network is a bijection by
construction, whatever its round function; walking its cycles restricts it to exactly [0, n).

The network works on pairs (left, right) of digits in base ⌈√n⌉, so that its domain exceeds n by at most
2√n + 1 and walking is rare. (Halves of bits, the usual form, would waste up to three quarters of the domain.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fedvox.data.philox import Stream, raw

Array = np.ndarray[Any, Any]

ROUNDS = 12
"""Four suffice for large domains (Luby and Rackoff 1988). Small ones, a source of five cases, need eight to
pass chi-square tests on pairs of positions over 30,000 keys; twelve leave a margin."""

_MASK = 2**64 - 1


@dataclass(frozen=True)
class KeyedPermutation:
    """A bijection of [0, size) that looks random and takes O(1) memory.

    Args:
        size: number of things, at least 1.
        round_keys: 64 random bits for each round; other keys give another order.

    Example:
        >>> order = KeyedPermutation.keyed(5, seed=0, index=0)
        >>> sorted(order(position) for position in range(5))
        [0, 1, 2, 3, 4]
    """

    size: int
    round_keys: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def keyed(size: int, *, seed: int, index: int, domain: int = 0) -> KeyedPermutation:
        """The permutation number `index` (an epoch) of `domain` (a source) under a run's seed."""
        words = raw(seed, index, Stream.CASE, ROUNDS, attempt=domain)
        return KeyedPermutation(size, tuple(int(word) for word in words))

    def __call__(self, position: int) -> int:
        """Where `position` goes.

        Raises:
            IndexError: position is not in [0, size).
        """
        if not 0 <= position < self.size:
            raise IndexError(f"position {position} is not in [0, {self.size})")
        base = math.isqrt(self.size - 1) + 1
        value = position
        while True:
            value = int(self._network(value, base))
            if value < self.size:
                return value

    def many(self, positions: Array) -> Array:
        """The same for an array of positions, `(n,)` int64 -> `(n,)` int64."""
        base = math.isqrt(self.size - 1) + 1
        values = np.asarray(positions).astype(np.uint64)
        walking = np.arange(values.size)
        while walking.size:
            values[walking] = self._network(values[walking], base)
            walking = walking[values[walking] >= self.size]
        return values.astype(np.int64)

    def _network(self, value: Any, base: int) -> Any:
        left, right = value // base, value % base
        for key in self.round_keys:
            left, right = right, (left + _mix(right, key) % base) % base
        return left * base + right


def _mix(value: Any, key: int) -> Any:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014) on value ⊕ key."""
    value = value ^ key
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
