"""A page to look at: every lesion over time, its slices side by side, its volume curve, the response.

One HTML file with everything inside it, for a file server or an e-mail. The slices of a lesion are linked: one slider
moves all its scans by the same number of millimetres from the lesion's middle.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.ndimage import binary_erosion, map_coordinates

from fedvox import __version__
from fedvox.data.geometry import Geometry, Volume
from fedvox.tracking.table import LesionRow, LesionTable

Labels = npt.NDArray[np.integer[Any]]

_PIXELS = 88
_LEAST_MM = 48.0  # field of view
_DEPTHS = 7  # slices a lesion and scan
_OUTLINE = np.array([255, 176, 0], dtype=np.uint8)


def qc_page(
    title: str,
    about: str,
    scans: Sequence[Volume],
    labels: Sequence[Labels],
    table: LesionTable,
    *,
    fits: Sequence[str] = (),
) -> str:
    """The page of one patient.

    Args:
        title: of the page.
        about: how the lesions were segmented, in a sentence.
        scans: the images.
        labels: (D, H, W) ids, one a scan.
        table: of the same scans.
        fits: what registrations reached, a line each.
    """
    environment = Environment(
        loader=PackageLoader("fedvox.tracking"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    windows = [_window(scan.data[0]) for scan in scans]
    ids = sorted({row.lesion for row in table.rows})
    lesions = [_lesion(i, [r for r in table.rows if r.lesion == i], scans, labels, windows) for i in ids]
    return environment.get_template("lesions.html.j2").render(
        title=title,
        about=about,
        targets=", ".join(f"lesion {t.lesion}" for t in table.targets),
        responses=[
            {
                "day": f"{a.day:g}",
                "sum": _number(a.sum_mm),
                "baseline": _percent(a.change_from_baseline),
                "nadir": _percent(a.change_from_nadir),
                "response": str(a.response),
                "rule": a.rule,
            }
            for a in table.responses
        ],
        fits=fits,
        lesions=lesions,
        footer=f"Made by Fedvox {__version__}. No medical device; a reader decides.",
    )


def _lesion(
    lesion: int,
    rows: Sequence[LesionRow],
    scans: Sequence[Volume],
    labels: Sequence[Labels],
    windows: Sequence[tuple[float, float]],
) -> Mapping[str, Any]:
    longest = max((r.long_mm or 0.0) for r in rows)
    field_mm = max(_LEAST_MM, 2.0 * longest)
    step_mm = max(1.0, round(0.3 * longest, 1))
    offsets = [round((k - _DEPTHS // 2) * step_mm, 1) for k in range(_DEPTHS)]
    middle: tuple[float, float, float] | None = None
    shown = []
    for row in rows:
        if row.x_mm is not None and row.y_mm is not None and row.z_mm is not None:
            middle = (row.x_mm, row.y_mm, row.z_mm)
        assert middle is not None  # a lesion's first row is one where it is there
        scan = scans[row.scan]
        mask = labels[row.scan] == lesion
        slices = [
            _slice(scan, mask, (middle[0], middle[1], middle[2] + o), field_mm, windows[row.scan])
            for o in offsets
        ]
        shown.append({"scan": row.scan, "day": f"{row.day:g}", "slices": slices, "offsets": offsets})
    return {
        "id": lesion,
        "target": rows[0].target,
        "curve": _curve(rows),
        "rows": [_cells(row) for row in rows],
        "depths": _DEPTHS,
        "scans": shown,
    }


def _curve(rows: Sequence[LesionRow]) -> Mapping[str, Any]:
    volumes = [r.volume_mm3 or 0.0 for r in rows]
    top = max(volumes)
    span = max(rows[-1].day - rows[0].day, 1e-9)
    dots = []
    for row, volume in zip(rows, volumes, strict=True):
        x = 75 + 320 * (row.day - rows[0].day) / span if len(rows) > 1 else 235
        y = 120 - 100 * volume / top
        dots.append(
            {
                "x": round(x, 1),
                "y": round(y, 1),
                "day": f"{row.day:g}",
                "title": f"{volume:.0f} mm³, {row.state}",
            }
        )
    return {"top": f"{top:.0f}", "dots": dots, "points": " ".join(f"{d['x']},{d['y']}" for d in dots)}


def _cells(row: LesionRow) -> Mapping[str, Any]:
    return {
        "scan": row.scan,
        "state": row.state.replace("_", " ").replace(":", " "),
        "volume": _number(row.volume_mm3, 0),
        "change": _number(row.volume_change_pct),
        "long": _number(row.long_mm),
        "short": _number(row.short_mm),
        "confidence": _number(row.confidence, 2),
    }


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f} %"


# ---- pictures ------------------------------------------------------------------------------------------------


def _window(image: npt.NDArray[Any]) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(image, [1.0, 99.7]))
    return low, max(high, low + 1e-6)


def _slice(
    scan: Volume,
    mask: npt.NDArray[np.bool_],
    middle_ras: tuple[float, float, float],
    field_mm: float,
    window: tuple[float, float],
) -> str:
    """An axial picture around a place, as a data URI: the patient's right on the left, anterior on top."""
    at = _grid(scan.geometry, middle_ras, field_mm)
    values = map_coordinates(scan.data[0].astype(np.float32), at, order=1, mode="constant", cval=window[0])
    inside = map_coordinates(mask.astype(np.uint8), at, order=0, mode="constant", cval=0) > 0
    gray = np.clip((values - window[0]) / (window[1] - window[0]) * 255, 0, 255).astype(np.uint8)
    picture = np.repeat(gray[..., None], 3, axis=-1)
    picture[inside & ~binary_erosion(inside)] = _OUTLINE
    return "data:image/png;base64," + base64.b64encode(_png(picture)).decode("ascii")


def _grid(
    geometry: Geometry, middle_ras: tuple[float, float, float], field_mm: float
) -> npt.NDArray[np.float64]:
    """Voxel coordinates (3, rows, columns) of the picture."""
    ticks = (np.arange(_PIXELS) - (_PIXELS - 1) / 2) * field_mm / _PIXELS
    y, x = np.meshgrid(middle_ras[1] - ticks, middle_ras[0] - ticks, indexing="ij")
    world = np.stack([x, y, np.full_like(x, middle_ras[2]), np.ones_like(x)])
    to_voxel = np.linalg.inv(np.asarray(geometry.array_affine))
    at: npt.NDArray[np.float64] = np.tensordot(to_voxel, world, axes=1)[:3]
    return at


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    """(rows, columns, 3) as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows, columns = picture.shape[:2]
    lines = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 6))
        + chunk(b"IEND", b"")
    )
