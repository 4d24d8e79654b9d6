"""Logits of a whole volume from overlapping windows, plane by plane.

    for plane in stream_logits([network], image, window):    # D planes of (K, H, W)
        ...

Windows are computed layer by layer along the first axis. Once the last layer that reaches a plane is done, the plane
is handed on and forgotten: what is held is `K · patch_depth · H · W` numbers, never the logits of the whole volume.
`predict_logits` collects them all, for volumes and class counts where that is affordable.

Several networks (the folds of a cross-validation) are averaged within each window.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvox.errors import ConfigError
from fedvox.inference.windows import Box, Size3, WindowGrid, gaussian_weight, window_starts

__all__ = ["SlidingWindow", "gaussian_weight", "predict_logits", "stream_logits", "window_starts"]

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SlidingWindow:
    """How a volume is covered by windows.

    Attributes:
        patch_size: (D, H, W) in voxels.
        overlap: share of a window that neighbours have in common, per axis.
        mirror: average over the flips of all axes (8 evaluations).
        batch_size: windows evaluated together.
    """

    patch_size: Size3
    overlap: float = 0.5
    mirror: bool = False
    batch_size: int = 1

    def grid(self, size: Sequence[int]) -> WindowGrid:
        """The windows of a volume (D, H, W)."""
        return WindowGrid.of(size, self.patch_size, self.overlap)


def predict_logits(
    network: Network,
    image: Tensor,
    window: SlidingWindow,
    *,
    device: torch.device | str = "cpu",
    accumulate_on: torch.device | str | None = None,
    pad_value: float | None = None,
) -> Tensor:
    """Logits of a whole volume.

    Args:
        network: `(b, C, *patch) -> (b, K, *patch)`.
        image: normalised `(C, D, H, W)`.
        window: patch, overlap, mirroring.
        device: where the network runs.
        accumulate_on: where the logits are summed; None is `device`.
        pad_value: see `stream_logits`.

    Returns:
        `(K, D, H, W)` float32 on `accumulate_on`.
    """
    logits: Tensor | None = None
    planes = stream_logits(
        [network], image, window, device=device, accumulate_on=accumulate_on, pad_value=pad_value
    )
    for index, plane in enumerate(planes):
        if logits is None:
            logits = plane.new_empty((plane.shape[0], image.shape[1], *plane.shape[1:]))
        logits[:, index] = plane
    assert logits is not None  # a volume has at least one plane
    return logits


@torch.inference_mode()
def stream_logits(
    networks: Sequence[Network],
    image: Tensor,
    window: SlidingWindow,
    *,
    device: torch.device | str = "cpu",
    accumulate_on: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    pad_value: float | None = None,
    on_windows: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Logits of a whole volume, one plane of its first axis after the other.

    Args:
        networks: `(b, C, *patch) -> (b, K, *patch)` each; their logits are averaged.
        image: normalised `(C, D, H, W)`, at least one voxel an axis.
        window: patch, overlap, mirroring.
        device: where the networks run.
        accumulate_on: where the logits are summed; None is `device`.
        dtype: in which they are summed; float16 halves the memory and costs 3 digits.
        pad_value: fills what an axis lacks to a patch, on both sides; None takes each channel's minimum, as training
            pads its patches. nnU-Net pads with 0.
        on_windows: told the number of windows just done.

    Yields:
        `(K, H, W)` of `dtype` on `accumulate_on`, D times.
    """
    grid = window.grid(image.shape[1:])
    padded = _padded(image, grid, pad_value)
    band = _Band(grid, torch.device(accumulate_on or device), dtype)
    for layer, start in enumerate(grid.starts[0]):
        for batch in _batches(grid.boxes(layer), window.batch_size):
            patches = torch.stack([padded[(slice(None), *box)] for box, _ in batch]).to(device)
            logits = _evaluate(networks, patches, mirror=window.mirror)
            for (box, weight), of_window in zip(batch, logits, strict=True):
                band.add(box, weight, of_window)
            if on_windows is not None:
                on_windows(len(batch))
        is_last = layer + 1 == len(grid.starts[0])
        end = grid.padded_size[0] if is_last else grid.starts[0][layer + 1]
        yield from band.take(start, end)


class _Band:
    """The planes that windows still reach, the first of them at `first`."""

    def __init__(self, grid: WindowGrid, device: torch.device, dtype: torch.dtype) -> None:
        self._grid, self._device, self._dtype = grid, device, dtype
        self._planes: deque[Tensor] = deque()
        self._first = 0

    def add(self, box: Box, weight: Tensor, logits: Tensor) -> None:
        """Adds the logits (K, d, h, w) of a window."""
        depth, rows, columns = box
        while self._first + len(self._planes) < depth.stop:
            shape = (logits.shape[0], *self._grid.padded_size[1:])
            self._planes.append(torch.zeros(shape, device=self._device, dtype=self._dtype))
        logits = logits.to(self._device, self._dtype)
        weight = weight.to(self._device, self._dtype)
        for offset in range(logits.shape[1]):
            target = self._planes[depth.start - self._first + offset]
            target[:, rows, columns].addcmul_(logits[:, offset], weight[offset])

    def take(self, start: int, end: int) -> Iterator[Tensor]:
        """Hands on the planes before `end`, without their padding."""
        _, above, left = self._grid.pad_before
        depth, height, width = self._grid.size
        inside = range(self._grid.pad_before[0], self._grid.pad_before[0] + depth)
        for index in range(start, end):
            plane = self._planes.popleft()
            self._first += 1
            if index in inside:
                yield plane[:, above : above + height, left : left + width]


def _evaluate(networks: Sequence[Network], patches: Tensor, *, mirror: bool) -> Tensor:
    """Mean logits (b, K, *patch) over networks and flips."""
    flips = (
        [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)] if mirror else [()]
    )
    count = len(networks) * len(flips)
    total: Tensor | None = None
    for axes, network in itertools.product(flips, networks):
        logits = network(patches.flip(axes) if axes else patches)
        if logits.shape[2:] != patches.shape[2:]:
            raise ConfigError(
                f"the network gives logits of {tuple(logits.shape[2:])} for patches of {tuple(patches.shape[2:])}",
                "Give networks in evaluation mode, which return full resolution alone.",
            )
        logits = logits.flip(axes) if axes else logits
        if total is None:  # the sum is of our own: a network may return its input, or keep its output
            total = logits.to(torch.float32, copy=count > 1)
        else:
            total.add_(logits)
    assert total is not None  # there is at least one network
    return total.div_(count) if count > 1 else total


def _padded(image: Tensor, grid: WindowGrid, value: float | None) -> Tensor:
    if grid.padded_size == grid.size:
        return image
    sides = [
        (before, padded - size - before)
        for before, padded, size in zip(grid.pad_before, grid.padded_size, grid.size, strict=True)
    ]
    widths = [width for side in reversed(sides) for width in side]
    fills = [float(channel.min()) if value is None else value for channel in image]
    return torch.stack(
        [F.pad(channel, widths, value=fill) for channel, fill in zip(image, fills, strict=True)]
    )


def _batches(items: Iterator[tuple[Box, Tensor]], size: int) -> Iterator[list[tuple[Box, Tensor]]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
