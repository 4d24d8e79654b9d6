"""The MNI152 brain at the demo's sites, with gray and white matter of each half apart: four structures with a side.

The images are those of `fedvox.data.demo`: other heads, other scanners, all deformed from one anatomy. The halves are
told apart in the template, before a head is deformed, so that each half's border moves with the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedvox.data.demo import DemoOptions, load_brain, plan_acquisitions
from fedvox.data.records import StoreMeta
from fedvox.data.simulated_scanner import Head, acquire, with_spacing
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter

Array = np.ndarray[Any, Any]

STRUCTURES = (
    "background",
    "gray matter left",
    "gray matter right",
    "white matter left",
    "white matter right",
)


def simulated_meta(name: str) -> StoreMeta:
    """What the stores of simulated brains share."""
    return StoreMeta(
        name=name,
        channel_names=("T1",),
        modality="MR",
        structures=STRUCTURES,
        label_sets={"all": tuple(range(len(STRUCTURES)))},
        normalization="zscore",
    )


def write_brains(uri: str, cases: int, *, resolution_mm: float = 4.0, seed: int = 0) -> BrickStore:
    """Simulates a store of images with their true labels; a finished one is left as it is.

    Args:
        uri: of the store.
        cases: heads, dealt over the demo's three sites.
        resolution_mm: in-plane voxel size, 1 to 4.
        seed: of everything random.

    Raises:
        ConfigError: the brain is not installed (see `fedvox.data.demo.load_brain`).
    """
    writer = StoreWriter.create(uri, simulated_meta("SimulatedBrains"))
    brain = with_spacing(load_brain(), (resolution_mm,) * 3)
    left = _left_half(brain)
    for acquisition in plan_acquisitions(DemoOptions(cases, resolution_mm, seed)):
        if writer.finished(acquisition.case_id, origin=repr(acquisition)) is not None:
            continue
        head, image = acquire(brain, acquisition)
        half, _ = acquire(left, acquisition)
        writer.add_case(
            acquisition.case_id,
            np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16)[None],
            four_structures(head, half),
            source=acquisition.site,
            label_set="all",
            spacing_mm=head.spacing_mm,
            affine=_affine(head.spacing_mm, head.origin_mm),
            origin=repr(acquisition),
        )
    writer.finish()
    return BrickStore.open(uri)


def _left_half(brain: Head) -> Head:
    """The same head with tissue on the patient's left alone (x < 0 in RAS+)."""
    x = brain.origin_mm[0] + np.arange(brain.t1.shape[2]) * brain.spacing_mm[2]
    kept = np.clip(0.5 - x / brain.spacing_mm[2], 0, 1)  # a voxel on the midline belongs to both by its share
    return replace(brain, gray=brain.gray * kept, white=brain.white * kept)


def four_structures(head: Head, left: Head) -> Array:
    """Canonical labels (D, H, W): tissue from the head, its side from the head that has tissue on its left alone."""
    tissue = head.label()
    on_left = left.gray + left.white >= 0.5 * (head.gray + head.white)
    return np.where(tissue == 0, 0, 2 * tissue.astype(np.uint8) - on_left).astype(np.uint8)


def _affine(spacing_mm: Sequence[float], origin_mm: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Voxel (D, H, W, 1) -> RAS+ mm."""
    z, y, x = spacing_mm
    ox, oy, oz = origin_mm
    return (0.0, 0.0, x, ox), (0.0, y, 0.0, oy), (z, 0.0, 0.0, oz), (0.0, 0.0, 0.0, 1.0)
