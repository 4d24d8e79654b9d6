"""Voxels that nobody judged: one value of the stored label's type, and -1 (`training.loss.IGNORE`) in batches.

A store's labels are uint8 up to 255 structures, background included, and uint16 beyond; the value is the largest of
the type which int16, the type of batches, holds as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BATCH_IGNORE = -1
"""The same in the labels of batches, where types are signed."""

_VALUES = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 32767}


def label_dtype(num_structures: int) -> np.dtype[Any]:
    """The type of a store's labels.

    Args:
        num_structures: background included.
    """
    return np.dtype(np.uint8 if num_structures <= _VALUES[np.dtype(np.uint8)] else np.uint16)


def ignore_value(dtype: np.dtype[Any]) -> int:
    """The value of voxels that were not judged, in labels of a type (uint8 or uint16)."""
    return _VALUES[np.dtype(dtype)]


def is_foreground(label: np.ndarray) -> np.ndarray:
    """Where a structure was annotated: neither background nor ignored; bool, the label's shape."""
    inside = np.asarray(label != 0)
    ignored = ignore_value(label.dtype)
    for part, kept in zip(
        label.reshape(-1, label.shape[-1]), inside.reshape(-1, label.shape[-1]), strict=True
    ):
        kept &= part != ignored  # row by row: no second mask of the whole volume
    return inside
