"""How many numbers the feature maps of a U-Net hold: nnU-Net's measure of GPU memory, counted without a network.

    encoder   every convolution's output, strided shortcuts included
    decoder   every transposed convolution's and convolution's output, and the logits of full resolution

nnU-Net builds the network and asks it. The count is a sum of a few products, and equals that exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedvox.planning.topology import Topology

Network = Literal["plain", "resenc"]


@dataclass(frozen=True)
class UNetShape:
    """A U-Net as far as its memory depends on it.

    Attributes:
        network: "plain" (stacked convolutions) or "resenc" (a residual encoder).
        topology: strides, kernels and patch.
        features: channels of each stage.
        encoder_blocks: convolutions ("plain") or residual blocks ("resenc") of each encoder stage.
        decoder_blocks: convolutions of each decoder stage, coarsest first.
        num_labels: output channels.
    """

    network: Network
    topology: Topology
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    num_labels: int


def feature_map_elements(shape: UNetShape) -> int:
    """Elements of all feature maps for one patch."""
    sizes = _sizes(shape.topology)
    encoder = _resenc_encoder if shape.network == "resenc" else _plain_encoder
    return encoder(shape, sizes) + _decoder(shape, sizes)


def _sizes(topology: Topology) -> list[int]:
    """Voxels of each stage."""
    sizes, edges = [], list(topology.patch_size)
    for stride in topology.strides:
        edges = [edge // step for edge, step in zip(edges, stride, strict=True)]
        sizes.append(math.prod(edges))
    return sizes


def _plain_encoder(shape: UNetShape, sizes: Sequence[int]) -> int:
    stages = zip(shape.encoder_blocks, shape.features, sizes, strict=True)
    return sum(convolutions * features * size for convolutions, features, size in stages)


def _resenc_encoder(shape: UNetShape, sizes: Sequence[int]) -> int:
    total = shape.features[0] * sizes[0]  # the stem
    before = shape.features[0], math.prod(shape.topology.patch_size)
    for blocks, features, size in zip(shape.encoder_blocks, shape.features, sizes, strict=True):
        shortcut = before != (features, size)  # the first block's, where channels or resolution change
        total += (2 * blocks + shortcut) * features * size
        before = features, size
    return total


def _decoder(shape: UNetShape, sizes: Sequence[int]) -> int:
    stages = zip(shape.decoder_blocks, shape.features[-2::-1], sizes[-2::-1], strict=True)
    total = sum((convolutions + 1) * features * size for convolutions, features, size in stages)
    return total + (shape.num_labels * sizes[0] if len(sizes) > 1 else 0)
