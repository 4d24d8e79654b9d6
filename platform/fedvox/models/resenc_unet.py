"""The U-Nets of nnU-Net: plain, and with a residual encoder (ResEnc).

    stem        convolution, image channels -> 32 channels
    encoder     a stage per resolution: residual blocks (or plain convolutions), the first one strided
    decoder     per resolution: transposed convolution, the encoder's features concatenated, one convolution (or two)
    heads       1³ convolution to logits at every resolution but the coarsest

nnU-Net's presets M, L and XL are one network: they differ in the memory budget, from which a planner derives patch,
batch and number of stages. Kernels and strides follow from the voxel spacing and are given per stage.

Sources: Isensee et al., nnU-Net Revisited (MICCAI 2024), and nnU-Net's `dynamic-network-architectures`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone, PerLevel, Triple, check_positive, per_level, transitions
from fedvox.models.memory_layout import to_fast_layout
from fedvox.models.residual import UNIT, ConvNorm, ResidualBlock, initialise


@dataclass(frozen=True)
class ResEncUNetConfig:
    """The shape of a U-Net.

    Attributes:
        in_channels: image channels.
        classes: output channels, background included.
        features: channels per stage, full resolution first.
        blocks: residual blocks per encoder stage; convolutions if not `residual`.
        decoder_convs: convolutions per decoder stage, full resolution first.
        kernel: odd edge lengths of the convolutions: one number, one per axis (D, H, W), or those per stage.
        stride: downsampling factor between neighbouring stages: one number, one per axis, or those per pair of
            stages; also as nnU-Net's plans write it, with a first entry of ones for the first stage.
        residual: residual blocks in the encoder; otherwise nnU-Net's plain U-Net.
        deep_supervision: return the logits of all heads in training. The heads exist either way, as in the original,
            so that weights fit; without it, the coarse ones are frozen.
        recompute_activations: compute the inner activation of a residual block again in the backward pass instead of
            keeping it: a few percent more time, and a tenth less memory.
    """

    in_channels: int = 1
    classes: int = 2
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    decoder_convs: tuple[int, ...] = (1, 1, 1, 1, 1)
    kernel: PerLevel = 3
    stride: PerLevel = 2
    residual: bool = True
    deep_supervision: bool = True
    recompute_activations: bool = True

    def __post_init__(self) -> None:
        check_positive(in_channels=self.in_channels, classes=self.classes, features=self.features)
        check_positive(blocks=self.blocks, decoder_convs=self.decoder_convs)
        if not len(self.features) == len(self.blocks) == len(self.decoder_convs) + 1 >= 2:
            raise ConfigError(
                f"features {self.features} and blocks {self.blocks} must have one entry per stage, "
                f"decoder_convs {self.decoder_convs} one less",
                "give lists of n, n and n - 1 numbers for n stages, n at least 2",
            )
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ConfigError(f"kernel {self.kernel!r} must be odd along every axis", "use 1, 3 or 5")
        _ = self.strides

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.features)

    @property
    def kernels(self) -> tuple[Triple, ...]:
        """Kernel per stage."""
        return per_level(self.kernel, self.levels, "kernel")

    @property
    def strides(self) -> tuple[Triple, ...]:
        """Downsampling factor per pair of neighbouring stages."""
        return transitions(self.stride, self.levels)


_PLAIN = ResEncUNetConfig(blocks=(2,) * 6, decoder_convs=(2,) * 5, residual=False)

SIZES: dict[str, ResEncUNetConfig] = {
    "resenc-unet-m": ResEncUNetConfig(),
    "resenc-unet-l": ResEncUNetConfig(),
    "resenc-unet-xl": ResEncUNetConfig(),
    "plain-unet": _PLAIN,
    # Not published: for a laptop's CPU (1.2 M parameters).
    "resenc-unet-tiny": ResEncUNetConfig(
        features=(16, 32, 64, 64), blocks=(1, 1, 2, 2), decoder_convs=(1, 1, 1)
    ),
}


class UNetEncoder(nn.Module):
    """A stage per resolution."""

    def __init__(self, config: ResEncUNetConfig) -> None:
        super().__init__()
        stages = []
        channels = config.features[0]
        for level, (width, count) in enumerate(zip(config.features, config.blocks, strict=True)):
            stride = config.strides[level - 1] if level else UNIT
            # The plain U-Net's stem is the first convolution of its first stage.
            count = count if config.residual or level else count - 1
            blocks = [
                _block(config, width if n else channels, width, config.kernels[level], UNIT if n else stride)
                for n in range(count)
            ]
            stages.append(nn.ModuleList(blocks))
            channels = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (B, C_i, D_i, H_i, W_i) of all stages, full resolution first, from those of the stem."""
        features = []
        for stage in self.stages:
            for block in cast(nn.ModuleList, stage):
                x = block(x)
            features.append(x)
        return features


def _block(
    config: ResEncUNetConfig, in_channels: int, channels: int, kernel: Triple, stride: Triple
) -> nn.Module:
    """What an encoder stage is made of."""
    if not config.residual:
        return ConvNorm(in_channels, channels, kernel, stride)
    return ResidualBlock(in_channels, channels, kernel, stride, recompute=config.recompute_activations)


class UNetDecoder(nn.Module):
    """Per resolution an upsampling and convolutions; index 0 is the full resolution."""

    def __init__(self, config: ResEncUNetConfig) -> None:
        super().__init__()
        pairs = list(zip(config.features[:-1], config.features[1:], strict=True))
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, stride, stride)
            for (fine, coarse), stride in zip(pairs, config.strides, strict=True)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvNorm(fine if n else 2 * fine, fine, kernel) for n in range(count))
            for (fine, _), kernel, count in zip(pairs, config.kernels, config.decoder_convs, strict=False)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decoded features of all resolutions but the coarsest, full resolution first."""
        x = features[-1]
        decoded: list[Tensor] = []
        for level in reversed(range(len(self.ups))):
            x = torch.cat([to_fast_layout(self.ups[level](x)), features[level]], dim=1)
            for conv in cast(nn.ModuleList, self.stages[level]):
                x = conv(x)
            decoded.insert(0, x)
        return decoded


class ResEncUNet(Backbone):
    """nnU-Net's network, from images (B, C, D, H, W) to logits (B, K, D, H, W).

    In training with deep supervision it returns the logits of all resolutions but the coarsest, full one first.

    Raises:
        ConfigError: on a patch that `divisor` does not divide.
    """

    config: ResEncUNetConfig

    def __init__(self, config: ResEncUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.deep_supervision = config.deep_supervision
        self.stem = ConvNorm(config.in_channels, config.features[0], config.kernels[0])
        self.encoder = UNetEncoder(config)
        self.decoder = UNetDecoder(config)
        self.heads = nn.ModuleList(nn.Conv3d(width, config.classes, 1) for width in config.features[:-1])
        self.apply(initialise)
        if (
            not config.deep_supervision
        ):  # data-parallel and private training demand a gradient of all that is trained
            self.heads[1:].requires_grad_(False)

    @property
    def divisor(self) -> Triple:
        """The product of all strides, per axis (D, H, W)."""
        d, h, w = (math.prod(stride[axis] for stride in self.config.strides) for axis in range(3))
        return (d, h, w)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment (B, C, D, H, W)."""
        self.check_patch(x)
        decoded = self.decoder(self.encoder(self.stem(x)))
        if self.deep_supervision and self.training:
            return [head(features) for head, features in zip(self.heads, decoded, strict=True)]
        return cast(Tensor, self.heads[0](decoded[0]))
