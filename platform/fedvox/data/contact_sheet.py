"""One picture of many cases: three slices each through the annotated region, with the labels on top.

A person sees in seconds what no check finds: labels that are mirrored, shifted, or numbered in another order.
Patients are shown as radiologists expect them, their right on the picture's left.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fedvox.data.store import BrickStore
from fedvox.errors import DamagedCase
from fedvox.storage import write_atomic

SHEET_FILE = "ingest/contact_sheet.png"
_CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue
COLORS = np.array(  # Okabe & Ito's palette, which color-blind people can tell apart
    [
        (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
        (0, 114, 178), (213, 94, 0), (204, 121, 167),
    ],
    dtype=np.float64,
)  # fmt: skip
_FILL = 0.25
_VIEWS = ("axial", "coronal", "sagittal")


def write_contact_sheet(store: BrickStore, most: int) -> tuple[str | None, str | None]:
    """Draws cases spread evenly over the store into `STORE/ingest/contact_sheet.png`.

    Args:
        store: finished.
        most: how many cases; 0 for no picture.

    Returns:
        Where the picture is, and a note on why there is none or what it lacks.
    """
    if most == 0:
        return None, None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None, "no contact sheet: it needs matplotlib (pip install matplotlib)"
    rows = np.unique(np.linspace(0, len(store) - 1, min(most, len(store))).astype(int)).tolist()
    figure = Figure(figsize=(9.6, 2.1 * -(-len(rows) // 2)), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(rows) // 2), 6, squeeze=False).reshape(-1, 3)
    damaged = []
    for row, cells in zip(rows, axes, strict=False):
        try:
            _draw_case(store, row, cells)
        except DamagedCase as error:
            damaged.append(f"contact sheet without {store.case_ids[row]}: {error.message}")
    for cell in axes.reshape(-1):
        cell.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    location = store.location.child(SHEET_FILE)
    write_atomic(location, png.getvalue())
    return location.uri, "; ".join(damaged) or None


def _draw_case(store: BrickStore, row: int, cells: Any) -> None:
    record = store.record(row)
    spacing = record.spacing_mm
    for axis, (cell, view) in enumerate(zip(cells, _VIEWS, strict=True)):
        cell.imshow(case_slice(store, row, axis), aspect=_aspect(spacing, axis), interpolation="nearest")
        if view != "sagittal":
            for x, letter in ((0.03, "R"), (0.97, "L")):
                cell.text(x, 0.5, letter, color="0.7", fontsize=5, transform=cell.transAxes, ha="center")
    mm = " × ".join(f"{n:.3g}" for n in spacing)
    cells[0].set_title(f"{record.case_id}  {mm} mm", color="white", fontsize=6, loc="left")


def _aspect(spacing_mm: tuple[float, float, float], axis: int) -> float:
    rows, columns = (spacing_mm[a] for a in range(3) if a != axis)
    return rows / columns


def case_slice(store: BrickStore, row: int, axis: int) -> np.ndarray:
    """One slice of a case as a picture, through the middle of what is annotated.

    Args:
        store: where it is.
        row: of the manifest.
        axis: 0 axial, 1 coronal, 2 sagittal.

    Returns:
        RGB (rows, columns, 3), uint8; head or front up, the patient's right on the left.
    """
    record = store.record(row)
    start, size = [0, 0, 0], list(record.shape)
    start[axis], size[axis] = _middle(store, row)[axis], 1
    image, label = store.read_patch(row, start, size)
    plane = np.squeeze(image[0], axis=axis)
    return painted(plane, None if label is None else np.squeeze(label, axis=axis), axis, store.meta.modality)


def painted(plane: np.ndarray, label: np.ndarray | None, axis: int, modality: str) -> np.ndarray:
    """One plane as a picture.

    Args:
        plane: intensities, (rows, columns) of the volume.
        label: label map of the plane, or None.
        axis: that the plane is perpendicular to: 0 axial, 1 coronal, 2 sagittal.
        modality: decides the window.

    Returns:
        RGB (rows, columns, 3), uint8; head or front up, the patient's right on the left.
    """
    gray = _windowed(plane.astype(np.float64), modality)
    picture = np.repeat(gray[..., None], 3, axis=-1)
    if label is not None:
        picture = _overlaid(picture, label)
    upright = picture[::-1]  # z grows to the head, y to the front: both belong on top
    return (upright if axis == 2 else upright[:, ::-1]).astype(np.uint8)


def _middle(store: BrickStore, row: int) -> tuple[int, int, int]:
    points = [voxels for voxels in store.foreground(row).values() if len(voxels)]
    if not points:
        z, y, x = (size // 2 for size in store.record(row).shape)
    else:
        z, y, x = (int(n) for n in np.median(np.concatenate(points), axis=0))
    return z, y, x


def _windowed(plane: np.ndarray, modality: str) -> np.ndarray:
    low, high = _CT_WINDOW_HU if modality == "CT" else np.percentile(plane, (1, 99))
    return np.asarray(255 * np.clip((plane - low) / max(high - low, 1e-6), 0, 1))


def _overlaid(picture: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Structures as a faint fill with a solid outline; ignored voxels come last in the palette's cycle."""
    edge = np.zeros(label.shape, dtype=bool)
    edge[1:] |= label[1:] != label[:-1]
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    inside = label > 0
    color = COLORS[(label.astype(np.int64) - 1) % len(COLORS)]
    strength = np.where(edge & inside, 1.0, np.where(inside, _FILL, 0.0))[..., None]
    return np.asarray(picture * (1 - strength) + color * strength)
