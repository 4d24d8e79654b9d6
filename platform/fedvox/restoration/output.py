"""What a restoration leaves in its folder: NIfTI on the image's grid, the data-consistency figure, the side-car."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedvox import storage
from fedvox.inference.nifti_out import source_header, write_image
from fedvox.restoration.figures import consistency_figure
from fedvox.restoration.problem import Problem
from fedvox.restoration.restore import Restored
from fedvox.training.figures import save_figure
from fedvox.training.run_directory import without_nan


def write_restored(found: Restored, problem: Problem, output: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Writes all files, each atomically; the side-car last.

    Args:
        found: the restoration.
        problem: what was restored.
        output: folder, made if it is not there.
        told: what the side-car says of prior and solver.

    Returns:
        The side-car.

    Raises:
        StorageError: no space, or forbidden.
    """
    folder = storage.locate(str(output))
    header = source_header(problem.source, problem.geometry)
    files: dict[str, str] = {}
    maps = {"image": found.image, "uncertainty": found.spread, "residual": found.residual}
    for kind, values in maps.items():
        if values is not None:
            target = folder.child(f"{kind}.nii.gz")
            write_image(values, problem.geometry, header, target)
            files[kind] = target.uri
    picture = folder.child("consistency.png")
    save_figure(consistency_figure(*found.explained, kspace=problem.task == "reconstruct"), picture)
    files["consistency"] = picture.uri
    side_car = {
        "schema": "fedvox.restoration/1",
        "task": problem.task,
        "size": list(problem.size),
        "data_consistency": found.consistency,
        "data_consistency_of_noise": found.expected,
        **told,
        "notes": list(found.notes),
        "files": files,
    }
    target = folder.child("restoration.json")
    storage.write_atomic(target, (json.dumps(without_nan(side_car), indent=1, default=str) + "\n").encode())
    return {**side_car, "files": {**files, "side-car": target.uri}}
