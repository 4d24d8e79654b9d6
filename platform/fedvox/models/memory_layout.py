"""Which tensors take the CPU kernels of this package.

On a CPU the networks run in channels-last memory, where a voxel's channels lie side by side. There, convolutions of
one voxel are matrix products, and oneDNN has fast depthwise kernels. The layers in `depthwise.py`, `pointwise.py` and
`normalization.py` have a formulation for that layout, and leave everything else to PyTorch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def has_fast_path(x: Tensor) -> bool:
    """Whether `x` (B, C, D, H, W) is a float32 CPU tensor in channels-last memory, in eager mode."""
    if (
        x.device.type != "cpu"
        or is_transformed(x)
        or x.dtype != torch.float32
        or torch.compiler.is_compiling()
    ):
        return False
    channels, _, height, width = x.shape[1:]
    strides = (1, height * width * channels, width * channels, channels)
    # By strides and not by is_contiguous(memory_format=...), which is true of any layout of a single channel.
    # The stride of a dimension with a single entry is arbitrary.
    wanted = zip(x.shape[1:], x.stride()[1:], strides, strict=True)
    in_channels_last = channels > 1 and all(n == 1 or step == expected for n, step, expected in wanted)
    return in_channels_last and not torch.is_autocast_enabled("cpu")


def to_fast_layout(x: Tensor) -> Tensor:
    """Channels-last memory for a CPU tensor (B, C, D, H, W); a tensor of another device as it is."""
    plain = x.device.type == "cpu" and not is_transformed(x)
    return x.contiguous(memory_format=torch.channels_last_3d) if plain else x


def is_transformed(x: Tensor) -> bool:
    """Inside `torch.vmap` or `torch.func.grad` (Opacus uses them), which know no memory formats and few functions."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def rows(x: Tensor) -> Tensor:
    """(B, C, D, H, W) in channels-last memory as (B, voxels, C), without a copy."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)


def volume(values: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """The inverse of `rows`: (B, voxels, C) as (B, C, *size)."""
    return values.view(values.shape[0], *size, values.shape[2]).permute(0, 4, 1, 2, 3)


def apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    """The first output of an autograd function."""
    out = function.apply(*args)  # type: ignore[no-untyped-call]  # as torch declares it
    return cast(Tensor, out[0] if isinstance(out, tuple) else out)
