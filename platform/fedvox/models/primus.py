"""Primus: a plain transformer on 3D patches, with a light convolutional decoder and no skip connections.

    stem        tokenizer, 8³ voxels -> one token: a single convolution (version 1), or residual blocks (version 2)
    encoder     learned position added; blocks of attention with 3D rotary positions and SwiGLU; layer norm
    decoder     transposed convolutions, each doubling the grid, with layer norm over channels and GELU between them
    heads       the last transposed convolution, to logits at full resolution (there is no deep supervision)

    block       x + γ₁ · proj(norm(attention(norm(x)))), then x + γ₂ · fc2(norm(silu(gate(norm(x))) · value(norm(x))))

The learned positions tie the weights to one patch size; `transfer.py` resizes them.

Sources: Primus (arXiv:2503.01835), its second version (TMLR), and nnU-Net's `dynamic-network-architectures`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone, PerAxis, Triple, check_positive, per_axis
from fedvox.models.memory_layout import is_transformed
from fedvox.models.residual import UNIT, ResidualBlock, initialise
from fedvox.models.rotary import rotary_table, rotate

Tokenizer = Literal["patch", "residual"]

TOKEN_EDGE = 8
"""Voxels per token and axis."""
MLP_RATIO = 8 / 3
_TOKENIZER_WIDTHS = (32, 32, 64, 128)  # stem, and three stages of stride 2


@dataclass(frozen=True)
class PrimusConfig:
    """The shape of a Primus.

    Attributes:
        in_channels: image channels.
        classes: output channels, background included.
        patch_size: the only patch (D, H, W) that it takes, in voxels; a multiple of 8.
        width: channels of a token.
        depth: transformer blocks.
        attention_heads: heads per block; width / heads must be a multiple of 6, for three axes of rotations.
        tokenizer: "patch" is one convolution (version 1), "residual" is a small residual network (version 2).
        layer_scale: initial value of γ.
        drop_path: probability of skipping the last block's branches in training; it grows linearly from zero.
        deep_supervision: accepted for all backbones alike; there is one resolution of output.
        checkpoint_blocks: keep only the blocks' inputs and compute each block again in the backward pass.
    """

    in_channels: int = 1
    classes: int = 2
    patch_size: PerAxis = 128
    width: int = 396
    depth: int = 12
    attention_heads: int = 6
    tokenizer: Tokenizer = "patch"
    layer_scale: float = 0.1
    drop_path: float = 0.2
    deep_supervision: bool = False
    checkpoint_blocks: bool = False

    def __post_init__(self) -> None:
        check_positive(in_channels=self.in_channels, classes=self.classes)
        check_positive(width=self.width, depth=self.depth, attention_heads=self.attention_heads)
        if any(edge % TOKEN_EDGE for edge in self.patch):
            nearest = tuple(-(-edge // TOKEN_EDGE) * TOKEN_EDGE for edge in self.patch)
            raise ConfigError(
                f"patch_size {self.patch} is not a multiple of {TOKEN_EDGE} along every axis",
                f"use the next larger patch_size, {nearest}",
            )
        if self.width % (6 * self.attention_heads):
            raise ConfigError(
                f"width {self.width} / attention_heads {self.attention_heads} must be a multiple of 6",
                "the published sizes have 66 channels per head",
            )
        if self.tokenizer not in ("patch", "residual"):
            raise ConfigError(
                f"tokenizer must be 'patch' or 'residual', got {self.tokenizer!r}", "use 'residual'"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(
                f"drop_path must be in [0, 1), got {self.drop_path!r}", "the published value is 0.2"
            )

    @property
    def patch(self) -> Triple:
        """Patch size in voxels (D, H, W)."""
        return per_axis(self.patch_size, "patch_size")

    @property
    def grid(self) -> Triple:
        """Tokens along (D, H, W)."""
        d, h, w = self.patch
        return (d // TOKEN_EDGE, h // TOKEN_EDGE, w // TOKEN_EDGE)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels before, between and after the three transposed convolutions.

        Geometric from the width to twice the classes, rounded to multiples of 8; the last are the classes.
        """
        steps = int(math.log2(TOKEN_EDGE))
        shrink = (self.width / (2 * self.classes)) ** (1 / steps)
        inner = [max(8, round((self.width / shrink**n + 1e-6) / 8) * 8) for n in range(1, steps)]
        return (self.width, *inner, self.classes)


