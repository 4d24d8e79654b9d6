"""What all backbones have in common: their parts by name, their outputs, and the patches that they accept."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from fedvox.errors import ConfigError

Triple = tuple[int, int, int]
# One number for all axes, one per axis (D, H, W), or one of those per level of the network.
PerAxis = int | Triple
PerLevel = PerAxis | tuple[PerAxis, ...]


class BackboneConfig(Protocol):
    """The fields that every backbone's frozen config dataclass has."""

    @property
    def in_channels(self) -> int:
        """Image channels."""

    @property
    def classes(self) -> int:
        """Output channels, background included."""

    @property
    def deep_supervision(self) -> bool:
        """Whether coarse levels have heads of their own, returned in training."""


class Backbone(nn.Module):
    """A segmentation network from images (B, C, D, H, W) to logits (B, K, D, H, W).

    Subclasses set the four parts. Weight transfer and layer-wise learning rates go by these names:

    Attributes:
        config: the frozen dataclass from which it was built.
        stem: from image channels to features; the only part that knows the number of image channels.
        encoder: from features to coarse features.
        decoder: from coarse features to fine ones.
        heads: from features to class logits, full resolution first; the only part that knows the classes.
        deep_supervision: in training, return the logits of all heads, full resolution first.
    """

    config: BackboneConfig
    stem: nn.Module
    encoder: nn.Module
    decoder: nn.Module
    heads: nn.ModuleList
    deep_supervision: bool

    @property
    def divisor(self) -> Triple:
        """What each edge of a patch (D, H, W) must be a multiple of."""
        raise NotImplementedError

    def check_patch(self, x: Tensor, *, fewest_voxels: int = 2) -> None:
        """Refuse a batch that the network cannot take.

        Args:
            x: the images.
            fewest_voxels: how many voxels must be left at the coarsest level; instance normalisation turns a single
                one into a constant.

        Raises:
            ConfigError: not five dimensions, another channel count, edges that `divisor` does not divide, or too
                small a patch.
        """
        if x.ndim != 5 or x.shape[1] != self.config.in_channels:
            raise ConfigError(
                f"the network takes images (B, {self.config.in_channels}, D, H, W), got {tuple(x.shape)}",
                "set in_channels to the number of image channels, and give one batch dimension",
            )
        patch = tuple(x.shape[2:])
        if any(n % d or not n for n, d in zip(patch, self.divisor, strict=True)):
            fitting = tuple(max(d, -(-n // d) * d) for n, d in zip(patch, self.divisor, strict=True))
            raise ConfigError(
                f"patch_size {patch} is not divisible by {self.divisor}, which this network needs",
                f"use the next larger patch_size, {fitting}",
            )
        if math.prod(n // d for n, d in zip(patch, self.divisor, strict=True)) < fewest_voxels:
            raise ConfigError(
                f"patch_size {patch} leaves a single voxel at the network's coarsest level",
                f"use a patch_size larger than {self.divisor} along at least one axis",
            )


def per_axis(value: PerAxis, field: str) -> Triple:
    """One value per axis (D, H, W).

    Raises:
        ConfigError: neither an integer nor three of them, or smaller than one.
    """
    numbers = (
        (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, tuple | list) else ()
    )
    if len(numbers) != 3 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
        raise ConfigError(
            f"{field} must be a positive integer or three of them (D, H, W), got {value!r}",
            f"write for example {field}: 3 or {field}: [1, 3, 3]",
        )
    return (numbers[0], numbers[1], numbers[2])


def per_level(value: PerLevel, levels: int, field: str) -> tuple[Triple, ...]:
    """One value per level and axis.

    Raises:
        ConfigError: malformed, or not as many as levels.
    """
    nested = isinstance(value, tuple | list) and any(isinstance(v, tuple | list) for v in value)
    if not (nested or (isinstance(value, tuple | list) and len(value) != 3)):
        return (per_axis(value, field),) * levels  # type: ignore[arg-type]  # checked there
    values = tuple(per_axis(v, field) for v in value)  # type: ignore[union-attr]  # a sequence, by the line above
    if len(values) != levels:
        raise ConfigError(
            f"{field} has {len(values)} entries, but the network has {levels} of them",
            f"give one value for all, or {levels} values",
        )
    return values


def transitions(value: PerLevel, levels: int) -> tuple[Triple, ...]:
    """One stride per pair of neighbouring levels; nnU-Net's plans have one more in front, of ones, for the first level.

    Raises:
        ConfigError: malformed, or not as many as pairs.
    """
    if isinstance(value, tuple | list) and len(value) == levels and value[0] in (1, (1, 1, 1), [1, 1, 1]):
        nested = any(isinstance(v, tuple | list) for v in value)
        if nested:
            value = tuple(value[1:])
    return per_level(value, levels - 1, "stride")


def check_positive(**fields: int | Iterable[int]) -> None:
    """Refuse counts below one.

    Raises:
        ConfigError: names the field.
    """
    for name, value in fields.items():
        numbers = [value] if isinstance(value, int) else list(value) if isinstance(value, Iterable) else [0]
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
            raise ConfigError(
                f"{name} must be at least 1, got {value!r}", f"set {name} to positive whole numbers"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, as a remedy for a mistyped one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return (
        f"did you mean {close[0]!r}? Known: {', '.join(names)}" if close else "nothing is known by name here"
    )
