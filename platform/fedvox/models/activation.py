"""Leaky ReLU that keeps only its output for the backward pass.

The next convolution keeps that tensor anyway, so the activation costs no memory of its own: what an in-place
activation saves, without writing to a tensor that per-sample gradient hooks may hold.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvox.models.memory_layout import apply, is_transformed


def leaky_relu(x: Tensor, slope: float, plus: Tensor | None = None) -> Tensor:
    """max(y, slope · y) of y = x, or of y = x + plus.

    Args:
        x: of any shape.
        slope: of the negative side, from 0 (ReLU) to below 1.
        plus: a tensor of the same shape, such as a residual.
    """
    if is_transformed(x) or torch.compiler.is_compiling():
        return F.leaky_relu(x if plus is None else x + plus, slope)
    return apply(_LeakyReLU, x, plus, slope)


class _LeakyReLU(torch.autograd.Function):
    """Output and input have the same sign, so the output tells which side of the kink a number was on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plus: Tensor | None, slope: float) -> Tensor:
        out = F.leaky_relu(x, slope) if plus is None else F.leaky_relu_(x + plus, slope)
        ctx.slope, ctx.has_plus = slope, plus is not None
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        grad = cast(Tensor, torch.ops.aten.leaky_relu_backward(grads[0], out, ctx.slope, True))
        return grad, grad if ctx.has_plus else None, None
