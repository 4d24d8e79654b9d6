"""Normalisations over space: instance normalisation and global response normalisation (GRN).

Both need sums over all voxels of a channel. In channels-last memory on a CPU, PyTorch's own kernels either add
float32 numbers one by one (an error of 1e-3 at 128³) or are slow, so the sums are taken here in blocks that fit the
cache, which is both exact to float precision and faster. Other devices, dtypes and layouts take PyTorch's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedvox.models.memory_layout import apply, has_fast_path, rows, volume

Reduce = Literal["mean", "sum"]

# Numbers in a block and thread: 0.5 MiB of float32, so that a block of two tensors stays in a core's cache.
_BLOCK = 1 << 17


class InstanceNorm(nn.GroupNorm):
    """Zero mean and unit variance of every channel of every sample, then a learned scale and shift.

    It is group normalisation with one channel a group: no running statistics, so that a sample's output and
    gradient never depend on the rest of its batch.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, D, H, W)."""
        if not has_fast_path(x):
            return super().forward(x)
        return apply(_InstanceNorm, x, self.weight, self.bias, self.eps)


class GlobalResponseNorm(nn.Module):
    """Channels compete: each is scaled by its energy relative to the others'.

    G = ‖x‖₂ over (D, H, W) of a channel; N = G / (mean over channels of G + eps); output = γ · (x · N) + β + x.
    γ and β start at zero, so that it starts as the identity.

    Source: ConvNeXt V2 (arXiv:2301.00808), and the code of MedNeXt, which divide by the mean over channels.
    One reading of MedNeXt-v2 (arXiv:2512.17774) divides by the sum; that only rescales γ by the channel count.

    Args:
        channels: number of channels.
        reduce: divide by the channels' "mean" or "sum".
        eps: added to the divisor.
    """

    def __init__(self, channels: int, reduce: Reduce = "mean", eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.reduce = reduce
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, D, H, W)."""
        if has_fast_path(x):
            return apply(_Grn, x, self.gamma, self.beta, self.reduce, self.eps)
        energy = torch.linalg.vector_norm(x, dim=(2, 3, 4), keepdim=True)
        relative = energy / (_over_channels(energy, self.reduce) + self.eps)
        scale = 1 + _per_channel(self.gamma) * relative
        return torch.addcmul(_per_channel(self.beta), x, scale)

    def extra_repr(self) -> str:
        """Channels and divisor, for `print(model)`."""
        return f"{self.gamma.numel()}, reduce={self.reduce!r}"


class _InstanceNorm(torch.autograd.Function):
    """Instance normalisation in channels-last memory. Returns the output, and per sample mean and 1/std (B, C)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        voxels = rows(x)
        mean = voxels.mean(1)
        squares = [(block - mean[:, None]).square().sum(1) for block in _blocks(voxels)]
        inverse_std = torch.rsqrt(_total(squares) / voxels.shape[1] + eps)
        scale = weight * inverse_std
        out = torch.addcmul((bias - mean * scale)[:, None], voxels, scale[:, None])
        return volume(out, x.shape[2:]), mean, inverse_std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, _ = inputs
        _, mean, inverse_std = output
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.save_for_backward(x, weight, mean, inverse_std)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        voxels, grad = rows(x), rows(grads[0])
        total = grad.sum(1)
        centred = ((block - mean[:, None]).mul_(part) for block, part in _pairs(voxels, grad))
        along = inverse_std * _total([product.sum(1) for product in centred])
        # dx = scale · (grad - mean(grad) - x̂ · mean(grad · x̂)), as one line a·grad + b·x + c.
        a = weight * inverse_std
        b = -a * inverse_std * along / voxels.shape[1]
        c = -a * total / voxels.shape[1] - b * mean
        return volume(_line(grad, a, voxels, b, c), x.shape[2:]), along.sum(0), total.sum(0), None


class _Grn(torch.autograd.Function):
    """GRN in channels-last memory. Returns the output, and per sample the energy G (B, C)."""

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, reduce: Reduce, eps: float) -> tuple[Tensor, Tensor]:
        voxels = rows(x)
        energy = _total([block.square().sum(1) for block in _blocks(voxels)]).sqrt()
        relative = energy / (_over_channels(energy, reduce) + eps)
        out = torch.addcmul(beta, voxels, (1 + gamma * relative)[:, None])
        return volume(out, x.shape[2:]), energy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, _, ctx.reduce, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gamma, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, energy = ctx.saved_tensors
        voxels, grad = rows(x), rows(grads[0])
        along = _total([(block * part).sum(1) for block, part in _pairs(voxels, grad)])
        divisor = _over_channels(energy, ctx.reduce) + ctx.eps
        relative = energy / divisor
        # N_c = G_c / divisor, and the divisor has a share of every G: 1/C of the mean, all of the sum.
        d_relative = gamma * along
        share = 1 / energy.shape[1] if ctx.reduce == "mean" else 1.0
        d_energy = (d_relative - share * (d_relative * relative).sum(1, keepdim=True)) / divisor
        # dG/dx = x/G; a channel that is zero everywhere has no direction and gets no gradient from its energy.
        pull = torch.where(energy > 0, d_energy / energy, 0.0)
        d_x = _line(grad, 1 + gamma * relative, voxels, pull, torch.zeros_like(pull))
        return volume(d_x, x.shape[2:]), (along * relative).sum(0), grad.sum((0, 1)), None, None


def _per_channel(values: Tensor) -> Tensor:
    """(C,) as (1, C, 1, 1, 1)."""
    return values.view(1, -1, 1, 1, 1)


def _over_channels(energy: Tensor, reduce: Reduce) -> Tensor:
    """Mean or sum of (B, C, ...) over C, kept as a dimension."""
    return energy.mean(1, keepdim=True) if reduce == "mean" else energy.sum(1, keepdim=True)


def _blocks(voxels: Tensor) -> tuple[Tensor, ...]:
    """Views of (B, voxels, C) along the voxels, small enough for the cache."""
    length = max(1, _BLOCK * torch.get_num_threads() // (voxels.shape[0] * voxels.shape[2]))
    return torch.split(voxels, length, dim=1)


def _pairs(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The blocks of two tensors of the same shape, side by side."""
    return zip(_blocks(first), _blocks(second), strict=True)


def _total(sums: list[Tensor]) -> Tensor:
    """The sum over blocks of per-block sums (B, C)."""
    return torch.stack(sums).sum(0)


def _line(grad: Tensor, a: Tensor, x: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·grad + b·x + c for (B, voxels, C) tensors and (B, C) coefficients, in one pass over the memory."""
    out = torch.empty_like(grad)
    for target, (part, block) in zip(_blocks(out), _pairs(grad, x), strict=True):
        target.copy_(torch.addcmul(c[:, None], part, a[:, None]).addcmul_(block, b[:, None]))
    return out
