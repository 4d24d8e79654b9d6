"""What a label map measures: the numbers that rules judge, all in millimetres, once per version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cc3d
import numpy as np
from scipy.ndimage import binary_fill_holes, gaussian_filter

Array = np.ndarray[Any, Any]

_SMOOTHING_MM = 4.0
_SMOOTHING_SHARE = 0.25  # of the edge of a cube of the same volume: small structures are smoothed less


@dataclass(frozen=True)
class StructureFacts:
    """One structure of a label map; what cannot be told of an absent one is NaN.

    Args:
        volume_mm3: of the structure.
        pieces_mm3: volumes of its connected components (26-connected), the largest first.
        holes_mm3: cavities.
        gap_slices: slices without it between slices with it, along the worst axis.
        centroid_mm: (x, y, z) in RAS+.
        border_mm2: area on the image's faces, per axis x, y, z.
        mean_intensity: of the first channel.
        roughness: area of its surface over that of its smoothed shape.
        consensus_dice: with the consensus; NaN where both have nothing.
        different_mm3: of it and of what the consensus calls it, where the two differ.
        claimed_mm3: other structure -> volume of it that the consensus calls that one.
        doubted_mm3: of it that confident learning believes to be something else, and of others to be it.
        attention_mm3: map -> volume within the consensus' structure.
        place: voxel (z, y, x) to look at: where it differs from the consensus, else its middle.
    """

    volume_mm3: float
    pieces_mm3: tuple[float, ...] = ()
    holes_mm3: float = 0.0
    gap_slices: int = 0
    centroid_mm: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    border_mm2: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mean_intensity: float = math.nan
    roughness: float = math.nan
    consensus_dice: float = math.nan
    different_mm3: float = 0.0
    claimed_mm3: Mapping[str, float] = field(default_factory=dict)
    doubted_mm3: float = 0.0
    attention_mm3: Mapping[str, float] = field(default_factory=dict)
    place: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class CaseFacts:
    """A label map.

    Args:
        case_id: of the case.
        version: number of the version.
        site: where the case comes from.
        structures: name -> its facts; background is left out.
        image_deviation: standard deviation of the image's first channel.
        low_mm: smallest RAS+ coordinate (x, y, z) of the image.
        high_mm: largest.
        proposer: the first among the proposers, whose opinion weighs most in the consensus.
    """

    case_id: str
    version: int
    site: str
    structures: Mapping[str, StructureFacts]
    image_deviation: float
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    proposer: str = ""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a case lie.

    Args:
        spacing_mm: (D, H, W).
        affine: voxel (D, H, W, 1) -> RAS+ mm, (4, 4); derived from the spacing where the case has none.
    """

    spacing_mm: tuple[float, float, float]
    affine: Array

    @classmethod
    def of(cls, spacing_mm: tuple[float, float, float], affine: Sequence[Sequence[float]] = ()) -> Grid:
        """From what a case knows."""
        if len(affine):
            return cls(spacing_mm, np.asarray(affine, float))
        z, y, x = spacing_mm
        return cls(spacing_mm, np.array([[0, 0, x, 0], [0, y, 0, 0], [z, 0, 0, 0], [0, 0, 0, 1.0]]))

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_mm))

    def position_mm(self, voxel: Sequence[float]) -> tuple[float, float, float]:
        """(z, y, x) voxel -> (x, y, z) mm in RAS+."""
        x, y, z, _ = self.affine @ np.array([*voxel, 1.0])
        return float(x), float(y), float(z)


