"""From right guesses to a lower bound on ε, after a single run (Steinke, Nasr and Jagielski 2023).

    m canaries each took part or not, by a fair coin of their own. An attacker names some as in and some as out,
    r guesses in all, and v are right. Under (ε, δ)-DP (arXiv 2305.08846, theorem 5.2)

        P[v or more right] ≤ P[B ≥ v] + 2 m δ · max_{i = 1..v} P[v > B ≥ v - i] / i,    B ~ Binomial(r, e^ε / (1 + e^ε))

Randomised response answers truthfully with exactly that probability; no ε-DP mechanism lets an attacker do better,
and δ can help with a few guesses only. An ε for which the right side is below 5 % is refuted at 95 % confidence.

The bound is one on a single training run. It can only ever be too low: an attack that fails proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedvox.errors import ConfigError

_LARGEST_EPSILON = 64.0
_GRID = np.concatenate([np.arange(0, 2, 0.02), np.arange(2, 16, 0.1), np.arange(16, _LARGEST_EPSILON, 0.5)])
_HALVINGS = 30

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Guesses:
    """What an attacker said and how often it was right.

    Attributes:
        canaries: m, each in or out by a fair coin.
        made: r, guesses that were not withheld.
        right: v.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ConfigError(f"{self.right} of {self.made} guesses on {self.canaries} canaries is no count")


@dataclass(frozen=True)
class LowerBound:
    """What an attack proves.

    Attributes:
        epsilon: at least this was spent, at `confidence`; 0 where nothing is proven.
        confidence: over all numbers of guesses tried together.
        guesses: the best of those tried.
    """

    epsilon: float
    confidence: float
    guesses: Guesses


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """The largest probability of guessing this well under (ε, δ)-DP; see the module.

    Args:
        guesses: of one attack, whose number was fixed before looking.
        epsilon: at least 0.
        delta: in [0, 1].
    """
    made, right = guesses.made, guesses.right
    truthful = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, made, truthful))
    if not right or not delta:
        return min(1.0, tail)
    below = stats.binom.pmf(np.arange(right - 1, -1, -1), made, truthful).cumsum()
    most_per_failure = float((below / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * guesses.canaries * delta * most_per_failure)


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """The largest ε up to which every ε is refuted.

    Every smaller one must be refuted as well, since δ's part of the p value need not grow with ε.

    Raises:
        ConfigError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, not between 0 and 1")
    level = 1 - confidence
    low = 0.0
    for candidate in _GRID:
        if p_value(guesses, float(candidate), delta) >= level:
            return _between(guesses, delta, level, low, float(candidate))
        low = float(candidate)
    return low


def _between(guesses: Guesses, delta: float, level: float, low: float, high: float) -> float:
    """The border between a refuted ε and one that is not."""
    if high == 0:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if p_value(guesses, middle, delta) < level:
            low = middle
        else:
            high = middle
    return low


def guess(scores: FloatArray, included: npt.NDArray[np.bool_], each_side: int) -> Guesses:
    """Name the highest scores as in and the lowest as out, and count.

    Args:
        scores: `(m,)`, higher for canaries that seem to have taken part.
        included: `(m,)`, the coins.
        each_side: how many of each.

    Raises:
        ConfigError: there are fewer than twice as many canaries.
    """
    if not 0 < 2 * each_side <= len(scores):
        raise ConfigError(f"{each_side} guesses on each side of {len(scores)} canaries")
    order = np.argsort(scores, kind="stable")
    right = included[order[-each_side:]].sum() + (~included[order[:each_side]]).sum()
    return Guesses(len(scores), 2 * each_side, int(right))


def best_bound(
    scores: FloatArray,
    included: npt.NDArray[np.bool_],
    delta: float,
    *,
    each_side: Sequence[int],
    confidence: float = 0.95,
) -> LowerBound:
    """The best of several numbers of guesses, which share the probability of error among them.

    Args:
        scores: see `guess`.
        included: see `guess`.
        delta: δ of the claim.
        each_side: numbers to try, fixed before looking at the scores.
        confidence: of the result; each attempt is held to 1 - (1 - confidence) / attempts.
    """
    alone = 1 - (1 - confidence) / len(each_side)
    tried = [guess(scores, included, count) for count in each_side]
    bounds = [epsilon_lower_bound(one, delta, alone) for one in tried]
    best = int(np.argmax(bounds))
    return LowerBound(bounds[best], confidence, tried[best])
