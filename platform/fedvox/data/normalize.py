"""Intensities to numbers of order one, patch by patch, with statistics of the whole case or data set.

CT is in Hounsfield units, which mean the same everywhere: it is clipped to the 0.5th … 99.5th percentile of the data
set's foreground and standardised with the data set's mean and deviation. Other modalities have no such scale and are
standardised case by case. Both are nnU-Net's. Stores keep the original values, so neither is baked into the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.data.intensity import CaseIntensity
from fedvox.data.records import CaseRecord, StoreMeta
from fedvox.errors import DataError

Array = np.ndarray[Any, Any]

_SMALLEST_STD = 1e-8
_BLOCK = 1 << 17  # voxels that are worked on at once on CPUs: half a megabyte, which stays in cache


def normalize(image: Array | Tensor, record: CaseRecord | CaseIntensity, meta: StoreMeta) -> Tensor:
    """Normalises a patch.

    Args:
        image: (C, d, h, w) in the store's units and dtype.
        record: of the case, or its intensity statistics alone.
        meta: of the store; decides how (`normalization`) and holds the data set's statistics.

    Returns:
        (C, d, h, w) float32 on the image's device; the input is left alone.

    Raises:
        DataError: the statistics do not fit the image, or the kind of normalisation is unknown.
    """
    intensity = record.intensity if isinstance(record, CaseRecord) else record
    if meta.normalization == "ct":
        statistics = meta.intensity
    elif meta.normalization == "zscore":
        statistics = intensity.whole
    else:
        raise DataError(
            f"store.json: normalization is {meta.normalization!r}",
            "Known are `ct` and `zscore`.",
            code="normalization",
        )
    if len(statistics) != len(image):
        raise DataError(
            f"there are intensity statistics of {len(statistics)} channels for an image of {len(image)}",
            "Run the ingest until it reports that it has finished; it writes them into store.json.",
            code="normalization",
        )
    source = _as_tensor(image)
    result = torch.empty(source.shape, dtype=torch.float32, device=source.device)
    for channel, values, target in zip(statistics, source, result, strict=True):
        limits = (channel.p005, channel.p995) if meta.normalization == "ct" else None
        _standardize(values, target, channel.mean, channel.std, limits)
    return result


def _standardize(
    values: Tensor, target: Tensor, mean: float, std: float, limits: tuple[float, float] | None
) -> None:
    block = _BLOCK if target.device.type == "cpu" else target.numel()
    for piece, out in zip(
        torch.split(values.reshape(-1), block), torch.split(target.view(-1), block), strict=True
    ):
        out.copy_(piece)
        if limits is not None:
            out.clamp_(*limits)
        out.sub_(mean).mul_(1 / max(std, _SMALLEST_STD))


def _as_tensor(image: Array | Tensor) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if image.dtype.kind == "u" and image.dtype.itemsize > 1:  # torch hardly knows these
        image = image.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(image))
