"""One optimisation step as a plain function on tensors: no Ray, no files, usable in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedvox.training.optimizer import clip_gradients


class LabelledBatch(Protocol):
    """What a step needs of a batch.

    Attributes:
        image: float32 `(b, C, D, H, W)`, normalised.
        label: integers `(b, 1, D, H, W)`, canonical structures.
        annotated: bool `(b, K)`, the structures that each sample's source annotates.
    """

    image: Tensor
    label: Tensor
    annotated: Tensor


@dataclass(frozen=True)
class StepResult:
    """Scalars on the model's device; reading them synchronises, so do it only when logging.

    Attributes:
        loss: the local loss, already weighted for averaging over workers.
        grad_norm: global gradient norm before clipping.
        skipped: 1 where the gradient was not finite and the weights were left alone, else 0.
    """

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor


def train_step(
    model: nn.Module,
    batch: LabelledBatch,
    loss_fn: nn.Module,
    optimizer: Optimizer,
    *,
    grad_clip: float,
    weight: float = 1.0,
    autocast: torch.dtype | None = None,
) -> StepResult:
    """Forward, backward, clip, update.

    Args:
        model: logits `(b, K, D, H, W)`, or a list of them under deep supervision; may be wrapped in DDP.
        batch: see `LabelledBatch`; moved to the model's device by the caller.
        loss_fn: `(outputs, label, annotated) -> scalar`.
        optimizer: its learning rate is set by the caller.
        grad_clip: largest global gradient norm.
        weight: this worker's share of the global batch times the number of workers; 1 when shares are equal.
        autocast: bf16 on GPUs, None for full precision.

    Returns:
        The step's scalars. Gradients that are not finite leave weights and optimiser state untouched; after
        DDP's all-reduce they are equal on all workers, so that all workers skip together.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.image.device.type, dtype=autocast, enabled=autocast is not None):
        outputs = model(batch.image)
    loss: Tensor = loss_fn(outputs, batch.label, batch.annotated) * weight
    return descend(loss, model, optimizer, grad_clip=grad_clip)


def descend(loss: Tensor, model: nn.Module, optimizer: Optimizer, *, grad_clip: float) -> StepResult:
    """Backward, clip, update, from a loss that is weighted already; see `train_step`.

    The caller clears the gradients before its forward pass, where they would only take room.
    """
    loss.backward()  # type: ignore[no-untyped-call]
    grad_norm = clip_gradients(model.parameters(), grad_clip)
    finite = bool(torch.isfinite(grad_norm))
    if finite:
        optimizer.step()
    return StepResult(loss.detach(), grad_norm.detach(), grad_norm.new_tensor(float(not finite)))
