"""Labels in the original grid, from logits in the network's grid, plane by plane.

Resampling logits linearly makes each output voxel a convex combination of 8 neighbours. Where one class is the
largest in all 8, it is the largest in every convex combination of them: nothing needs to be interpolated there. Only
at the borders of structures are logits looked at, a bounded number of voxels at a time. What is held is two planes
of logits (K, H, W) and the label map; never a probability in the original grid, however many classes there are.

    planes of the network's grid ──┐
      z     (K, h, w)  arg-max ────┤  cells whose 8 corners agree   -> that label (nearly all)
      z + 1 (K, h, w)  arg-max ────┘  the others                    -> 8 corners x K logits, interpolated, arg-max

Models with different grids are averaged as softmax probabilities in the original grid, as nnU-Net does: there too
a voxel is only computed where any model's cell is mixed, or where they disagree.

Equal to nnU-Net's export (order 1, nearest along a coarse axis). Source: Isensee et al. 2021, nnU-Net.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedvox.errors import RunError
from fedvox.inference.windows import Size3

_BLOCK_VALUES = 1 << 22  # logits interpolated at a time: 16 MB a corner


@dataclass(frozen=True)
class AxisTaps:
    """For each output sample of an axis: the two input samples around it.

    Attributes:
        lower: the one at or before it, (n,) int64, clipped to the input.
        upper: the one after it.
        weight: of the upper one, (n,) float32 in [0, 1).
        cell: number of the gap that it lies in; gap i is before input sample i, and 0 is before the first.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor
    cell: Tensor

    @classmethod
    def of(cls, size: int, new_size: int, *, nearest: bool = False) -> AxisTaps:
        """Taps of an axis whose outer edges coincide in both grids.

        Args:
            size: input samples.
            new_size: output samples.
            nearest: take the nearest input sample alone.
        """
        position = (torch.arange(new_size, dtype=torch.float64) + 0.5) * (size / new_size) - 0.5
        if nearest:
            index = torch.floor(position + 0.5).clamp(0, size - 1).long()
            return cls(index, index, torch.zeros(new_size), index + 1)
        floor = torch.floor(position)
        lower, upper = floor.clamp(0, size - 1).long(), (floor + 1).clamp(0, size - 1).long()
        return cls(lower, upper, (position - floor).float(), floor.long() + 1)

    @property
    def nearest(self) -> Tensor:
        """The nearer of the two."""
        return torch.where(self.weight >= 0.5, self.upper, self.lower)

    def to(self, device: torch.device) -> AxisTaps:
        """The same on a device."""
        return AxisTaps(*(t.to(device) for t in (self.lower, self.upper, self.weight, self.cell)))


@dataclass(frozen=True)
class LogitStream:
    """The logits of one model (or of folds that share a grid).

    Attributes:
        planes: D planes (K, H, W).
        size: (D, H, W).
        slice_axis: the axis along which the nearest sample is taken; see `fedvox.data.resample.coarse_axis`.
    """

    planes: Iterator[Tensor]
    size: Size3
    slice_axis: int | None = None


def decode_labels(
    streams: Sequence[LogitStream], size: Size3, *, entropy: np.ndarray | None = None
) -> np.ndarray:
    """The label map of a volume.

    Args:
        streams: one a model; a single one is decided by its logits, several by the mean of their probabilities.
        size: (D', H', W') of the original grid.
        entropy: (D', H', W') float32, filled with the predictive entropy as a share of its largest value, ln K. Of a
            single model it is taken in the network's grid and interpolated; of several, in the original grid.

    Returns:
        (D', H', W') uint8, or uint16 for more than 256 classes.

    Raises:
        RunError: logits that are not finite.
    """
    sources = [_Source(stream, size) for stream in streams]
    labels: np.ndarray | None = None
    for index in range(size[0]):
        slices = [source.at(index) for source in sources]
        decided, uncertainty = _decide(slices, with_entropy=entropy is not None)
        if labels is None:
            labels = np.empty(size, dtype=np.uint8 if sources[0].num_classes <= 256 else np.uint16)
        labels[index] = decided.cpu().numpy()
        if entropy is not None and uncertainty is not None:
            entropy[index] = (uncertainty / math.log(max(2, sources[0].num_classes))).cpu().numpy()
    for source in sources:
        source.finish()
    assert labels is not None  # a volume has at least one plane
    return labels


