"""The denoising U-Net of the prior: 2D or 3D, small, and local in all it does.

    entrance   blocks of unshuffle^d voxels become channels, one convolution
    encoder    per level: residual blocks modulated by the noise level; a strided convolution between levels
    decoder    per level: nearest upsampling, the encoder's features concatenated, one residual block
    exit       one convolution that starts at zero, channels become voxels again

Features are normalised at each voxel over channels, never over space. So a voxel of the output depends on the voxels
within `reach` and on nothing else: a patch with a margin of that many voxels is denoised exactly as it would be inside
the whole image. Group normalisation, usual in diffusion networks, makes each patch depend on its own mean and
variance, and shows as seams.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.models.voxel_shuffle import to_channels, to_voxels


class PixelNorm(nn.Module):
    """Scales the channels at each voxel to a root mean square of one, with a learnt gain: `(B, C, *spatial)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over channels."""
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-4).to(x.dtype)
        return x * scale * self.gain.view(1, -1, *[1] * (x.ndim - 2))


class NoiseBlock(nn.Module):
    """Residual block `(B, C, *spatial)` to `(B, width, *spatial)`, scaled and shifted by the noise embedding."""

    def __init__(self, channels: int, width: int, embedding: int, dims: int) -> None:
        super().__init__()
        conv = _conv(dims)
        self.norm_in = PixelNorm(channels)
        self.conv_in = conv(channels, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        self.norm_out = PixelNorm(width)
        self.conv_out = conv(width, width, 3, padding=1)
        self.shortcut = conv(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block; `embedding` is `(B, E)`."""
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        scale, shift = self.film(embedding).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        out: Tensor = self.shortcut(x) + self.conv_out(F.silu(h * (1 + scale) + shift))
        return out


class NoiseUNet(nn.Module):
    """From `(B, inputs, *spatial)` and a noise level to `(B, outputs, *spatial)`, all zero at first.

    Args:
        inputs: channels.
        outputs: channels.
        dims: 2 or 3 spatial axes.
        widths: channels per level.
        blocks: residual blocks per encoder level.
        unshuffle: edge of the blocks at the entrance.
        embedding: E.
    """

    def __init__(
        self, inputs: int, outputs: int, *, dims: int, widths: Sequence[int], blocks: int, unshuffle: int,
        embedding: int,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, volume = _conv(dims), unshuffle**dims
        self.dims, self.unshuffle, self.blocks = dims, unshuffle, blocks
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2, 4, embedding // 2)))
        self.embed = nn.Sequential(
            nn.Linear(embedding // 2 * 2, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.entrance = conv(inputs * volume, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.ModuleList(NoiseBlock(width, width, embedding, dims) for _ in range(blocks))
            for width in widths
        )
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList(conv(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(conv(coarse, fine, 1) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(NoiseBlock(2 * fine, fine, embedding, dims) for fine, _ in pairs)
        self.norm = PixelNorm(widths[0])
        self.exit = conv(widths[0], outputs * volume, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(cast(Tensor, self.exit.bias))

    @property
    def divisor(self) -> int:
        """What each spatial edge must be a multiple of."""
        return self.unshuffle << len(self.downs)

    @property
    def reach(self) -> int:
        """No output voxel depends on an input voxel farther away than this, along any axis."""
        levels, reach = len(self.encoder), 0
        for level in range(
            levels
        ):  # two convolutions a block; the decoder has a block on all but the coarsest
            convolutions = 2 * self.blocks + (2 if level < levels - 1 else 0) + (2 if level == 0 else 0)
            reach += convolutions << level
        # A block that becomes channels, or that a strided convolution merges, is reached whole.
        return (reach + (1 << levels - 1) - 1) * self.unshuffle + self.unshuffle - 1

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """The output; `noise` `(B,)` tells the noise level."""
        angles = noise.view(-1, 1) * self.frequencies
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.entrance(to_channels(x, self.unshuffle))
        kept: list[Tensor] = []
        for level, blocks in enumerate(self.encoder):
            if level:
                h = self.downs[level - 1](h)
            for block in cast(nn.ModuleList, blocks):
                h = block(h, embedding)
            kept.append(h)
        for level in reversed(range(len(self.ups))):
            h = F.interpolate(self.ups[level](h), scale_factor=2.0, mode="nearest")
            h = self.decoder[level](torch.cat([h, kept[level]], dim=1), embedding)
        return to_voxels(self.exit(F.silu(self.norm(h))), self.unshuffle)


def _conv(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if dims == 2 else nn.Conv3d
