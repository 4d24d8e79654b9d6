"""MedNeXt, versions 1 and 2: a U-Net of ConvNeXt blocks.

    stem        1³ convolution, image channels -> C
    encoder     levels of residual blocks; between levels a down block halves the grid and doubles the channels
    decoder     up blocks mirror that; the encoder's features are added, not concatenated
    heads       1³ convolution to logits; with deep supervision one at every level, the coarsest included

    block       depthwise k³ -> instance norm -> 1³ to R·C channels -> GELU -> [GRN] -> 1³ to C channels, plus its input
    down, up    the same with a strided or transposed depthwise convolution, plus a strided 1³ shortcut

Version 2 is version 1 with global response normalisation (GRN) in every block, down and up included. Kernels and
strides may differ by axis and level, and the number of levels is free, so that the topology fits anisotropic images.

Sources: MedNeXt, MICCAI 2023 (arXiv:2303.09975) and its code; MedNeXt-v2 (arXiv:2512.17774).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone, PerLevel, Triple, check_positive, per_level, transitions
from fedvox.models.depthwise import DepthwiseConv3d, DepthwiseConvTranspose3d
from fedvox.models.memory_layout import to_fast_layout
from fedvox.models.normalization import GlobalResponseNorm, InstanceNorm, Reduce
from fedvox.models.pointwise import PointwiseConv3d, PointwiseConvTranspose3d
from fedvox.models.recompute import recomputed

Resample = Literal["same", "down", "up"]


@dataclass(frozen=True)
class MedNeXtConfig:
    """The shape of a MedNeXt.

    Attributes:
        in_channels: image channels.
        classes: output channels, background included.
        width: channels C of the finest level; doubled at every level.
        blocks: residual blocks per stage, in the order of the data: encoder levels, bottleneck, decoder levels.
        expansions: ratio R per stage, in the same order. An up block has the ratio of the stage that it leads to.
        down_expansions: ratio R per down block; None for the ratio of the stage that it leads to, as in the
            original. MONAI's variant uses the ratio of the stage that it comes from.
        kernel: odd edge lengths of the depthwise kernels: one number, one per axis (D, H, W), or those per level.
            The blocks between two levels use the finer level's.
        stride: downsampling factor between neighbouring levels: one number, one per axis, or those per pair of
            levels; also as nnU-Net's plans write it, with a first entry of ones for the first level.
        grn: None without GRN (version 1), or what GRN divides by: "mean" or "sum" over channels (version 2).
        deep_supervision: heads at all levels.
        recompute_activations: compute GELU and GRN again in the backward pass instead of keeping their outputs:
            a few percent more time, and a fifth (version 1) to two fifths (version 2) less memory.
        checkpoint_blocks: keep only the blocks' inputs and compute each block again in the backward pass: a third
            more time, and a fraction of the memory.
    """

    in_channels: int = 1
    classes: int = 2
    width: int = 32
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 2, 2, 2)
    expansions: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 2, 2, 2)
    down_expansions: tuple[int, ...] | None = None
    kernel: PerLevel = 3
    stride: PerLevel = 2
    grn: Reduce | None = None
    deep_supervision: bool = True
    recompute_activations: bool = True
    checkpoint_blocks: bool = False

    def __post_init__(self) -> None:
        check_positive(in_channels=self.in_channels, classes=self.classes, width=self.width)
        check_positive(blocks=self.blocks, expansions=self.expansions)
        if len(self.blocks) % 2 == 0 or len(self.blocks) < 3 or len(self.blocks) != len(self.expansions):
            raise ConfigError(
                f"blocks {self.blocks} and expansions {self.expansions} must both have one entry per stage: "
                "n encoder levels, the bottleneck, n decoder levels",
                "give two lists of the same odd length, such as [2, 2, 2, 2, 2]",
            )
        if len(self.down_ratios) != self.levels - 1:
            raise ConfigError(
                f"down_expansions {self.down_expansions} must have {self.levels - 1} entries, one per down block",
                "leave it out for the original's ratios",
            )
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ConfigError(f"kernel {self.kernel!r} must be odd along every axis", "use 1, 3 or 5")
        if self.grn not in (None, "mean", "sum"):
            raise ConfigError(
                f"grn must be null, 'mean' or 'sum', got {self.grn!r}", "use 'mean' for version 2"
            )
        _ = self.strides

    @property
    def levels(self) -> int:
        """Number of resolutions, bottleneck included."""
        return (len(self.blocks) + 1) // 2

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level, full resolution first."""
        return tuple(self.width * 2**level for level in range(self.levels))

    @property
    def down_ratios(self) -> tuple[int, ...]:
        """Expansion ratio per down block."""
        return self.expansions[1 : self.levels] if self.down_expansions is None else self.down_expansions

    @property
    def kernels(self) -> tuple[Triple, ...]:
        """Depthwise kernel per level."""
        return per_level(self.kernel, self.levels, "kernel")

    @property
    def strides(self) -> tuple[Triple, ...]:
        """Downsampling factor per pair of neighbouring levels."""
        return transitions(self.stride, self.levels)


