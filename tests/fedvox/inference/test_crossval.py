"""Cross-validation from images to a decision, with networks whose quality is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.errors import ConfigError, DataError
from fedvox.inference import crossval, ensemble, run
from fedvox.inference.config import PredictConfig
from fedvox.inference.crossval import CrossvalConfig, cross_validate
from fedvox.inference.selection import read_selection
from fedvox.training.release import ModelInfo

CASES = [f"case{number}" for number in range(6)]
FOLDS = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
SHAPE = (16, 18, 20)


class Threshold(torch.nn.Module):
    """Finds what is brighter than a level, and so misses or invents a known share of it."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.level - x, x - self.level], dim=1)


@dataclass
class Study:
    data: str
    output: str
    seen: list[tuple[str, str]]


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """A data set of a bright block in each case (and a speck, in the image alone), and models by name.

    `good-N` has the right level, `poor-N` finds too much; N is the fold.
    """
    folder = tmp_path / "Dataset001_Blocks"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for number, name in enumerate(CASES):
        label = np.zeros(SHAPE, np.uint8)
        label[3:11, 4:12, 5 : 13 + number % 2] = 1
        image = 10.0 * label
        image[3:11, 12:14, 5:13] = 4  # a rim that only the poor model takes for the structure
        image[14, 16, 18] = 10  # the speck
        nib.save(
            nib.Nifti1Image(image.astype(np.float32), np.eye(4)), folder / "imagesTr" / f"{name}_0000.nii.gz"
        )
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "MR"}, "labels": {"background": 0, "block": 1}, "numTraining": 6,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "splits_final.json").write_text(json.dumps(FOLDS))
    seen: list[tuple[str, str]] = []

    def info(_: object) -> ModelInfo:
        return ModelInfo(
            "x", {}, ("background", "block"), ("MR",), SHAPE[::-1], None, "zscore", (), modality="MR"
        )

    def load(uris, *, patch_size=None):
        levels = {"good": 1.2, "poor": 0.2}
        members = tuple(
            ensemble.Member(
                uri, Threshold(levels[uri.split("-")[0]]), ensemble.Recipe.of(info(uri)), sha256=uri
            )
            for uri in uris
        )
        return ensemble.Ensemble(members, ("background", "block"), ("MR",), "MR")

    original = run.run_in_process

    def watched(predictor, cases, on_windows=None):
        seen.extend((case.case_id, "+".join(m.name for m in predictor.ensemble.members)) for case in cases)
        return original(predictor, cases, on_windows)

    def read_all(uris):
        return tuple(info(uri) for uri in uris)

    monkeypatch.setattr(run, "load_ensemble", load)
    monkeypatch.setattr(run, "read_infos", read_all)
    monkeypatch.setattr(crossval, "read_infos", read_all)
    monkeypatch.setattr(run, "run_in_process", watched)
    return Study(str(folder), str(tmp_path / "cv"), seen)


def configured(study: Study, **changes) -> CrossvalConfig:
    values = {
        "data": study.data, "output": study.output, "predict": PredictConfig(device="cpu", mirror=False),
        "configurations": {"poor": ("poor-0", "poor-1"), "good": ("good-0", "good-1")},
    }  # fmt: skip
    return CrossvalConfig.model_validate({**values, **changes})


def test_every_case_is_predicted_by_the_fold_that_has_not_seen_it(study):
    cross_validate(configured(study, pairs=False))
    expected = [(case, f"{name}-{case in CASES[3:]:d}") for name in ("poor", "good") for case in CASES]
    assert sorted(study.seen) == sorted(expected)


def test_the_better_configuration_wins_and_its_speck_is_removed(study):
    selection = cross_validate(configured(study))
    scores = {candidate.name: candidate.dice for candidate in selection.candidates}
    assert list(scores) == ["poor", "good", "poor+good"]
    assert selection.best == "good"
    assert selection.models == ("good-0", "good-1")
    assert selection.num_cases == 6
    block = 8 * 8 * 8.5
    expected = np.mean([2 * n / (2 * n + 1) for n in (512, 576)])  # one voxel too much
    assert scores["good"] == pytest.approx(expected, abs=1e-9)
    assert scores["poor"] < 2 * block / (2 * block + 128) + 0.01
    assert selection.dice_postprocessed == 1
    assert json.loads(Path(selection.postprocessing).read_text())["steps"] == [["block"]]
    assert read_selection(f"{study.output}/selection.json") == selection


def test_where_nothing_helps_there_is_no_postprocessing(study):
    for name in CASES:  # without the speck the good model is perfect
        path = f"{study.data}/imagesTr/{name}_0000.nii.gz"
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[14, 16, 18] = 0
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    selection = cross_validate(configured(study))
    assert selection.best == "good"
    assert selection.candidates[1].dice == 1
    assert selection.postprocessing is None


def test_a_second_run_predicts_nothing_again_and_decides_alike(study):
    first = cross_validate(configured(study))
    stamps = {case: (f"{study.output}/good/{case}.nii.gz") for case in CASES}
    before = {case: nib.load(path).get_fdata().sum() for case, path in stamps.items()}
    assert cross_validate(configured(study)) == first
    assert {case: nib.load(path).get_fdata().sum() for case, path in stamps.items()} == before


def test_the_dice_of_each_case_is_written(study):
    cross_validate(configured(study, pairs=False))
    table = json.loads(Path(study.output, "good", "dice.json").read_text())
    assert sorted(table) == CASES
    assert table["case0"]["block"] == pytest.approx(2 * 512 / 1025, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"configurations": {"good": ("good-0",)}}, ConfigError, "'good' has 1 models for 2 folds"),
        ({"configurations": {}}, ConfigError, "`configurations` is empty"),
        ({"data": ""}, ConfigError, "`data` is empty"),
        ({"splits": "SPLITS"}, DataError, "names case stranger in fold 0"),
    ],
)
def test_what_does_not_fit_is_refused(study, tmp_path, changes, error, match):
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["stranger"], "val": CASES}]))
    changes = {key: str(splits) if value == "SPLITS" else value for key, value in changes.items()}
    with pytest.raises(error, match=match):
        cross_validate(configured(study, **changes))


def test_models_of_structures_that_the_data_set_lacks_are_refused(study, monkeypatch):
    info = ModelInfo("x", {}, ("background", "kidney"), ("MR",), SHAPE, None, "zscore", ())
    monkeypatch.setattr(crossval, "read_infos", lambda _: (info,))
    with pytest.raises(ConfigError, match="does not annotate: kidney"):
        cross_validate(configured(study))