def _sizes() -> dict[str, PrimusConfig]:
    shapes = {"s": (396, 12, 6), "b": (792, 12, 12), "m": (864, 16, 12), "l": (1056, 24, 16)}
    tokenizers: dict[str, Tokenizer] = {"v1": "patch", "v2": "residual"}
    return {
        f"primus-{version}-{size}": PrimusConfig(width=w, depth=d, attention_heads=h, tokenizer=tokenizer)
        for version, tokenizer in tokenizers.items()
        for size, (w, d, h) in shapes.items()
    }


SIZES: dict[str, PrimusConfig] = {
    **_sizes(),
    # Not published: for a laptop's CPU (1.9 M parameters).
    "primus-v2-tiny": PrimusConfig(
        patch_size=64, width=132, depth=4, attention_heads=2, tokenizer="residual"
    ),
}


class PatchTokenizer(nn.Module):
    """One convolution from 8³ voxels to a token."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv3d(in_channels, width, TOKEN_EDGE, TOKEN_EDGE)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, D, H, W) to tokens on their grid (B, width, D/8, H/8, W/8)."""
        return cast(Tensor, self.project(x))


class ResidualTokenizer(nn.Module):
    """Four residual blocks, three of them with stride 2, and a projection to the width of a token."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        stem, *stages = _TOKENIZER_WIDTHS
        kernel: Triple = (3, 3, 3)
        blocks = [ResidualBlock(in_channels, stem, kernel, UNIT, bias=True, slope=0.0)]
        for channels, out in zip(_TOKENIZER_WIDTHS[:-1], stages, strict=True):
            blocks.append(ResidualBlock(channels, out, kernel, (2, 2, 2), bias=False, slope=0.0))
        self.blocks = nn.ModuleList(blocks)
        self.project = nn.Conv3d(_TOKENIZER_WIDTHS[-1], width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, D, H, W) to tokens on their grid (B, width, D/8, H/8, W/8)."""
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.project(x))


class LearnedPosition(nn.Module):
    """A learned vector per token, added to it.

    Args:
        tokens: number of tokens of a patch.
        width: channels of a token.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, tokens, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add to (B, tokens, width)."""
        return x + self.weight


class LayerScale(nn.Module):
    """A learned factor per channel, small at first."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, tokens, width)."""
        return x * self.gamma


