"""Duplicates are found however they were disguised, and different patients are not called duplicates."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from fedvox.benchmark.leakage import NEAR, find_leaks, fingerprint, fingerprint_of


def scan(seed: int, shape=(40, 64, 56)) -> np.ndarray:
    """A CT-like body with organs of random place and size, in air."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    grid = np.meshgrid(z, y, x, indexing="ij")
    width = rng.uniform(0.65, 0.9, 2)
    body = (grid[1] / width[0]) ** 2 + (grid[2] / width[1]) ** 2 < 1
    volume = np.where(body, 0.0, -1000.0)
    for _ in range(12):
        centre, radius = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.12, 0.35, 3)
        organ = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) < 1
        volume[organ & body] = rng.choice([-700, -80, 40, 60, 150, 400])
    return volume + ndimage.gaussian_filter(rng.normal(0, 60, shape), 1)


SCANS = {f"train_{i}": scan(i) for i in range(12)}
TRAINING = {name: fingerprint_of(volume) for name, volume in SCANS.items()}


def test_different_patients_are_no_duplicates():
    strangers = {f"test_{i}": fingerprint_of(scan(100 + i)) for i in range(25)}
    assert find_leaks(strangers, TRAINING) == []


def test_the_same_voxels_are_an_exact_duplicate_in_any_file(tmp_path):
    volume = SCANS["train_4"].round().astype(np.int16)
    paths = []
    for name, dtype, ending in (("a", np.int16, ".nii.gz"), ("b", np.float32, ".nii")):
        image = nib.Nifti1Image(volume.transpose(2, 1, 0).astype(dtype), np.diag([1, 1, 3, 1]))
        if name == "b":
            image = image.as_reoriented(nib.orientations.axcodes2ornt("LPS"))
        paths.append(tmp_path / f"{name}{ending}")
        nib.save(image, paths[-1])
    leaks = find_leaks(
        {"x": fingerprint(paths[0])}, {"other": TRAINING["train_1"], "y": fingerprint(paths[1])}
    )
    assert [(k.test_case, k.other_case, k.kind) for k in leaks] == [("x", "y", "exact")]


DISGUISES = {
    "noise": lambda v: v + np.random.default_rng(0).normal(0, 30, v.shape),
    "other scale": lambda v: (v + 1024) * 0.37,
    "resampled": lambda v: ndimage.zoom(v, (0.6, 0.8, 0.8), order=1),
    "mirrored": lambda v: v[:, :, ::-1],
    "turned over": lambda v: v[::-1, ::-1],
    "padded with air": lambda v: np.pad(v, ((0, 0), (9, 4), (3, 8)), constant_values=-1000),
    "smoothed": lambda v: ndimage.gaussian_filter(v, 1.0),
    "rounded to 8 bits": lambda v: np.clip((v + 1000) / 8, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_copy_is_a_near_duplicate(disguise):
    copy = fingerprint_of(DISGUISES[disguise](SCANS["train_7"]))
    leaks = find_leaks({"clean": fingerprint_of(scan(500)), "copy": copy}, TRAINING)
    assert [(k.test_case, k.other_case, k.kind) for k in leaks] == [("copy", "train_7", "near")]
    assert leaks[0].similarity >= NEAR


def test_a_constant_image_is_like_nothing():
    assert find_leaks({"blank": fingerprint_of(np.zeros((8, 8, 8)))}, TRAINING) == []


def test_nothing_is_compared_with_nothing():
    assert find_leaks({}, TRAINING) == find_leaks(TRAINING, {}) == []
