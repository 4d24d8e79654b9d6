"""The patch around one lesion that a network sees: cut out first, then brought to the network's spacing.

However large the scan, what is resampled and held is one patch. Where a lesion is too large for it, the patch covers
more of the patient with coarser voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvox.data.resample import resample_image
from fedvox.tracking.prompts import CHANNELS, Box, Prompt, PromptEncoding, crop, cropped, encode, extent
from fedvox.tracking.walker import walker_channel

Size3 = tuple[int, int, int]
Spacing = tuple[float, float, float]
BoolVolume = npt.NDArray[np.bool_]

SEEN = (*CHANNELS, "walker")
"""What a network sees beside the image."""

_ROOM = 1.3  # by how much a patch must be larger than what it is to hold


@dataclass(frozen=True)
class PatchPlan:
    """How patches are made.

    Args:
        size: (D, H, W) in voxels.
        spacing_mm: (D, H, W); None keeps each scan's own.
        encoding: of the prompts.
    """

    size: Size3
    spacing_mm: Spacing | None = None
    encoding: PromptEncoding = field(default_factory=PromptEncoding)


@dataclass(frozen=True, eq=False)
class Patch:
    """A box of a scan, and how it is seen at the network's spacing.

    Args:
        start: first voxel (D, H, W) of the box in the scan; may be negative.
        shape: (D, H, W) of the box, in the scan's voxels.
        scan_shape: (D, H, W) of the whole scan.
        spacing_mm: of the scan.
        plan: see there.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    scan_shape: tuple[int, ...]
    spacing_mm: Spacing
    plan: PatchPlan

    @classmethod
    def around(
        cls,
        prompts: Sequence[Prompt],
        scan_shape: Sequence[int],
        spacing_mm: Spacing,
        plan: PatchPlan,
        offset: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> Patch:
        """The patch in the middle of the prompts that say where the lesion is.

        Args:
            prompts: on the scan's grid; boxes and masks fit into the patch.
            scan_shape: (D, H, W).
            spacing_mm: (D, H, W).
            plan: see there.
            offset: of its middle, as a share of the patch.
        """
        placed = [p for p in prompts if getattr(p, "positive", True)]
        low, high = extent(placed)
        wanted = np.asarray(plan.spacing_mm or spacing_mm) / np.asarray(spacing_mm) * np.asarray(plan.size)
        sized = [p for p in placed if isinstance(p, Box) or hasattr(p, "volume")]
        need = (high - low) * _ROOM if sized else np.zeros(3)
        scale = max(1.0, float((need / wanted).max()))
        shape = np.maximum(np.rint(wanted * scale), 1).astype(int)
        middle = (low + high - 1) / 2 + np.asarray(offset) * shape
        start = np.rint(middle - (shape - 1) / 2).astype(int)
        return cls(tuple(start.tolist()), tuple(shape.tolist()), tuple(scan_shape), spacing_mm, plan)

    def image(self, volume: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The image at the network's spacing, zero mean and unit deviation over what lies in the scan."""
        part = crop(volume.astype(np.float32), self.start, self.shape, fill=0.0)
        inside = crop(np.ones(self.scan_shape, dtype=bool), self.start, self.shape, fill=False)
        values = part[inside]
        if values.size:
            part = np.where(inside, (part - values.mean()) / max(float(values.std()), 1e-6), 0)
        return np.asarray(resample_image(part, self.plan.size, order=1), dtype=np.float32)

    def seen(self, volume: npt.NDArray[Any], prompts: Sequence[Prompt]) -> npt.NDArray[np.float32]:
        """What a network sees: the image, the prompts' channels and the random walker's, (9, D, H, W)."""
        image, marks = self.image(volume), self.prompts(prompts)
        return np.stack([image, *marks, walker_channel(image, marks, self.voxel_mm)])

    @property
    def voxel_mm(self) -> Spacing:
        """(D, H, W) of the patch as the network sees it."""
        d, h, w = (n * s / m for n, s, m in zip(self.shape, self.spacing_mm, self.plan.size, strict=True))
        return d, h, w

    def prompts(self, prompts: Sequence[Prompt]) -> npt.NDArray[np.float32]:
        """The prompts' channels at the network's spacing: (7, D, H, W)."""
        dense = encode(
            cropped(prompts, self.start, self.shape), self.shape, self.spacing_mm, self.plan.encoding
        )
        return np.stack([resample_image(channel, self.plan.size, order=1) for channel in dense])

    def mask(self, volume: BoolVolume) -> BoolVolume:
        """A mask at the network's spacing."""
        part = crop(volume, self.start, self.shape, fill=False).astype(np.float32)
        return np.asarray(resample_image(part, self.plan.size, order=1) >= 0.5)

    def whole(self, probability: npt.NDArray[np.float32]) -> BoolVolume:
        """The mask on the scan's grid, from probabilities (D, H, W) at the network's spacing."""
        d, h, w = self.shape
        part = resample_image(probability, (d, h, w), order=1) > 0.5
        back = [-s for s in self.start]
        return np.asarray(crop(part, back, self.scan_shape, fill=False))
