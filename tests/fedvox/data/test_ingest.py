"""Ingest from end to end, in this process and through the command: what is stored, what is refused, what is resumed."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.transform import resize

from fedvox.config import load_config
from fedvox.data.ingest import IngestConfig, SourceConfig, ingest, plan_ingest
from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError, DataError, RunError, StorageError

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (20, 18, 16)  # x, y, z
LABELS = {"background": 0, "liver": 1, "tumor": 2}


def ct(seed: int = 0, shape=SHAPE) -> np.ndarray:
    """Half air, half tissue: (x, y, z), int16."""
    data = np.random.default_rng(seed).normal(50, 30, shape)
    data[: shape[0] // 2] = -1000
    return data.astype(np.int16)


def organ(seed: int = 0, shape=SHAPE, values=(1, 2)) -> np.ndarray:
    """A box of the first value with a box of the second within: (x, y, z), uint8."""
    label = np.zeros(shape, np.uint8)
    low = seed % 3
    label[11 + low : 17, 4:12, 4:12] = values[0]
    label[13:16, 6:9, 6:9] = values[1]
    return label


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 3, 1]) if affine is None else affine), path)
    return path


class Folder:
    """An nnU-Net raw data set under construction."""

    def __init__(self, root: Path, cases=("a", "b"), channel="CT", labels=LABELS, **fields) -> None:
        self.root = root
        root.mkdir(parents=True)
        description = {
            "channel_names": {"0": channel},
            "labels": labels,
            "numTraining": 2,
            "file_ending": ".nii.gz",
        }
        (root / "dataset.json").write_text(json.dumps(description | fields))
        for seed, case in enumerate(cases):
            save(self.image(case), ct(seed))
            save(self.label(case), organ(seed))

    def image(self, case: str, channel: int = 0) -> Path:
        return self.root / "imagesTr" / f"{case}_{channel:04d}.nii.gz"

    def label(self, case: str) -> Path:
        return self.root / "labelsTr" / f"{case}.nii.gz"


def run(folder: Path | str, output: Path, **fields):
    config = IngestConfig(sources=(SourceConfig(path=str(folder)),), output=str(output), workers=0, **fields)
    return ingest(config)


def stored(store: BrickStore, case_id: str) -> tuple[np.ndarray, np.ndarray | None]:
    row = list(store.case_ids).index(case_id)
    return store.read_patch(row, (0, 0, 0), store.record(row).shape)


def codes(report) -> dict[str, list[str]]:
    return {outcome.case_id: [error.code for error in outcome.errors] for outcome in report.rejected}


# ---- what is stored ----------------------------------------------------------------------------------------


def test_native_spacing_stores_every_voxel_as_it_was(tmp_path):
    folder = Folder(tmp_path / "Dataset001_Liver")
    report = run(folder.root, tmp_path / "store", spacing_mm="native")
    store = BrickStore.open(str(tmp_path / "store"))
    assert [outcome.case_id for outcome in report.accepted] == ["a", "b"]
    assert (store.meta.name, store.meta.modality, store.meta.normalization) == (
        "Dataset001_Liver",
        "CT",
        "ct",
    )
    assert store.meta.structures == ("background", "liver", "tumor")
    image, label = stored(store, "b")
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image[0], ct(1).transpose(2, 1, 0))
    np.testing.assert_array_equal(label, organ(1).transpose(2, 1, 0))
    record = store.record(1)
    assert record.spacing_mm == (3.0, 1.5, 1.5)
    assert record.class_voxels == {v: int((organ(1) == v).sum()) for v in (0, 1, 2)}
    header = store.reader(1).header
    np.testing.assert_allclose(np.asarray(header.affine) @ [1, 2, 3, 1], [3 * 1.5, 2 * 1.5, 1 * 3, 1])


def test_intensities_are_those_of_the_foreground_of_all_cases(tmp_path):
    folder = Folder(tmp_path / "d")
    run(folder.root, tmp_path / "store", spacing_mm="native")
    found = BrickStore.open(str(tmp_path / "store")).meta.intensity[0]
    inside = [ct(seed)[organ(seed) > 0].astype(float) for seed in (0, 1)]
    assert found.mean == pytest.approx(np.mean([values.mean() for values in inside]))
    assert (found.min, found.max) == (min(v.min() for v in inside), max(v.max() for v in inside))
    written = json.loads((tmp_path / "store/fingerprint.json").read_text())
    assert written["foreground_intensity_properties_per_channel"]["0"]["mean"] == pytest.approx(found.mean)
    assert written["spacings"] == [[3.0, 1.5, 1.5]] * 2


def test_resampling_gives_nnunets_voxels_on_the_wanted_grid(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a",))
    run(folder.root, tmp_path / "store", spacing_mm=(2.0, 1.0, 1.0))
    store = BrickStore.open(str(tmp_path / "store"))
    shape = (24, 27, 30)
    image, label = stored(store, "a")
    expected = resize(
        ct(0).transpose(2, 1, 0).astype(float), shape, order=3, mode="edge", anti_aliasing=False
    )
    assert image.shape == (1, *shape)
    assert np.abs(image[0] - expected).max() < 0.51  # stored as int16
    assert set(np.unique(label)) == {0, 1, 2}
    assert store.record(0).spacing_mm == pytest.approx((2.0, 1.0, 1.0))
    corner = np.asarray(store.reader(0).header.affine) @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(corner[:3], [-0.75, -0.75, -1.5])  # where the file's first voxel begins


def test_the_spacing_is_decided_from_all_cases_before_any_is_written(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a", "b", "c"))
    for case, zooms in {"a": (1, 1, 2), "b": (1, 1, 2), "c": (2, 2, 2)}.items():
        for path, data in ((folder.image(case), ct()), (folder.label(case), organ())):
            save(path, data, np.diag([*zooms, 1.0]))
    report = run(folder.root, tmp_path / "store")
    store = BrickStore.open(str(tmp_path / "store"))
    assert report.spacing_mm == store.meta.spacing_mm == (2.0, 1.0, 1.0)
    assert [store.record(row).shape for row in range(3)] == [(16, 18, 20), (16, 18, 20), (16, 36, 40)]
    assert "nnU-Net's rule over 3 cases" in report.summary()


def test_files_of_any_orientation_are_stored_alike(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a", "b"))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("PIL")
    )
    for path in (folder.image("a"), folder.label("a")):
        other = Path(str(path).replace("a_0000", "b_0000").replace("/a.nii", "/b.nii"))
        nib.save(nib.load(path).as_reoriented(turn), other)
    run(folder.root, tmp_path / "store", spacing_mm="native")
    store = BrickStore.open(str(tmp_path / "store"))
    for first, second in zip(stored(store, "a"), stored(store, "b"), strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(store.reader(0).header.affine, store.reader(1).header.affine)


def test_sources_with_partial_labels_share_one_space(tmp_path):
    first = Folder(tmp_path / "A", cases=("a",), labels={"background": 0, "Liver": 1, "lesion": 2})
    second = Folder(tmp_path / "B", cases=("b",), labels={"background": 0, "spleen": 1, "liver": 2})
    config = IngestConfig(
        sources=(str(first.root), str(second.root)),
        output=str(tmp_path / "s"),
        workers=0,
        spacing_mm="native",
    )
    ingest(config)
    store = BrickStore.open(str(tmp_path / "s"))
    assert store.meta.structures == ("background", "liver", "lesion", "spleen")
    assert store.annotated(0).tolist() == [True, True, True, False]
    assert store.annotated(1).tolist() == [True, True, False, True]
    _, label = stored(store, "b")
    raw = organ(0).transpose(2, 1, 0)
    np.testing.assert_array_equal(label, np.choose(raw, [0, 3, 1]))
    assert store.source_names == ("A", "B")
    space = json.loads((tmp_path / "s/label_space.json").read_text())
    assert space["label_sets"]["B"] == {"annotated": [0, 1, 3], "values": {"0": 0, "1": 3, "2": 1}}


def test_a_mapping_file_renames_and_drops(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a",))
    mapping = tmp_path / "names.yaml"
    mapping.write_text("structures: {hepar: [liver]}\nsources: {d: {tumor: null}}")
    run(folder.root, tmp_path / "s", spacing_mm="native", label_mapping=str(mapping))
    store = BrickStore.open(str(tmp_path / "s"))
    assert store.meta.structures == ("background", "hepar")
    np.testing.assert_array_equal(stored(store, "a")[1], (organ(0) == 1).transpose(2, 1, 0))


def test_ignored_voxels_are_neither_foreground_nor_a_structure(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a",), labels={"background": 0, "liver": 1, "ignore": 2})
    report = run(folder.root, tmp_path / "s", spacing_mm="native")
    store = BrickStore.open(str(tmp_path / "s"))
    _, label = stored(store, "a")
    np.testing.assert_array_equal(label == 255, (organ(0) == 2).transpose(2, 1, 0))
    record = store.record(0)
    assert record.class_voxels.keys() == {0, 1}
    assert set(store.foreground(0)) == {1}
    assert record.intensity.foreground[0].mean == pytest.approx(ct(0)[organ(0) == 1].mean())
    assert "stored as 255" in report.summary()


def test_channels_in_files_of_their_own_and_in_one_file_are_stored_alike(tmp_path):
    labels = {"background": 0, "core": 1, "rim": 2}
    split = Folder(tmp_path / "split", cases=("a",), channel="T1", labels=labels)
    description = json.loads((split.root / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1", "1": "FLAIR"}
    (split.root / "dataset.json").write_text(json.dumps(description))
    save(split.image("a", 1), ct(7))
    joined = tmp_path / "joined"
    save(joined / "imagesTr/a.nii.gz", np.stack([ct(0), ct(7)], axis=-1))
    save(joined / "labelsTr/a.nii.gz", organ(0))
    entries = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    decathlon = {
        "modality": {"0": "T1", "1": "FLAIR"},
        "labels": {"0": "background", "1": "core", "2": "rim"},
    }
    (joined / "dataset.json").write_text(json.dumps(decathlon | {"training": entries}))
    images = []
    for root in (split.root, joined):
        run(root, tmp_path / f"store_{root.name}", spacing_mm="native")
        store = BrickStore.open(str(tmp_path / f"store_{root.name}"))
        assert store.meta.channel_names == ("T1", "FLAIR")
        images.append(stored(store, "a")[0])
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0][1], ct(7).transpose(2, 1, 0))
    chosen = SourceConfig(path=str(split.root), channels=(1,))
    ingest(IngestConfig(sources=(chosen,), output=str(tmp_path / "s1"), workers=0, spacing_mm="native"))
    image, _ = stored(BrickStore.open(str(tmp_path / "s1")), "a")
    np.testing.assert_array_equal(image[0], ct(7).transpose(2, 1, 0))


def test_masks_of_totalsegmentator_become_one_label_map(tmp_path):
    root = tmp_path / "total"
    for case, parts in {"s1": ("aorta", "liver"), "s2": ("liver",)}.items():
        save(root / case / "ct.nii.gz", ct())
        for part in parts:
            save(
                root / case / "segmentations" / f"{part}.nii.gz",
                (organ() == {"liver": 1, "aorta": 2}[part]) * np.uint8(1),
            )
    run(root, tmp_path / "s", spacing_mm="native")
    store = BrickStore.open(str(tmp_path / "s"))
    assert store.meta.structures == ("background", "aorta", "liver")
    np.testing.assert_array_equal(stored(store, "s1")[1], np.choose(organ(), [0, 2, 1]).transpose(2, 1, 0))
    assert store.annotated(1).tolist() == [True, False, True]


def test_cropping_to_nonzero_keeps_every_voxel_at_its_place(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a",), channel="T1")
    image, label = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    image[3:9, 5:15, 2:13], label[5, 6, 7] = 7, 1
    image[4, 6, 3] = 9
    save(folder.image("a"), image)
    save(folder.label("a"), label)
    run(folder.root, tmp_path / "s", spacing_mm="native", crop_to_nonzero=True)
    store = BrickStore.open(str(tmp_path / "s"))
    cropped, found = stored(store, "a")
    np.testing.assert_array_equal(cropped[0], image[3:9, 5:15, 2:13].transpose(2, 1, 0))
    (voxel,) = np.argwhere(found == 1)
    there = np.asarray(store.reader(0).header.affine) @ [*voxel, 1]
    np.testing.assert_allclose(there[:3], [5 * 1.5, 6 * 1.5, 7 * 3])
    written = json.loads((tmp_path / "s/fingerprint.json").read_text())
    assert written["median_relative_size_after_cropping"] == pytest.approx(6 * 10 * 11 / np.prod(SHAPE))


@pytest.mark.parametrize(
    ("channel", "data", "spacing", "expected"),
    [
        ("CT", ct(), "native", np.int16),
        ("CT", ct().astype(np.float32) + 0.25, "native", np.int16),  # a quarter of a HU is noise
        ("CT", ct(), (2.0, 1.5, 1.5), np.int16),
        ("T1", np.abs(ct()) // 8, "native", np.int16),
        ("T1", (np.abs(ct()) // 8).astype(np.uint8), "native", np.uint8),
        ("T1", np.abs(ct()).astype(np.float64), "native", np.int16),  # whole numbers in a wide type
        ("T1", ct() / 7, "native", np.float32),
        ("T1", np.abs(ct()), (2.0, 1.5, 1.5), np.float32),
        ("T1", ct().astype(np.int32) * 100, "native", np.float32),
    ],
)
def test_the_stored_type_loses_nothing_that_matters(tmp_path, channel, data, spacing, expected):
    folder = Folder(tmp_path / "d", cases=("a",), channel=channel)
    save(folder.image("a"), data)
    run(folder.root, tmp_path / "s", spacing_mm=spacing)
    image, _ = stored(BrickStore.open(str(tmp_path / "s")), "a")
    assert image.dtype == expected
    if spacing == "native":
        assert np.abs(image[0] - data.transpose(2, 1, 0)).max() <= (0.5 if channel == "CT" else 1e-4)


def test_int16_by_force_rejects_what_it_cannot_hold(tmp_path):
    folder = Folder(tmp_path / "d", channel="T1")
    save(folder.image("a"), ct().astype(np.int32) * 100)
    report = run(folder.root, tmp_path / "s", spacing_mm="native", dtype="int16")
    assert codes(report) == {"a": ["beyond_int16"]}


def test_unlabelled_cases_are_stored_as_annotating_nothing(tmp_path):
    save(tmp_path / "raw/p1.nii.gz", ct(1))
    (tmp_path / "c.csv").write_text("case_id,image\np1,raw/p1.nii.gz\n")
    report = run(tmp_path / "c.csv", tmp_path / "s", spacing_mm="native", allow_unlabelled=True)
    assert len(report.accepted) == 1
    store = BrickStore.open(str(tmp_path / "s"))
    assert stored(store, "p1")[1] is None
    assert store.annotated(0).tolist() == [True]


def test_folds_follow_into_the_store_without_rejected_cases(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a", "b", "c"))
    (folder.root / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    folder.image("b").write_bytes(b"")
    run(folder.root, tmp_path / "s", spacing_mm="native")
    assert json.loads((tmp_path / "s/splits.json").read_text()) == [{"train": ["a"], "val": ["c"]}]


def test_the_contact_sheet_shows_every_case(tmp_path):
    folder = Folder(tmp_path / "d", cases=tuple("abcde"))
    report = run(folder.root, tmp_path / "s", spacing_mm="native")
    assert report.contact_sheet == str(tmp_path / "s/ingest/contact_sheet.png")
    with Image.open(report.contact_sheet) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    orange = (np.abs(pixels - [230, 159, 0]).sum(axis=-1) < 60).sum()  # outlines of the first structure
    assert orange > 100
    assert run(folder.root, tmp_path / "t", spacing_mm="native", contact_sheet_cases=0).contact_sheet is None


_MEASURE = """
import resource, sys
from fedvox.data.ingest import IngestConfig, ingest
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for name in ("small", "large"):
    before = peak()
    ingest(IngestConfig(sources=(sys.argv[1] + "/" + name,), output=sys.argv[1] + "/store_" + name, workers=0,
                        spacing_mm=(4, 2, 2), contact_sheet_cases=0))
