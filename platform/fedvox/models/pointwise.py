"""Convolutions of one voxel: matrix products over the channels, also with a stride.

On a CPU in channels-last memory they are written as such (`torch.nn.functional.linear`), two to four times as fast
as oneDNN's convolution of the same numbers. The transposed one writes its few voxels into place instead of
convolving zeros. Other devices, dtypes and layouts take PyTorch's convolutions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.models.backbone import Triple
from fedvox.models.memory_layout import apply, has_fast_path

_UNIT: Triple = (1, 1, 1)


class PointwiseConv3d(nn.Conv3d):
    """A linear map of each voxel's channels, of every `stride`-th voxel.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: step along (D, H, W); the output is ⌈n / stride⌉ long.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple = _UNIT) -> None:
        super().__init__(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W)."""
        if not has_fast_path(x):
            return super().forward(x)
        if self.stride != _UNIT:
            x = apply(_Sample, x, cast(Triple, self.stride))
        return _linear(x, self.weight.flatten(1), self.bias)


class PointwiseConvTranspose3d(nn.ConvTranspose3d):
    """The adjoint of the strided `PointwiseConv3d`: n voxels become (n - 1) · stride + 1, the new ones all bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: upsampling factor along (D, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Upsample (B, C, D, H, W), to another of the possible sizes if `output_size` is given."""
        if output_size is not None or not has_fast_path(x):
            return super().forward(x, output_size)
        return apply(
            _Spread, _linear(x, self.weight.flatten(1).t(), None), self.bias, cast(Triple, self.stride)
        )


class _Sample(torch.autograd.Function):
    """Every stride-th voxel."""

    @staticmethod
    def forward(x: Tensor, stride: Triple) -> Tensor:
        return _grid(x, stride).contiguous(memory_format=torch.channels_last_3d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        x, ctx.stride = inputs
        ctx.size = x.shape[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _spread(grads[0], ctx.stride, ctx.size), None


class _Spread(torch.autograd.Function):
    """Voxels at a distance of stride, zeros between them, plus a bias everywhere."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor, stride: Triple) -> Tensor:
        size = torch.Size((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True))
        return _spread(x, stride, size).add_(bias.view(1, -1, 1, 1, 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        _, _, ctx.stride = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sampled = _grid(grads[0], ctx.stride).contiguous(memory_format=torch.channels_last_3d)
        return sampled, grads[0].sum((0, 2, 3, 4)), None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, D, H, W) times a matrix (out, C)."""
    return F.linear(x.permute(0, 2, 3, 4, 1), weight, bias).permute(0, 4, 1, 2, 3)


def _grid(x: Tensor, stride: Triple) -> Tensor:
    """A view of every stride-th voxel of (B, C, D, H, W)."""
    return x[:, :, :: stride[0], :: stride[1], :: stride[2]]


def _spread(x: Tensor, stride: Triple, size: torch.Size) -> Tensor:
    """Zeros (B, C, *size) in channels-last memory with the voxels of `x` at a distance of stride."""
    out = x.new_zeros(x.shape[0], *size, x.shape[1]).permute(0, 4, 1, 2, 3)
    _grid(out, stride).copy_(x)
    return out
