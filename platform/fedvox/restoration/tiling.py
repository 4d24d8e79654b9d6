"""A whole image denoised by patches, in four ways, so that memory depends on the patch and not on the image.

    whole     one patch, the image
    tiles     a fixed grid of patches side by side: its borders stay where they are, and show
    random    the same with the grid shifted at random at every call (PaDIS, Hu et al. 2024): no border is hit twice
    overlap   patches share a part with their neighbours and are averaged by a Gaussian window

Every one can read a margin around each patch (`halo`), which is denoised and thrown away. Outside of the image lies
what the prior has seen there in training: zeros, with the noise of the level.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedvox.errors import DataError
from fedvox.inference.windows import WindowGrid
from fedvox.restoration.config import Size3
from fedvox.restoration.prior import DiffusionPrior, patch_positions

Mode = Literal["whole", "tiles", "random", "overlap"]
MODES: tuple[Mode, ...] = ("whole", "tiles", "random", "overlap")


@dataclass(frozen=True)
class Coverage:
    """How an image is covered by patches.

    Attributes:
        mode: see the module.
        patch_size: (D, H, W); None takes the prior's. With 2D convolutions D is the prior's in any case.
        overlap: share that neighbours have in common, for `overlap`.
        halo: voxels of margin around each patch in the axes of the convolutions; rounded up to what the network needs.
        batch: patches denoised at a time.
        seed: of the offsets and of the noise outside of the image.
    """

    mode: Mode = "random"
    patch_size: Size3 | None = None
    overlap: float = 0.5
    halo: int = 0
    batch: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Patch:
    """Where a patch lies in an image, padding included, and the weight of its voxels (None: 1)."""

    start: Size3
    weight: Tensor | None = None


class TiledPrior(torch.nn.Module):
    """A prior that denoises images of any size, as deepinv's `Denoiser` does: `forward(x, sigma)`.

    Args:
        prior: trained.
        coverage: by which patches.
    """

    def __init__(self, prior: DiffusionPrior, coverage: Coverage | None = None) -> None:
        super().__init__()
        self.prior, self.coverage = prior, coverage or Coverage()
        self._offsets = torch.Generator().manual_seed(self.coverage.seed)
        self.on_patch: Callable[[int, int], None] | None = None
        """Told, within one image, how many patches are done and how many there are."""

    def with_coverage(self, **changes: object) -> TiledPrior:
        """The same prior, covering images in another way."""
        return TiledPrior(self.prior, replace(self.coverage, **changes))  # type: ignore[arg-type]

    def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
        """Denoises images.

        Args:
            x: `(B, C, H, W)` or `(B, C, D, H, W)`; each channel is denoised by itself.
            sigma: standard deviation of the noise, a number or `(B,)`.

        Returns:
            The expected images, of the shape of `x`.

        Raises:
            DataError: the prior needs several slices and there are fewer.
        """
        flat = x.ndim == 4
        volume = x[:, :, None] if flat else x
        levels = self._levels(sigma, volume)
        single = volume.reshape(-1, 1, *volume.shape[2:])
        noise = self.prior.noise
        found = self._denoise(single, levels.clamp(noise.smallest, noise.largest))
        return found.reshape(x.shape)

    @staticmethod
    def _levels(sigma: float | Tensor, volume: Tensor) -> Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=volume.device).flatten()
        return levels.expand(len(volume)).repeat_interleave(volume.shape[1])

    def patch_of(self, size: Sequence[int]) -> Size3:
        """The patch that covers an image of this size, without its halo: divisible as the network needs."""
        divisor, flat = self.prior.divisor, self.prior.flat
        wanted = (
            tuple(size)
            if self.coverage.mode == "whole"
            else self.coverage.patch_size or self.prior.patch_size
        )
        edges = [-(-min(w, max(n, d)) // d) * d for w, n, d in zip(wanted, size, divisor, strict=True)]
        depth, height, width = [divisor[0], *edges[1:]] if flat else edges
        return depth, height, width

    def halo_of(self) -> Size3:
        """The margin along each axis: none when the image is one patch, nor across the slices of a 2D network."""
        if self.coverage.mode == "whole" or not self.coverage.halo:
            return 0, 0, 0
        edge = self.prior.divisor[1]
        halo = -(-self.coverage.halo // edge) * edge
        return (0 if self.prior.flat else halo), halo, halo

    def patches(self, size: Sequence[int], patch: Size3) -> list[Patch]:
        """The patches of one image; with `random`, those of another grid at each call."""
        if self.coverage.mode == "overlap":
            grid = WindowGrid.of(size, patch, self.coverage.overlap)
            before = grid.pad_before
            return [
                Patch(cast(Size3, tuple(b.start - p for b, p in zip(box, before, strict=True))), weight)
                for layer in range(len(grid.starts[0]))
                for box, weight in grid.boxes(layer)
            ]
        axes = []
        for length, edge in zip(size, patch, strict=True):
            shift = 0
            if self.coverage.mode == "random" and length > 1:
                shift = int(torch.randint(edge, (), generator=self._offsets))
            axes.append(range(-shift, length, edge))
        return [Patch((z, y, x)) for z, y, x in itertools.product(*axes)]

    def _denoise(self, x: Tensor, levels: Tensor) -> Tensor:
        size = x.shape[2:]
        if self.prior.flat and size[0] < self.prior.divisor[0]:
            raise DataError(
                f"the prior denoises {self.prior.divisor[0]} slices together, the image has {size[0]}",
                "Give a volume, or use a prior of single slices.",
                code="too_small",
            )
        patch, halo = self.patch_of(size), self.halo_of()
        places = self.patches(size, patch)
        margins = _margins(places, size, patch, halo)
        padded = self._padded(x, levels, margins)
        out = torch.zeros_like(x)
        plan = [(image, place) for place in places for image in range(len(x))]
        for first in range(0, len(plan), self.coverage.batch):
            part = plan[first : first + self.coverage.batch]
            for (image, one), core in zip(
                part, self._cores(padded, margins, levels, part, size, patch, halo), strict=True
            ):
                target, source = _inside(one.start, patch, size)
                weighted = core if one.weight is None else core * one.weight.to(core)
                place: Any = (image, 0, *target)
                out[place] += weighted[source]
            if self.on_patch is not None:
                self.on_patch(min(first + len(part), len(plan)), len(plan))
        return out

    def _cores(
        self, padded: Tensor, margins: Sequence[tuple[int, int]], levels: Tensor, part: Sequence[tuple[int, Patch]],
        size: Sequence[int], patch: Size3, halo: Size3,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The denoised patches `(D, H, W)` without their halos."""
        edges = [p + 2 * h for p, h in zip(patch, halo, strict=True)]
        starts = [[s - h for s, h in zip(one.start, halo, strict=True)] for _, one in part]
        boxes = [
            tuple(slice(s + m, s + m + e) for s, (m, _), e in zip(start, margins, edges, strict=True))
            for start in starts
        ]
        batch = torch.stack(
            [padded[image][(slice(None), *box)] for (image, _), box in zip(part, boxes, strict=True)]
        )
        where = patch_positions(torch.tensor(starts, device=padded.device), edges, size)
        sigma = levels[[image for image, _ in part]]
        if torch.is_grad_enabled() and padded.requires_grad:  # activations of one batch of patches at a time
            denoised = cast(Tensor, checkpoint(self.prior, batch, sigma, where, use_reentrant=False))
        else:
            denoised = self.prior(batch, sigma, where)
        inner = tuple(slice(h, h + p) for h, p in zip(halo, patch, strict=True))
        return iter(denoised[:, 0][(slice(None), *inner)])

    def _padded(self, x: Tensor, levels: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
        """The images with zeros around them, and noise on the zeros."""
        inside = F.pad(x, [m for pair in reversed(margins) for m in pair])
        noise = torch.Generator().manual_seed(self.coverage.seed)
        around = torch.randn(inside.shape[2:], generator=noise).to(x)
        around[tuple(slice(m, m + n) for (m, _), n in zip(margins, x.shape[2:], strict=True))] = 0
        return inside + around * levels.to(x).view(-1, 1, 1, 1, 1)


def _margins(
    places: Sequence[Patch], size: Sequence[int], patch: Size3, halo: Size3
) -> list[tuple[int, int]]:
    """Voxels that patches reach over the image, in front and behind, along each axis."""
    found = []
    for axis, (length, edge, margin) in enumerate(zip(size, patch, halo, strict=True)):
        first = min(place.start[axis] for place in places) - margin
        last = max(place.start[axis] for place in places) + edge + margin
        found.append((max(0, -first), max(0, last - length)))
    return found


def _inside(start: Size3, patch: Size3, size: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of an image that a patch covers, and the part of the patch that lies in the image."""
    target = tuple(slice(max(0, s), min(n, s + p)) for s, p, n in zip(start, patch, size, strict=True))
    source = tuple(slice(t.start - s, t.stop - s) for t, s in zip(target, start, strict=True))
    return target, source
