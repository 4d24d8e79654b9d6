"""How far an update can lie from where it began, and how far it does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedvox_federation.config import FederationConfig
from fedvox_federation.protocol import Array, ClinicReply

ADAM_LARGEST_STEP = 10 / math.sqrt(10)
"""(1 - β1) / √(1 - β2) with β1 = 0.9 and β2 = 0.999, in learning rates per parameter (Kingma and Ba 2014, 2.1)."""
CHANCE = 8.0
"""Standard deviations that the length of Gaussian noise is allowed above its mean."""


def update_norm(update: Mapping[str, Array], arrays: Mapping[str, Array]) -> float:
    """L2 length of what a clinic changed, in float64; infinite where float64 overflows.

    Args:
        update: the clinic's parameters.
        arrays: those it began with, of the same names and shapes.
    """
    with np.errstate(over="ignore"):
        squares = (
            float(np.square(update[name].astype(np.float64) - arrays[name]).sum()) for name in sorted(arrays)
        )
        return math.sqrt(math.fsum(squares))


def length(arrays: Mapping[str, Array]) -> float:
    """L2 length over all arrays, in float64."""
    return math.sqrt(
        math.fsum(float(np.square(arrays[name].astype(np.float64)).sum()) for name in sorted(arrays))
    )


def reachable_norm(
    config: FederationConfig,
    reply: ClinicReply,
    arrays: Mapping[str, Array],
    correction: Mapping[str, Array] | None = None,
) -> float:
    """The farthest that the agreed training can move the model; an honest update is shorter.

    Adam moves each parameter by at most `ADAM_LARGEST_STEP` learning rates a step. SGD moves along the noised mean
    gradient: each patient gives at most the clipping norm, all may take part at once, and the noise's length is
    about σ · C · √d, all divided by the expected batch. Weight decay and FedProx pull by at most their share of
    the parameters' length and of the way made. SCAFFOLD's correction, which is on top of a gradient in every step,
    adds its own length. SGD without noise is not clipped either, and has no bound.
    """
    if reply.noise_multiplier == 0 and config.training.optimizer == "sgd":
        return math.inf
    training, steps, lr = config.training, config.training.steps, config.training.lr
    size = sum(value.size for value in arrays.values())
    if training.optimizer == "adamw":
        step = lr * ADAM_LARGEST_STEP * math.sqrt(size)
    else:
        noise = reply.noise_multiplier * (math.sqrt(size) + CHANCE)
        step = lr * config.privacy.clipping_norm * (reply.patients + noise) / reply.expected_batch_size
        step /= 1 - training.momentum
        step += lr * length(correction or {})
    decay = lr * training.weight_decay
    # With w the length and s the step, |w_k - w_0| <= k s + k decay (w + k s), and FedProx adds a pull back by
    # lr · mu times the way made, which overshoots only if lr · mu > 1.
    way = steps * step
    way += steps * decay * (length(arrays) + way)
    return way * (1 + max(0.0, lr * config.proximal_mu - 1)) ** steps
