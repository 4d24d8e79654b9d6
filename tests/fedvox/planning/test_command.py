"""`fedvox plan` as a user types it, and the files that it writes."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import numpy as np
import pytest

from fedvox.cli import main
from fedvox.config import load_config
from fedvox.planning.nnunet_plans import read_plans
from fedvox.planning.splits import read_splits
from fedvox.training.config import PretrainConfig


@pytest.fixture
def fedvox(monkeypatch, capsys):
    """Runs the command line; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedvox", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


@pytest.fixture
def data(tmp_path):
    """A raw data set of six cases."""
    folder = tmp_path / "Dataset001_Toy"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for number in range(6):
        image = np.random.default_rng(number).integers(1, 400, (40, 44, 36)).astype(np.int16)
        label = (image > 300).astype(np.uint8)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"case{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"case{number}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "numTraining": 6, "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return str(folder)


def test_a_dry_run_tells_every_decision_with_its_reason_and_writes_nothing(fedvox, data, tmp_path):
    code, out, _ = fedvox("plan", data, "--preset", "resenc-m", "-o", str(tmp_path / "plan"), "--dry-run")
    assert code == 0
    assert out.count("because:") >= 10
    for field in ("spacing_mm", "patch_size", "topology", "batch_size", "normalization"):
        assert field in out
    assert not (tmp_path / "plan").exists()


def test_the_written_files_are_what_training_and_nnunet_read(fedvox, data, tmp_path):
    code, out, _ = fedvox("plan", data, "--preset", "unet", "-o", str(tmp_path / "plan"))
    assert code == 0
    assert "5 folds of 2, 1, 1, 1, 1 held-out cases" in out
    plan = read_plans(str(tmp_path / "plan" / "nnUNetPlans.json"))
    config = load_config(PretrainConfig, tmp_path / "plan" / "train.yaml")
    assert config.data.patch_size == plan.in_volume_order(plan.configurations["3d_fullres"].patch_size)
    folds = read_splits(str(tmp_path / "plan" / "splits_final.json"))
    for number, fold in enumerate(folds):
        of_fold = load_config(PretrainConfig, tmp_path / "plan" / f"train_fold{number}.yaml")
        assert of_fold.data.validation_cases == fold.validation
        assert of_fold.name.endswith(f"fold{number}")


def test_a_plan_of_nnunet_is_taken_as_it_is(fedvox, data, tmp_path):
    fedvox("plan", data, "-o", str(tmp_path / "first"), "--preset", "unet")
    path = tmp_path / "first" / "nnUNetPlans.json"
    value = json.loads(path.read_text())
    value["configurations"]["3d_fullres"]["batch_size"] = 7
    path.write_text(json.dumps(value))
    code, out, _ = fedvox("plan", data, "--plans", str(path), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["backbone"]["batch_size"] == 7


def test_a_plan_for_another_number_of_channels_is_refused(fedvox, data, tmp_path):
    fedvox("plan", data, "-o", str(tmp_path / "first"), "--preset", "unet")
    path = tmp_path / "first" / "nnUNetPlans.json"
    value = json.loads(path.read_text())
    for configuration in value["configurations"].values():
        configuration["normalization_schemes"] = ["ZScoreNormalization"] * 4
    path.write_text(json.dumps(value))
    code, _, err = fedvox("plan", data, "--plans", str(path), "--dry-run")
    assert code == 2
    assert "is for 4 channels" in err
    assert "the data has 1 (MRI)" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--preset", "xxl", "--dry-run"], "no preset 'xxl'"),
        ([], "--output is missing"),
        (["--memory-gib", "0", "--dry-run"], "not positive"),
        (["--spacing", "1,2", "--dry-run"], "no spacing"),
        (["--plans", "/nowhere.json", "--dry-run"], "does not exist"),
        (["--model", "mednext-v9", "--dry-run"], "no model named"),
    ],
)
def test_wrong_input_leaves_with_2_and_a_remedy(fedvox, data, arguments, told):
    code, _, err = fedvox("plan", data, *arguments)
    assert code == 2
    assert told in err
    assert "->" in err
