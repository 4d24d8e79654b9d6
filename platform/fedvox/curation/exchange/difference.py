"""What an edit changed: voxels and mm³ of each structure that came and went, Dice to before, and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvox.errors import ConfigError

_ADDED, _REMOVED = (0, 158, 115), (213, 94, 0)  # green and vermillion that color-blind people tell apart
_VIEWS = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class StructureChange:
    """How one structure changed.

    Args:
        structure: its name.
        added_voxels: that belong to it now and did not before.
        removed_voxels: that belonged to it and do not any more.
        added_mm3: volume of `added_voxels`.
        removed_mm3: volume of `removed_voxels`.
        dice: of before and after; None where it is in neither.
    """

    structure: str
    added_voxels: int
    removed_voxels: int
    added_mm3: float
    removed_mm3: float
    dice: float | None

    @property
    def changed(self) -> bool:
        """Whether any voxel came or went."""
        return bool(self.added_voxels or self.removed_voxels)


def changes(
    before: npt.NDArray[np.integer],
    after: npt.NDArray[np.integer],
    structures: Sequence[str],
    spacing_mm: Sequence[float],
) -> tuple[StructureChange, ...]:
    """The change of every structure that is in either map, largest first.

    Args:
        before: (D, H, W) canonical structure indices.
        after: the same shape.
        structures: K names, background first.
        spacing_mm: voxel size.
    """
    count = len(structures)
    joint = np.zeros(count * count, dtype=np.int64)
    for old, new in zip(
        before, after, strict=True
    ):  # plane by plane: a wide copy of one plane, not of the volume
        both = (old < count) & (new < count)  # voxels that nobody judged are no structure
        joint += np.bincount(old[both].astype(np.int64) * count + new[both], minlength=count * count)
    table = joint.reshape(count, count)
    voxel_mm3 = float(np.prod(np.asarray(spacing_mm, dtype=float)))
    found = [_change(table, index, name, voxel_mm3) for index, name in enumerate(structures) if index]
    present = [change for change in found if change.dice is not None]
    return tuple(sorted(present, key=lambda c: -(c.added_voxels + c.removed_voxels)))


def _change(table: npt.NDArray[np.int64], index: int, name: str, voxel_mm3: float) -> StructureChange:
    kept = int(table[index, index])
    old, new = int(table[index].sum()), int(table[:, index].sum())
    dice = 2 * kept / (old + new) if old + new else None
    return StructureChange(
        name, new - kept, old - kept, (new - kept) * voxel_mm3, (old - kept) * voxel_mm3, dice
    )


def difference_picture(
    image: npt.NDArray[Any],
    before: npt.NDArray[np.integer],
    after: npt.NDArray[np.integer],
    spacing_mm: Sequence[float],
) -> bytes:
    """Three planes through the middle of what changed, as a PNG: what came in green, what went in vermillion.

    Args:
        image: (D, H, W).
        before: (D, H, W) canonical structure indices.
        after: the same shape.
        spacing_mm: voxel size, (D, H, W).

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a picture needs matplotlib", "Install it (pip install matplotlib), or leave out --picture."
        ) from None
    middle = _middle(before != after)
    figure = Figure(figsize=(9.6, 3.4), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (cell, view) in enumerate(zip(figure.subplots(1, 3), _VIEWS, strict=True)):
        planes = [np.take(volume, middle[axis], axis=axis)[::-1] for volume in (image, before, after)]
        if axis != 2:  # the patient's right on the picture's left
            planes = [plane[:, ::-1] for plane in planes]
        rows, columns = (spacing_mm[a] for a in range(3) if a != axis)
        cell.imshow(_painted(*planes), aspect=rows / columns, interpolation="nearest")
        cell.set_title(f"{view} {middle[axis]}", color="white", fontsize=8)
        cell.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    return png.getvalue()


def _middle(changed: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """The plane of each axis with the most changed voxels; the middle where nothing changed."""
    found = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        counts = changed.sum(axis=others)
        found.append(int(counts.argmax()) if counts.any() else changed.shape[axis] // 2)
    return found[0], found[1], found[2]


def _painted(
    image: npt.NDArray[Any], before: npt.NDArray[np.integer], after: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(image, (1, 99))
    gray = 255 * np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    picture = np.repeat(gray[..., None], 3, axis=-1)
    for mask, color in (
        ((after != before) & (after > 0), _ADDED),
        ((after != before) & (after == 0), _REMOVED),
    ):
        picture[mask] = 0.25 * picture[mask] + 0.75 * np.asarray(color)
    return np.asarray(picture, dtype=np.uint8)
