"""`evaluate`: right values, every bad case told and counted, nothing scored twice."""

from __future__ import annotations

import json
import math
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from fedvox.benchmark import evaluate as module
from fedvox.benchmark.cases import Rules
from fedvox.benchmark.evaluate import evaluate
from fedvox.errors import DataError
from fedvox.evaluation.metrics import MetricPlan, measure

STRUCTURES = {"liver": 1, "kidney": 2}
RULES = Rules(STRUCTURES, STRUCTURES, MetricPlan((1.0,), ("surfel", "voxel")))
SPACING = (3.0, 1.0, 1.0)


@pytest.fixture
def folders(site, tmp_path):
    home = site.submission("m", 0.3, test_sets=("inside",))
    return site.folder / "inside" / "labels", home / "inside", tmp_path / "out"


def labels_of(path):
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def test_scores_equal_measuring_the_files_by_hand(folders):
    references, predictions, output = folders
    frame = evaluate(references, predictions, output, RULES).frame()
    assert len(frame) == 6 * 2
    for row in frame.to_dict("records"):
        a, b = (labels_of(folder / f"{row['case']}.nii.gz") for folder in (references, predictions))
        label = STRUCTURES[row["structure"]]
        expected = measure(a == label, b == label, SPACING, tolerance_mm=1.0, surface=("voxel", "surfel"))
        assert {m: row[m] for m in expected} == pytest.approx(dict(expected), rel=1e-9)


def test_the_orientation_that_a_prediction_is_stored_in_does_not_matter(folders):
    references, predictions, output = folders
    expected = evaluate(references, predictions, output, RULES).frame()
    for path in predictions.iterdir():
        image = nib.load(path)
        turned = image.as_reoriented(nib.orientations.axcodes2ornt("LPI"))
        nib.save(turned, path)
    found = evaluate(references, predictions, output.with_name("turned"), RULES).frame()
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


def spoil(path, kind, nifti):
    labels = labels_of(path)
    if kind == "missing":
        path.unlink()
    elif kind == "other geometry":
        nifti(path, labels[:-1])
    elif kind == "unknown label":
        labels = labels.copy()
        labels[0, 0, 0] = 9
        nifti(path, labels)
    elif kind == "NaN":
        values = labels.astype(np.float32)
        values[0, 0, 0] = np.nan
        nifti(path, values)
    elif kind == "wrong affine":
        nifti(path, labels, origin=(0.0, 30.0, 0.0))
    elif kind == "float labels":
        nifti(path, labels.astype(np.float32) * 0.5)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "not an image":
        path.write_text("probabilities\n")


