"""Every kind of data set, written as its authors describe it, is recognised; what is wrong with it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from fedvox.data.ingest_config import SourceConfig
from fedvox.data.sources import open_source, open_sources
from fedvox.errors import DataError, StorageError


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_nnunet(root: Path, cases=("a", "b"), channels=("CT",), labels=None, **fields) -> Path:
    description = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels or {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        **fields,
    }
    touch(root / "dataset.json", json.dumps(description))
    for case in cases:
        for channel in range(len(channels)):
            touch(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        touch(root / "labelsTr" / f"{case}.nii.gz")
    return root


def write_msd(root: Path, cases=("liver_0", "liver_1"), modality=None) -> Path:
    entries = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
    description = {
        "name": "Liver",
        "modality": modality or {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": entries,
        "test": ["./imagesTs/liver_9.nii.gz"],
    }
    touch(root / "dataset.json", json.dumps(description))
    for entry in entries:
        touch(root / entry["image"])
        touch(root / entry["label"])
        touch(root / "imagesTr" / ("._" + Path(entry["image"]).name))  # as in the published archives
    return root


def opened(path: Path | str, **fields):
    return open_source(SourceConfig(path=str(path), **fields))


def refused(path: Path | str, **fields) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(path, **fields)
    assert caught.value.remedy
    return caught.value


# ---- nnU-Net -----------------------------------------------------------------------------------------------


def test_an_nnunet_folder_with_two_channels(tmp_path):
    root = write_nnunet(tmp_path / "Dataset007_Brats", channels=("T1", "FLAIR"))
    touch(root / "imagesTr" / "._a_0000.nii.gz")
    touch(root / "imagesTr" / "notes.txt")
    dataset = opened(root)
    assert (dataset.format, dataset.name, dataset.modality) == ("nnunet", "Dataset007_Brats", "MR")
    assert dataset.channel_names == ("T1", "FLAIR")
    assert [case.case_id for case in dataset.cases] == ["a", "b"]
    first = dataset.cases[0]
    assert [Path(image).name for image in first.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert all(Path(path).exists() for path in first.files)
    assert dataset.labels["Dataset007_Brats"].structures == (("liver", (1,)), ("tumor", (2,)))
    assert "nnunet data set 'Dataset007_Brats', 2 cases" in dataset.describe()


def test_case_names_may_hold_numbers_and_underscores(tmp_path):
    root = write_nnunet(tmp_path / "d", cases=("la_003_2020_0001", "x"))
    assert [case.case_id for case in opened(root).cases] == ["la_003_2020_0001", "x"]


def test_incomplete_cases_are_rejected_each_with_all_its_reasons(tmp_path):
    root = write_nnunet(
        tmp_path / "d", cases=("whole", "no_label", "no_channel", "no_image"), channels=("T1", "T2")
    )
    (root / "labelsTr/no_label.nii.gz").unlink()
    (root / "imagesTr/no_channel_0001.nii.gz").unlink()
    (root / "labelsTr/no_channel.nii.gz").unlink()
    for channel in ("0000", "0001"):
        (root / f"imagesTr/no_image_{channel}.nii.gz").unlink()
    dataset = opened(root)
    assert [case.case_id for case in dataset.cases] == ["whole"]
    reasons = {r.case_id: [error.code for error in r.errors] for r in dataset.rejected}
    assert reasons == {
        "no_channel": ["channel_count", "missing_label"],
        "no_image": ["missing_image"],
        "no_label": ["missing_label"],
    }
    message = next(r for r in dataset.rejected if r.case_id == "no_label").errors[0].message
    assert str(root / "labelsTr/no_label.nii.gz") in message


def test_the_description_may_list_the_files_of_each_case(tmp_path):
    files = {"p1": {"images": ["raw/p1_ct.nii.gz"], "label": "./raw/p1_seg.nii.gz"}}
    root = write_nnunet(tmp_path / "d", cases=(), dataset=files)
    touch(root / "raw/p1_ct.nii.gz")
    touch(root / "raw/p1_seg.nii.gz")
    (case,) = opened(root).cases
    assert case.images == (str(root / "raw/p1_ct.nii.gz"),)
    assert case.label == str(root / "raw/p1_seg.nii.gz")


def test_sites_and_folds_beside_the_description_are_used(tmp_path):
    root = write_nnunet(tmp_path / "d", cases=("a", "b", "c"))
    touch(root / "sources.json", json.dumps({"a": "site_1", "b": "site_2"}))
    touch(root / "splits_final.json", json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    dataset = opened(root)
    assert [case.source for case in dataset.cases] == ["site_1", "site_2", "d"]
    assert {case.label_set for case in dataset.cases} == {"d"}
    assert dataset.splits == ({"train": ("a", "b"), "val": ("c",)},)


def test_a_version_1_folder_has_the_decathlons_description_and_a_file_a_channel(tmp_path):
    root = write_nnunet(tmp_path / "Task055")
    description = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "training": []}
    touch(root / "dataset.json", json.dumps(description))
    dataset = opened(root)
    assert dataset.format == "nnunet"
    assert dataset.labels["Task055"].structures == (("liver", (1,)),)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"file_ending": ".png"}, "unsupported_file_ending"),
        ({"labels": {}}, "bad_dataset_json"),
        ({"labels": {"liver": "x"}}, "bad_labels"),
        ({"channel_names": {"1": "CT"}}, "bad_dataset_json"),
        ({"channel_names": ["CT"]}, "bad_dataset_json"),
        ({"dataset": {"a": {"image": "x"}}}, "bad_dataset_json"),
    ],
)
def test_a_description_with_a_fault_is_refused_by_name(tmp_path, change, code):
    root = write_nnunet(tmp_path / "d")
    description = json.loads((root / "dataset.json").read_text()) | change
    touch(root / "dataset.json", json.dumps(description))
    error = refused(root)
    assert error.code == code
    assert str(root / "dataset.json") in error.message


def test_a_missing_description_an_empty_and_an_absent_folder_are_told_apart(tmp_path):
    touch(tmp_path / "d/imagesTr/a_0000.nii.gz")
    error = refused(tmp_path / "d")
    assert (error.code, error.file) == ("missing_dataset_json", str(tmp_path / "d/dataset.json"))
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").code == "empty_folder"
    assert refused(tmp_path / "absent").code == "missing_folder"
    write_nnunet(tmp_path / "bare", cases=())
    assert refused(tmp_path / "bare").code == "empty_folder"


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_a_description_which_is_none_is_refused(tmp_path, text):
    touch(tmp_path / "d/dataset.json", text)
    assert refused(tmp_path / "d").code == "bad_dataset_json"


def test_a_folder_of_data_sets_names_those_within(tmp_path):
    write_nnunet(tmp_path / "raw/Dataset001_A")
    write_nnunet(tmp_path / "raw/Dataset002_B")
    error = refused(tmp_path / "raw")
    assert error.code == "unknown_format"
    assert "Dataset001_A, Dataset002_B" in error.remedy


def test_a_folder_of_dicom_slices_points_to_the_manifest(tmp_path):
    touch(tmp_path / "series/IM1.dcm")
    error = refused(tmp_path / "series")
    assert error.code == "unknown_format"
    assert "manifest" in error.remedy


# ---- Decathlon, TotalSegmentator ---------------------------------------------------------------------------


def test_a_decathlon_task_follows_its_list(tmp_path):
    dataset = opened(write_msd(tmp_path / "Task03_Liver"))
    assert (dataset.format, dataset.modality, dataset.channel_names) == ("msd", "CT", ("CT",))
    assert [case.case_id for case in dataset.cases] == ["liver_0", "liver_1"]
    assert dataset.labels["Task03_Liver"].structures == (("liver", (1,)), ("cancer", (2,)))


def test_a_decathlon_task_with_channels_in_one_file(tmp_path):
    root = write_msd(tmp_path / "Task05", modality={"0": "T2", "1": "ADC"})
    dataset = opened(root)
    assert dataset.channel_names == ("T2", "ADC")
    assert len(dataset.cases[0].images) == 1
    (root / "labelsTr/liver_1.nii.gz").unlink()
    (rejected,) = opened(root).rejected
    assert (rejected.case_id, rejected.errors[0].code) == ("liver_1", "missing_label")


def test_a_totalsegmentator_folder_numbers_its_masks_and_knows_which_are_missing(tmp_path):
    for case, masks in {
        "s0001": ("liver", "spleen", "aorta"),
        "s0002": ("liver", "aorta"),
        "s0003": (),
    }.items():
        touch(tmp_path / "total" / case / "ct.nii.gz")
        for mask in masks:
            touch(tmp_path / "total" / case / "segmentations" / f"{mask}.nii.gz")
    touch(tmp_path / "total/meta.csv")
    dataset = opened(tmp_path / "total")
    assert (dataset.format, dataset.modality) == ("totalsegmentator", "CT")
    whole, partial = dataset.cases
    assert [(value, Path(path).name) for value, path in whole.masks] == [
        (1, "aorta.nii.gz"),
        (2, "liver.nii.gz"),
        (3, "spleen.nii.gz"),
    ]
    assert [value for value, _ in partial.masks] == [1, 2]
    assert whole.label_set != partial.label_set
    assert [name for name, _ in dataset.labels[partial.label_set].structures] == ["aorta", "liver"]
    assert {case.source for case in dataset.cases} == {"total"}
    assert [(r.case_id, r.errors[0].code) for r in dataset.rejected] == [("s0003", "missing_label")]


# ---- manifests ---------------------------------------------------------------------------------------------

ROWS = [
    {"case_id": "p1", "image": "ct/p1.nii.gz", "label": "seg/p1.nii.gz", "source": "north", "age": 61},
    {"case_id": "p2", "image": "s3://b/p2.nii.gz", "label": "/abs/p2.nii.gz", "source": "south", "age": 7},
]
LABELS = {"background": 0, "liver": 1}


def write_manifest(path: Path, rows=None, labels=LABELS) -> Path:
    frame = pd.DataFrame(ROWS if rows is None else rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    if labels is not None:
        touch(path.with_name(f"{path.stem}.labels.json"), json.dumps(labels))
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_manifest_gives_paths_sources_and_labels(tmp_path, ending):
    dataset = opened(write_manifest(tmp_path / f"cohort.{ending}"), modality="CT")
    assert (dataset.format, dataset.name, dataset.modality, dataset.channel_names) == (
        "manifest",
        "cohort",
        "CT",
        ("CT",),
    )
    first, second = dataset.cases
    assert first.images == (str(tmp_path / "ct/p1.nii.gz"),)
    assert first.label == str(tmp_path / "seg/p1.nii.gz")
    assert (second.images, second.label) == (("s3://b/p2.nii.gz",), "/abs/p2.nii.gz")
    assert [case.source for case in dataset.cases] == ["north", "south"]
    assert dataset.labels["north"].structures == (("liver", (1,)),)


def test_case_ids_that_look_like_numbers_stay_text(tmp_path):
    touch(tmp_path / "c.csv", "case_id,image\n0007,a.nii.gz\n0008,b.nii.gz\n")
    assert [case.case_id for case in opened(tmp_path / "c.csv").cases] == ["0007", "0008"]


@pytest.mark.parametrize(
    "row",
    [{"image": "a.nii.gz; b.nii.gz"}, {"image_0000": "a.nii.gz", "image_0001": "b.nii.gz"}],
)
def test_channels_are_separated_by_semicolons_or_columns(tmp_path, row):
    path = write_manifest(tmp_path / "c.csv", [{"case_id": "p", **row}])
    dataset = opened(path, channel_names=("T1", "T2"))
    assert dataset.channel_names == ("T1", "T2")
    assert dataset.cases[0].images == (str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"))


def test_label_names_come_from_a_column_the_configuration_or_a_mapping_by_source(tmp_path):
    other = touch(tmp_path / "south.yaml", "{labels: {background: 0, kidney: 5}}")
    rows = [ROWS[0] | {"labels": None}, ROWS[1] | {"labels": other.name}]
    dataset = opened(write_manifest(tmp_path / "c.csv", rows))
    sets = {case.case_id: dataset.labels[case.label_set].structures for case in dataset.cases}
    assert sets == {"p1": (("liver", (1,)),), "p2": (("kidney", (5,)),)}
    path = write_manifest(tmp_path / "d.csv", labels=None)
    by_source = opened(path, labels={"north": LABELS, "south": {"spleen": 3}})
    assert by_source.labels["south"].structures == (("spleen", (3,)),)
    assert opened(path, labels="south.yaml").labels["north"].structures == (("kidney", (5,)),)


@pytest.mark.parametrize(
    ("rows", "labels", "code", "told"),
    [
        ([{"case": "p", "images": "a"}], LABELS, "bad_manifest", "rename 'case' to 'case_id'"),
        ([], LABELS, "bad_manifest", "has no rows"),
        (ROWS, None, "missing_labels", "cohort.labels.json"),
        (ROWS, {"north": LABELS}, "bad_labels", "'south'"),
        (ROWS, {"liver": "x"}, "bad_labels", "cohort.labels.json"),
        ([ROWS[0] | {"labels": "absent.json"}], LABELS, "missing_file", "absent.json"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, rows, labels, code, told):
    columns = ["case_id", "image", "label", "source"] if not rows else None
    path = tmp_path / "cohort.csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    if labels is not None:
        touch(tmp_path / "cohort.labels.json", json.dumps(labels))
    error = refused(path)
    assert error.code == code
    assert told in str(error)


def test_files_that_are_no_table_are_refused(tmp_path):
    assert refused(tmp_path / "absent.csv").code == "missing_file"
    assert refused(touch(tmp_path / "bad.parquet", "PAR1 not")).code == "bad_manifest"
    assert refused(touch(tmp_path / "bad.csv", "a,b\n1,2,3\n")).code == "bad_manifest"


def test_rows_without_id_or_image_are_rejected_by_number(tmp_path):
    rows = [ROWS[0], {"case_id": None, "image": "x.nii.gz"}, {"case_id": "p3", "image": None}]
    dataset = opened(write_manifest(tmp_path / "c.csv", rows))
    assert [(r.case_id, r.errors[0].code) for r in dataset.rejected] == [
        ("row 3", "bad_manifest"),
        ("p3", "missing_image"),
    ]
    assert "row 3" in dataset.rejected[0].errors[0].message


# ---- several data sets -------------------------------------------------------------------------------------


def test_data_sets_of_different_kinds_are_joined(tmp_path):
    configs = [
        SourceConfig(path=str(write_nnunet(tmp_path / "Dataset001_A"))),
        SourceConfig(path=str(write_msd(tmp_path / "Task03_Liver")), prefix="msd_"),
    ]
    joined = open_sources(configs)
    assert [case.case_id for case in joined.cases] == ["a", "b", "msd_liver_0", "msd_liver_1"]
    assert joined.modality == "CT"
    assert set(joined.label_sets) == {"Dataset001_A", "Task03_Liver"}


def test_one_channel_of_many_can_be_chosen(tmp_path):
    brats = write_nnunet(tmp_path / "brats", channels=("T1", "T2", "FLAIR"))
    joined = open_sources([SourceConfig(path=str(brats), channels=(2, 0))])
    assert joined.channel_names == ("FLAIR", "T1")
    assert joined.cases[0].channels == (2, 0)
    with pytest.raises(DataError, match="channel 3 was asked for"):
        open_sources([SourceConfig(path=str(brats), channels=(3,))])


def test_the_same_id_in_two_data_sets_is_rejected_in_both_and_a_prefix_helps(tmp_path):
    first, second = write_nnunet(tmp_path / "A", ("x", "y")), write_nnunet(tmp_path / "B", ("x", "z"))
    joined = open_sources([SourceConfig(path=str(first)), SourceConfig(path=str(second))])
    assert [case.case_id for case in joined.cases] == ["y", "z"]
    assert [(r.case_id, r.source, r.errors[0].code) for r in joined.rejected] == [
        ("x", "A", "duplicate_case"),
        ("x", "B", "duplicate_case"),
    ]
    assert "prefix" in joined.rejected[0].errors[0].remedy
    prefixed = open_sources([SourceConfig(path=str(first)), SourceConfig(path=str(second), prefix="b_")])
    assert len(prefixed.cases) == 4


def test_duplicates_and_impossible_ids_within_a_manifest_are_rejected(tmp_path):
    rows = [ROWS[0], ROWS[0] | {"image": "other.nii.gz"}, ROWS[1] | {"case_id": "a/b"}, ROWS[1]]
    joined = open_sources([SourceConfig(path=str(write_manifest(tmp_path / "c.csv", rows)))])
    assert [case.case_id for case in joined.cases] == ["p2"]
    assert {(r.case_id, r.errors[0].code) for r in joined.rejected} == {
        ("p1", "duplicate_case"),
        ("a/b", "bad_case_id"),
    }
    assert "other.nii.gz" in joined.rejected[0].errors[0].message


def test_cases_without_a_label_need_permission(tmp_path):
    rows = [{"case_id": "p1", "image": "a.nii.gz", "label": None}]
    config = SourceConfig(path=str(write_manifest(tmp_path / "c.csv", rows)))
    assert open_sources([config]).rejected[0].errors[0].code == "missing_label"
    assert [case.is_labelled for case in open_sources([config], allow_unlabelled=True).cases] == [False]


def test_what_is_wrong_with_several_data_sets_is_told_at_once(tmp_path):
    configs = [SourceConfig(path=str(tmp_path / name)) for name in ("one", "two")]
    with pytest.raises(DataError) as caught:
        open_sources(configs)
    assert str(tmp_path / "one") in str(caught.value)
    assert str(tmp_path / "two") in str(caught.value)


def test_data_sets_that_do_not_fit_together_are_refused(tmp_path):
    mono, stereo = write_nnunet(tmp_path / "mono"), write_nnunet(tmp_path / "stereo", channels=("T1", "T2"))
    with pytest.raises(DataError) as caught:
        open_sources([SourceConfig(path=str(mono)), SourceConfig(path=str(stereo))])
    assert caught.value.code == "channel_count"
    with pytest.raises(DataError) as caught:
        open_sources([SourceConfig(path=str(mono)), SourceConfig(path=str(mono))])
    assert caught.value.code == "duplicate_source"
    with pytest.raises(DataError, match="no data set"):
        open_sources([])


def test_mixed_modalities_are_joined_as_other(tmp_path):
    ct, mr = write_nnunet(tmp_path / "ct"), write_nnunet(tmp_path / "mr", ("c",), channels=("MRI",))
    assert open_sources([SourceConfig(path=str(ct)), SourceConfig(path=str(mr))]).modality == "other"


def test_folds_of_some_data_sets_leave_the_others_in_training(tmp_path):
    first, second = write_nnunet(tmp_path / "A", ("x", "y")), write_nnunet(tmp_path / "B", ("z",))
    touch(first / "splits_final.json", json.dumps([{"train": ["x"], "val": ["y"]}]))
    joined = open_sources([SourceConfig(path=str(first), prefix="a_"), SourceConfig(path=str(second))])
    assert joined.splits == ({"train": ("a_x", "z"), "val": ("a_y",)},)


def test_an_unknown_scheme_is_a_storage_error():
    with pytest.raises(StorageError):
        opened("ftp://host/data")
