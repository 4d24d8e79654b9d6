"""The files of one case as one image and one label map on one grid, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from fedvox.data.checks import check_image, check_label, check_same_grid, split_tolerated, whole_numbers
from fedvox.data.geometry import Geometry, Volume
from fedvox.data.label_space import LabelSpace, SourceLabels
from fedvox.data.raw_dataset import RawCase
from fedvox.data.readers import read_volume
from fedvox.errors import DataError, StorageError


class CaseRejected(Exception):
    """A case cannot be used.

    Args:
        errors: every reason.
    """

    def __init__(self, errors: Sequence[DataError]) -> None:
        super().__init__(tuple(errors))
        self.errors = tuple(errors)


class ReadingRules(Protocol):
    """What `read_case` needs to know; see `CasePlan`."""

    @property
    def space(self) -> LabelSpace: ...  # noqa: D102

    @property
    def label_sets(self) -> Mapping[str, SourceLabels]: ...  # noqa: D102

    @property
    def crop_to_nonzero(self) -> bool: ...  # noqa: D102

    @property
    def tolerate(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class CaseVolumes:
    """A case in memory.

    Args:
        image: (C, D, H, W), RAS+, as the file stores it or float32.
        label: (D, H, W) canonical structure indices, or None.
        geometry: of both.
        full_shape: (D, H, W) before cropping.
        warnings: reasons for a rejection that were overruled.
    """

    image: np.ndarray
    label: np.ndarray | None
    geometry: Geometry
    full_shape: tuple[int, int, int]
    warnings: tuple[DataError, ...] = ()


def read_case(case: RawCase, rules: ReadingRules) -> CaseVolumes:
    """Reads, checks and joins the files of a case.

    Raises:
        CaseRejected: with everything that was found, in all of its files.
    """
    errors: list[DataError] = []
    images = [v for uri in case.images if (v := _attempt(lambda u=uri: _read(u, case), errors)) is not None]  # type: ignore[misc]
    label = _attempt(lambda: _read_label(case), errors)
    labels = rules.label_sets[case.label_set]
    per_file = case.num_channels if len(case.images) == 1 else 1
    for volume in images:
        errors += check_image(volume, case.modality or volume.modality, per_file)
    if label is not None:
        errors += check_label(label, labels)
    if images:
        for other in [*images[1:], *([] if label is None else [label])]:
            errors += check_same_grid(images[0], other)
    fatal, tolerated = split_tolerated(errors, rules.tolerate)
    if fatal:
        raise CaseRejected(fatal)
    geometry = images[0].geometry
    image = _joined([v.data for v in images], case.channels)
    indices = None if label is None else rules.space.apply(case.label_set, whole_numbers(label.data[0]))
    whole = CaseVolumes(image, indices, geometry, geometry.shape, tolerated)
    return _cropped(whole) if rules.crop_to_nonzero else whole


def _attempt(read: Callable[[], Volume | None], errors: list[DataError]) -> Volume | None:
    try:
        return read()
    except DataError as error:
        errors.append(error)
    except StorageError as error:
        errors.append(DataError(error.message, error.remedy, code="storage"))
    return None


def _read(uri: str, case: RawCase) -> Volume:
    return read_volume(uri, series_uid=case.series_uid)


def _read_label(case: RawCase) -> Volume | None:
    if case.label is not None:
        return read_volume(case.label)
    return _read_masks(case.masks) if case.masks else None


def _read_masks(masks: tuple[tuple[int, str], ...]) -> Volume:
    """One label map out of a binary mask for each structure; where two overlap, the later one wins."""
    joined: Volume | None = None
    for value, uri in masks:
        mask = read_volume(uri)
        if joined is None:
            blank = np.zeros(mask.data.shape, dtype=np.uint16)
            joined = replace(mask, data=blank)
        elif errors := check_same_grid(joined, mask):
            raise errors[0]
        joined.data[mask.data > 0] = value
    assert joined is not None, "called with at least one mask"
    return joined


def _joined(channels: list[np.ndarray], chosen: tuple[int, ...] | None) -> np.ndarray:
    """(C, D, H, W); a single file is not copied, though its axes may run backwards in memory."""
    parts = [channel for volume in channels for channel in volume]
    if chosen is not None:
        parts = [parts[index] for index in chosen]
    if len(channels) == 1 and chosen is None:
        return channels[0]
    dtypes = {part.dtype for part in parts}
    dtype: np.dtype[Any] = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    image = np.empty((len(parts), *parts[0].shape), dtype=dtype)
    for target, part in zip(image, parts, strict=True):
        target[...] = part
    return image


def _cropped(volumes: CaseVolumes) -> CaseVolumes:
    """Cuts off the margin where all channels are 0."""
    box = nonzero_box(volumes.image)
    image = np.ascontiguousarray(volumes.image[(slice(None), *box)])
    label = None if volumes.label is None else np.ascontiguousarray(volumes.label[box])
    geometry = volumes.geometry.cropped([side.start for side in box], image.shape[1:])
    return CaseVolumes(image, label, geometry, volumes.full_shape, volumes.warnings)


def nonzero_box(image: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box (D, H, W) outside of which all channels of an image (C, D, H, W) are 0."""
    occupied = [np.zeros(size, dtype=bool) for size in image.shape[1:]]
    for channel in image:
        for index, plane in enumerate(channel):
            rows = plane.any(axis=1)
            occupied[0][index] |= rows.any()
            occupied[1] |= rows
            occupied[2] |= plane.any(axis=0)
    ends = [np.flatnonzero(axis) for axis in occupied]
    z, y, x = (slice(int(e[0]), int(e[-1]) + 1) for e in ends)
    return z, y, x