BAD = {
    "missing": "missing_prediction", "other geometry": "shape_mismatch", "unknown label": "unknown_label_value",
    "NaN": "non_finite", "wrong affine": "affine_mismatch", "float labels": "non_integer_label",
    "truncated": None, "not an image": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_prediction_is_told_and_scores_as_missed_and_the_others_are_scored(folders, nifti, kind):
    references, predictions, output = folders
    spoil(predictions / "in_03.nii.gz", kind, nifti)
    found = evaluate(references, predictions, output, RULES)
    assert len(found.outcomes) == 6
    bad = found.outcomes[3]
    assert bad.case == "in_03"
    assert bad.status == ("missing" if kind == "missing" else "rejected")
    assert bad.code == BAD[kind] or BAD[kind] is None
    assert bad.message
    assert bad.remedy
    diagonal = math.sqrt((8 * 3) ** 2 + 20**2 + 18**2)
    for row in bad.rows:
        assert (row["presence"], row["dice"], row["nsd@1mm/surfel"]) == ("missed", 0, 0)
        assert row["hd95/voxel"] == pytest.approx(diagonal)
    assert [o.status for o in found.outcomes].count("scored") == 5
    problems = pd.read_csv(output / "problems.csv")
    assert problems["case"].tolist() == ["in_03"]
    page = (output / "report.html").read_text()
    assert "in_03" in page
    summary = json.loads((output / "evaluation.json").read_text())
    assert summary["coverage"] == pytest.approx(5 / 6)
    dice = [r["dice"] for o in found.outcomes for r in o.rows if r["structure"] == "liver"]
    assert summary["structures"]["liver"]["mean"]["dice"] == pytest.approx(np.mean(dice))


def test_every_kind_of_bad_prediction_at_once_loses_no_case(make_site, tmp_path, nifti):
    site = make_site(len(BAD) + 2)
    home = site.submission("m", 0.3, test_sets=("inside",))
    for i, kind in enumerate(BAD):
        spoil(home / "inside" / f"in_{i:02d}.nii.gz", kind, nifti)
    found = evaluate(site.folder / "inside" / "labels", home / "inside", tmp_path / "out", RULES)
    assert [o.case for o in found.outcomes] == site.cases["inside"]
    assert [o.status for o in found.outcomes] == [
        "missing",
        *["rejected"] * (len(BAD) - 1),
        "scored",
        "scored",
    ]
    assert [o.code for o, kind in zip(found.outcomes, BAD, strict=False) if BAD[kind]] == list(
        filter(None, BAD.values())
    )
    assert len(found.frame()) == len(found.outcomes) * len(STRUCTURES)
    assert pd.read_csv(tmp_path / "out" / "problems.csv")["case"].tolist() == site.cases["inside"][: len(BAD)]


def test_whole_numbers_stored_as_floats_are_scored_with_a_note(folders, nifti):
    references, predictions, output = folders
    expected = evaluate(references, predictions, output, RULES).outcomes[2]
    path = predictions / "in_02.nii.gz"
    nifti(path, labels_of(path).astype(np.float32))
    found = evaluate(references, predictions, output, RULES).outcomes[2]
    assert found.status == "scored"
    assert "float32" in found.notes[0]
    assert found.rows == expected.rows


def test_predictions_of_no_case_are_named(folders):
    references, predictions, output = folders
    (predictions / "in_01.nii.gz").rename(predictions / "in_1.nii.gz")
    found = evaluate(references, predictions, output, RULES)
    assert found.unexpected == ("in_1",)
    assert found.outcomes[1].status == "missing"
    assert "in_1" in (output / "report.html").read_text()


def test_a_folder_without_predictions_misses_every_case(folders, tmp_path):
    (tmp_path / "nothing").mkdir()
    found = evaluate(folders[0], tmp_path / "nothing", folders[2], RULES)
    assert found.coverage == 0
    assert {o.status for o in found.outcomes} == {"missing"}


def test_a_bad_reference_stops_the_evaluation_by_name(folders, nifti):
    spoil(folders[0] / "in_04.nii.gz", "NaN", nifti)
    with pytest.raises(DataError, match=r"in_04\.nii\.gz"):
        evaluate(*folders, RULES)


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_that_does_not_exist_is_told(folders, which):
    arguments = list(folders)
    arguments[which] = arguments[which].with_name("nowhere")
    with pytest.raises(DataError, match="nowhere"):
        evaluate(*arguments, RULES)


def test_a_second_run_scores_only_what_has_changed(folders, monkeypatch):
    references, predictions, output = folders
    first = evaluate(references, predictions, output, RULES)
    scored = []
    original = module.score_case
    monkeypatch.setattr(
        module, "score_case", lambda task, rules: scored.append(task.case) or original(task, rules)
    )
    second = evaluate(references, predictions, output, RULES)
    assert scored == []
    assert second.reused == 6
    pd.testing.assert_frame_equal(second.frame(), first.frame())
    (predictions / "in_05.nii.gz").unlink()
    nib.save(nib.load(predictions / "in_00.nii.gz"), predictions / "in_01.nii.gz")
    third = evaluate(references, predictions, output, RULES)
    assert scored == ["in_01", "in_05"]
    assert third.outcomes[5].status == "missing"
    evaluate(references, predictions, output, Rules(STRUCTURES, STRUCTURES, MetricPlan((2.0,), ("surfel",))))
    assert len(scored) == 2 + 6


def test_an_interrupted_run_goes_on_where_it_stopped(folders, monkeypatch):
    original, done = module.score_case, []

    def stops_after_three(task, rules):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task.case)
        return original(task, rules)

    monkeypatch.setattr(module, "score_case", stops_after_three)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*folders, RULES)
    monkeypatch.setattr(module, "score_case", original)
    assert evaluate(*folders, RULES).reused == 3


def test_tables_hold_a_row_per_case_and_structure_and_the_same_in_both_formats(folders):
    output = folders[2]
    frame = evaluate(*folders, RULES).frame()
    pd.testing.assert_frame_equal(pd.read_parquet(output / "scores.parquet"), frame)
    pd.testing.assert_frame_equal(pd.read_csv(output / "scores.csv"), frame, check_dtype=False)
    assert not [p for p in output.rglob("*") if p.name.startswith(".")], "a temporary file was left behind"


def test_the_report_needs_nothing_from_elsewhere_and_names_what_is_in_it(folders):
    evaluate(*folders, RULES)
    page = (folders[2] / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert "<script src" not in page
    for text in ("liver", "kidney", "hallucinated", "Normalised surface distance (1 mm, surfel)"):
        assert text in page


def test_a_partly_annotated_set_scores_what_it_annotates_and_accepts_the_other_labels(folders):
    rules = Rules({"kidney": 2}, STRUCTURES, MetricPlan())
    found = evaluate(*folders, rules)
    assert found.coverage == 1
    assert {r["structure"] for o in found.outcomes for r in o.rows} == {"kidney"}


@pytest.mark.integration
def test_over_ray_the_result_is_the_same_and_bad_cases_are_told(folders, nifti, tmp_path):
    spoil(folders[1] / "in_03.nii.gz", "unknown label", nifti)
    here = evaluate(*folders, RULES)
    there = evaluate(folders[0], folders[1], tmp_path / "ray", RULES, workers=2, memory_gib=0.2)
    assert [(o.case, o.status, o.code) for o in there.outcomes] == [
        (o.case, o.status, o.code) for o in here.outcomes
    ]
    pd.testing.assert_frame_equal(there.frame(), here.frame())
    spoil(folders[0] / "in_04.nii.gz", "NaN", nifti)
    with pytest.raises(DataError, match="in_04"):
        evaluate(folders[0], folders[1], tmp_path / "ray", RULES, workers=2, memory_gib=0.2)
