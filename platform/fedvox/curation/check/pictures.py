"""A picture of a finding: the label beside the consensus, in the plane that shows it best, with the place marked."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fedvox.curation.check.measure import Grid
from fedvox.curation.store import Case, Finding, LabelStore
from fedvox.data.contact_sheet import painted
from fedvox.storage import write_atomic

Array = np.ndarray[Any, Any]

_VIEWS = ("axial", "coronal", "sagittal")


def draw_finding(
    store: LabelStore, case: Case, finding: Finding, image: Array, head: Array, agreed: Array
) -> str:
    """Writes the picture of a finding.

    Args:
        store: of the case.
        case: which.
        finding: with `place` in its evidence.
        image: (D, H, W).
        head: the label, (D, H, W).
        agreed: the consensus, (D, H, W).

    Returns:
        Its path relative to the store's folder.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    place = [int(n) for n in finding.evidence["place"]]
    index = store.structures.index(finding.structure)
    axis = _plane(head == index, agreed == index, place)
    spacing = Grid.of(case.spacing_mm, case.affine).spacing_mm
    rows, columns = (spacing[a] for a in range(3) if a != axis)
    figure = Figure(figsize=(6.4, 3.4), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    modality = store.images.store.meta.modality
    plane = image.take(place[axis], axis=axis)
    point = _upright(place, axis, plane.shape)
    for cell, mask, name in zip(figure.subplots(1, 2), (head, agreed), ("label", "consensus"), strict=True):
        label = mask.take(place[axis], axis=axis)
        picture = painted(plane, np.where(label == index, label, 0), axis, modality)
        cell.imshow(picture, aspect=rows / columns, interpolation="nearest")
        cell.plot(*point, "+", color="white", markersize=9, markeredgewidth=0.8)
        cell.set_title(name, color="white", fontsize=7, loc="left")
        cell.set_axis_off()
    figure.suptitle(
        f"{case.case_id}  {finding.structure}: {finding.rule} ({finding.severity:.2f})  {_VIEWS[axis]} {place[axis]}",
        color="white",
        fontsize=7,
    )
    relative = f"rounds/{finding.round:03d}/pictures/{case.case_id}-{finding.rule}-{index}.png"
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    write_atomic(store.location.child(*relative.split("/")), png.getvalue())
    return relative


def _plane(head: Array, agreed: Array, place: list[int]) -> int:
    """The axis whose plane through the place has most that differs; axial where none does."""
    different = head != agreed
    counts = [int(np.count_nonzero(different.take(place[axis], axis=axis))) for axis in range(3)]
    return int(np.argmax(counts))


def _upright(place: list[int], axis: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Column and row of a voxel in a plane that is shown as `painted` turns it."""
    row, column = (place[a] for a in range(3) if a != axis)
    return (column if axis == 2 else shape[1] - 1 - column), shape[0] - 1 - row
