"""What a prediction will take, before it is started: from headers alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fedvox.data.geometry import Geometry
from fedvox.data.raw_dataset import RawCase
from fedvox.data.readers import NIFTI_ENDINGS, read_header
from fedvox.data.resample import resampled_shape
from fedvox.errors import DataError
from fedvox.inference.config import PredictConfig
from fedvox.inference.device import band_bytes
from fedvox.inference.recipe import Recipe
from fedvox.inference.run import Job
from fedvox.inference.windows import WindowGrid
from fedvox.storage import exists, locate

GIB = 2**30


@dataclass(frozen=True)
class CaseEstimate:
    """What a case will take.

    Attributes:
        case_id: which one.
        shape: (D, H, W) of the file; None where only reading it would tell (DICOM).
        spacing_mm: (D, H, W) of the file.
        windows: over all models.
        evaluations: of a network on a window, flips and folds included.
        logits_gib: memory of the logits that are held at a time.
        is_done: its label map is there already (whether it is still right is only known when the run looks).
        problem: why its header cannot be read.
    """

    case_id: str
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    windows: int = 0
    evaluations: int = 0
    logits_gib: float = 0.0
    is_done: bool = False
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def estimate_job(job: Job) -> list[CaseEstimate]:
    """Estimates every case; no voxel is read. Cropping to nonzero voxels can make cases smaller than this says."""
    return [_estimate(case, job) for case in job.cases]


def _estimate(case: RawCase, job: Job) -> CaseEstimate:
    config = job.config
    is_done = exists(locate(config.output).child(f"{case.case_id}.nii.gz"))
    if not case.images[0].lower().endswith(NIFTI_ENDINGS):
        return CaseEstimate(case.case_id, is_done=is_done)
    try:
        header = read_header(case.images[0])
    except DataError as error:
        return CaseEstimate(case.case_id, is_done=is_done, problem=error.message)
    geometry = Geometry.of_file(header.shape[:0:-1], header.affine)
    members = [Recipe.of(info, patch_size=config.patch_size) for info in job.infos]
    grids = {recipe: _grid(geometry, recipe, config) for recipe in members}
    flips = 8 if config.mirror else 1
    return CaseEstimate(
        case_id=case.case_id,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        windows=sum(grid.num_windows for grid in grids.values()),
        evaluations=sum(grids[recipe].num_windows for recipe in members) * flips,
        logits_gib=math.fsum(band_bytes(grid, len(job.structures), config) for grid in grids.values()) / GIB,
        is_done=is_done,
    )


def _grid(geometry: Geometry, recipe: Recipe, config: PredictConfig) -> WindowGrid:
    size = (
        geometry.shape
        if recipe.spacing_mm is None
        else resampled_shape(geometry.shape, geometry.spacing_mm, recipe.spacing_mm)
    )
    return WindowGrid.of(size, recipe.patch_size, config.overlap)
