"""What a strategy adds to a clinic's gradients: after clipping and noise, so that it depends on no patient.

Inside the loss it would be clipped along with every patient's gradient. Added to what the optimizer sees, it is made
of nothing but the server's own numbers, which are functions of noised updates: no ε changes, whatever a server sends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedvox_federation.client.model import FederatedModel
from fedvox_federation.config import FederationConfig
from fedvox_federation.protocol import Array, BadMessage

LONGEST_CORRECTION = 1e6
"""L2. Honest ones are differences of mean gradients; this keeps a server's nonsense from overflowing float32."""


def add_proximal_term(optimizer: torch.optim.Optimizer, mu: float) -> None:
    """FedProx (Li et al. 2020, arXiv 1812.06127): μ (w - w₀) joins every gradient, w₀ being the parameters now."""
    if mu == 0:
        return
    start = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

    @torch.no_grad()
    def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, origins in zip(optimizer.param_groups, start, strict=True):
            for parameter, origin in zip(group["params"], origins, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - origin, alpha=mu)

    optimizer.register_step_pre_hook(pull)


def check_correction(
    correction: Mapping[str, Array], model: FederatedModel, config: FederationConfig
) -> None:
    """Doubt what the server wants to be added, before anything is booked.

    Raises:
        BadMessage: the study's strategy has no corrections, or it is not of the shared parameters' names, shapes and
            types, not finite, or longer than `LONGEST_CORRECTION`.
    """
    if not correction:
        return
    if config.strategy.name != "scaffold":
        raise BadMessage(f"a correction of gradients, which {config.strategy.name} does not have")
    model.check(correction)
    length = math.sqrt(
        math.fsum(float(np.square(value.astype(np.float64)).sum()) for value in correction.values())
    )
    if length > LONGEST_CORRECTION:
        raise BadMessage(f"a correction of length {length:.3g}; at most {LONGEST_CORRECTION:g} is taken")


def add_correction(
    optimizer: torch.optim.Optimizer, network: nn.Module, correction: Mapping[str, Array]
) -> None:
    """SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): c - c_i joins every gradient.

    Args:
        optimizer: of the network.
        network: whose parameters have the correction's names.
        correction: by name; a parameter that is not in it, such as one that stays in the clinic, gets none.
    """
    if not correction:
        return
    parameters = dict(network.named_parameters())
    shifts = [
        (parameters[name], torch.from_numpy(np.array(value)).to(parameters[name]))
        for name, value in correction.items()
    ]

    @torch.no_grad()
    def shift(*_: Any) -> None:
        for parameter, by in shifts:
            if parameter.grad is not None:
                parameter.grad.add_(by)

    optimizer.register_step_pre_hook(shift)
