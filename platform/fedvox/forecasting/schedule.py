"""The learning rate of a forecasting model: linear warm-up, then a cosine (or nnU-Net's polynomial) to zero."""

from __future__ import annotations

import math

from fedvox.forecasting.config import ForecastConfig
from fedvox.training.optimizer import learning_rate


def forecast_learning_rate(config: ForecastConfig, step: int) -> float:
    """Learning rate of one 0-based step."""
    optimizer = config.optimizer
    if config.decay == "polynomial" or step < optimizer.warmup_steps:
        return learning_rate(optimizer, step, config.steps)
    progress = (step - optimizer.warmup_steps) / max(1, config.steps - optimizer.warmup_steps)
    return optimizer.lr * 0.5 * (1 + math.cos(math.pi * progress))
