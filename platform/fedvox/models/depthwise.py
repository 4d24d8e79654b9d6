"""Depthwise 3D convolutions whose backward pass is as cheap as their forward pass on a CPU.

A depthwise convolution is 27 multiplications a voxel, yet its gradient is what MedNeXt waits for on a CPU: oneDNN
has depthwise kernels for the 3D forward pass and for 2D gradients, and falls back to dense kernels (C times the
work) for 3D gradients. So the two gradients are written as what it is fast at, in channels-last memory where a
voxel's channels lie side by side:

- the gradient of the input of a stride-1 convolution is a forward convolution with the mirrored kernel;
- the gradient of the weight is, for each plane of the kernel, a 2D weight gradient with the depth axis as the batch.

The transposed convolution is the adjoint of the strided one, so it needs nothing else. Results agree with
`torch.nn.functional.conv3d` up to the order of summation. Other devices, dtypes and memory layouts, autocast and
`torch.compile` take the ordinary path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.models.backbone import Triple
from fedvox.models.memory_layout import apply, has_fast_path, to_fast_layout

# oneDNN's depthwise weight gradient takes kernels of any height but of at most this width.
_WIDEST_KERNEL = 3
_VOXELS_PER_SUM = 1 << 14


class DepthwiseConv3d(nn.Conv3d):
    """One k³ filter per channel, zero-padded by k//2.

    Args:
        channels: number of channels, of input and output.
        kernel: odd edge lengths of the filter (D, H, W).
        stride: step along (D, H, W); the output is ⌈n / stride⌉ long.
    """

    def __init__(self, channels: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        padding = cast(Triple, tuple(k // 2 for k in kernel))
        super().__init__(channels, channels, kernel, stride, padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        if not has_fast_path(x):
            return super().forward(x)
        stride, padding = cast(Triple, self.stride), cast(Triple, self.padding)
        return apply(_Depthwise, x, self.weight, self.bias, stride, padding)


class DepthwiseConvTranspose3d(nn.ConvTranspose3d):
    """The adjoint of `DepthwiseConv3d`: n voxels become (n - 1) · stride + 1.

    Args:
        channels: number of channels, of input and output.
        kernel: odd edge lengths of the filter (D, H, W).
        stride: upsampling factor along (D, H, W).
    """

    def __init__(self, channels: int, kernel: Triple, stride: Triple) -> None:
        padding = cast(Triple, tuple(k // 2 for k in kernel))
        super().__init__(channels, channels, kernel, stride, padding, groups=channels)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Upsample (B, C, D, H, W), to another of the possible sizes if `output_size` is given."""
        if output_size is not None or not has_fast_path(x):
            return super().forward(x, output_size)
        stride, padding = cast(Triple, self.stride), cast(Triple, self.padding)
        return apply(_DepthwiseTransposed, x, self.weight, self.bias, stride, padding)