print(peak() - before)
"""


def test_a_case_takes_little_more_memory_than_its_files(tmp_path):
    for name, shape in (("small", (32, 32, 32)), ("large", (192, 192, 240))):
        folder = Folder(tmp_path / name, cases=("a",), file_ending=".nii")
        shutil.rmtree(folder.root / "imagesTr")
        shutil.rmtree(folder.root / "labelsTr")
        affine = np.diag([-1.5, -1.5, 3, 1])  # an LPS file, as CTs are: its axes run backwards
        image = save(folder.root / "imagesTr/a_0000.nii", ct(0, shape), affine)
        label = save(folder.root / "labelsTr/a.nii", np.zeros(shape, np.uint8) + (ct(0, shape) > 0), affine)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, tmp_path], capture_output=True, text=True, check=True
    )
    files = image.stat().st_size + label.stat().st_size
    # as read, canonical labels, where the foreground is, the resampled image; float64 would take 4 times
    assert int(done.stdout) < 2.5 * files


# ---- what is refused ---------------------------------------------------------------------------------------


def test_rejected_cases_never_stop_the_others_and_are_all_reported(tmp_path):
    folder = Folder(tmp_path / "d", cases=("good", "nan", "shape", "both", "gone"))
    bad = ct().astype(np.float32)
    bad[2, 2, 2] = np.nan
    save(folder.image("nan"), bad)
    save(folder.label("shape"), organ()[:-1])
    save(folder.image("both"), bad)
    save(folder.label("both"), organ() * 5)
    folder.label("gone").unlink()
    report = run(folder.root, tmp_path / "s")
    assert [outcome.case_id for outcome in report.accepted] == ["good"]
    assert codes(report) == {
        "both": ["non_finite", "unknown_label_value"],  # all that is wrong with a case, at once
        "gone": ["missing_label"],
        "nan": ["non_finite"],
        "shape": ["shape_mismatch"],
    }
    assert report.error() is None
    assert isinstance(report.error(strict=True), DataError)
    written = json.loads((tmp_path / "s/ingest/report.json").read_text())
    assert written["counts"] == {"accepted": 1, "rejected": 4, "failed": 0}
    with (tmp_path / "s/ingest/report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case_id"], row["code"]) for row in rows] == [
        ("both", "non_finite"),
        ("both", "unknown_label_value"),
        ("gone", "missing_label"),
        ("good", ""),
        ("nan", "non_finite"),
        ("shape", "shape_mismatch"),
    ]
    assert all(row["remedy"] for row in rows if row["code"])
    assert len(BrickStore.open(str(tmp_path / "s"))) == 1


def test_a_fault_may_be_tolerated_and_is_then_a_warning(tmp_path):
    folder = Folder(tmp_path / "d")
    save(folder.label("a"), organ(), np.diag([1.5, 1.5, 3.3, 1]))
    assert codes(run(folder.root, tmp_path / "s")) == {"a": ["affine_mismatch"]}
    report = run(folder.root, tmp_path / "t", tolerate=("affine_mismatch",))
    assert len(report.accepted) == 2
    assert "affine_mismatch in 1 cases" in report.summary()
    again = run(folder.root, tmp_path / "t", tolerate=("affine_mismatch",))
    assert [w.code for outcome in again.accepted for w in outcome.warnings] == ["affine_mismatch"]


def test_a_fault_of_the_program_is_no_rejection_and_leaves_with_1(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "d")
    from fedvox.data import ingest_case

    real = ingest_case.read_case

    def broken(case, rules):
        if case.case_id == "a":
            raise ZeroDivisionError("oops")
        return real(case, rules)

    monkeypatch.setattr(ingest_case, "read_case", broken)
    report = run(folder.root, tmp_path / "s", spacing_mm="native")
    assert [outcome.case_id for outcome in report.accepted] == ["b"]
    error = report.error()
    assert isinstance(error, RunError)
    assert "ZeroDivisionError: oops (broken" in error.message


def test_a_store_that_cannot_be_written_stops_the_ingest(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "d", cases=tuple("abcdef"))
    from fedvox.data import ingest_case

    asked = []

    def full(self, case_id, *args, **kwargs):
        asked.append(case_id)
        raise StorageError("no space left on the device", "Free some space.")

    monkeypatch.setattr(ingest_case.StoreWriter, "add_case", full)
    with pytest.raises(StorageError, match="no space"):
        run(folder.root, tmp_path / "s", spacing_mm="native")
    assert asked == ["a"]


def test_a_store_of_something_else_is_not_touched(tmp_path):
    run(Folder(tmp_path / "d").root, tmp_path / "s", spacing_mm="native")
    other = Folder(tmp_path / "other", labels={"background": 0, "spleen": 1, "cyst": 2})
    with pytest.raises(DataError) as caught:
        run(other.root, tmp_path / "s", spacing_mm="native")
    assert caught.value.code == "other_store"


def test_output_must_be_named_and_lie_elsewhere_than_the_sources(tmp_path):
    folder = Folder(tmp_path / "d")
    for output in ("", str(folder.root)):
        with pytest.raises(ConfigError, match="output"):
            plan_ingest(IngestConfig(sources=(str(folder.root),), output=output))


def test_a_job_does_not_write_its_store_where_ray_deletes_it(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "d")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"output: 'stores/a' lies in the job's working directory"):
        plan_ingest(IngestConfig(sources=(str(folder.root),), output="stores/a"))


# ---- what is resumed ---------------------------------------------------------------------------------------


def writes(store: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (store / "cases").glob("*.arrow")}


def test_a_second_run_does_nothing_again(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "d")
    run(folder.root, tmp_path / "s")
    before = writes(tmp_path / "s")
    from fedvox.data import ingest_case

    def never(case, rules):
        raise AssertionError("read again")

    monkeypatch.setattr(ingest_case, "read_case", never)
    report = run(folder.root, tmp_path / "s")
    assert all(outcome.was_done for outcome in report.accepted)
    assert writes(tmp_path / "s") == before
    assert "2 of them done before" in report.summary()


def test_only_what_has_changed_is_done_again(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a", "b", "c"))
    folder.image("c").write_bytes(b"broken")
    report = run(folder.root, tmp_path / "s", spacing_mm="native")
    assert codes(report) == {"c": ["not_nifti"]}
    before = writes(tmp_path / "s")
    save(folder.image("a"), ct(9))
    save(folder.image("c"), ct(2))
    report = run(folder.root, tmp_path / "s", spacing_mm="native")
    after = writes(tmp_path / "s")
    assert {outcome.case_id: outcome.was_done for outcome in report.accepted} == {
        "a": False,
        "b": True,
        "c": False,
    }
    assert after["b"] == before["b"]
    assert after["a"] > before["a"]
    store = BrickStore.open(str(tmp_path / "s"))
    assert len(store) == 3
    np.testing.assert_array_equal(stored(store, "a")[0][0], ct(9).transpose(2, 1, 0))


def test_other_settings_write_again_but_measure_once(tmp_path):
    folder = Folder(tmp_path / "d")
    run(folder.root, tmp_path / "s", spacing_mm="native")
    notes = {p: p.stat().st_mtime_ns for p in (tmp_path / "s/ingest/cases").glob("*.json")}
    report = run(folder.root, tmp_path / "s", spacing_mm=(3.0, 3.0, 3.0))
    assert not any(outcome.was_done for outcome in report.accepted)
    assert BrickStore.open(str(tmp_path / "s")).record(0).shape == (16, 9, 10)
    assert notes == {p: p.stat().st_mtime_ns for p in (tmp_path / "s/ingest/cases").glob("*.json")}


def test_a_case_that_left_the_source_leaves_the_manifest(tmp_path):
    folder = Folder(tmp_path / "d", cases=("a", "b"))
    run(folder.root, tmp_path / "s", spacing_mm="native")
    folder.image("b").unlink()
    folder.label("b").unlink()
    run(folder.root, tmp_path / "s", spacing_mm="native")
    assert list(BrickStore.open(str(tmp_path / "s")).case_ids) == ["a"]


# ---- the command -------------------------------------------------------------------------------------------


def command(*arguments: str | Path, expect: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "jobs/ingest.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def not_nifti(folder: Folder) -> Path:
    folder.image("a").write_text("this is no image")
    return folder.image("a")


def truncated(folder: Folder) -> Path:
    path = folder.image("a")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def other_shape(folder: Folder) -> Path:
    return save(folder.label("a"), organ()[:, :, :-1])


def other_place(folder: Folder) -> Path:
    return save(folder.label("a"), organ(), np.diag([1.5, 1.5, 2, 1]))


def unknown_value(folder: Folder) -> Path:
    return save(folder.label("a"), organ(values=(1, 7)))


def fractions(folder: Folder) -> Path:
    return save(folder.label("a"), organ() * np.float32(0.5))


def not_a_number(folder: Folder) -> Path:
    data = ct().astype(np.float32)
    data[0, 0, 0] = np.nan
    return save(folder.image("a"), data)


def infinite(folder: Folder) -> Path:
    data = ct().astype(np.float32)
    data[0, 0, 0] = np.inf
    return save(folder.image("a"), data)


def zero_spacing(folder: Folder) -> Path:
    raw = bytearray(nib.Nifti1Image(ct(), np.eye(4)).to_bytes())
    raw[80:84] = np.float32(0).tobytes()
    folder.image("a").write_bytes(raw)
    return folder.image("a")


def absurd_spacing(folder: Folder) -> Path:
    for path, data in ((folder.label("a"), organ()), (folder.image("a"), ct())):
        save(path, data, np.diag([1500.0, 1500, 3000, 1]))
    return path


def flat(folder: Folder) -> Path:
    return save(folder.image("a"), ct()[:, :, 0])


def two_channels(folder: Folder) -> Path:
    return save(folder.image("a"), np.stack([ct(), ct(1)], axis=-1))


def no_hounsfield(folder: Folder) -> Path:
    return save(folder.image("a"), ct() + 1024)


def no_label(folder: Folder) -> Path:
    folder.label("a").unlink()
    return folder.label("a")


def no_channel(folder: Folder) -> Path:
    folder.image("a").rename(folder.image("a", 1))
    return folder.image("a", 1)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (not_nifti, "not_nifti"),
        (truncated, "truncated"),
        (other_shape, "shape_mismatch"),
        (other_place, "affine_mismatch"),
        (unknown_value, "unknown_label_value"),
        (fractions, "non_integer_label"),
        (not_a_number, "non_finite"),
        (infinite, "non_finite"),
        (zero_spacing, "bad_spacing"),
        (absurd_spacing, "absurd_spacing"),
        (flat, "not_3d"),
        (two_channels, "channel_count"),
        (no_hounsfield, "implausible_ct"),
        (no_label, "missing_label"),
        (no_channel, "channel_count"),
    ],
)
def test_the_command_names_the_file_the_reason_and_the_remedy(
    tmp_path, spoil: Callable[[Folder], Path], code
):
    folder = Folder(tmp_path / "d", cases=("a",))
    culprit = spoil(folder)
    done = command("-i", folder.root, "-o", tmp_path / "s", "--workers", "0", expect=2)
    assert f"  {code}: 1" in done.stderr
    assert str(culprit) in done.stderr
    assert "->" in done.stderr


def test_the_command_refuses_what_is_no_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (
        f"{tmp_path}/empty is an empty folder"
        in command("-i", tmp_path / "empty", "-o", "x", expect=2).stderr
    )
    assert f"{tmp_path}/none does not exist" in command("-i", tmp_path / "none", "-o", "x", expect=2).stderr
    folder = Folder(tmp_path / "d")
    (folder.root / "dataset.json").unlink()
    assert f"{folder.root}/dataset.json is missing" in command("-i", folder.root, "-o", "x", expect=2).stderr
    assert "no data set was named" in command("-o", "x", expect=2).stderr


def test_the_command_refuses_settings_that_make_no_sense(tmp_path):
    folder = Folder(tmp_path / "d")
    common = ("-i", folder.root, "-o", tmp_path / "s")
    assert "did you mean 'codec'" in command(*common, "--set", "codek=lz4", expect=2).stderr
    assert "--spacing" in command(*common, "--spacing", "1,2", expect=2).stderr
    assert "'thick' is not a number" in command(*common, "--spacing", "thick", expect=2).stderr
    assert "spacing_mm must be positive" in command(*common, "--spacing", "0,1,1", expect=2).stderr
    assert "workers" in command(*common, "--workers", "-1", expect=2).stderr
    assert "cannot tolerate truncated" in command(*common, "--tolerate", "truncated", expect=2).stderr
    assert not (tmp_path / "s").exists()


def test_duplicate_ids_are_refused_and_the_rest_accepted_unless_strict(tmp_path):
    rows = [
        {"case_id": case, "image": f"{i}.nii.gz", "label": "l.nii.gz"}
        for i, case in enumerate(("p", "p", "q"))
    ]
    for i in range(3):
        save(tmp_path / f"{i}.nii.gz", ct(i))
    save(tmp_path / "l.nii.gz", organ())
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "cohort.labels.json").write_text(json.dumps(LABELS))
    common = ("-i", tmp_path / "cohort.csv", "-o", tmp_path / "s", "--workers", "0", "--spacing", "native")
    done = command(*common, expect=0)
    assert "accepted   1 of 3 cases" in done.stdout
    assert "case id 'p' is used 2 times" in done.stdout
    assert "2 of 3 cases were rejected, and strict is on" in command(*common, "--strict", expect=2).stderr


def test_a_dry_run_lists_and_writes_nothing(tmp_path):
    folder = Folder(tmp_path / "d")
    folder.label("b").unlink()
    done = command("-i", folder.root, "-o", tmp_path / "s", "--dry-run", expect=0)
    assert str(folder.image("a")) in done.stdout
    assert "rejected b: missing_label" in done.stdout
    plan = json.loads(
        command("-i", folder.root, "-o", tmp_path / "s", "--dry-run", "--json", expect=0).stdout
    )
    assert [case["case_id"] for case in plan["cases"]] == ["a"]
    assert plan["structures"] == ["background", "liver", "tumor"]
    assert not (tmp_path / "s").exists()


def test_a_configuration_file_says_all_that_flags_say_and_flags_win(tmp_path):
    folder = Folder(tmp_path / "d")
    path = tmp_path / "ingest.yaml"
    path.write_text(
        f"sources: [{folder.root}]\noutput: {tmp_path}/s\nworkers: 0\nspacing_mm: [3, 3, 3]\nname: cohort\n"
    )
    config = load_config(IngestConfig, path)
    assert config.sources[0].path == str(folder.root)
    result = json.loads(command("--config", path, "--spacing", "3x1.5x1.5", "--json", expect=0).stdout)
    assert result["schema"] == "fedvox.ingest/1"
    assert result["spacing_mm"] == [3.0, 1.5, 1.5]
    assert BrickStore.open(f"{tmp_path}/s").meta.name == "cohort"


def test_help_shows_an_example(tmp_path):
    shown = command("--help", expect=0).stdout
    assert "ray job submit --working-dir . -- python jobs/ingest.py" in shown


def test_the_page_on_ingest_names_every_reason_for_a_rejection():
    page = (ROOT / "docs/ingest.md").read_text(encoding="utf-8")
    reading = (
        "checks",
        "nifti",
        "dicom",
        "readers",
        "case_volumes",
        "ingest_case",
        "folder_sources",
        "sources",
    )
    texts = "".join(
        (ROOT / f"platform/fedvox/data/{name}.py").read_text(encoding="utf-8") for name in reading
    )
    named = re.findall(r"""code="(\w+)\"|_(?:error|refusal|incomplete)\(\s*(?:\w+,\s*)?"(\w+)\"""", texts)
    codes = {code for pair in named for code in pair if code}
    assert {"truncated", "missing_slices", "affine_mismatch", "missing_label"} <= codes
    beside_cases = {
        "failed",
        "no_source",
        "several",
        "duplicate_source",
        "missing_folder",
        "unsupported_file_ending",
    }
    assert [code for code in sorted(codes - beside_cases) if f"`{code}`" not in page] == []
