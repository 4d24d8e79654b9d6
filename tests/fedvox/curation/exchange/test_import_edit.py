"""Edited masks come back: whatever a tool saves is taken if it lies on the case's grid, else refused with a remedy."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from fedvox.cli import leave_with_code
from fedvox.curation.exchange.bring_back import find_edited, read_edit, record_edit
from fedvox.curation.exchange.task import Wanted, export_task
from fedvox.curation.store import Verdict
from fedvox.errors import DataError, LabelConflict

FINAL = "labels/final/case_1.nii.gz"


@pytest.fixture
def task(collection, tmp_path):
    folder = tmp_path / "task"
    collection.task = export_task(collection.store, [Wanted("case_1")], folder)
    collection.task_folder = folder
    return collection


def save(folder, mask, name=FINAL, change=None):
    """What an editor writes: the exported labels' header with other voxels."""
    original = nib.load(folder / "labels/original/case_1.nii.gz")
    affine = original.affine.copy()
    if change is not None:
        affine = change(affine)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(mask).transpose(2, 1, 0), affine), path)
    return path


def bring(task, path):
    return read_edit(task.store, task.task, "case_1", path)


def test_an_edit_becomes_the_label_with_its_parent_and_answers_the_queue(task):
    store = task.store
    item = store.queue.next("Ada")
    path = save(task.task_folder, task.organs())
    assert find_edited(task.task_folder, task.task.case("case_1")) == path
    edit = bring(task, path)
    spleen = int((task.organs() == 2).sum())
    (change,) = [one for one in edit.changes if one.changed]
    assert (change.structure, change.added_voxels, change.removed_voxels) == ("spleen", spleen, 0)
    assert change.added_mm3 == pytest.approx(9.0 * spleen)
    review = record_edit(store, edit, reviewer="Ada", seconds=75, reason="spleen drawn")
    version = store.version("case_1", review.result)
    assert store.case("case_1").head == version.number
    assert (version.parent, version.reviewer, version.seconds, version.reason) == (
        1,
        "Ada",
        75,
        "spleen drawn",
    )
    assert np.array_equal(store.read_mask(version), task.organs())
    assert {i.id: i.state for i in store.queue.items()}[item.id] == "done"


def test_whichever_way_the_editor_turns_the_axes_the_voxels_stay_with_the_patient(task):
    path = save(task.task_folder, task.organs())
    turned = nib.as_closest_canonical(nib.load(path))
    flipped = turned.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nib.save(flipped, path)
    assert np.array_equal(bring(task, path).mask, task.organs())