def measure_structure(
    mask: Array, index: int, grid: Grid, *, intensity: Array | None = None, agreed: Array | None = None
) -> StructureFacts:
    """The facts of one structure.

    Args:
        mask: label map, (D, H, W).
        index: of the structure.
        grid: of the case.
        intensity: (D, H, W).
        agreed: the consensus, (D, H, W).
    """
    inside = mask == index
    other = inside if agreed is None else agreed == index
    box = _padded_box(inside | other)
    if box is None:
        return StructureFacts(0.0)
    facts = _against(inside[box], other[box], grid, box) if agreed is not None else {}
    if not inside.any():
        return StructureFacts(0.0, **facts)
    part = inside[box]
    voxels = np.argwhere(part) + [s.start for s in box]
    middle = voxels.mean(axis=0)
    facts = {"place": tuple(int(n) for n in voxels[len(voxels) // 2]), **facts}
    return StructureFacts(
        volume_mm3=len(voxels) * grid.voxel_mm3,
        pieces_mm3=_pieces(part, grid.voxel_mm3),
        holes_mm3=float(np.count_nonzero(binary_fill_holes(part)) - len(voxels)) * grid.voxel_mm3,
        gap_slices=max(_gap(voxels[:, axis]) for axis in range(3)),
        centroid_mm=grid.position_mm(middle),
        border_mm2=_border(voxels, mask.shape, grid),
        mean_intensity=math.nan if intensity is None else float(intensity[inside].mean()),
        roughness=_roughness(part, grid.spacing_mm),
        **facts,
    )


def claims(mask: Array, agreed: Array, names: Sequence[str], voxel_mm3: float) -> dict[str, dict[str, float]]:
    """Structure -> other structure -> volume in mm³ that the label calls the one and the consensus the other.

    Args:
        mask: label map, (D, H, W).
        agreed: the consensus, (D, H, W).
        names: of the structures, background first; background is in neither place of the result.
        voxel_mm3: volume of a voxel.
    """
    judged = (mask < len(names)) & (agreed < len(names))
    keys = mask[judged].astype(np.intp) * len(names) + agreed[judged]
    table = np.bincount(keys, minlength=len(names) ** 2).reshape(len(names), -1) * voxel_mm3
    others = range(1, len(names))
    return {
        names[i]: {names[j]: float(table[i, j]) for j in others if j != i and table[i, j]} for i in others
    }


def _against(inside: Array, other: Array, grid: Grid, box: tuple[slice, ...]) -> dict[str, Any]:
    """Facts from the comparison with the consensus."""
    different = inside != other
    total = np.count_nonzero(inside) + np.count_nonzero(other)
    facts: dict[str, Any] = {
        "consensus_dice": 1 - np.count_nonzero(different) / total,
        "different_mm3": np.count_nonzero(different) * grid.voxel_mm3,
    }
    if different.any():
        facts["place"] = _thickest(different, box)
    return facts


def _thickest(different: Array, box: tuple[slice, ...]) -> tuple[int, int, int]:
    """The voxel about which most is different: one to look at, rather than the rim that differs everywhere."""
    crowded = gaussian_filter(different.astype(np.float32), 2.0)
    found = np.unravel_index(int(crowded.argmax()), crowded.shape)
    z, y, x = (int(n) + s.start for n, s in zip(found, box, strict=True))
    return z, y, x


def _padded_box(inside: Array) -> tuple[slice, slice, slice] | None:
    """The box about what is inside, with a voxel of margin where the volume has one."""
    spans = []
    for axis in range(3):
        filled = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        if not filled.size:
            return None
        spans.append(slice(max(0, int(filled[0]) - 1), int(filled[-1]) + 2))
    return spans[0], spans[1], spans[2]


def _pieces(part: Array, voxel_mm3: float) -> tuple[float, ...]:
    labelled, count = cc3d.connected_components(part, connectivity=26, return_N=True)
    sizes = np.bincount(labelled.reshape(-1), minlength=count + 1)[1:]
    return tuple(sorted((float(size) * voxel_mm3 for size in sizes), reverse=True))


def _gap(positions: Array) -> int:
    """Empty positions between the first and the last."""
    return int(positions.max() - positions.min() + 1 - np.unique(positions).size)


def _border(voxels: Array, shape: tuple[int, ...], grid: Grid) -> tuple[float, float, float]:
    areas = []
    for axis in (2, 1, 0):  # x, y, z
        face = np.prod([s for a, s in enumerate(grid.spacing_mm) if a != axis])
        positions = voxels[:, axis]
        touching = np.count_nonzero(positions == 0) + np.count_nonzero(positions == shape[axis] - 1)
        areas.append(float(touching * face))
    return areas[0], areas[1], areas[2]


def _roughness(part: Array, spacing_mm: tuple[float, float, float]) -> float:
    edge_mm = (np.count_nonzero(part) * float(np.prod(spacing_mm))) ** (1 / 3)
    sigma_mm = min(_SMOOTHING_MM, _SMOOTHING_SHARE * edge_mm)
    padded = np.pad(part, 2)
    smooth = gaussian_filter(padded.astype(np.float32), [sigma_mm / s for s in spacing_mm]) > 0.5
    area = _area(smooth, spacing_mm)
    return _area(padded, spacing_mm) / area if area > 0 else math.nan


def _area(part: Array, spacing_mm: tuple[float, float, float]) -> float:
    """Of the voxels' outer faces: comparable for shapes of one grid, which is all that a ratio needs."""
    total = 0.0
    for axis in range(3):
        face = float(np.prod([s for a, s in enumerate(spacing_mm) if a != axis]))
        total += np.count_nonzero(np.diff(part.astype(np.int8), axis=axis)) * face
    return total
