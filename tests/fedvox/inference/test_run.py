"""Many cases: what is done stays done, what is at fault is told and never stops the others."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.errors import ConfigError, DataError, RunError, StorageError
from fedvox.inference import predictor as predictor_module
from fedvox.inference.config import PredictConfig
from fedvox.inference.estimate import estimate_job
from fedvox.inference.postprocessing import Postprocessing
from fedvox.inference.run import plan_predict, predict_cases
from fedvox.storage import locate


@pytest.fixture
def config(tmp_path, small_brain, saved, release):
    """Two small cases and a model."""
    for name in ("a_0000", "b_0000"):
        saved(small_brain, name)
    return PredictConfig(
        images=str(tmp_path / "images"),
        output=str(tmp_path / "out"),
        models=(release(),),
        mirror=False,
        device="cpu",
    )


def statuses(report) -> dict[str, str]:
    return {outcome.case_id: outcome.status for outcome in report.outcomes}


def test_a_run_writes_maps_names_and_a_report(config, tmp_path, small_brain):
    report = predict_cases(plan_predict(config))
    assert statuses(report) == {"a": "done", "b": "done"}
    assert report.error() is None
    written = nib.load(tmp_path / "out" / "a.nii.gz")
    assert written.shape == small_brain.shape
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"background": 0, "a": 1, "b": 2}
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["schema"] == "fedvox.predict/1"
    case = told["cases"][0]
    labels = np.asarray(written.dataobj)
    assert case["voxels"] == {
        n: int((labels == i).sum()) for i, n in enumerate(["background", "a", "b"]) if (labels == i).any()
    }
    name, count = next(iter(case["voxels"].items()))
    assert case["volume_ml"][name] == pytest.approx(count * 8 / 1000, abs=1e-3)  # voxels of 2 mm
    assert set(case["seconds"]) == {"read", "prepare", "predict", "postprocess", "write"}


def test_a_second_run_passes_over_what_is_done_and_does_the_rest(config, tmp_path):
    predict_cases(plan_predict(config))
    first = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    (tmp_path / "out" / "b.nii.gz").unlink()  # as if the run had been killed before
    again = predict_cases(plan_predict(config))
    assert statuses(again) == {"a": "skipped", "b": "done"}
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == first
    assert statuses(predict_cases(plan_predict(config.model_copy(update={"overwrite": True})))) == {
        "a": "done",
        "b": "done",
    }


def test_a_run_that_dies_between_map_and_record_does_the_case_again(config, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor_module, "write_atomic", killed)  # the record
    with pytest.raises(KeyboardInterrupt):
        predict_cases(plan_predict(config))
    monkeypatch.undo()
    assert statuses(predict_cases(plan_predict(config))) == {"a": "done", "b": "done"}


@pytest.mark.parametrize("change", ["image", "weights", "setting", "map"])
def test_a_case_is_done_again_when_anything_that_bears_on_it_has_changed(
    config, tmp_path, saved, small_brain, release, change
):
    predict_cases(plan_predict(config))
    if change == "image":
        saved(nib.Nifti1Image(np.asarray(small_brain.dataobj)[::-1].copy(), small_brain.affine), "a_0000")
    elif change == "weights":
        release(seed=7)
    elif change == "setting":
        config = config.model_copy(update={"overlap": 0.25})
    else:
        config = config.model_copy(update={"uncertainty": True})
    found = statuses(predict_cases(plan_predict(config)))
    assert found == {"a": "done", "b": "skipped" if change == "image" else "done"}
    assert (tmp_path / "out" / "a_uncertainty.nii.gz").exists() == (change == "map")


def test_settings_that_do_not_bear_on_the_maps_leave_them(config):
    predict_cases(plan_predict(config))
    changed = config.model_copy(update={"batch_size": 3, "torch_threads": 1, "accumulate_on": "cpu"})
    assert set(statuses(predict_cases(plan_predict(changed))).values()) == {"skipped"}


def test_half_the_bits_give_the_labels_of_single_precision_but_for_ties(config, tmp_path):
    seen = {}
    for precision in ("fp32", "bf16"):
        used = config.model_copy(update={"precision": precision, "output": str(tmp_path / precision)})
        assert statuses(predict_cases(plan_predict(used))) == {"a": "done", "b": "done"}
        seen[precision] = np.asarray(nib.load(tmp_path / precision / "a.nii.gz").dataobj)
    alike = (seen["fp32"] == seen["bf16"]).mean()
    assert 0.95 < alike < 1  # not the same numbers, and yet nearly the same decisions of random weights


def test_one_case_at_fault_does_not_stop_the_others(config, tmp_path):
    damaged = Path(config.images) / "a_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    report = predict_cases(plan_predict(config))
    assert statuses(report) == {"a": "rejected", "b": "done"}
    error = report.error()
    assert isinstance(error, DataError)
    assert "a_0000.nii.gz" in error.message
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_a_failure_of_the_work_ends_the_command_with_it(config, monkeypatch):
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    monkeypatch.setattr(predictor_module, "decode_labels", out_of_memory)
    report = predict_cases(plan_predict(config))
    assert statuses(report) == {"a": "failed", "b": "failed"}
    error = report.error()
    assert isinstance(error, RunError)
    assert "and 1 more cases" in error.message
    assert "accumulate_on=cpu" in error.remedy


def test_an_output_that_cannot_be_written_stops_the_run_at_once(config, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("out: no space left on the device", "Free some space.")

    monkeypatch.setattr(predictor_module, "write_labels", full)
    told: list[str] = []
    with pytest.raises(StorageError, match="no space left"):
        predict_cases(plan_predict(config), on_outcome=lambda outcome: told.append(outcome.case_id))
    assert told == ["a"]


def test_postprocessing_is_applied_and_part_of_what_is_done(config, tmp_path):
    predict_cases(plan_predict(config))
    before = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj).copy()
    chosen = Postprocessing(("background", "a", "b"), ((1,), (2,)))
    chosen.write(locate(tmp_path / "postprocessing.json"))
    changed = config.model_copy(update={"postprocessing": str(tmp_path / "postprocessing.json")})
    assert statuses(predict_cases(plan_predict(changed))) == {"a": "done", "b": "done"}
    after = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(after, chosen.apply(before))


def test_the_estimate_is_what_the_run_then_does(config):
    job = plan_predict(config)
    estimates = {estimate.case_id: estimate for estimate in estimate_job(job)}
    windows: list[tuple[int, int]] = []
    report = predict_cases(job, on_windows=lambda done, of: windows.append((done, of)))
    for outcome in report.outcomes:
        assert estimates[outcome.case_id].windows == outcome.windows
        assert estimates[outcome.case_id].shape == outcome.shape
        assert not estimates[outcome.case_id].is_done
    assert windows[-1] == (report.outcomes[-1].windows,) * 2
    assert all(estimate.is_done for estimate in estimate_job(job))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": ""}, "`images` is empty"),
        ({"output": ""}, "`output` is empty"),
        ({"models": ()}, "no model"),
        ({"output": "IMAGES"}, "would be overwritten"),
    ],
)
def test_what_is_missing_is_refused_before_any_work(config, changes, match):
    changes = {key: config.images if value == "IMAGES" else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=match):
        plan_predict(config.model_copy(update=changes))
