"""What a training of a prior will look like, before it is started."""

from __future__ import annotations

import math
from typing import Any

from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.restoration.training import new_prior
from fedvox.restoration.volumes import PatchSource, read_volumes


def estimate(config: DiffusionPriorConfig) -> dict[str, Any]:
    """Images, parameters and steps of a training.

    Raises:
        FedvoxError: the images or the network cannot be used.
    """
    source = PatchSource(read_volumes(config.data), config)
    prior = new_prior(config, source)
    return {
        "steps": config.steps,
        "patches": config.steps * config.global_batch_size,
        "patch_size": list(config.data.patch_size),
        "volumes_training": len(source.training),
        "volumes_held_out": len(source.validation)
        if len(source.training) < len(source.validation) + 1
        else 0,
        "sigma_data": round(float(prior.sigma_data), 4),
        "parameters": sum(p.numel() for p in prior.parameters()),
        "reach": list(prior.reach),
        "input_mib_per_step": round(
            config.global_batch_size * math.prod(config.data.patch_size) * 4 / 2**20, 2
        ),
    }


def describe(found: dict[str, Any]) -> str:
    """The estimate for people."""
    return "\n".join(f"{name.replace('_', ' '):<22}{value}" for name, value in found.items())
