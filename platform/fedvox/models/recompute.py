"""Trading time for memory: compute a part of the network again in the backward pass instead of keeping its insides."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedvox.models.memory_layout import is_transformed


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, *, inside: nn.Module) -> Tensor:
    """`function(x)`, of which only `x` is kept for the backward pass.

    The recomputation stops as soon as everything that the backward pass needs is there again: a last convolution or
    matrix product is not repeated. Where it would do harm the function is simply called: without gradients, inside
    `torch.func` transforms (which forbid it), and under `torch.compile` (which chooses for itself).

    Args:
        function: without randomness; it may hold parameters.
        x: its input.
        inside: the module whose parts the function calls. While any part has a forward hook, nothing is recomputed,
            for the hook would fire twice: Opacus collects activations by such hooks, and keeps them all anyway.
    """
    hooked = any(part._forward_hooks for part in inside.modules() if part is not inside)
    if hooked or not torch.is_grad_enabled() or is_transformed(x) or torch.compiler.is_compiling():
        return function(x)
    return cast(Tensor, checkpoint(function, x, use_reentrant=False, preserve_rng_state=False))
