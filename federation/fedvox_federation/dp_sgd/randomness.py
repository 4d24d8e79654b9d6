"""Randomness that nobody can replay: for the noise and for who takes part in a step.

A training seed must never reach it. Whoever knows the seed subtracts the noise, and an ordinary generator gives
its state away after some outputs. Here the key comes from the operating system, is never written anywhere, and
cannot be given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

_AT_ONCE = 1 << 18  # samples made at once; bounds the memory
_SUMMED = 4  # Gaussians added into one; see SystemRandomness


class Randomness(Protocol):
    """Where noise and sampling come from."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Independent standard Gaussians, float64, on the CPU."""
        ...

    def bernoulli(self, rate: float, count: int) -> list[bool]:
        """Independent coins that show True with probability `rate`."""
        ...


class SystemRandomness:
    """AES-256 in counter mode under a fresh key of the operating system.

    Each Gaussian is the sum of four, halved, made by the Box-Muller transform in float64. One floating-point
    Gaussian has gaps between its values that tell which inputs are impossible (Mironov 2012); for the sum of
    four, finding them takes more work than an attacker has (Holohan and Braghin 2021, arXiv 2107.10138). It is what
    Opacus calls secure mode. A process that was forked takes a new key, since otherwise two processes would add the
    same noise.
    """

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._stream: CipherContext = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def _uniform(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """In (0, 1), both ends excluded, in steps of 2⁻⁵³."""
        if os.getpid() != self._process:
            self._rekey()
        bits = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)
        return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, shape: Sequence[int]) -> Tensor:
        """See `Randomness`."""
        total = math.prod(shape)
        parts = [self._normal(min(_AT_ONCE, total - start)) for start in range(0, total, _AT_ONCE)]
        flat = torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.float64)
        return flat.reshape(tuple(shape))

    def _normal(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        pairs = count * _SUMMED // 2
        uniform = self._uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = 2.0 * np.pi * uniform[pairs:]
        # Shifted by one, so that no sum holds both values of one pair: they add up to a single one again.
        gaussians = np.concatenate([radius * np.cos(angle), np.roll(radius * np.sin(angle), 1)])
        summed: np.ndarray[tuple[int], np.dtype[np.float64]] = gaussians.reshape(_SUMMED, count).sum(0)
        return summed / math.sqrt(_SUMMED)

    def bernoulli(self, rate: float, count: int) -> list[bool]:
        """See `Randomness`."""
        return [bool(coin) for coin in self._uniform(count) < rate]


def poisson_sample(randomness: Randomness, patients: int, rate: float) -> list[int]:
    """Who takes part in one step: each patient on their own with probability `rate`, so perhaps nobody.

    The accountant's numbers hold for exactly this. Shuffled batches of a fixed size are something else.
    """
    return [index for index, chosen in enumerate(randomness.bernoulli(rate, patients)) if chosen]
