"""A plan: what was decided for a data set, and why.

Axes of a configuration are in nnU-Net's order: `ExperimentPlan.transpose` puts the coarsest axis first. 2D
configurations have the last two of them. `ExperimentPlan.in_volume_order` gives them back as (D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedvox.errors import ConfigError
from fedvox.planning.facts import IntensityProperties
from fedvox.planning.footprint import Network, UNetShape, feature_map_elements
from fedvox.planning.topology import Topology

T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """One thing that was decided.

    Attributes:
        field: what, by its name in the plan.
        value: as it was decided, in words.
        reason: why, with the numbers that led to it.
    """

    field: str
    value: str
    reason: str


@dataclass(frozen=True)
class Configuration:
    """How networks of one resolution are trained.

    Attributes:
        name: "3d_fullres", "3d_lowres", "2d", or a name of the user's own.
        spacing_mm: of the resampled volumes.
        patch_size: voxels.
        batch_size: patches a step.
        median_shape: voxels of the median case at this spacing; halves are possible.
        topology: strides and kernels.
        network: "plain" or "resenc".
        features: channels of each stage.
        encoder_blocks: convolutions or blocks of each encoder stage.
        decoder_blocks: convolutions of each decoder stage.
        normalization: nnU-Net's name of each channel's scheme.
        masked: whether each channel is normalised over nonzero voxels alone.
        batch_dice: pool Dice over the batch.
        data_identifier: nnU-Net's folder name of the preprocessed data.
        previous_stage: the configuration whose segmentation is fed in, for cascades.
        next_stage: the configuration that this one feeds.
        decisions: what was decided, in order; empty for a plan that was read.
        extra: further keys of a plan that was read, which are written back.
    """

    name: str
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    median_shape: tuple[float, ...]
    topology: Topology
    network: Network
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    normalization: tuple[str, ...]
    masked: tuple[bool, ...]
    batch_dice: bool = False
    data_identifier: str = ""
    previous_stage: str | None = None
    next_stage: str | None = None
    decisions: tuple[Decision, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def feature_map_elements(self, num_labels: int) -> int:
        """nnU-Net's measure of memory, for one patch."""
        return feature_map_elements(
            UNetShape(
                self.network,
                self.topology,
                self.features,
                self.encoder_blocks,
                self.decoder_blocks,
                num_labels,
            )
        )


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything that was planned for a data set.

    Attributes:
        dataset_name: of the data set.
        plans_name: nnU-Net's file name of the plan, without ending.
        planner: nnU-Net's name of the planner.
        transpose: axis of the volume (D, H, W) that each axis of a configuration is.
        median_spacing_mm: of the cases as they are, transposed.
        median_shape: of the cases as they are, transposed.
        intensity: foreground intensities, one entry a channel.
        configurations: by name.
        image_reader: nnU-Net's reader.
        decisions: those that concern all configurations.
        extra: further keys of a plan that was read, which are written back.
    """

    dataset_name: str
    plans_name: str
    planner: str
    transpose: tuple[int, int, int]
    median_spacing_mm: tuple[float, float, float]
    median_shape: tuple[int, int, int]
    intensity: tuple[IntensityProperties, ...]
    configurations: dict[str, Configuration]
    image_reader: str = "SimpleITKIO"
    decisions: tuple[Decision, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def transpose_back(self) -> tuple[int, int, int]:
        """The inverse of `transpose`."""
        d, h, w = (self.transpose.index(axis) for axis in range(3))
        return d, h, w

    def in_volume_order(self, values: Sequence[T]) -> tuple[T, ...]:
        """Values of a 3D configuration's axes as (D, H, W)."""
        return tuple(values[axis] for axis in self.transpose_back)

    def configuration(self, name: str) -> Configuration:
        """A configuration by name.

        Raises:
            ConfigError: there is none; those that exist are named.
        """
        if name not in self.configurations:
            raise ConfigError(
                f"plan {self.plans_name!r} of {self.dataset_name!r} has no configuration {name!r}",
                f"It has: {', '.join(self.configurations)}.",
            )
        return self.configurations[name]

    def check_channels(self, channel_names: Sequence[str]) -> None:
        """Refuses data with other channels than the plan was made for.

        Raises:
            ConfigError: the numbers differ.
        """
        planned = {name: len(c.normalization) for name, c in self.configurations.items()}
        wrong = sorted(name for name, count in planned.items() if count != len(channel_names))
        if wrong:
            raise ConfigError(
                f"plan {self.plans_name!r} of {self.dataset_name!r} is for {planned[wrong[0]]} channels "
                f"({wrong[0]}: {', '.join(self.configurations[wrong[0]].normalization)}), "
                f"the data has {len(channel_names)} ({', '.join(channel_names)})",
                "Plan again for this data (fedvox plan), or take only the channels that the plan knows.",
            )
