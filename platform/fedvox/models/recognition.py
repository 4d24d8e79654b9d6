"""Which network some weights belong to, read off their names and shapes.

A checkpoint of another project does not say how its network was built, but its tensors do: only what leaves no trace
in them has to be known. For MedNeXt that is the stride, which is 2 in all published networks, and whether GRN divides
by the mean; for Primus the aspect of the patch, which is taken to be a cube, and the 66 channels of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from fedvox.errors import CheckpointError
from fedvox.models.backbone import PerAxis, Triple
from fedvox.models.mednext import MedNeXtConfig
from fedvox.models.primus import TOKEN_EDGE, PrimusConfig
from fedvox.models.resenc_unet import ResEncUNetConfig

BackboneConfigs = MedNeXtConfig | ResEncUNetConfig | PrimusConfig
_HEAD_WIDTH = 66  # channels per attention head of all published sizes


def config_of(weights: Mapping[str, Tensor], *, patch_size: PerAxis | None = None) -> BackboneConfigs:
    """The config of the network that has these tensors.

    Args:
        weights: under our names (see `upstream.translate`), of a whole network.
        patch_size: of Primus, where it was no cube.

    Raises:
        CheckpointError: the names are of no known network, or the patch size cannot be told.
    """
    try:
        if "encoder.position.weight" in weights:
            return _primus(weights, patch_size)
        if "encoder.downs.0.depthwise.weight" in weights:
            return _mednext(weights)
        return _unet(weights)
    except KeyError as error:
        raise CheckpointError(
            f"the weights are not those of a whole known network: {error.args[0]} is missing",
            "translate them first, and keep all parts of the network",
        ) from error


def _mednext(weights: Mapping[str, Tensor]) -> MedNeXtConfig:
    levels = 1 + _count(weights, r"encoder\.downs\.(\d+)\.")
    encoder = [f"encoder.stages.{n}" for n in range(levels)]
    decoder = [f"decoder.stages.{n}" for n in reversed(range(levels - 1))]
    stages = [*encoder, *decoder]

    def ratio(block: str) -> int:
        outer, inner = (
            weights[f"{block}.compress.weight"].shape[1],
            weights[f"{block}.expand.weight"].shape[1],
        )
        return outer // inner

    expansions = tuple(ratio(f"{stage}.0") for stage in stages)
    downs = tuple(ratio(f"encoder.downs.{n}") for n in range(levels - 1))
    return MedNeXtConfig(
        in_channels=weights["stem.weight"].shape[1],
        classes=weights["heads.0.weight"].shape[0],
        width=weights["stem.weight"].shape[0],
        blocks=tuple(_count(weights, rf"{re.escape(stage)}\.(\d+)\.") for stage in stages),
        expansions=expansions,
        down_expansions=None if downs == expansions[1:levels] else downs,
        kernel=tuple(_edges(weights[f"{stage}.0.depthwise.weight"]) for stage in encoder),
        grn="mean" if f"{encoder[0]}.0.grn.gamma" in weights else None,
        deep_supervision="heads.1.weight" in weights,
    )


def _unet(weights: Mapping[str, Tensor]) -> ResEncUNetConfig:
    levels = 1 + _count(weights, r"decoder\.ups\.(\d+)\.")
    residual = "encoder.stages.0.0.conv1.conv.weight" in weights
    first = "conv1.conv.weight" if residual else "conv.weight"
    blocks = [_count(weights, rf"encoder\.stages\.{n}\.(\d+)\.") for n in range(levels)]
    stem = weights[
        "stem.conv.weight"
    ]  # all of the plain U-Net's first stage, if that has a single convolution
    heads = [weights[f"encoder.stages.{n}.0.{first}"] if blocks[n] else stem for n in range(levels)]
    return ResEncUNetConfig(
        in_channels=stem.shape[1],
        classes=weights["heads.0.weight"].shape[0],
        features=tuple(weight.shape[0] for weight in heads),
        blocks=tuple(blocks) if residual else (blocks[0] + 1, *blocks[1:]),
        decoder_convs=tuple(_count(weights, rf"decoder\.stages\.{n}\.(\d+)\.") for n in range(levels - 1)),
        kernel=tuple(_edges(weight) for weight in heads),
        stride=tuple(_edges(weights[f"decoder.ups.{n}.weight"]) for n in range(levels - 1)),
        residual=residual,
    )


def _primus(weights: Mapping[str, Tensor], patch_size: PerAxis | None) -> PrimusConfig:
    _, tokens, width = weights["encoder.position.weight"].shape
    if patch_size is None:
        edge = round(tokens ** (1 / 3))
        if edge**3 != tokens:
            raise CheckpointError(
                f"Primus was trained on patches of {tokens} tokens, which is no cube", "give its patch_size"
            )
        patch_size = edge * TOKEN_EDGE
    residual = "stem.blocks.0.conv1.conv.weight" in weights
    first = "stem.blocks.0.conv1.conv.weight" if residual else "stem.project.weight"
    return PrimusConfig(
        in_channels=weights[first].shape[1],
        classes=weights["heads.0.weight"].shape[1],
        patch_size=patch_size,
        width=width,
        depth=_count(weights, r"encoder\.blocks\.(\d+)\."),
        attention_heads=width // _HEAD_WIDTH,
        tokenizer="residual" if residual else "patch",
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes at the start of the names."""
    return len({match[1] for match in (re.match(pattern, name) for name in weights) if match})


def _edges(weight: Tensor) -> Triple:
    """Edge lengths (D, H, W) of kernels (out, in, D, H, W)."""
    return (weight.shape[2], weight.shape[3], weight.shape[4])
