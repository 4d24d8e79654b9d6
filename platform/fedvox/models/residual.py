"""The convolution blocks of nnU-Net: convolution, instance normalisation, leaky ReLU; and the residual pair of them.

They make the U-Nets of `resenc_unet.py` and the convolutional tokenizer of `primus.py`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fedvox.models.activation import leaky_relu
from fedvox.models.backbone import Triple
from fedvox.models.memory_layout import apply, has_fast_path, to_fast_layout
from fedvox.models.normalization import InstanceNorm
from fedvox.models.recompute import recomputed

UNIT: Triple = (1, 1, 1)
LEAK = 0.01
"""Negative slope of nnU-Net's activations."""


class ConvNorm(nn.Module):
    """Convolution, zero-padded to keep the size, and instance normalisation; optionally a leaky ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd edge lengths (D, H, W).
        stride: step along (D, H, W).
        bias: whether the convolution has a bias, which the normalisation then removes again, as in the original.
        slope: of the leaky ReLU's negative side; None without activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple,
        stride: Triple = UNIT,
        *,
        bias: bool = True,
        slope: float | None = LEAK,
    ) -> None:
        super().__init__()
        padding = cast(Triple, tuple(k // 2 for k in kernel))
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        self.norm = InstanceNorm(out_channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        return self.finish(self.conv(x))

    def finish(self, convolved: Tensor) -> Tensor:
        """Normalise and activate what the convolution gave."""
        out = cast(Tensor, self.norm(to_fast_layout(convolved)))
        return out if self.slope is None else leaky_relu(out, self.slope)


class ResidualBlock(nn.Module):
    """Two convolutions plus the input, average-pooled and projected where the shape changes ("ResNet-D").

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd edge lengths of both convolutions (D, H, W).
        stride: step of the first convolution along (D, H, W).
        bias: whether the two convolutions have a bias.
        slope: of both leaky ReLUs' negative side; 0 is a ReLU.
        recompute: compute the first normalisation and activation again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple,
        stride: Triple = UNIT,
        *,
        bias: bool = True,
        slope: float = LEAK,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.recompute = recompute
        self.conv1 = ConvNorm(in_channels, out_channels, kernel, stride, bias=bias, slope=slope)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel, bias=bias, slope=None)
        self.pool = nn.Identity() if stride == UNIT else AveragePool3d(stride)
        project = in_channels != out_channels
        self.project = (
            ConvNorm(in_channels, out_channels, UNIT, bias=False, slope=None) if project else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, C, D, H, W)."""
        first = self.conv1.conv(x)
        second = recomputed(self._middle, first, inside=self) if self.recompute else self._middle(first)
        return leaky_relu(self.conv2.finish(second), self.slope, plus=self.project(self.pool(x)))

    def _middle(self, first: Tensor) -> Tensor:
        """From the first convolution's output to the second's."""
        return cast(Tensor, self.conv2.conv(self.conv1.finish(first)))


class AveragePool3d(nn.AvgPool3d):
    """The mean of every box of `stride` voxels. PyTorch's kernel takes seven times as long in channels-last memory."""

    def __init__(self, stride: Triple) -> None:
        super().__init__(stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, D, H, W), whose edges the stride divides."""
        stride = cast(Triple, self.stride)
        divides = all(n % s == 0 for n, s in zip(x.shape[2:], stride, strict=True))
        if not divides or not has_fast_path(x):
            return super().forward(x)
        return apply(_AveragePool, x, stride)


class _AveragePool(torch.autograd.Function):
    """A sum of strided views in channels-last memory, and its adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: Triple) -> Tensor:
        ctx.stride = stride
        boxes = _boxes(x, stride)
        total = boxes[0].clone(memory_format=torch.channels_last_3d)
        for voxels in boxes[1:]:
            total += voxels
        return total.div_(len(boxes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batch, channels, *size = grads[0].shape
        fine = [n * s for n, s in zip(size, ctx.stride, strict=True)]
        out = grads[0].new_empty(batch, *fine, channels).permute(0, 4, 1, 2, 3)
        boxes = _boxes(out, ctx.stride)
        share = grads[0] / len(boxes)
        for voxels in boxes:
            voxels.copy_(share)
        return out, None


def _boxes(x: Tensor, stride: Triple) -> list[Tensor]:
    """Views (B, C, D/s, H/s, W/s): the voxels at each place in their box."""
    d, h, w = stride
    return [x[:, :, i::d, j::h, k::w] for i in range(d) for j in range(h) for k in range(w)]


def initialise(module: nn.Module) -> None:
    """He's initialisation for leaky ReLUs, biases zero, and every residual block the identity at first.

    Source: nnU-Net's `InitWeights_He(1e-2)` and `init_last_bn_before_add_to_0`. To be used with `nn.Module.apply`.
    """
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAK)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
