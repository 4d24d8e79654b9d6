"""A small benchmark on disk: two hospitals, two structures, and predictions of a known quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

SPACING = (3.0, 1.0, 1.0)  # (D, H, W) in mm
SHAPE = (8, 20, 18)
CARD = {
    "architecture": "residual encoder U-Net", "family": "cnn", "residual_encoder": True, "framework": "nnU-Net",
    "code": "abc123", "parameters_millions": 30.0, "training_cases": ["train_0", "train_1"], "extra_data": False,
    "pretrained": "", "epochs": 1000, "patch_size": [64, 64, 64], "batch_size": 2, "spacing_mm": [3, 1, 1],
    "augmentation": "default", "loss": "dice+ce", "optimizer": "sgd", "vram_gib": 10.0, "gpu_hours": 12.0,
    "hardware": "A100", "seeds": [0], "ensemble_size": 1, "test_time_augmentation": False, "postprocessing": "",
}  # fmt: skip


def write_nifti(
    path: Path, volume: np.ndarray, *, spacing=SPACING, origin=(0.0, 0.0, 0.0), dtype=None
) -> Path:
    """(D, H, W) in RAS+ order -> a NIfTI file on the same grid."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = origin
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = volume if dtype is None else volume.astype(dtype)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored.transpose(2, 1, 0)), affine), path)
    return path


def anatomy(seed: int) -> np.ndarray:
    """A label map: a liver (1) and a smaller kidney (2) that vary from case to case."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE).astype(float)
    labels = np.zeros(SHAPE, np.uint8)
    for label, centre, radius in ((1, (4, 7, 7), 5.0), (2, (4, 13, 13), 3.5)):
        c = np.array(centre) + rng.uniform(-0.8, 0.8, 3)
        r = radius * rng.uniform(0.85, 1.15)
        labels[((z - c[0]) * 2) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < r**2] = label
    return labels


def worsened(labels: np.ndarray, error: float, seed: int) -> np.ndarray:
    """Each voxel at a boundary becomes background with a probability of `error`."""
    rng = np.random.default_rng(seed)
    padded = np.pad(labels, 1)
    rim = np.zeros_like(labels, bool)
    for axis in range(3):
        for step in (1, -1):
            rim |= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] != labels
    return np.where(rim & (labels > 0) & (rng.random(labels.shape) < error), 0, labels).astype(np.uint8)


@dataclass(frozen=True)
class Site:
    """A benchmark's folder and how to add submissions to it."""

    folder: Path
    cases: dict[str, list[str]]

    def submission(
        self, name: str, error: float, *, skip=(), test_sets=("inside", "outside"), **options: Any
    ) -> Path:
        """Write predictions of a quality, and the manifest; returns its path."""
        home = self.folder / "submissions" / name
        for t in test_sets:
            for i, case in enumerate(self.cases[t]):
                if case not in skip:
                    self.predict(home / t / f"{case}.nii.gz", t, i, error)
        card = {**CARD, **options.pop("method", {})}
        values = {"name": name, "predictions": {t: t for t in test_sets}, "method": card, **options}
        (home / "submission.yaml").write_text(yaml.safe_dump(values))
        return home

    def predict(self, path: Path, test_set: str, index: int, error: float) -> None:
        write_nifti(
            path, worsened(self.reference(test_set, index), error, seed=hash_seed(path.parts[-3:], index))
        )

    def reference(self, test_set: str, index: int) -> np.ndarray:
        return anatomy(index + (1000 if test_set == "outside" else 0))

    def change(self, **values: Any) -> None:
        """Change the benchmark's manifest."""
        path = self.folder / "benchmark.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def hash_seed(parts: tuple[str, ...], index: int) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate("/".join(parts))) + 7919 * index


@pytest.fixture
def make_site(tmp_path) -> Callable[..., Site]:
    def make(num_cases: int = 6, *, images: bool = False) -> Site:
        folder = tmp_path / "bench"
        cases = {
            "inside": [f"in_{i:02d}" for i in range(num_cases)],
            "outside": [f"out_{i:02d}" for i in range(num_cases)],
        }
        site = Site(folder, cases)
        for t, names in cases.items():
            rows = ["case,patient,sex,age"]
            for i, case in enumerate(names):
                reference = site.reference(t, i)
                write_nifti(folder / t / "labels" / f"{case}.nii.gz", reference)
                rows.append(f"{case},p{i},{'FM'[i % 2]},{30 + i}")
                if images:
                    noise = np.random.default_rng((i, len(t))).normal(0, 20, SHAPE)
                    image = reference * 100 + noise + (500 if t == "outside" else 0)
                    write_nifti(folder / t / "images" / f"{case}_0000.nii.gz", image, dtype=np.int16)
            (folder / t / "cases.csv").write_text("\n".join(rows) + "\n")
        manifest = {
            "name": "two-hospitals",
            "structures": {"liver": 1, "kidney": 2},
            "test_sets": [
                {"name": t, "kind": kind, "references": f"{t}/labels", "metadata": f"{t}/cases.csv"}
                | ({"images": f"{t}/images"} if images else {})
                for t, kind in (("inside", "internal"), ("outside", "external"))
            ],
            "metrics": ["dice", "nsd@1mm/surfel", "hd95/voxel"],
            "ranking": {"metric": "dice", "resamples": 200, "min_group": 2},
            "subgroups": ["sex", "age"],
            "age_bins": [33],
        }
        folder.mkdir(exist_ok=True)
        (folder / "benchmark.yaml").write_text(yaml.safe_dump(manifest))
        return site

    return make


@pytest.fixture
def site(make_site) -> Site:
    return make_site()


@pytest.fixture(scope="session")
def nifti():
    return write_nifti


@pytest.fixture(scope="session")
def method_card():
    return CARD
