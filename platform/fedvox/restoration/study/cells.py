"""One held-out slice, restored one way: a cell of the study. A finished cell is a JSON file and is not repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox import storage
from fedvox.data.demo import load_brain
from fedvox.restoration import baselines, metrics, physics
from fedvox.restoration.deepinv_loader import deepinv
from fedvox.restoration.prior import DiffusionPrior
from fedvox.restoration.solvers import DEFAULTS, solve, with_options
from fedvox.restoration.tiling import Coverage, TiledPrior
from fedvox.restoration.volumes import intensity_scale
from fedvox.storage import Location

SLICES = (63, 83, 123)
"""Held-out slices that judge; with slice i goes seed i of mask and noise."""
TUNING_SLICE = 103
"""From another held-out slab: every weight below and each baseline's was chosen on it."""
TUNING_SEED = 77
ROWS, COLUMNS = slice(24, 216), slice(20, 180)
"""192 × 160 voxels that hold the brain."""
PATCH = 48
COVERAGES: Mapping[str, Coverage] = {
    "whole": Coverage("whole"),
    "tiles": Coverage("tiles", (1, PATCH, PATCH), batch=2),
    "random": Coverage("random", (1, PATCH, PATCH), batch=2),
    "random+halo": Coverage("random", (1, PATCH - 16, PATCH - 16), halo=8, batch=2),
    "overlap": Coverage("overlap", (1, PATCH, PATCH), overlap=0.5, batch=2),
}
TASKS = ("mri4", "mri8", "sr2", "sr4", "denoise", "inpaint", "mri4-coils")
WEIGHTS: Mapping[tuple[str, str], float] = {
    ("dps", "sr2"): 3.0, ("dps", "sr4"): 3.0, ("ddnm", "denoise"): 0.3, ("reddiff", "denoise"): 0.3,
    ("red", "sr2"): 0.1, ("red", "sr4"): 0.1, ("red", "mri4"): 1.0, ("red", "mri8"): 1.0, ("red", "mri4-coils"): 1.0,
    ("red", "denoise"): 3.0, ("red", "inpaint"): 3.0,
}  # fmt: skip
STEPS: Mapping[str, int] = {
    "diffpir": 25,
    "ddnm": 25,
    "dps": 25,
    "pnpdm": 12,
    "reddiff": 40,
    "red": 40,
    "admm": 15,
}
TUNED: Mapping[str, tuple[float, ...]] = {
    "tv": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2), "wavelet": (0.005, 0.02, 0.05, 0.1), "bm3d": (0.02, 0.05, 0.1),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What is restored, and how.

    Attributes:
        task: one of `TASKS`.
        method: a solver or a baseline.
        place: index into `SLICES`, which is the seed too; -1 is the slice for tuning.
        prior: "patch" or "whole"; "" for a baseline.
        coverage: a key of `COVERAGES`; "" for a baseline.
        weight: of a baseline that is being tuned.
    """

    task: str
    method: str
    place: int
    prior: str = ""
    coverage: str = ""
    weight: float | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        parts = [self.task, self.method, str(self.place), self.prior, self.coverage]
        return "_".join(p for p in [*parts, "" if self.weight is None else f"{self.weight:g}"] if p)


def must_cells() -> list[Cell]:
    """What the claims are about: 4× MRI, both priors, every way of covering, beside the baselines."""
    return [
        *(Cell("mri4", "zero-filled", place) for place in range(3)),
        *(Cell("mri4", "tv", place) for place in range(3)),
        *(
            Cell("mri4", method, place, prior, coverage)
            for place in range(3)
            for method in ("pgd", "diffpir")
            for coverage in COVERAGES
            for prior in ("patch", "whole")
        ),
    ]


def more_cells() -> list[Cell]:
    """The other tasks, solvers and baselines."""
    found = [
        Cell(task, method, place) for task in TASKS for method in ("zero-filled", "tv") for place in range(3)
    ]
    crossed = (("patch", "random+halo"), ("patch", "whole"), ("whole", "random+halo"), ("whole", "whole"))
    found += [Cell(task, "diffpir", place, *how) for task in TASKS for place in range(3) for how in crossed]
    cheap = ("pgd", "fista", "admm", "ddnm", "pnpdm", "red", "reddiff", "dps")
    found += [Cell(task, method, 1, "patch", "random+halo") for method in cheap for task in TASKS]
    found += [
        Cell(task, method, 1) for method in ("wavelet", "bm3d") for task in TASKS if task != "mri4-coils"
    ]
    return [cell for cell in dict.fromkeys(found) if cell not in set(must_cells())]


def truth_of(place: int) -> Tensor:
    """The slice `(1, 1, 192, 160)`, scaled."""
    image = load_brain().t1
    chosen = TUNING_SLICE if place < 0 else SLICES[place]
    scaled = np.asarray(image[chosen, ROWS, COLUMNS] / intensity_scale(image), np.float32)
    return torch.from_numpy(scaled)[None, None]


def measured(task: str, truth: Tensor, seed: int) -> tuple[Any, Tensor]:
    """The operator of a task and the measurements of a slice."""
    size = (truth.shape[-2], truth.shape[-1])
    generator = torch.Generator().manual_seed(1000 + seed)
    if task.startswith("mri"):
        mask = physics.cartesian_mask(size, float(task[3]), seed=seed)
        coils = physics.simulated_coils(size, 4) if task.endswith("coils") else None
        phase = None
        if coils is not None:
            y, x = torch.meshgrid(
                torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij"
            )
            phase = torch.polar(torch.ones_like(x), 1.5 * x - y * y)
        operator = physics.mri(mask, coil_maps=coils, phase=phase, noise=0.005)
    elif task.startswith("sr"):
        operator = physics.BlockAverage((int(task[2]),) * 2, deepinv.physics.GaussianNoise(0.01))
    elif task == "denoise":
        operator = physics.denoising(0.1)
    else:
        operator = physics.inpainting((torch.rand(1, *size, generator=generator) > 0.5).float(), 0.01)
    with torch.random.fork_rng():
        torch.manual_seed(1000 + seed)
        return operator, operator(truth)


class Study:
    """Runs cells that are not done yet.

    Args:
        folder: holds `cells/`.
        priors: by name.
    """

    def __init__(self, folder: Location, priors: Mapping[str, DiffusionPrior]) -> None:
        self.folder, self.priors = folder, priors

    def file(self, cell: Cell) -> Location:
        """Where a finished cell is."""
        return self.folder.child("cells", f"{cell.name}.json")

    def done(self, cell: Cell) -> dict[str, Any] | None:
        """The finished cell."""
        location = self.file(cell)
        if not storage.exists(location):
            return None
        found: dict[str, Any] = json.loads(storage.read_bytes(location))
        return found

    def run(self, cell: Cell) -> dict[str, Any]:
        """Restores, judges and writes a cell (or returns it, done)."""
        finished = self.done(cell)
        if finished is not None:
            return finished
        tunes = cell.method in TUNED and cell.place >= 0
        cell_weight = self.tuned(cell.task, cell.method) if tunes else cell.weight
        truth = truth_of(cell.place)
        operator, y = measured(cell.task, truth, cell.place if cell.place >= 0 else TUNING_SEED)
        began = time.perf_counter()
        image = self.restored(cell, operator, y, cell_weight)
        seconds = time.perf_counter() - began
        found = {
            **asdict(cell),
            "weight": cell_weight,
            "seconds": seconds,
            **judged(image, truth, operator, y),
        }
        storage.write_atomic(self.file(cell), (json.dumps(found, indent=1) + "\n").encode())
        return found

    def restored(self, cell: Cell, operator: Any, y: Tensor, weight: float | None) -> Tensor:
        """The image of a cell."""
        if not cell.prior:
            return _baseline(cell.method, operator, y, weight)
        tiled = TiledPrior(self.priors[cell.prior], COVERAGES[cell.coverage])
        options = with_options(
            cell.method, steps=STEPS.get(cell.method), weight=WEIGHTS.get((cell.method, cell.task)),
            smallest=0.1 if cell.task == "denoise" and DEFAULTS[cell.method].largest <= 0.1 else None,
        )  # fmt: skip
        return solve(cell.method, tiled, operator, y, options=options, seed=cell.place)

    def tuned(self, task: str, method: str) -> float:
        """The weight of a baseline that is best on the slice for tuning."""
        scores = {w: self.run(Cell(task, method, -1, weight=w))["psnr"] for w in TUNED[method]}
        return max(scores, key=lambda w: float(scores[w]))


def _baseline(method: str, operator: Any, y: Tensor, weight: float | None) -> Tensor:
    if method == "zero-filled":
        return baselines.zero_filled(operator, y)
    functions: dict[str, Callable[[Any, Tensor, float], Tensor]] = {
        "tv": lambda a, b, w: baselines.total_variation(a, b, weight=w),
        "wavelet": lambda a, b, w: baselines.wavelet(a, b, weight=w),
        "bm3d": lambda a, b, w: baselines.block_matching(a, b, sigma=w),
    }
    return functions[method](operator, y, float(weight or 0.0))


def judged(image: Tensor, truth: Tensor, operator: Any, y: Tensor) -> dict[str, float]:
    """The scores of a restored slice; the seam score is that of its error, on the grid of patches of 48."""
    seam = metrics.seam_score((image - truth)[0, 0], (PATCH, PATCH))
    return {
        "psnr": metrics.psnr(image, truth), "ssim": metrics.ssim(image, truth), "nmse": metrics.nmse(image, truth),
        "consistency": metrics.data_consistency(operator, image, y), "seam": seam.ratio, "seam_z": seam.z,
    }  # fmt: skip
