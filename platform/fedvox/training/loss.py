"""Dice + cross-entropy for partially labelled volumes, with deep supervision.

A source that annotates only the liver says nothing about where the spleen is: its "background" holds every
structure it does not annotate. For such a case the probabilities of the structures that are not annotated
are added to the background's before the loss is taken (the marginal loss of Shi et al. 2021, Med. Image
Anal. 70), and Dice runs over the annotated structures alone. With every structure annotated this is exactly
nnU-Net's loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -1
"""Voxels with this label take no part in the loss."""


def merge_unannotated(logits: Tensor, annotated: Tensor) -> Tensor:
    """Adds the probability of every structure that is not annotated to the background's.

    Args:
        logits: `(B, K, D, H, W)`.
        annotated: bool `(B, K)`; background (index 0) is always annotated.

    Returns:
        Logits of the same shape whose softmax is 0 at structures that are not annotated.
    """
    if bool(annotated.all()):
        return logits
    known = annotated.view(*annotated.shape, *[1] * (logits.ndim - 2))
    background = ~known
    background[:, 0] = True
    merged = torch.logsumexp(logits.masked_fill(~background, -torch.inf), dim=1, keepdim=True)
    rest = logits[:, 1:].masked_fill(~known[:, 1:], -torch.inf)
    return torch.cat([merged, rest], dim=1)


class DiceCrossEntropy(nn.Module):
    """`cross-entropy - Dice` per sample, averaged over samples.

    Soft Dice as in nnU-Net: softmax, foreground only, `(2I + s) / (G + P + s)` per sample and structure; the
    mean is over the annotated structures of the sample, also those absent from the patch.

    Args:
        smooth: s above.
        batch_dice: sum I, G and P over the batch of every worker before dividing.

    Shape: logits `(B, K, D, H, W)`, target `(B, 1, D, H, W)` integers (`IGNORE` is left out), annotated `(B,
    K)` bool -> scalar.
    """

    def __init__(self, smooth: float = 1e-5, batch_dice: bool = False) -> None:
        super().__init__()
        self.smooth = smooth
        self.batch_dice = batch_dice

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
        """The loss; see the class for shapes."""
        logits = merge_unannotated(logits.float(), annotated)
        labels = target[:, 0].long()
        valid = labels != IGNORE
        log_probabilities = F.log_softmax(logits, dim=1)
        entropy = F.nll_loss(log_probabilities, labels, ignore_index=IGNORE, reduction="none")
        per_sample = entropy.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        return per_sample.mean() - self._dice(log_probabilities, labels, valid, annotated)

    def _dice(self, log_probabilities: Tensor, labels: Tensor, valid: Tensor, annotated: Tensor) -> Tensor:
        num_classes = log_probabilities.shape[1]
        flat = log_probabilities.flatten(2).exp() * valid.flatten(1).unsqueeze(1)
        index = labels.masked_fill(~valid, 0).flatten(1)
        ones = valid.flatten(1).to(flat.dtype)
        predicted = flat.sum(2)
        # Gather + scatter over voxels: no one-hot volume of K channels is ever built.
        hit = flat.gather(1, index.unsqueeze(1)).squeeze(1)
        intersection = flat.new_zeros(flat.shape[0], num_classes).scatter_add(1, index, hit)
        reference = flat.new_zeros(flat.shape[0], num_classes).scatter_add(1, index, ones)
        sums = torch.stack([intersection, reference, predicted])[:, :, 1:]
        weight = annotated[:, 1:].to(flat.dtype)
        if self.batch_dice:
            sums = _sum_over_workers((sums * weight).sum(1, keepdim=True))
            weight = (_sum_over_workers(weight.sum(0, keepdim=True)) > 0).to(flat.dtype)
        dice = (2 * sums[0] + self.smooth) / (sums[1] + sums[2] + self.smooth).clamp(min=1e-8)
        return ((dice * weight).sum(1) / weight.sum(1).clamp(min=1)).mean()


def _sum_over_workers(value: Tensor) -> Tensor:
    """All-reduce (sum) that gradients flow through; the identity without a process group."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    from torch.distributed.nn.functional import all_reduce  # only with a process group

    reduced: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
    return reduced


def deep_supervision_weights(levels: int) -> list[float]:
    """Weights of the outputs, full resolution first: 1/2^i, the coarsest 0, normalised to sum 1 (nnU-Net)."""
    raw = [0.5**i for i in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return [weight / sum(raw) for weight in raw]


class DeepSupervision(nn.Module):
    """Applies a loss to every output of a deeply supervised network and adds them up by weight.

    Targets are reduced to each output's grid by nearest neighbour. An output of weight 0 still enters the
    graph, so that every parameter has a gradient in distributed training.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor, annotated: Tensor) -> Tensor:
        """Scalar loss of one output, or of the outputs from full resolution downwards."""
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(deep_supervision_weights(len(outputs)), outputs, strict=True):
            size = logits.shape[2:]
            level_target = target if target.shape[2:] == size else _nearest(target, size)
            total = total + weight * self.loss(logits, level_target, annotated)
        return total


def _nearest(target: Tensor, size: Sequence[int]) -> Tensor:
    if all(full % small == 0 for full, small in zip(target.shape[2:], size, strict=True)):
        d, h, w = (full // small for full, small in zip(target.shape[2:], size, strict=True))
        return target[:, :, ::d, ::h, ::w]
    return F.interpolate(target.float(), size=tuple(size), mode="nearest").to(target.dtype)
