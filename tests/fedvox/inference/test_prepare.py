"""A network sees in prediction what it saw in training: the same voxels as from the store."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.data.ingest import ingest
from fedvox.data.ingest_config import IngestConfig
from fedvox.data.normalize import normalize
from fedvox.data.store import BrickStore
from fedvox.errors import DataError
from fedvox.inference.inputs import find_cases
from fedvox.inference.prepare import prepare, read_images
from fedvox.inference.recipe import Recipe
from fedvox.training.release import ModelInfo


def raw_dataset(folder, image, modality):
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    nib.save(image, folder / "imagesTr" / "one_0000.nii.gz")
    label = (np.asarray(image.dataobj) > np.percentile(np.asarray(image.dataobj), 70)).astype(np.uint8)
    nib.save(nib.Nifti1Image(label, image.affine), folder / "labelsTr" / "one.nii.gz")
    description = {
        "channel_names": {"0": modality}, "labels": {"background": 0, "bright": 1}, "numTraining": 1,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))


def hounsfield(image: nib.Nifti1Image) -> nib.Nifti1Image:
    values = np.asarray(image.dataobj).astype(np.float32)
    return nib.Nifti1Image((values / values.max() * 1500 - 1000).astype(np.int16), image.affine)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("spacing", ["native", (3.0, 2.5, 2.2), (9.0, 2.5, 2.5)])
def test_an_image_is_prepared_as_the_store_holds_it(tmp_path, small_brain, modality, crop, spacing):
    image = hounsfield(small_brain) if modality == "CT" else small_brain
    raw_dataset(tmp_path / "raw", image, modality)
    ingest(
        IngestConfig(
            sources=(str(tmp_path / "raw"),), output=str(tmp_path / "store"), spacing_mm=spacing,
            crop_to_nonzero=crop, workers=0, contact_sheet_cases=0,
        )
    )  # fmt: skip
    store = BrickStore.open(str(tmp_path / "store"))
    stored, _ = store.read_patch(0, (0, 0, 0), store.record(0).shape)
    expected = normalize(stored, store.record(0), store.meta)

    info = ModelInfo(
        name="x", options={}, structures=("background", "bright"), channel_names=(modality,), patch_size=(16, 16, 16),
        spacing_mm=store.meta.spacing_mm, normalization=store.meta.normalization, intensity=store.meta.intensity,
        modality=store.meta.modality, crop_to_nonzero=store.meta.crop_to_nonzero,
    )  # fmt: skip
    (case,) = find_cases(str(tmp_path / "raw" / "imagesTr"), (modality,), modality=info.modality)
    found = prepare(read_images(case), case, Recipe.of(info))
    assert found.image.shape == expected.shape
    assert torch.equal(found.image, expected)


def test_what_cannot_be_read_is_refused_with_its_reason_and_may_be_tolerated(tmp_path, small_brain):
    values = np.asarray(small_brain.dataobj).astype(np.float32)  # positive: no Hounsfield units
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(values + 1000, small_brain.affine), tmp_path / "in" / "a.nii.gz")
    (case,) = find_cases(str(tmp_path / "in"), ("CT",), modality="CT")
    with pytest.raises(DataError, match="neither air nor fat") as error:
        read_images(case)
    assert error.value.code == "implausible_ct"
    assert read_images(case, tolerate=("implausible_ct",)).image.shape[0] == 1
