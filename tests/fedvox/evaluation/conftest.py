"""Masks of the reference cases, rebuilt from their recipes and checked against the recorded hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Mask = npt.NDArray[np.bool_]
DATA = Path(__file__).parent / "data" / "metrics_reference.json"
S, SA = (32, 32, 32), (12, 48, 48)
ISO, ANISO, THICK = (1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (5.0, 1.0, 1.0)


@dataclass(frozen=True)
class ReferenceCase:
    """One pair of masks with the values that surface-distance and a voxel-surface anchor gave."""

    name: str
    reference: Mask
    prediction: Mask
    spacing: tuple[float, float, float]
    expected: dict[str, Any]


def ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius_mm: float, spacing: tuple[float, ...]
) -> Mask:
    grid = np.indices(shape).astype(float)
    inside: Mask = sum(((grid[i] - centre[i]) * spacing[i]) ** 2 for i in range(3)) <= radius_mm**2
    return inside


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> Mask:
    grid = np.indices(shape).astype(float)
    inside: Mask = sum(((grid[i] - centre[i]) / radii[i]) ** 2 for i in range(3)) <= 1
    return inside


def recipes() -> dict[str, tuple[Mask, Mask]]:
    b, empty = ball(S, (16, 16, 16), 8, ISO), np.zeros(S, bool)
    a = ball(SA, (6, 24, 24), 12, ANISO)
    spot = b.copy()
    spot[1, 1, 1] = True
    thick = ball((16, 40, 40), (8, 20, 20), 15, THICK)
    small = ball(S, (8, 8, 8), 4, ISO)
    ellipse = ellipsoid(SA, (5.5, 23.5, 23.5), (4, 14, 9))
    return {
        "identical_ball_iso": (b, b),
        "shift1_ball_iso": (b, np.roll(b, 1, 0)),
        "shift3_ball_iso": (b, np.roll(b, 3, 1)),
        "concentric_r8_r6_iso": (b, ball(S, (16, 16, 16), 6, ISO)),
        "disjoint_boxes_iso": (box(S, (2, 2, 2), (8, 8, 8)), box(S, (20, 20, 20), (26, 26, 26))),
        "ball_shift1_slice_aniso": (a, np.roll(a, 1, 0)),
        "ball_shift1_inplane_aniso": (a, np.roll(a, 1, 2)),
        "ellipsoid_vs_box_aniso": (ellipse, box(SA, (2, 12, 16), (9, 36, 31))),
        "outlier_voxel_hd_vs_hd95_iso": (b, spot),
        "single_voxel_vs_adjacent_iso": (box(S, (5, 5, 5), (6, 6, 6)), box(S, (5, 5, 6), (6, 6, 7))),
        "thin_sheet_1vox_shift_aniso": (box(SA, (4, 4, 4), (5, 44, 44)), box(SA, (5, 4, 4), (6, 44, 44))),
        "touches_border_iso": (box(S, (0, 0, 0), (10, 10, 10)), box(S, (0, 0, 0), (10, 10, 12))),
        "two_lesions_one_missed_iso": (small | ball(S, (24, 24, 24), 3, ISO), small),
        "hollow_vs_solid_iso": (b & ~ball(S, (16, 16, 16), 4, ISO), b),
        "aniso_5x1x1_shift": (thick, np.roll(thick, 2, 1)),
        "pred_empty": (b, empty),
        "gt_empty": (empty, b),
        "both_empty": (empty, empty),
    }


def load_cases() -> list[ReferenceCase]:
    masks = recipes()
    cases = []
    for expected in json.loads(DATA.read_text())["cases"]:
        a, b = masks[expected["name"]]
        digest = hashlib.sha256(np.packbits(a).tobytes() + np.packbits(b).tobytes()).hexdigest()[:16]
        assert digest == expected["sha256"], f"recipe of {expected['name']} differs from the recorded masks"
        cases.append(ReferenceCase(expected["name"], a, b, tuple(expected["spacing"]), expected))
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = load_cases()
    kinds = {
        "recorded_case": cases,
        "solid_case": [c for c in cases if c.reference.any() and c.prediction.any()],
        "half_empty_case": [c for c in cases if c.reference.any() != c.prediction.any()],
    }
    for name, chosen in kinds.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, chosen, ids=[c.name for c in chosen])
    if "recipe" in metafunc.fixturenames:
        spacings = {"aniso_5x1x1_shift": THICK}
        solid = {n: (a, b) for n, (a, b) in recipes().items() if a.any() and b.any()}
        chosen = [(a, b, spacings.get(n, ANISO if "aniso" in n else ISO)) for n, (a, b) in solid.items()]
        metafunc.parametrize("recipe", chosen, ids=list(solid))
