"""Rotary positions in three dimensions: queries and keys are turned by angles that grow with a token's coordinates.

Their inner products then depend on the distance between tokens only, along each axis.

Source: RoFormer (arXiv:2104.09864), extended to axes as in EVA-02 (arXiv:2303.11331) and Primus (arXiv:2503.01835).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedvox.models.backbone import Triple

ROPE_BASE = 10_000.0


def rotary_table(grid: Triple, head_width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of 3D rotary positions, (2, tokens, head_width).

    A third of the channels turns with each axis, in pairs, at head_width / 6 frequencies 10,000^(-n · 6 / head_width):
    the n-th pair of an axis turns by its coordinate (in tokens) times the n-th frequency.
    """
    bands = head_width // 6
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(bands, dtype=torch.float32) / bands)
    axes = [torch.arange(n, dtype=torch.float32) for n in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    angles = (coordinates[..., None] * frequencies).flatten(0, 2).flatten(1)
    angles = angles.repeat_interleave(2, dim=1)
    return torch.stack([angles.sin(), angles.cos()]).to(dtype)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of (B, heads, tokens, head_width) by a `rotary_table`."""
    sine, cosine = rotation.to(x.dtype).unbind(0)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cosine + turned * sine
