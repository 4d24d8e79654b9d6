"""Which cases a folder or manifest holds, and what is refused by name."""

from __future__ import annotations

import pytest

from fedvox.errors import DataError
from fedvox.inference.inputs import find_cases


@pytest.fixture
def folder(tmp_path):
    """Makes empty files below tmp_path/in and returns the folder."""

    def make(*names: str) -> str:
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path / "in")

    return make


def listed(uri: str, channels: tuple[str, ...]) -> dict[str, list[str]]:
    return {
        case.case_id: [image.rsplit("/in/")[-1] for image in case.images]
        for case in find_cases(uri, channels)
    }


def test_channels_of_a_case_are_joined_in_their_order(folder):
    uri = folder(
        "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", ".hidden.nii.gz", "notes.txt"
    )
    assert listed(uri, ("T1", "T2")) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_one_channel_may_go_without_its_number_and_a_year_is_part_of_a_name(folder):
    uri = folder("a.nii.gz", "b_0000.nii", "patient_2019.nii.gz")
    assert list(listed(uri, ("CT",))) == ["a", "b", "patient_2019"]


def test_one_file_may_hold_all_channels(folder):
    assert listed(folder("a.nii.gz"), ("T1", "T2")) == {"a": ["a.nii.gz"]}


def test_series_are_folders_and_a_data_set_has_its_test_images(folder):
    assert listed(folder("p1/1.dcm", "p1/2.dcm", "p2/IM0001"), ("CT",)) == {"p1": ["p1"], "p2": ["p2"]}


def test_a_data_set_is_entered_at_its_test_images(folder):
    uri = folder("imagesTs/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz", "dataset.json")
    assert listed(uri, ("CT",)) == {"a": ["imagesTs/a_0000.nii.gz"]}


def test_a_single_file_is_a_case(folder):
    uri = folder("scan.nii.gz")
    assert listed(f"{uri}/scan.nii.gz", ("CT",)) == {"scan": ["scan.nii.gz"]}


def test_a_manifest_names_the_cases(tmp_path):
    (tmp_path / "cases.csv").write_text(
        "case_id,image,modality\nx,in/x1.nii.gz;in/x2.nii.gz,MR\ny,/abs/y.nii.gz,\n"
    )
    cases = find_cases(str(tmp_path / "cases.csv"), ("T1", "T2"), modality="PT")
    assert [(case.case_id, case.modality, len(case.images)) for case in cases] == [
        ("x", "MR", 2),
        ("y", "PT", 1),
    ]
    assert cases[0].images[0] == str(tmp_path / "in" / "x1.nii.gz")


@pytest.mark.parametrize(
    ("names", "channels", "code", "match"),
    [
        (["notes.txt"], ("CT",), "no_case", "holds no image"),
        (
            ["a_0000.nii.gz", "a_0001.nii.gz"],
            ("CT",),
            "channel_count",
            "1 of 1 cases do not have the 1 channels",
        ),
        (["a_0000.nii.gz"], ("T1", "T2"), "channel_count", "a has a_0000.nii.gz"),
        (["a_0000.nii.gz", "a_0002.nii.gz"], ("T1", "T2", "T3"), "channel_count", "T1, T2, T3"),
        (["a b.nii.gz"], ("CT",), "bad_case_id", "cannot name a case"),
    ],
)
def test_what_cannot_be_predicted_is_refused_by_name(folder, names, channels, code, match):
    with pytest.raises(DataError, match=match) as error:
        find_cases(folder(*names), channels)
    assert error.value.code == code


def test_the_remedy_lists_the_channels_of_the_model(folder):
    with pytest.raises(DataError) as error:
        find_cases(folder("a_0000.nii.gz"), ("T1", "FLAIR"))
    assert "CASE_0000.nii.gz T1, CASE_0001.nii.gz FLAIR" in error.value.remedy


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_cases(str(tmp_path / "nowhere"), ("CT",))
