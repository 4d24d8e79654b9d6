"""What the worked example compares, and under which equal conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STRUCTURES = {"gray matter": 1, "white matter": 2}
PATCH = (32, 32, 64)  # (D, H, W); SwinUNETR halves five times
SPACING_MM = 4.0
BATCH = 1
LEARNING_RATE = 1e-3
OVERLAP = 0.25
THREADS = 1  # of a training or prediction; two run at a time
JOBS = 2
DATASET = "Dataset001_MNI152Sites"
BASELINE = "resenc"


@dataclass(frozen=True)
class Budget:
    """How much of everything; the defaults are those of the committed report.

    Attributes:
        steps: optimiser steps of every training, of `BATCH` patches each.
        training: heads of sites A and B to train on.
        tested: other heads of sites A and B, and as many of site C.
        seeds: of the baseline, for the spread within a method; the others are trained once.
    """

    steps: int = 40
    training: int = 12
    tested: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Method:
    """One of the networks.

    Attributes:
        origin: `fedvox`, `monai` or `nnunet`.
        network: its name there.
        arguments: of its constructor.
        card: what is said of it besides the common recipe.
        claims: whether its architecture is claimed to beat the baseline's.
    """

    origin: str
    network: str
    arguments: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    claims: bool = True


_MONAI = {"in_channels": 1, "out_channels": 3}
METHODS: dict[str, Method] = {
    BASELINE: Method(
        "fedvox", "resenc-unet-tiny", {"deep_supervision": False},
        {"architecture": "residual encoder U-Net, resenc-unet-tiny", "family": "cnn"}, claims=False,
    ),
    "mednext-v2": Method(
        "fedvox", "mednext-v2-tiny", {"deep_supervision": False},
        {"architecture": "MedNeXt v2, mednext-v2-tiny", "family": "cnn"},
    ),
    "segresnet": Method(
        "monai", "SegResNet", {**_MONAI, "init_filters": 8},
        {"architecture": "MONAI SegResNet, 8 filters", "family": "cnn"},
    ),
    "swinunetr": Method(
        "monai", "SwinUNETR", {**_MONAI, "feature_size": 12},
        {"architecture": "MONAI SwinUNETR, 12 features", "family": "transformer"},
    ),
    "unetr": Method(
        "monai", "UNETR",
        {**_MONAI, "img_size": list(PATCH), "feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 6},
        {"architecture": "MONAI UNETR, hidden size 192", "family": "transformer"},
    ),
    "nnunet": Method(
        "nnunet", "PlainConvUNet", {},
        {
            "architecture": "nnU-Net's U-Net, 8 features", "family": "cnn", "residual_encoder": False,
            "framework": "nnU-Net, its own trainer", "augmentation": "nnU-Net's, its own code",
            "loss": "Dice + cross-entropy with deep supervision", "optimizer": "SGD 1e-2, nesterov 0.99, polynomial",
        },
        claims=False,
    ),
}  # fmt: skip
FEATURES = (8, 16, 32, 64)
"""Of nnU-Net's stages; its planner's 32 … 320 are for GPUs. A plan's file is the place where nnU-Net lets one do so."""
