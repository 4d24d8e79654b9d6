"""Facts of a data set, whether from a store, nnU-Net's own files, or measured: the same numbers."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest

from fedvox.data.ingest import ingest
from fedvox.data.ingest_config import IngestConfig
from fedvox.errors import DataError
from fedvox.planning.facts import load_facts

for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(variable, "/nonexistent")  # nnU-Net complains on import without them


@pytest.fixture
def raw(tmp_path):
    """An nnU-Net raw data set of three small cases with a margin of zeros."""
    folder = tmp_path / "Dataset007_Small"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for number in range(3):
        rng = np.random.default_rng(number)
        image = np.zeros((20 + number, 22, 24), np.int16)
        image[2:-3, 4:-1, 3:-2] = rng.integers(1, 400, (15 + number, 17, 19))
        label = np.zeros(image.shape, np.uint8)
        label[5:12, 6:14, 7:15] = rng.integers(0, 3, (7, 8, 8))
        affine = np.diag([0.8, 0.9, 2.0 + number, 1])
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"case{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"case{number}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 3,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_measured_facts_are_nnunets_own_of_the_same_files(raw):
    extractor = pytest.importorskip("nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    facts = load_facts(str(raw))
    analyze = extractor.DatasetFingerprintExtractor.analyze_case
    for number, (shape, spacing) in enumerate(zip(facts.shapes, facts.spacings_mm, strict=True)):
        images = [str(raw / "imagesTr" / f"case{number}_0000.nii.gz")]
        label = str(raw / "labelsTr" / f"case{number}.nii.gz")
        theirs = analyze(images, label, SimpleITKIO, 100)
        assert shape == tuple(theirs[0])
        np.testing.assert_allclose(spacing, theirs[1], rtol=1e-6)
    assert facts.num_labels == 3
    assert facts.channel_names == ("MRI",)
    assert facts.case_ids == ("case0", "case1", "case2")


def test_a_store_keeps_the_facts_of_the_volumes_before_it_resampled_them(raw, tmp_path):
    ingest(
        IngestConfig(
            sources=(str(raw),), output=str(tmp_path / "store"), spacing_mm=(4.0, 2.0, 2.0), crop_to_nonzero=True,
            workers=0, contact_sheet_cases=0,
        )
    )  # fmt: skip
    measured, stored = load_facts(str(raw)), load_facts(str(tmp_path / "store"))
    assert (stored.shapes, stored.spacings_mm) == (measured.shapes, measured.spacings_mm)
    assert stored.relative_size == pytest.approx(measured.relative_size)
    assert stored.intensity == measured.intensity
    assert stored.case_ids == measured.case_ids


def test_a_preprocessed_folder_of_nnunet_is_read(raw, tmp_path):
    intensity = dict.fromkeys(
        ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0
    )
    fingerprint = {
        "spacings": [[1.0, 2.0, 3.0]], "shapes_after_crop": [[4, 5, 6]], "median_relative_size_after_cropping": 0.5,
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }  # fmt: skip
    folder = tmp_path / "Dataset007_Small_preprocessed"
    folder.mkdir()
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (folder / "dataset.json").write_text((raw / "dataset.json").read_text())
    facts = load_facts(str(folder))
    assert (facts.spacings_mm, facts.shapes, facts.num_labels) == (((1.0, 2.0, 3.0),), ((4, 5, 6),), 3)


def test_a_case_that_cannot_be_used_is_left_out_and_no_case_at_all_is_refused(raw):
    damaged = raw / "imagesTr" / "case1_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-500])
    assert load_facts(str(raw)).case_ids == ("case0", "case2")
    for name in ("case0", "case2"):
        (raw / "imagesTr" / f"{name}_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="case0"):
        load_facts(str(raw))


def test_a_store_without_a_fingerprint_says_what_writes_it(tmp_path):
    (tmp_path / "store.json").write_text(
        json.dumps({"name": "x", "channel_names": ["CT"], "structures": ["background"]})
    )
    with pytest.raises(DataError, match=r"no fingerprint.json") as error:
        load_facts(str(tmp_path))
    assert "ingest" in error.value.remedy