class DropPath(nn.Module):
    """In training, zero a sample's branch with a probability, and scale it up otherwise."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Keep or drop each sample of (B, tokens, width)."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        kept = torch.empty(x.shape[0], 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (kept / keep)


class Attention(nn.Module):
    """Multi-head attention over all tokens, with rotary positions and a layer norm before the projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(
            width, width, bias=False
        )  # a bias here shifts all scores alike: softmax ignores it
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Attend within (B, tokens, width); `rotation` as `rotary_table` gives it."""
        query, key, value = (self._split(linear(x)) for linear in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(rotate(query, rotation), rotate(key, rotation), value)
        return cast(Tensor, self.project(self.norm(mixed.transpose(1, 2).flatten(2))))

    def _split(self, x: Tensor) -> Tensor:
        """(B, tokens, width) to (B, heads, tokens, width / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class SwiGLU(nn.Module):
    """A gated two-layer perceptron with a layer norm inside."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner)
        self.project = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of (B, tokens, width)."""
        return cast(Tensor, self.project(self.norm(F.silu(self.gate(x)) * self.value(x))))


class EvaBlock(nn.Module):
    """Attention and perceptron, each on normalised tokens and added with a learned scale."""

    def __init__(self, config: PrimusConfig, drop_path: float) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, config.attention_heads)
        self.scale1 = LayerScale(width, config.layer_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = SwiGLU(width, int(width * MLP_RATIO))
        self.scale2 = LayerScale(width, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Transform (B, tokens, width)."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), rotation)))
        return x + cast(Tensor, self.drop_path(self.scale2(self.mlp(self.norm2(x)))))


class PrimusEncoder(nn.Module):
    """The transformer, on the tokens of one patch size."""

    rotation: Tensor

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.checkpoint_blocks = config.checkpoint_blocks
        self.position = LearnedPosition(math.prod(config.grid), config.width)
        head_width = config.width // config.attention_heads
        self.register_buffer("rotation", rotary_table(config.grid, head_width), persistent=False)
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            EvaBlock(config, config.drop_path * n / last) for n in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens on their grid (B, width, d, h, w), to the same shape."""
        grid = x.shape[2:]
        x = self.position(x.flatten(2).transpose(1, 2))
        recompute = self.checkpoint_blocks and torch.is_grad_enabled() and not is_transformed(x)
        for block in self.blocks:
            if recompute:
                x = cast(Tensor, checkpoint(block, x, self.rotation, use_reentrant=False))
            else:
                x = block(x, self.rotation)
        tokens: Tensor = self.norm(x)
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, *grid)

    def _initialise(self) -> None:
        """Normal with σ = 0.02, and the last layer of each branch scaled down with its depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for n, block in enumerate(cast(Sequence[EvaBlock], self.blocks), start=1):
                block.attention.project.weight.div_(math.sqrt(2 * n))
                block.mlp.project.weight.div_(math.sqrt(2 * n))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, D, H, W)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PrimusDecoder(nn.Module):
    """All transposed convolutions but the last, which is the head."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        widths = config.decoder_widths[:-1]
        pairs = list(itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, 2) for coarse, fine in pairs)
        self.norms = nn.ModuleList(ChannelNorm(fine) for _, fine in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width, d, h, w) to (B, C, 4d, 4h, 4w)."""
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = F.gelu(norm(up(x)))
        return x


class Primus(Backbone):
    """Primus, from images (B, C, *patch_size) to logits (B, K, *patch_size).

    Raises:
        ConfigError: on another patch size than the config's.
    """

    config: PrimusConfig

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.config = config
        self.deep_supervision = False
        tokenizer = PatchTokenizer if config.tokenizer == "patch" else ResidualTokenizer
        self.stem = tokenizer(config.in_channels, config.width)
        self.encoder = PrimusEncoder(config)
        self.decoder = PrimusDecoder(config)
        self.heads = nn.ModuleList([nn.ConvTranspose3d(config.decoder_widths[-2], config.classes, 2, 2)])
        for part in (self.stem, self.decoder, self.heads):
            part.apply(_initialise_convolution)

    @property
    def divisor(self) -> Triple:
        """Voxels per token."""
        return (TOKEN_EDGE, TOKEN_EDGE, TOKEN_EDGE)

    def forward(self, x: Tensor) -> Tensor:
        """Segment (B, C, D, H, W)."""
        self.check_patch(x, fewest_voxels=1)
        if tuple(x.shape[2:]) != self.config.patch:
            raise ConfigError(
                f"this Primus takes patches of {self.config.patch}, got {tuple(x.shape[2:])}",
                "build it with this patch_size; load_pretrained resizes its learned positions",
            )
        return cast(Tensor, self.heads[0](self.decoder(self.encoder(self.stem(x)))))


def _initialise_convolution(module: nn.Module) -> None:
    """He's initialisation; unlike in the U-Nets, a residual block does not start as the identity."""
    if not isinstance(module, ResidualBlock):
        initialise(module)
