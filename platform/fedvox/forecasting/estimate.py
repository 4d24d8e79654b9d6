"""What a training will look like, before it is started."""

from __future__ import annotations

from typing import Any

import torch

from fedvox.forecasting.config import ForecastConfig
from fedvox.forecasting.sources import open_source
from fedvox.forecasting.training import new_network


def estimate(config: ForecastConfig) -> dict[str, Any]:
    """Data, parameters and steps of a training.

    Raises:
        FedvoxError: the data or the network cannot be used.
    """
    source = open_source(config)
    network = new_network(config, source)
    size = tuple(source.held_out(1)[0].target.shape[1:])
    parameters = sum(p.numel() for p in network.parameters())
    inputs = config.global_batch_size * config.flow.slots * torch.Size(size).numel()
    return {
        "steps": config.steps,
        "examples": config.steps * config.global_batch_size,
        "volume": list(size),
        "unit": source.unit,
        "latest_time": source.horizon,
        "velocity_scale": float(network.velocity_scale),
        "parameters": parameters,
        "input_mib_per_step": round(inputs * 4 / 2**20, 1),
    }


def describe(found: dict[str, Any]) -> str:
    """The estimate for people."""
    return "\n".join(f"{name.replace('_', ' '):<22}{value}" for name, value in found.items())
