"""From the files of a case to the network's input, exactly as the ingest and the loader of training would do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from fedvox.data.case_volumes import CaseRejected, CaseVolumes, nonzero_box, read_case
from fedvox.data.fingerprint import sample_channel
from fedvox.data.geometry import Geometry
from fedvox.data.ingest_case import stored_dtype
from fedvox.data.intensity import CaseIntensity
from fedvox.data.label_space import LabelSpace, SourceLabels
from fedvox.data.normalize import normalize
from fedvox.data.raw_dataset import RawCase
from fedvox.data.resample import coarse_axis, resample_image, resampled_shape
from fedvox.errors import DataError
from fedvox.inference.recipe import Recipe
from fedvox.inference.windows import Size3

Box3 = tuple[slice, slice, slice]


@dataclass(frozen=True)
class PreparedCase:
    """A network's input, and the way back from its grid to the file's.

    Attributes:
        image: (C, D, H, W) float32, normalised.
        box: the part of the original volume that it covers.
        slice_axis: the axis along which logits are taken from the nearest sample on the way back.
    """

    image: Tensor
    box: Box3
    slice_axis: int | None

    @property
    def size(self) -> Size3:
        """(D, H, W) of the network's grid."""
        _, depth, height, width = self.image.shape
        return depth, height, width

    @property
    def original_size(self) -> Size3:
        """(D, H, W) of its part of the original grid."""
        depth, height, width = (side.stop - side.start for side in self.box)
        return depth, height, width


@dataclass(frozen=True)
class _Rules:
    """How `read_case` reads images without labels; cropping comes later, because the box is needed."""

    tolerate: tuple[str, ...]
    space: LabelSpace = field(default_factory=lambda: LabelSpace(("background",), {}, {}, {}))
    label_sets: Mapping[str, SourceLabels] = field(default_factory=dict)
    crop_to_nonzero: bool = False


def read_images(case: RawCase, *, tolerate: tuple[str, ...] = ()) -> CaseVolumes:
    """Reads and checks the channels of a case.

    Args:
        case: its files; a label is left alone.
        tolerate: reasons for a rejection that are overruled; see `fedvox.data.ingest_config.TOLERABLE`.

    Raises:
        DataError: the first reason why the case cannot be used, with the number of others.
    """
    unlabelled = replace(case, label=None, masks=())
    try:
        return read_case(unlabelled, _Rules(tolerate, label_sets={case.label_set: SourceLabels(())}))
    except CaseRejected as rejected:
        first, *others = rejected.errors
        more = f" (and {len(others)} more reasons)" if others else ""
        raise DataError(first.message + more, first.remedy, code=first.code, file=first.file) from None


def prepare(volumes: CaseVolumes, case: RawCase, recipe: Recipe) -> PreparedCase:
    """Crops, resamples and normalises.

    Args:
        volumes: as read; left alone.
        case: whose they are.
        recipe: of the network.

    Raises:
        DataError: the recipe's statistics do not fit the number of channels.
    """
    box = nonzero_box(volumes.image) if recipe.crop_to_nonzero else _whole(volumes.image)
    image = volumes.image[(slice(None), *box)]
    geometry = volumes.geometry.cropped([side.start for side in box], image.shape[1:])
    spacing = geometry.spacing_mm
    before = _measured(image) if recipe.order == "normalize_first" else None
    if before is not None and recipe.normalization == "ct":
        limits = [(channel.p005, channel.p995) for channel in recipe.intensity]
        image = np.stack([np.clip(c, *limit) for c, limit in zip(image, limits, strict=False)])
    resampled = _resampled(image, case, geometry, recipe)
    intensity = before or _measured(resampled)
    meta = recipe.meta(tuple(map(str, range(len(image)))), case.modality or "other")
    axis = None if recipe.spacing_mm is None else coarse_axis(recipe.spacing_mm, spacing)
    return PreparedCase(normalize(resampled, intensity, meta), box, axis)


def _resampled(image: np.ndarray, case: RawCase, geometry: Geometry, recipe: Recipe) -> np.ndarray:
    target = recipe.spacing_mm
    shape = geometry.shape if target is None else resampled_shape(geometry.shape, geometry.spacing_mm, target)
    if recipe.order == "normalize_first":
        dtype = np.dtype(np.float32)
    else:  # rounded where a store would round
        dtype = stored_dtype(image, case, "auto", is_resampled=shape != geometry.shape)
    if shape == geometry.shape and dtype == image.dtype:
        return image
    axis = coarse_axis(geometry.spacing_mm, target)
    return np.stack([resample_image(channel, shape, slice_axis=axis, dtype=dtype) for channel in image])


def _measured(image: np.ndarray) -> CaseIntensity:
    channels = tuple(sample_channel(channel).intensity for channel in image)
    return CaseIntensity(channels, channels)


def _whole(image: np.ndarray) -> Box3:
    depth, height, width = image.shape[1:]
    return slice(0, depth), slice(0, height), slice(0, width)
