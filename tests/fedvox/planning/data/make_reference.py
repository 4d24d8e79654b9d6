"""Runs nnU-Net's own planners on invented fingerprints, and writes what they planned to reference_plans.json.gz.

    python tests/fedvox/planning/data/make_reference.py

Made with nnunetv2 2.8.1, dynamic_network_architectures 0.4.4. The tests read the file, so that they need a second
instead of minutes; run this again to hold the planner against a newer nnU-Net.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

FOLDER = Path(__file__).parent
INTENSITY = {
    "max": 3071.0, "mean": 101.5, "median": 99.0, "min": -1024.0, "percentile_00_5": -18.0, "percentile_99_5": 201.0,
    "std": 41.25,
}  # fmt: skip


def cases(
    seed: int, count: int, spacing: Any, spread: float, shape: Any, shape_spread: float
) -> dict[str, Any]:
    """Spacings and shapes scattered around a centre."""
    rng = np.random.default_rng(seed)
    spacings = np.asarray(spacing) * np.exp(rng.normal(0, spread, (count, 3)) * [1, 0.3, 0.3])
    spacings[:, 2] = spacings[:, 1]
    shapes = np.maximum(1, np.rint(np.asarray(shape) * np.exp(rng.normal(0, shape_spread, (count, 3)))))
    return {"spacings": spacings.round(6).tolist(), "shapes_after_crop": shapes.astype(int).tolist()}


def turned(fingerprint: dict[str, Any]) -> dict[str, Any]:
    return {key: [values[::-1] for values in rows] for key, rows in fingerprint.items()}


FINGERPRINTS: dict[str, tuple[dict[str, Any], float, list[str], int]] = {
    "liver_ct": (cases(0, 131, (1.0, 0.77, 0.77), 0.5, (432, 512, 512), 0.2), 1.0, ["CT"], 3),
    "brain_mr": (
        {"spacings": [[1.0] * 3] * 100, "shapes_after_crop": cases(1, 100, (1,) * 3, 0, (140, 171, 136), 0.05)
         ["shapes_after_crop"]}, 0.55, ["T1", "T1ce", "T2", "FLAIR"], 4,
    ),
    "cardiac_thick": (cases(2, 200, (10.0, 1.5, 1.5), 0.2, (9, 237, 208), 0.1), 1.0, ["cineMRI"], 4),
    "hippocampus": (cases(3, 260, (1.0, 1.0, 1.0), 0.0, (36, 50, 35), 0.1), 1.0, ["MRI"], 3),
    "prostate": (cases(4, 32, (3.6, 0.62, 0.62), 0.05, (20, 320, 319), 0.02), 1.0, ["T2", "ADC"], 3),
    "sagittal_stack": (turned(cases(5, 25, (4.0, 0.5, 0.5), 0.1, (24, 400, 380), 0.1)), 1.0, ["MR"], 6),
    "two_coarse_axes": (cases(6, 20, (0.24, 1.25, 1.25), 0.02, (500, 110, 130), 0.05), 1.0, ["MR"], 2),
    "single_slices": (
        {"spacings": [[999.0, 1.0, 1.0]] * 30, "shapes_after_crop": [[1, 512 + i, 600] for i in range(30)]}, 1.0,
        ["R", "G", "B"], 2,
    ),
    "whole_body": (cases(7, 4, (1.5, 1.5, 1.5), 0.0, (600, 300, 300), 0.2), 1.0, ["CT"], 105),
    "two_cases": ({"spacings": [[1.0, 0.7, 0.7], [2.5, 0.8, 0.8]], "shapes_after_crop": [[101, 300, 311],
                                                                                      [48, 256, 250]]}, 1.0, ["CT"], 2),
    "microscopy": (cases(8, 12, (1.0, 0.2, 0.2), 0.0, (64, 1024, 900), 0.1), 1.0, ["noNorm"], 2),
    "pet_ct": (cases(9, 90, (3.0, 2.04, 2.04), 0.0, (326, 400, 400), 0.05), 0.7, ["CT", "PET"], 2),
    "tiny": (cases(10, 3, (1.0, 1.0, 1.0), 0.0, (9, 11, 7), 0.1), 1.0, ["CT"], 2),
}  # fmt: skip
RUNS: list[tuple[str, str, float | None, list[float] | None]] = [
    # planner, preset, memory in GB, spacing
    ("ExperimentPlanner", "unet", None, None),
    ("ResEncUNetPlanner", "resenc", None, None),
    ("nnUNetPlannerResEncM", "resenc-m", None, None),
    ("nnUNetPlannerResEncL", "resenc-l", None, None),
    ("nnUNetPlannerResEncXL", "resenc-xl", None, None),
    ("ExperimentPlanner", "unet", 3.0, None),
    ("nnUNetPlannerResEncL", "resenc-l", 78.0, [2.0, 1.1, 0.9]),
]
OFTEN = {"liver_ct", "cardiac_thick", "brain_mr"}  # the last two runs are made for these alone


def prepare(raw: Path, preprocessed: Path, name: str, number: int) -> str:
    """A raw data set of one image, with the fingerprint of many."""
    fingerprint, relative_size, channels, labels = FINGERPRINTS[name]
    dataset = f"Dataset{number:03d}_{name}"
    (raw / dataset / "imagesTr").mkdir(parents=True)
    (raw / dataset / "labelsTr").mkdir()
    (preprocessed / dataset).mkdir(parents=True)
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    for channel in range(len(channels)):
        nib.save(image, raw / dataset / "imagesTr" / f"a_{channel:04d}.nii.gz")
    nib.save(image, raw / dataset / "labelsTr" / "a.nii.gz")
    description = {
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {"background": 0, **{f"structure{i}": i for i in range(1, labels)}},
        "numTraining": len(fingerprint["spacings"]),
        "file_ending": ".nii.gz",
    }
    (raw / dataset / "dataset.json").write_text(json.dumps(description))
    measured = {
        **fingerprint,
        "foreground_intensity_properties_per_channel": {str(i): INTENSITY for i in range(len(channels))},
        "median_relative_size_after_cropping": relative_size,
    }
    (preprocessed / dataset / "dataset_fingerprint.json").write_text(json.dumps(measured))
    return dataset


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        raw, preprocessed = Path(scratch, "raw"), Path(scratch, "preprocessed")
        os.environ |= {
            "nnUNet_raw": str(raw),
            "nnUNet_preprocessed": str(preprocessed),
            "nnUNet_results": scratch,
        }
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
            ExperimentPlanner,
        )
        from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
            residual_encoder_unet_planners,
        )

        result = []
        for number, name in enumerate(FINGERPRINTS, start=1):
            dataset = prepare(raw, preprocessed, name, number)
            files = {
                "dataset": json.loads((raw / dataset / "dataset.json").read_text()),
                "dataset_fingerprint": json.loads(
                    (preprocessed / dataset / "dataset_fingerprint.json").read_text()
                ),
            }
            plans = []
            for planner, preset, memory_gib, spacing in RUNS[: None if name in OFTEN else 5]:
                for earlier in (preprocessed / dataset).glob("nnUNet*Plans.json"):
                    earlier.unlink()  # nnU-Net would keep its configurations
                kind = getattr(residual_encoder_unet_planners, planner, ExperimentPlanner)
                options = {} if memory_gib is None else {"gpu_memory_target_in_gb": memory_gib}
                plan = kind(dataset, overwrite_target_spacing=spacing, **options).plan_experiment()
                plans.append({"preset": preset, "memory_gib": memory_gib, "spacing": spacing, "plan": plan})
            result.append({"name": dataset, **files, "plans": plans})
    text = json.dumps(result, separators=(",", ":")).encode()
    (FOLDER / "reference_plans.json.gz").write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()
