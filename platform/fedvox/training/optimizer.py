"""Optimisers and the learning rate as a function of the step.

Weight decay is applied to convolution and linear weights only: biases, normalisation affines and GRN's γ and
β (all of them tensors with one non-trivial axis) are left alone, as in ConvNeXt V2 and Primus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from fedvox.training.config import OptimizerSection


class RateShape(Protocol):
    """What a learning-rate schedule is described by; an optimiser's section or a phase of a run."""

    @property
    def lr(self) -> float:
        """Peak."""

    @property
    def warmup_steps(self) -> int:
        """Linear warm-up."""

    @property
    def power(self) -> float:
        """Of the polynomial decay."""


def learning_rate(config: RateShape, step: int, steps: int) -> float:
    """Learning rate of one step: linear warm-up to `config.lr`, then `(1 - progress)^power`.

    Args:
        config: the optimiser's section, or a phase.
        step: 0-based step, `0 <= step < steps`.
        steps: length of the whole run, or of the phase.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return float(config.lr * (1.0 - progress) ** config.power)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the rate of every parameter group, times the group's own `lr_scale` (1 if absent)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def build_optimizer(
    config: OptimizerSection, model: nn.Module, scales: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimiser of `config` over the trainable parameters of `model`.

    Args:
        config: its section.
        model: none of its parts frozen for a phase.
        scales: factors of the learning rate by parameter name; 1 where there is none.
    """
    scales = scales or {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    groups = [
        {
            "params": [p for name, p in named if _is_weight(p) == weights and scales.get(name, 1.0) == scale],
            "weight_decay": config.weight_decay if weights else 0.0,
            "lr_scale": scale,
        }
        for scale in sorted({scales.get(name, 1.0) for name, _ in named}, reverse=True)
        for weights in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    fused = all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def _is_weight(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales gradients to a global norm of at most `max_norm`; returns the norm before clipping."""
    return nn.utils.clip_grad_norm_(list(parameters), max_norm, foreach=True)