_BASE_RATIOS = (2, 3, 4, 4, 4, 4, 4, 3, 2)
_LARGE = (3, 4, 8, 8, 8, 8, 8, 4, 3)

SIZES: dict[str, MedNeXtConfig] = {
    "mednext-v1-s": MedNeXtConfig(),
    "mednext-v1-b": MedNeXtConfig(expansions=_BASE_RATIOS),
    "mednext-v1-m": MedNeXtConfig(expansions=_BASE_RATIOS, blocks=(3, 4, 4, 4, 4, 4, 4, 4, 3)),
    "mednext-v1-l": MedNeXtConfig(expansions=_LARGE, blocks=_LARGE),
    "mednext-v2-base": MedNeXtConfig(expansions=_LARGE, blocks=_LARGE, grn="mean"),
    "mednext-v2-wide": MedNeXtConfig(expansions=_LARGE, blocks=_LARGE, grn="mean", width=64),
    # Not published: for a laptop's CPU (0.4 M parameters) and for tests (19 k).
    "mednext-v2-tiny": MedNeXtConfig(width=16, blocks=(1,) * 7, expansions=(2, 2, 3, 3, 3, 2, 2), grn="mean"),
    "mednext-v2-nano": MedNeXtConfig(width=8, blocks=(1,) * 5, expansions=(2,) * 5, grn="mean"),
}


class MedNeXtBlock(nn.Module):
    """One block, (B, in_channels, D, H, W) to (B, out_channels, D', H', W').

    Args:
        in_channels: channels C of the input, also inside the depthwise part.
        out_channels: channels of the output; equal to `in_channels` unless it resamples.
        expansion: ratio R of the inner width to `in_channels`.
        kernel: depthwise kernel (D, H, W).
        grn: what GRN divides by; None without GRN.
        resample: "same", "down" by `stride` or "up" by `stride`.
        stride: resampling factor (D, H, W).
        recompute: compute GELU and GRN again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        kernel: Triple,
        *,
        grn: Reduce | None = None,
        resample: Resample = "same",
        stride: Triple = (1, 1, 1),
        recompute: bool = False,
    ) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.depthwise: nn.Module
        self.shortcut: nn.Module
        if resample == "up":
            self.depthwise = DepthwiseConvTranspose3d(in_channels, kernel, stride)
            self.shortcut = PointwiseConvTranspose3d(in_channels, out_channels, stride)
        else:
            self.depthwise = DepthwiseConv3d(in_channels, kernel, stride)
            same = resample == "same"
            self.shortcut = nn.Identity() if same else PointwiseConv3d(in_channels, out_channels, stride)
        self.norm = InstanceNorm(in_channels)
        self.expand = PointwiseConv3d(in_channels, inner)
        self.grn = nn.Identity() if grn is None else GlobalResponseNorm(inner, grn)
        self.compress = PointwiseConv3d(inner, out_channels)
        # A transposed convolution gives (n - 1) · stride + 1 voxels. The original pads the missing ones on the left.
        self.missing = tuple(s - 1 for s in stride) if resample == "up" else (0, 0, 0)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, in_channels, D, H, W)."""
        inner = self.expand(self.norm(self.depthwise(x)))
        out = recomputed(self._contract, inner, inside=self) if self.recompute else self._contract(inner)
        out = out + self.shortcut(x)
        depth, height, width = self.missing
        return F.pad(out, (width, 0, height, 0, depth, 0)) if any(self.missing) else out

    def _contract(self, inner: Tensor) -> Tensor:
        """The second half of the inverted bottleneck: (B, R·C, D, H, W) to (B, out_channels, D, H, W)."""
        return cast(Tensor, self.compress(self.grn(F.gelu(inner))))


