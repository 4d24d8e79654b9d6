"""What a training will look like, before it is started."""

from __future__ import annotations

from typing import Any

from fedvox.tracking.config import LesionConfig
from fedvox.tracking.lesion_training import new_network
from fedvox.tracking.patches import SEEN
from fedvox.tracking.pool import open_pool


def estimate(config: LesionConfig) -> dict[str, Any]:
    """Lesions, parameters and steps of a training.

    Raises:
        FedvoxError: the data or the network cannot be used.
    """
    source = open_pool(config)
    network = new_network(config)
    d, h, w = config.patch_size
    return {
        "steps": config.steps,
        "samples": config.steps * config.global_batch_size,
        "lesions": "without end" if source.lesions is None else source.lesions,
        "sources": [s.lesions for s in source.sources],
        "patch_size": list(config.patch_size),
        "spacing_mm": None if config.spacing_mm is None else list(config.spacing_mm),
        "parameters": sum(p.numel() for p in network.parameters()),
        "input_mib_per_step": round(config.global_batch_size * (1 + len(SEEN)) * d * h * w * 4 / 2**20, 1),
    }


def describe(found: dict[str, Any]) -> str:
    """The estimate for people."""
    return "\n".join(f"{name.replace('_', ' '):<22}{value}" for name, value in found.items())