class _Plane:
    """One plane of the network's grid.

    Attributes:
        logits: (K, h, w).
        labels: (h, w), the arg-max.
        uniform: (h + 1, w + 1), whether the four labels around each cell are the same, edges repeated.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        largest, self.labels = logits.max(dim=0)
        self.uniform = _uniform_cells(self.labels)
        if not torch.isfinite(largest).all():
            raise RunError(
                "the network's logits are not finite",
                "Predict with --precision fp32; if that does not help, the weights have diverged.",
            )

    @cached_property
    def entropy(self) -> Tensor:
        """(h, w) of the softmax, in nats."""
        return _entropy(torch.log_softmax(self.logits.float(), dim=0))


@dataclass(frozen=True)
class _Slice:
    """One output slice of one model: what is certain of it, and how to compute the rest."""

    certain: Tensor  # (H', W') label of each voxel, right where `mixed` is False
    mixed: Tensor  # (H', W') bool
    pair: tuple[_Plane, _Plane]
    weight: float  # of the second plane
    rows: AxisTaps
    columns: AxisTaps

    def logits(self, voxels: Tensor) -> Tensor:
        """(K, n) interpolated logits of output voxels, numbered through the slice."""
        row = torch.div(voxels, len(self.columns.lower), rounding_mode="floor")
        column = voxels - row * len(self.columns.lower)
        below = self._in_plane(self.pair[0].logits, row, column)
        if self.weight == 0 or self.pair[1] is self.pair[0]:
            return below
        return below.lerp_(self._in_plane(self.pair[1].logits, row, column), self.weight)

    @property
    def entropy(self) -> Tensor:
        """(H', W') of this model alone, interpolated."""
        rows, columns = self.rows, self.columns
        plane = torch.lerp(self.pair[0].entropy, self.pair[1].entropy, self.weight)
        tall = torch.lerp(plane[rows.lower], plane[rows.upper], rows.weight[:, None])
        return torch.lerp(tall[:, columns.lower], tall[:, columns.upper], columns.weight)

    def _in_plane(self, plane: Tensor, row: Tensor, column: Tensor) -> Tensor:
        flat, width = plane.flatten(1), plane.shape[2]
        above, under = self.rows.lower[row] * width, self.rows.upper[row] * width
        left, right = self.columns.lower[column], self.columns.upper[column]
        across, down = self.columns.weight[column], self.rows.weight[row]

        def line(start: Tensor) -> Tensor:
            first = flat.index_select(1, start + left).float()
            return first.lerp_(flat.index_select(1, start + right).float(), across)

        return line(above).lerp_(line(under), down)


class _Source:
    """Draws planes from a stream as output slices need them, two at a time."""

    def __init__(self, stream: LogitStream, size: Size3) -> None:
        self._planes = iter(stream.planes)
        depth, self._rows, self._columns = (
            AxisTaps.of(n, m, nearest=stream.slice_axis == axis)
            for axis, (n, m) in enumerate(zip(stream.size, size, strict=True))
        )
        self._ends = list(zip(depth.lower.tolist(), depth.upper.tolist(), strict=True))
        self._weights = depth.weight.tolist()
        self._held: dict[int, _Plane] = {}
        self._drawn = 0
        self._mixed: tuple[tuple[int, int], Tensor] | None = None
        self.num_classes = 0

    def at(self, index: int) -> _Slice:
        """Output slice `index`; they must be asked for in order."""
        ends, weight = self._ends[index], self._weights[index]
        self._draw(ends)
        pair = self._held[ends[0]], self._held[ends[1]]
        nearest = pair[weight >= 0.5].labels
        certain = nearest.index_select(0, self._rows.nearest).index_select(1, self._columns.nearest)
        return _Slice(certain, self._mixed_voxels(ends, pair), pair, weight, self._rows, self._columns)

    def finish(self) -> None:
        """Runs through the planes that no output slice needs, so that the stream comes to its end."""
        self._held.clear()
        for _ in self._planes:
            pass

    def _draw(self, ends: tuple[int, int]) -> None:
        for gone in [z for z in self._held if z < ends[0]]:
            del self._held[gone]
        while self._drawn <= ends[1]:
            logits = next(self._planes)
            if self._drawn == 0:
                self.num_classes = logits.shape[0]
                self._rows, self._columns = self._rows.to(logits.device), self._columns.to(logits.device)
            if self._drawn >= ends[0]:
                self._held[self._drawn] = _Plane(logits)
            self._drawn += 1

    def _mixed_voxels(self, ends: tuple[int, int], pair: tuple[_Plane, _Plane]) -> Tensor:
        """(H', W') whether the corners of a voxel's cell differ; the same for all slices between two planes."""
        if self._mixed is None or self._mixed[0] != ends:
            uniform = pair[0].uniform
            if pair[1] is not pair[0]:
                same = _corners(pair[0].labels) == _corners(pair[1].labels)
                uniform = uniform & pair[1].uniform & same
            mixed = ~uniform.index_select(0, self._rows.cell).index_select(1, self._columns.cell)
            self._mixed = ends, mixed
        return self._mixed[1]