class MedNeXtEncoder(nn.Module):
    """Stages of blocks with down blocks between them; the last stage is the bottleneck."""

    def __init__(self, config: MedNeXtConfig) -> None:
        super().__init__()
        self.checkpoint_blocks = config.checkpoint_blocks
        self.stages = nn.ModuleList(_stage(config, level, stage=level) for level in range(config.levels))
        self.downs = nn.ModuleList(
            _block(config, width, 2 * width, ratio, kernel, "down", stride)
            for width, ratio, kernel, stride in zip(
                config.widths, config.down_ratios, config.kernels, config.strides, strict=False
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (B, C·2^i, D/2^i, H/2^i, W/2^i) of all levels i from stem features (B, C, D, H, W)."""
        features = []
        for level, stage in enumerate(self.stages):
            if level:
                x = _run(self.downs[level - 1], x, self.checkpoint_blocks)
            for block in cast(nn.ModuleList, stage):
                x = _run(block, x, self.checkpoint_blocks)
            features.append(x)
        return features


class MedNeXtDecoder(nn.Module):
    """Up blocks and stages from the bottleneck to full resolution; index 0 is the full resolution."""

    def __init__(self, config: MedNeXtConfig) -> None:
        super().__init__()
        self.checkpoint_blocks = config.checkpoint_blocks
        stage_of = [2 * (config.levels - 1) - level for level in range(config.levels - 1)]
        self.ups = nn.ModuleList(
            _block(config, 2 * width, width, config.expansions[stage], kernel, "up", stride)
            for width, stage, kernel, stride in zip(
                config.widths, stage_of, config.kernels, config.strides, strict=False
            )
        )
        self.stages = nn.ModuleList(_stage(config, level, stage) for level, stage in enumerate(stage_of))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decoded features of all levels, full resolution first; the coarsest are the encoder's own."""
        x = features[-1]
        decoded = [x]
        for level in reversed(range(len(self.ups))):
            x = _run(self.ups[level], x, self.checkpoint_blocks) + features[level]
            for block in cast(nn.ModuleList, self.stages[level]):
                x = _run(block, x, self.checkpoint_blocks)
            decoded.insert(0, x)
        return decoded


class MedNeXt(Backbone):
    """MedNeXt, from images (B, C, D, H, W) to logits (B, K, D, H, W).

    In training with deep supervision it returns the logits of all levels, full resolution first.

    Raises:
        ConfigError: on a patch that `divisor` does not divide.
    """

    config: MedNeXtConfig

    def __init__(self, config: MedNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.deep_supervision = config.deep_supervision
        self.stem = PointwiseConv3d(config.in_channels, config.width)
        self.encoder = MedNeXtEncoder(config)
        self.decoder = MedNeXtDecoder(config)
        widths = config.widths if config.deep_supervision else config.widths[:1]
        self.heads = nn.ModuleList(PointwiseConv3d(width, config.classes) for width in widths)

    @property
    def divisor(self) -> Triple:
        """The product of all strides, per axis (D, H, W)."""
        d, h, w = (math.prod(axis) for axis in zip(*self.config.strides, strict=True))
        return (d, h, w)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment (B, C, D, H, W)."""
        self.check_patch(x)
        decoded = self.decoder(self.encoder(to_fast_layout(self.stem(x))))
        if self.deep_supervision and self.training:
            return [head(features) for head, features in zip(self.heads, decoded, strict=True)]
        return cast(Tensor, self.heads[0](decoded[0]))


def _block(
    config: MedNeXtConfig,
    in_channels: int,
    out_channels: int,
    ratio: int,
    kernel: Triple,
    resample: Resample = "same",
    stride: Triple = (1, 1, 1),
) -> MedNeXtBlock:
    """A block with what the config says of all blocks."""
    return MedNeXtBlock(
        in_channels,
        out_channels,
        ratio,
        kernel,
        grn=config.grn,
        resample=resample,
        stride=stride,
        recompute=config.recompute_activations and not config.checkpoint_blocks,
    )


def _stage(config: MedNeXtConfig, level: int, stage: int) -> nn.ModuleList:
    """The residual blocks of one stage."""
    width, ratio, kernel = config.widths[level], config.expansions[stage], config.kernels[level]
    return nn.ModuleList(_block(config, width, width, ratio, kernel) for _ in range(config.blocks[stage]))


def _run(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """The block's output, keeping only its input for the backward pass if `recompute`."""
    return recomputed(block, x, inside=block) if recompute else cast(Tensor, block(x))
