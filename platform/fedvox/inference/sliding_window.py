"""Whole-volume prediction by overlapping windows.

Windows are spread evenly over each axis, weighted by a Gaussian (sigma = patch / 8) and averaged, as in
nnU-Net. Logits accumulate in one buffer on a device of the caller's choice, so that the memory needed is
known beforehand: `(K + 1) * D * H * W` values beside one batch of windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SlidingWindow:
    """How a volume is covered by windows.

    Attributes:
        patch_size: (D, H, W) in voxels.
        overlap: share of a window that neighbours have in common, per axis.
        mirror: average over the flips of all axes (8 evaluations).
        batch_size: windows evaluated together.
    """

    patch_size: tuple[int, int, int]
    overlap: float = 0.5
    mirror: bool = False
    batch_size: int = 1


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Evenly spread positions along one axis that cover `length` in steps of at most `(1 - overlap) * patch`."""
    if length <= patch:
        return [0]
    steps = math.ceil((length - patch) / max(1.0, patch * (1 - overlap)))
    return [round(i * (length - patch) / steps) for i in range(steps + 1)]


def gaussian_weight(patch_size: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Separable Gaussian `(D, H, W)`: maximum 1, sigma = patch / 8, smallest values kept above 0."""
    axes = []
    for size in patch_size:
        position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        axes.append(torch.exp(-0.5 * (position / (size / 8)) ** 2))
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return (weight / weight.max()).clamp(min=1e-4).float().to(device)


@torch.inference_mode()
def predict_logits(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: SlidingWindow,
    *,
    device: torch.device | str = "cpu",
    accumulate_on: torch.device | str | None = None,
) -> Tensor:
    """Logits of a whole volume.

    Args:
        network: `(b, C, *patch) -> (b, K, *patch)`.
        image: normalised `(C, D, H, W)`; axes shorter than the patch are padded with zeros and cropped again.
        window: patch, overlap, mirroring.
        device: where the network runs.
        accumulate_on: where the logits are summed; None is `device`.

    Returns:
        `(K, D, H, W)` float32 on `accumulate_on`.
    """
    store = torch.device(accumulate_on or device)
    size = image.shape[1:]
    image = _pad_to(image, window.patch_size)
    starts = [
        window_starts(length, patch, window.overlap)
        for length, patch in zip(image.shape[1:], window.patch_size, strict=True)
    ]
    weight = gaussian_weight(window.patch_size, device=store)
    total: Tensor | None = None
    norm = torch.zeros(image.shape[1:], device=store)
    for corners in _batches(itertools.product(*starts), window.batch_size):
        boxes = [tuple(slice(s, s + p) for s, p in zip(c, window.patch_size, strict=True)) for c in corners]
        patches = torch.stack([image[(slice(None), *box)] for box in boxes]).to(device)
        logits = (_mirrored(network, patches) if window.mirror else network(patches)).float().to(store)
        if total is None:
            total = torch.zeros((logits.shape[1], *image.shape[1:]), device=store)
        for box, patch_logits in zip(boxes, logits, strict=True):
            total[(slice(None), *box)] += patch_logits * weight
            norm[box] += weight
    assert total is not None  # window_starts never returns an empty list
    total /= norm
    return total[(slice(None), *(slice(0, n) for n in size))]


def _mirrored(network: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
    flips = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
    outputs = [network(patches.flip(axes)).flip(axes) if axes else network(patches) for axes in flips]
    return torch.stack(outputs).mean(0)


def _pad_to(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    missing = [max(0, p - n) for p, n in zip(patch_size, image.shape[1:], strict=True)]
    return F.pad(image, [v for m in reversed(missing) for v in (0, m)]) if any(missing) else image


def _batches(items: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
