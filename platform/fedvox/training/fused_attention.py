"""Attention as a fused kernel keeps it, on the meta device.

On the meta device PyTorch takes the plain path of `scaled_dot_product_attention`, which keeps the matrix of all pairs
of tokens for the backward pass. The fused kernels that train on GPUs and CPUs keep queries, keys, values, the result
and one number a row, and compute the matrix again (Dao et al. 2022, arXiv:2205.14135). What is counted for a
transformer's memory would otherwise grow with the square of the patch's voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F


class _FusedAttention(torch.autograd.Function):
    """Right in shapes, in what is kept and in operations; meta tensors have no values."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = (query @ key.transpose(-2, -1)) @ value
        context.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = context.saved_tensors
        (of_out,) = gradients
        # The four products of the plain path; that a fused kernel computes one of the forward pass again is its own
        # affair, and not counted as work that the network asks for.
        pairs = of_out @ value.transpose(-2, -1)
        return pairs @ key, pairs.transpose(-2, -1) @ query, pairs.transpose(-2, -1) @ of_out


@contextmanager
def fused_attention_on_meta() -> Iterator[None]:
    """While it lasts, attention between meta tensors keeps what a fused kernel keeps.

    The function itself is replaced: a mode of PyTorch's would not reach blocks that are computed again during the
    backward pass.
    """
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if query.device.type != "meta":
            return plain(query, key, value, **options)
        out: Tensor = _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return out

    with patch.object(F, "scaled_dot_product_attention", fused):
        yield