def _decide(slices: Sequence[_Slice], *, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """(H', W') labels of one output slice, and their entropy in nats where it is asked for."""
    labels, unsure = slices[0].certain, slices[0].mixed
    for other in slices[1:]:
        unsure = unsure | other.mixed | (other.certain != labels)
    entropy: Tensor | None = None
    if with_entropy and len(slices) == 1:
        entropy = slices[0].entropy
    elif with_entropy:
        unsure, entropy = torch.ones_like(unsure), torch.empty(labels.shape, device=labels.device)
    voxels = unsure.flatten().nonzero()[:, 0]
    decided = labels.flatten()
    for piece in torch.split(voxels, max(1, _BLOCK_VALUES // slices[0].pair[0].logits.shape[0])):
        scores = slices[0].logits(piece)
        if len(slices) > 1:
            scores = torch.stack([torch.softmax(s.logits(piece), dim=0) for s in slices]).mean(0)
            if entropy is not None:
                entropy.view(-1)[piece] = _entropy(scores.clamp(min=torch.finfo(scores.dtype).tiny).log())
        decided[piece] = scores.max(dim=0).indices
    return decided.view_as(labels), entropy


def _entropy(log_probability: Tensor) -> Tensor:
    """-Σ p ln p over the first axis."""
    return -(log_probability.exp() * log_probability).sum(0)


def _uniform_cells(labels: Tensor) -> Tensor:
    """(h, w) -> (h + 1, w + 1): whether the four samples around each cell are equal, edges repeated."""
    padded = _edge_padded(labels)
    across, down = padded[:, :-1] == padded[:, 1:], padded[:-1] == padded[1:]
    return across[:-1] & across[1:] & down[:, :-1]


def _corners(labels: Tensor) -> Tensor:
    """(h, w) -> (h + 1, w + 1): the sample at the lower corner of each cell, edges repeated."""
    return _edge_padded(labels)[:-1, :-1]


def _edge_padded(labels: Tensor) -> Tensor:
    tall = torch.cat([labels[:1], labels, labels[-1:]])
    return torch.cat([tall[:, :1], tall, tall[:, -1:]], dim=1)
