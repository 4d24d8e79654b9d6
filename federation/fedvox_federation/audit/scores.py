"""How likely it is that a canary took part, judged from every update that left.

Whoever receives the updates divides a round's change of a weight by the learning rate and by what is public, and has
the sum of the round's noisy gradients there, in units of the clipping norm:

    x = (how often the canary was drawn, if it was in) + noise,     noise ~ N(0, steps · σ²)

If it was in, how often is binomial. The logarithm of the ratio of the two likelihoods, added up over rounds, is the
best score there is (Neyman and Pearson), as far as the real patients' pull at that weight counts as noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from scipy.stats import binom

FloatArray = npt.NDArray[np.float64]


def log_likelihood_ratio(
    observed: FloatArray, *, noise_multiplier: float, sample_rate: float, steps: int
) -> FloatArray:
    """The evidence of one round that canaries took part.

    Args:
        observed: `(m,)` summed noisy gradients at each canary's weight, in units of the clipping norm.
        noise_multiplier: σ, in the same unit.
        sample_rate: probability that the canary is drawn in a step.
        steps: of the round.

    Returns:
        `(m,)`; without noise simply what was observed.
    """
    if noise_multiplier == 0:
        return observed
    times = np.arange(steps + 1)
    weight = binom.logpmf(times, steps, sample_rate)
    variance = steps * noise_multiplier**2
    exponent = (observed[:, None] * times - times**2 / 2) / variance
    ratio: FloatArray = logsumexp(weight + exponent, axis=1)
    return ratio
