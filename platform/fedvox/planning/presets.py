"""The memory budgets and networks that nnU-Net plans for, as data.

`reference_3d` is the number of feature-map elements (see `footprint`) that was measured to fill `reference_gib` in
training; it scales linearly with the budget.

Sources: nnU-Net 2.8 (its planners) and its documentation/resenc_presets.md; Isensee et al. 2024, "nnU-Net Revisited".
"""

from __future__ import annotations

from dataclasses import dataclass

from fedvox.planning.footprint import Network


@dataclass(frozen=True)
class Preset:
    """What a planner of nnU-Net assumes.

    Attributes:
        name: as given to `--preset`.
        network: "plain" or "resenc".
        memory_gib: GPU memory that it plans for by default.
        reference_gib: GPU memory to which the reference numbers belong.
        reference_3d: feature-map elements of a 3D patch that fit, at a batch of 2.
        reference_2d: the same in 2D, at a batch of 12.
        encoder_blocks: convolutions or blocks of each encoder stage; the last one repeats.
        decoder_block: convolutions of every decoder stage.
        dataset_share: a batch covers at most this share of the data set's voxels.
        planner: nnU-Net's name of the planner.
        plans_name: nnU-Net's name of its plans.
    """

    name: str
    network: Network
    memory_gib: float
    reference_gib: float
    reference_3d: int
    reference_2d: int
    encoder_blocks: tuple[int, ...]
    decoder_block: int
    dataset_share: float
    planner: str
    plans_name: str

    def encoder(self, num_stages: int) -> tuple[int, ...]:
        """Convolutions or blocks of each of `num_stages` encoder stages."""
        repeated = (self.encoder_blocks[-1],) * max(0, num_stages - len(self.encoder_blocks))
        return (self.encoder_blocks + repeated)[:num_stages]

    def decoder(self, num_stages: int) -> tuple[int, ...]:
        """Convolutions of each decoder stage."""
        return (self.decoder_block,) * (num_stages - 1)


_RESENC_BLOCKS = (1, 3, 4, 6)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("unet", "plain", 8, 8, 560_000_000, 85_000_000, (2,), 2, 0.05,
               "ExperimentPlanner", "nnUNetPlans"),
        Preset("resenc", "resenc", 8, 8, 680_000_000, 135_000_000, _RESENC_BLOCKS, 1, 0.05,
               "ResEncUNetPlanner", "nnUNetResEncUNetPlans"),
        Preset("resenc-m", "resenc", 8, 8, 680_000_000, 135_000_000, _RESENC_BLOCKS, 1, 1.0,
               "nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
        Preset("resenc-l", "resenc", 24, 24, 2_100_000_000, 380_000_000, _RESENC_BLOCKS, 1, 1.0,
               "nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
        Preset("resenc-xl", "resenc", 40, 40, 3_600_000_000, 560_000_000, _RESENC_BLOCKS, 1, 1.0,
               "nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
    )
}  # fmt: skip
"""By name, smallest first."""

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
"""Widest feature map, by number of axes."""
MIN_BATCH = 2
REFERENCE_BATCH = {2: 12, 3: 2}
"""Batch to which the reference numbers belong."""
FIRST_BOX = {2: 2048**2, 3: 256**3}
"""Voxels of the patch that is tried first: larger than any budget allows."""
LOWRES_BELOW = 0.25
"""A low-resolution configuration is planned where a patch covers less than this share of the median case."""
LOWRES_STEP = 1.03
"""Factor by which its spacing grows until the patch covers that share."""
LOWRES_WORTH = 2.0
"""It is dropped unless it has this many times fewer voxels."""
MASKED_BELOW = 0.75
"""Normalise over nonzero voxels alone where cropping to them leaves less than this share."""


def features(num_stages: int, num_axes: int) -> tuple[int, ...]:
    """Channels of each stage: doubled from 32 up to the widest."""
    return tuple(min(MAX_FEATURES[num_axes], BASE_FEATURES * 2**stage) for stage in range(num_stages))
