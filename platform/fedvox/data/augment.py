"""nnU-Net's training augmentation on batches, on CPU or GPU.

    draw(config, seed, indices)  ──> what happens to each sample, from its index alone
    read_box(parameters)         ──> which voxels it needs
    Augmenter(images, labels)    ──> rotate, scale, mirror ─> noise ─> blur ─> brightness ─> contrast
                                     ─> low resolution ─> inverted gamma ─> gamma

The list, its order, probabilities and ranges are nnU-Net's, and outcomes are distributed as batchgeneratorsv2's;
only mirroring moves from the end to the front, where it costs nothing (all that lies between commutes with it). A
sample that is neither rotated nor scaled, 64 % of them, is copied and never interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.data import augment_intensity as intensity
from fedvox.data.augment_config import AugmentConfig
from fedvox.data.augment_draw import AugmentParameters, draw, read_box
from fedvox.data.augment_spatial import place, resample

__all__ = ["AugmentConfig", "AugmentParameters", "Augmenter", "draw", "read_box"]

Array = np.ndarray[Any, Any]
Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Augmenter:
    """Applies drawn parameters to voxels.

    Args:
        patch_size: (D, H, W) of the results.
    """

    patch_size: Size3

    def __call__(
        self, images: Sequence[Tensor], labels: Sequence[Tensor], params: AugmentParameters
    ) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            images: B boxes (C, d, h, w), normalised; the size of each is `read_box` of its parameters.
            labels: B boxes (d, h, w), integers below 2^15, on the images' device.
            params: of the B samples.

        Returns:
            Image `(B, C, D, H, W)` float32 and label `(B, 1, D, H, W)` int16, on the images' device.

        Raises:
            ValueError: a box does not have the size that `read_box` tells.
        """
        shape = (len(params), images[0].shape[0], *self.patch_size)
        image = torch.empty(shape, dtype=torch.float32, device=images[0].device)
        label = torch.empty((shape[0], 1, *shape[2:]), dtype=torch.int16, device=image.device)
        self.into(image, label, images, labels, params)
        return image, label

    @torch.no_grad()
    def into(
        self,
        out_image: Tensor,
        out_label: Tensor,
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        params: AugmentParameters,
    ) -> None:
        """The same, written to `(B, C, D, H, W)` float32 and `(B, 1, D, H, W)` int16, which must be contiguous."""
        for sample in range(len(params)):
            self._geometry(
                images[sample], labels[sample], params.row(sample), out_image[sample], out_label[sample, 0]
            )
        for sample in np.flatnonzero(params.noise_std).tolist():
            intensity.add_noise(
                out_image[sample], float(params.noise_std[sample]), int(params.noise_seed[sample])
            )
        rows = out_image.view(-1, *out_image.shape[2:])
        _apply(intensity.blur, rows, params.blur_sigma, neutral=0)
        _apply(intensity.scale_brightness, rows, params.brightness)
        _apply(intensity.scale_contrast, rows, params.contrast)
        _apply(intensity.reduce_resolution, rows, params.low_resolution)
        _apply(lambda x, gamma: intensity.gamma_correct(x, gamma, inverted=True), rows, params.inverted_gamma)
        _apply(lambda x, gamma: intensity.gamma_correct(x, gamma, inverted=False), rows, params.gamma)

    def _geometry(
        self, image: Tensor, label: Tensor, params: AugmentParameters, out_image: Tensor, out_label: Tensor
    ) -> None:
        box = read_box(params, self.patch_size)
        if tuple(image.shape[1:]) != box or tuple(label.shape) != box:
            raise ValueError(
                f"image {tuple(image.shape)} and label {tuple(label.shape)} should be boxes of {box} voxels"
            )
        mirror = params.mirror[0]
        if params.spatial[0]:
            resample(image, label, params.matrix[0] * np.where(mirror, -1.0, 1.0), out_image, out_label)
        else:
            place(image, label, mirror, out_image, out_label)


def _apply(
    transform: Callable[[Tensor, Array], None], rows: Tensor, values: Array, *, neutral: float = 1
) -> None:
    """Transforms the rows whose values are not neutral: one by one on CPUs, all together on GPUs."""
    values = values.reshape(len(rows), *values.shape[2:])
    which = np.flatnonzero((values.reshape(len(rows), -1) != neutral).any(1))
    if rows.device.type == "cpu":
        for row in which:
            transform(rows[row : row + 1], values[row : row + 1])
    elif len(which):
        index = torch.as_tensor(which, device=rows.device)
        chosen = rows.index_select(0, index)
        transform(chosen, values[which])
        rows.index_copy_(0, index, chosen)