def test_slicers_smaller_box_with_its_own_numbers_is_put_back_by_name(task):
    mask = task.organs()
    renumbered = np.select([mask == 1, mask == 2, mask == 3], [3, 1, 2], 0).astype(np.uint8)
    whole = SimpleITK.GetImageFromArray(renumbered)
    exported = SimpleITK.ReadImage(str(task.task_folder / "slicer/case_1.seg.nrrd"))
    whole.CopyInformation(exported)
    filled = np.argwhere(mask > 0)
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    box = whole[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
    for segment, (name, value) in enumerate({"liver": 3, "spleen": 1, "left kidney": 2}.items()):
        box.SetMetaData(f"Segment{segment}_Name", name)
        box.SetMetaData(f"Segment{segment}_LabelValue", str(value))
    path = task.task_folder / "slicer/case_1.seg.nrrd"
    SimpleITK.WriteImage(box, str(path), useCompression=True)
    assert box.GetSize() != whole.GetSize()
    assert find_edited(task.task_folder, task.task.case("case_1")) == path
    assert np.array_equal(bring(task, path).mask, mask)


def moved(affine):
    affine[0, 3] += 1.2
    return affine


def stretched(affine):
    return affine @ np.diag([1.0, 1.0, 1.1, 1.0])


@pytest.mark.parametrize(
    ("mask", "change", "code", "words"),
    [
        (lambda m: m[:-1], None, "shape_mismatch", "30 × 24 × 17"),
        (lambda m: m, moved, "affine_mismatch", "1.20 mm"),
        (lambda m: m, stretched, "affine_mismatch", "mm apart"),
        (lambda m: np.where(m == 2, 9, m), None, "unknown_label_value", "9 ("),
        (lambda m: m.astype(np.float32) + 0.25, None, "non_integer_label", "whole numbers"),
        (lambda m: np.full(m.shape, np.nan, np.float32), None, "non_finite", "NaN"),
        (lambda m: m * 0, None, "empty_mask", "no voxel"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_a_remedy(task, mask, change, code, words):
    path = save(task.task_folder, mask(task.organs()), change=change)
    with pytest.raises(DataError) as caught:
        bring(task, path)
    assert caught.value.code == code
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert len(task.store.versions("case_1")) == 4


def test_an_unknown_segment_is_named(task):
    path = task.task_folder / "slicer/case_1.seg.nrrd"
    path.write_bytes(path.read_bytes().replace(b"Segment1_Name:=spleen", b"Segment1_Name:=splen"))
    with pytest.raises(DataError, match="'splen'") as caught:
        bring(task, path)
    assert "liver, spleen, left kidney" in caught.value.remedy


def test_a_segmentation_that_is_no_gzip_or_of_another_kind_of_file_is_refused(task, tmp_path):
    odd = tmp_path / "mask.png"
    odd.write_bytes(b"x")
    with pytest.raises(DataError, match="neither NIfTI nor NRRD"):
        bring(task, odd)
    odd = tmp_path / "mask.nii.gz"
    odd.write_bytes(b"x" * 500)
    with pytest.raises(DataError, match=r"mask\.nii\.gz"):
        bring(task, odd)


def test_a_decision_since_the_export_is_a_conflict_that_says_who_and_on_top_keeps_both(task):
    store = task.store
    edit_path = save(task.task_folder, task.organs())
    store.accept(Verdict("case_1", store.case("case_1").revision, "Bo", reason="good"), 3)
    edit = bring(task, edit_path)
    assert edit.is_stale
    with pytest.raises(LabelConflict, match=r"Bo decided \(accept, label now version 3\)"):
        record_edit(store, edit, reviewer="Ada", seconds=1, reason="")
    assert len(store.versions("case_1")) == 4
    review = record_edit(store, edit, reviewer="Ada", seconds=1, reason="", on_top=True)
    assert store.case("case_1").head == review.result == 5
    assert [one.result for one in store.reviews(case_id="case_1")] == [3, 5]


def test_a_decision_between_check_and_writing_is_a_conflict_too(task):
    edit = bring(task, save(task.task_folder, task.organs()))
    task.store.accept(Verdict("case_1", 1, "Bo"), 3)
    with pytest.raises(LabelConflict):
        record_edit(task.store, edit, reviewer="Ada", seconds=1, reason="")
    assert task.store.case("case_1").head == 3


def test_a_case_that_was_deleted_meanwhile_is_told(task):
    path = save(task.task_folder, task.organs())
    task.store.delete_case("case_1", actor="lead", reason="consent withdrawn")
    with pytest.raises(DataError) as caught:
        bring(task, path)
    assert caught.value.code == "case_deleted"


def test_nothing_edited_twice_edited_and_unchanged_are_three_errors(task):
    exported = task.task.case("case_1")
    with pytest.raises(DataError, match="no file of case") as caught:
        find_edited(task.task_folder, exported)
    assert caught.value.code == "nothing_edited"
    same = save(task.task_folder, task.wrong)
    with pytest.raises(DataError) as caught:
        record_edit(task.store, bring(task, same), reviewer="Ada", seconds=1, reason="")
    assert caught.value.code == "unchanged"
    save(task.task_folder, task.organs(), "labels/original/case_1.nii.gz")
    with pytest.raises(DataError, match="more than once") as caught:
        find_edited(task.task_folder, exported)
    assert "--mask" in caught.value.remedy


def run(monkeypatch, capsys, function, *arguments):
    from fedvox.cli import _single

    monkeypatch.setattr(sys, "argv", ["fedvox"])
    with pytest.raises(SystemExit) as ended:
        leave_with_code(_single(function), list(map(str, arguments)), debug=False)
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_commands_export_check_and_import(collection, tmp_path, monkeypatch, capsys):
    from fedvox.commands.curate_review import export_task as export
    from fedvox.commands.curate_review import import_edit

    folder = tmp_path / "task"
    code, out, _ = run(monkeypatch, capsys, export, collection.folder, "-o", folder, "-c", "case_1")
    assert (code, "case_1  version 1  2 findings" in out) == (0, True)
    save(folder, collection.organs())
    common = (collection.folder, "-t", folder, "-r", "Ada")
    code, out, _ = run(monkeypatch, capsys, import_edit, *common, "--dry-run")
    assert code == 0
    assert "not written" in out
    assert "spleen" in out
    code, out, _ = run(monkeypatch, capsys, import_edit, *common, "--json", "--picture", tmp_path / "seen")
    assert code == 0
    (edit,) = json.loads(out)["edits"]
    assert edit["version"] == 5
    assert (tmp_path / "seen/case_1.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(monkeypatch, capsys, import_edit, *common)  # again: it is there already
    assert (code, "version 5" in out) == (0, True)
    assert len(collection.store.reviews()) == 1
    save(
        folder, collection.organs() * (collection.organs() != 3)
    )  # another edit of what is no longer the label
    code, _, err = run(monkeypatch, capsys, import_edit, *common)
    assert code == 2
    assert err.startswith("error: case 'case_1': Ada decided")
    code, _, err = run(monkeypatch, capsys, export, collection.folder, "-o", folder, "-c", "case_1")
    assert (code, "holds a task already" in err) == (2, True)
    code, _, err = run(monkeypatch, capsys, export, collection.folder, "-o", tmp_path / "b", "-c", "case_9")
    assert (code, "case_9" in err) == (2, True)