class _Depthwise(torch.autograd.Function):
    """`conv3d` with one filter a channel; its gradients by the functions below."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple) -> Tensor:
        return F.conv3d(x, weight, bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = to_fast_layout(grads[0])
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        size = cast(Triple, tuple(x.shape[2:]))
        return (
            _adjoint(grad, weight, ctx.stride, ctx.padding, size) if for_x else None,
            _weight_gradient(x, grad, weight, ctx.stride, ctx.padding) if for_weight else None,
            grad.sum((0, 2, 3, 4)) if for_bias else None,
            None,
            None,
        )


class _DepthwiseTransposed(torch.autograd.Function):
    """`conv_transpose3d` with one filter a channel: `_Depthwise` read backwards."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple) -> Tensor:
        return F.conv_transpose3d(x, weight, bias, stride, padding, 0, weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = to_fast_layout(grads[0])
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        return (
            F.conv3d(grad, weight, None, ctx.stride, ctx.padding, 1, weight.shape[0]) if for_x else None,
            _weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if for_weight else None,
            grad.sum((0, 2, 3, 4)) if for_bias else None,
            None,
            None,
        )


def _adjoint(grad: Tensor, weight: Tensor, stride: Triple, padding: Triple, size: Triple) -> Tensor:
    """The gradient (B, C, *size) of a depthwise convolution's input, from that of its output."""
    kernel = weight.shape[2:]
    if stride == (1, 1, 1):
        full = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
        return F.conv3d(grad, weight.flip(2, 3, 4), None, 1, full, 1, weight.shape[0])
    reached = [
        (n - 1) * s - 2 * p + k for n, s, p, k in zip(grad.shape[2:], stride, padding, kernel, strict=True)
    ]
    left_over = [n - r for n, r in zip(size, reached, strict=True)]
    return F.conv_transpose3d(grad, weight, None, stride, padding, left_over, weight.shape[0])


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, padding: Triple) -> Tensor:
    """The gradient of a depthwise convolution's weight (C, 1, *kernel).

    ∂L/∂w[t] = Σ_o grad[o] · x[o·stride + t - padding].

    Args:
        x: the convolution's input (B, C, D, H, W), channels-last.
        grad: the gradient of its output (B, C, D', H', W'), channels-last.
        weight: gives kernel size and dtype; its values are not read.
        stride: of the convolution.
        padding: of the convolution.
    """
    width = weight.shape[4]
    if width <= _WIDEST_KERNEL:
        return _planes(x, grad, weight, stride, padding)
    parts = []
    for first in range(0, width, _WIDEST_KERNEL):
        taps = weight[..., first : first + _WIDEST_KERNEL]
        begin = first - padding[2]
        end = begin + (grad.shape[4] - 1) * stride[2] + taps.shape[4]
        inside = x[..., max(0, begin) : max(0, end)]
        if inside.shape[4] == 0:  # these taps only ever read padding
            parts.append(torch.zeros_like(taps))
            continue
        columns = F.pad(inside, (max(0, -begin), max(0, end - x.shape[4])))
        parts.append(_planes(to_fast_layout(columns), grad, taps, stride, (padding[0], padding[1], 0)))
    return torch.cat(parts, dim=4)


def _planes(x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, padding: Triple) -> Tensor:
    """`_weight_gradient` plane by plane of the kernel, each a 2D gradient with depth as the batch axis."""
    channels, _, planes, height, width = weight.shape
    filters = weight.new_empty(channels, 1, height, width)
    # Slabs, because oneDNN adds up float32 numbers one by one: the shorter its sums, the smaller the error.
    thickness = max(1, _VOXELS_PER_SUM // (grad.shape[3] * grad.shape[4]))
    sums = []
    for plane in range(planes):
        total = weight.new_zeros(channels, 1, height, width)
        meeting = _overlap(x.shape[2], grad.shape[2], stride[0], plane - padding[0])
        for case, case_grad in zip(x.transpose(1, 2), grad.transpose(1, 2), strict=True):
            for inputs, outputs in _slabs(*meeting, stride[0], thickness):
                total = total + _gradient_2d(
                    case[inputs], case_grad[outputs], filters, stride[1:], padding[1:]
                )
        sums.append(total)
    return torch.stack(sums, dim=2)


def _overlap(size: int, outputs: int, stride: int, offset: int) -> tuple[int, int, int]:
    """Where output plane o reads input plane o·stride + offset: the first such input and output, and their number."""
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    return first * stride + offset, first, max(0, last + 1 - first)


def _slabs(start: int, first: int, count: int, stride: int, thickness: int) -> Iterator[tuple[slice, slice]]:
    """The planes of `_overlap` in groups of at most `thickness`, as slices of input and output."""
    for done in range(0, count, thickness):
        planes = min(thickness, count - done)
        begin = start + done * stride
        yield (
            slice(begin, begin + (planes - 1) * stride + 1, stride),
            slice(first + done, first + done + planes),
        )


def _gradient_2d(
    x: Tensor, grad: Tensor, filters: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The weight gradient of a 2D depthwise convolution of (N, C, H, W)."""
    gradients = torch.ops.aten.convolution_backward(
        grad, x, filters, None, stride, padding, (1, 1), False, (0, 0), filters.shape[0], (False, True, False)
    )
    return cast(Tensor, gradients[1])
