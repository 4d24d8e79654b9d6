"""From files to files: series, tables, pages, DICOM-SEG and the commands."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fedvox.commands.lesion import segment as segment_command
from fedvox.commands.lesion import table as table_command
from fedvox.commands.lesion import track as track_command
from fedvox.data.readers import read_volume
from fedvox.errors import ConfigError, DataError
from fedvox.tracking import run
from fedvox.tracking.dicom_seg import write_dicom_seg
from fedvox.tracking.events import Event
from fedvox.tracking.segmenters import build_segmenter
from fedvox.tracking.series import read_series
from fedvox.tracking.table import lesion_table

LESIONS = [
    {1: ((0.0, 9.0, -8.0), 8, 1.9), 2: ((9.0, -12.0, 8.0), 7, 0.2)},
    {1: ((0.0, 9.0, -8.0), 10.5, 1.9), 2: ((9.0, -12.0, 8.0), 6, 0.2)},
    {1: ((0.0, 9.0, -8.0), 10.5, 1.9)},
]
DATES = ["2024-01-05", "2024-04-02", "2024-07-01"]


def write(path, volume, array):
    affine = np.asarray(volume.geometry.affine)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)


@pytest.fixture(scope="module")
def patient(phantom, tmp_path_factory):
    """A folder with three scans, their true masks, and series files."""
    folder = tmp_path_factory.mktemp("patient")
    head = phantom()
    scans = []
    for index, lesions in enumerate(LESIONS):
        volume, labels = head.scan(lesions, shift_mm=(2 * index, -2 * index, 0), seed=index)
        write(folder / f"t{index}.nii.gz", volume, np.rint(volume.data[0]).astype(np.int16))
        write(folder / f"m{index}.nii.gz", volume, labels)
        scans.append({"image": f"t{index}.nii.gz", "date": DATES[index]})
    (folder / "blind.json").write_text(
        json.dumps({"patient": "P01", "scans": [{**scans[0], "mask": "m0.nii.gz"}, *scans[1:]]})
    )
    full = [{**s, "mask": f"m{i}.nii.gz"} for i, s in enumerate(scans)]
    (folder / "full.json").write_text(json.dumps({"patient": "P01", "modality": "MR", "scans": full}))
    return folder


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("scans", "code"),
    [
        ([{"image": "a.nii", "date": "2024-05-01"}, {"image": "b.nii", "date": "2024-04-01"}], "dates_out_of_order"),
        ([{"image": "a.nii.gz", "day": 3}, {"image": "b.nii.gz", "day": 3}], "duplicate_date"),
        ([{"image": "a.nii.gz"}], "no_date"),
        ([{"image": "a.nii.gz", "day": 3}, {"image": "b.nii.gz", "date": "2024-04-01"}], "no_date"),
        ([], "no_scan"),
    ],
)  # fmt: skip
def test_a_series_that_cannot_be_ordered_is_refused(tmp_path, scans, code):
    path = tmp_path / "series.json"
    path.write_text(json.dumps({"patient": "P", "scans": scans}))
    with pytest.raises(DataError) as caught:
        read_series(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_unknown_fields_and_unreadable_files_are_refused_by_name(tmp_path):
    path = tmp_path / "series.json"
    with pytest.raises(ConfigError, match=r"series\.json"):
        read_series(path)
    path.write_text('{"patient": "P", "scans": [{"image": "a.nii.gz", "dat": "2024-04-01"}]}')
    with pytest.raises(ConfigError, match=r"unknown key 'scans\.0\.dat'"):
        read_series(path)
    path.write_text('{"patient": "P", "scans": [{"image": "a.nii.gz", "day": 1, "date": "2024-04-01"}]}')
    with pytest.raises(ConfigError, match="not both"):
        read_series(path)


def test_the_table_tells_states_changes_and_targets(phantom):
    head = phantom()
    scans = [head.scan(lesions, noise=0) for lesions in LESIONS]
    labels = [labels for _, labels in scans]
    table = lesion_table(labels, [v for v, _ in scans], [0, 88, 178])
    states = {(r.scan, r.lesion): r.state for r in table.rows}
    assert states == {
        (0, 1): "baseline", (0, 2): "baseline", (1, 1): "growing", (1, 2): "shrinking",
        (2, 1): "stable", (2, 2): "disappeared",
    }  # fmt: skip
    row = next(r for r in table.rows if (r.scan, r.lesion) == (1, 1))
    assert row.volume_mm3 == np.count_nonzero(labels[1] == 1) * 12
    assert row.volume_change_pct == pytest.approx(100 * ((10.5 / 8) ** 3 - 1), rel=0.15)
    assert row.long_mm == pytest.approx(21, abs=2)
    assert {t.lesion for t in table.targets} == {1, 2}
    assert table.responses[0].sum_mm == pytest.approx(16 + 14, abs=3)


def test_splits_mergers_and_new_lesions_reach_the_table_and_the_response(phantom):
    head = phantom()
    first, a = head.scan({1: LESIONS[0][1], 2: LESIONS[0][2]}, noise=0)
    b = np.where(a == 1, 1, 0)
    b[:, :, 20:][a[:, :, 20:] == 1] = 5
    b[2:4, 18:22, 18:22] = 6
    events = [(), (Event("split", 5, 1, 0.9), Event("merged", 2, 1, 0.8), Event("appeared", 6, 0, 0.7))]
    table = lesion_table([a, b.astype(np.uint16)], [first, first], [0, 60], events=events)
    states = {r.lesion: r.state for r in table.rows if r.scan == 1}
    assert states[2] == "merged_into:1"
    assert states[6] == "new"
    if (b == 5).any():
        assert states[5] == "split_from:1"
    assert table.responses[1].rule == "1 new lesion"


def test_lesions_are_followed_from_files_and_one_scan_done_again_changes_nothing(patient, tmp_path):
    out = tmp_path / "out"
    options = {"method": "region-growing", "stage": "rigid", "accept_poor_registration": True}
    track_command(series=patient / "blind.json", output=out, **options)
    rows = {(int(r["scan"]), int(r["lesion"])): r for r in rows_of(out / "lesions.csv")}
    assert [rows[i, 1]["present"] for i in range(3)] == ["True"] * 3
    assert rows[2, 2]["state"] == "disappeared"
    assert float(rows[1, 1]["volume_mm3"]) > 1.4 * float(rows[0, 1]["volume_mm3"])
    truth = np.asarray(nib.load(patient / "m1.nii.gz").dataobj)
    found = nib.load(out / "scan_01_lesions.nii.gz")
    np.testing.assert_allclose(found.affine, nib.load(patient / "t1.nii.gz").affine)
    both = ((np.asarray(found.dataobj) == 1) & (truth == 1)).sum()
    assert both / (truth == 1).sum() > 0.7
    names = ("scan_01_lesions.nii.gz", "lesions.csv", "response.csv", "report.html", "states/scan_01.json")
    before = {name: (out / name).read_bytes() for name in names}
    (out / "scan_01_lesions.nii.gz").unlink()
    (out / "scan_01_lesions.nii.gz").write_bytes(before["scan_01_lesions.nii.gz"])
    track_command(series=patient / "blind.json", output=out, only=1, **options)
    assert {name: (out / name).read_bytes() for name in names} == before
    with pytest.raises(ConfigError, match="marked"):
        track_command(series=patient / "blind.json", output=out, only=0, **options)
    with pytest.raises(ConfigError, match="Run the whole series first"):
        track_command(series=patient / "blind.json", output=tmp_path / "none", only=1, **options)
    with pytest.raises(ConfigError, match="neither mask nor prompts"):
        track_command(series=patient / "blind.json", output=out, correct=[2], **options)


def test_a_series_that_was_cut_short_goes_on_where_it_stopped(patient, tmp_path, monkeypatch):
    options = {"series": patient / "blind.json", "method": "carried", "stage": "rigid"}
    track_command(output=tmp_path / "whole", **options)

    def cut(index):
        if index == 1:
            raise KeyboardInterrupt

    segment = build_segmenter("carried")
    given = run.TrackOptions(stage="rigid")
    with pytest.raises(KeyboardInterrupt):
        run.track_series(
            patient / "blind.json", tmp_path / "cut", segment, given, method="carried", on_step=cut
        )
    kept = tmp_path / "cut" / "states" / "unfinished"
    assert len(list(kept.glob("*.npz"))) == 1
    calls = []
    real = run.Tracker(run.prompted(segment)).register

    def counted(fixed, moving, config):
        calls.append(fixed.path)
        return real(fixed, moving, config)

    monkeypatch.setattr(
        run.TrackOptions, "tracker",
        lambda self, s, cache=None: run.Tracker(
            run.prompted(s), registration=run.RegistrationConfig(stage=self.stage), cache=cache, register=counted
        ),
    )  # fmt: skip
    run.track_series(patient / "blind.json", tmp_path / "cut", segment, given, method="carried")
    assert [Path(c).name for c in calls] == ["t2.nii.gz"]
    assert not kept.exists()
    for index in range(3):
        name = f"scan_{index:02d}_lesions.nii.gz"
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_reader_says_enters_the_response_and_nonsense_is_refused(patient, tmp_path):
    full = {"series": patient / "full.json"}
    table_command(
        output=tmp_path / "a", **full, non_target=[2], not_evaluable=["1@2"], organ=["1=liver", "2=liver"]
    )
    rows = rows_of(tmp_path / "a" / "lesions.csv")
    assert {r["lesion"] for r in rows if r["target"] == "True"} == {"1"}
    assert [r["response"] for r in rows_of(tmp_path / "a" / "response.csv")][2] == "NE"
    table_command(output=tmp_path / "b", **full, non_target=[2], progressed=[1])
    assert [r["response"] for r in rows_of(tmp_path / "b" / "response.csv")][1] == "PD"
    for wrong, named in (
        ({"node": [9]}, "lesion 9"), ({"organ": ["liver"]}, "--organ"), ({"progressed": [5]}, "scan 5"),
        ({"not_evaluable": ["1@x"]}, "--not-evaluable"), ({"not_evaluable": ["1"]}, "--not-evaluable"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=named):
            table_command(output=tmp_path / "c", **full, **wrong)


def test_tables_of_given_masks_need_every_mask(patient, tmp_path, capsys):
    table_command(series=patient / "full.json", output=tmp_path / "out", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["responses"][0] == "baseline"
    assert found["lesions"] == 2
    response = rows_of(tmp_path / "out" / "response.csv")
    assert [r["scan"] for r in response] == ["0", "1", "2"]
    content = json.loads((tmp_path / "out" / "lesions.json").read_text())
    assert content["patient"] == "P01"
    assert len(content["lesions"]) == 6
    with pytest.raises(ConfigError, match="has no mask"):
        table_command(series=patient / "blind.json", output=tmp_path / "out")


def test_the_page_holds_everything_itself(patient, tmp_path):
    table_command(series=patient / "full.json", output=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert not re.search(r"@import|url\(", page)
    assert page.count("<section") == 2
    assert page.count("data-slices") == 6
    assert "RECIST" in page
    assert len(page) < 2_000_000


def test_an_image_is_segmented_from_lesion_locators_json(patient, tmp_path):
    prompts = tmp_path / "prompts.json"
    labels = np.asarray(nib.load(patient / "m0.nii.gz").dataobj)
    middle = {i: np.argwhere(labels == i).mean(0) for i in (1, 2)}
    prompts.write_text(
        json.dumps({str(i): {"point": [f"{v:.0f}" for v in m[::-1]]} for i, m in middle.items()})
    )
    segment_command(
        image=str(patient / "t0.nii.gz"),
        prompts=str(prompts),
        output=tmp_path / "out",
        method="region-growing",
    )
    found = np.asarray(nib.load(tmp_path / "out" / "scan_00_lesions.nii.gz").dataobj)
    for lesion in (1, 2):
        both = ((found == lesion) & (labels == lesion)).sum()
        assert 2 * both / ((found == lesion).sum() + (labels == lesion).sum()) > 0.7
    assert {r["lesion"] for r in rows_of(tmp_path / "out" / "lesions.csv")} == {"1", "2"}


def test_wrong_input_ends_the_command_with_code_2_and_no_traceback(patient, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"1": {"point": [500, 1, 1]}}')
    done = subprocess.run(
        [sys.executable, "-m", "fedvox", "lesion", "segment", "-i", str(patient / "t0.nii.gz"),
         "-p", str(prompts), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "outside of the volume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_of_the_commands_imports_nothing_heavy():
    code = (
        "import sys, fedvox.commands.lesion;"
        "print([m for m in ('torch', 'ray', 'SimpleITK', 'highdicom', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- DICOM ---------------------------------------------------------------------------------------------------


def dicom_series(folder: Path, pixels, *, patient="P7", date="20240105", orientation=(1, 0, 0, 0, 1, 0)):
    """A CT series whose slices lie 2.5 mm apart; files in no order."""
    folder.mkdir()
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    for index, number in enumerate(np.random.default_rng(0).permutation(len(pixels))):
        plane = pixels[index]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{number:03d}.dcm"
        found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        found.Modality, found.SeriesInstanceUID, found.StudyInstanceUID = "CT", series, study
        found.PatientID, found.PatientName, found.StudyDate = patient, "Test^Patient", date
        found.PatientBirthDate, found.PatientSex, found.StudyTime, found.StudyID = "", "O", "120000", "1"
        found.AccessionNumber, found.ReferringPhysicianName = "", ""
        found.SeriesNumber, found.InstanceNumber, found.FrameOfReferenceUID = 1, int(index) + 1, frame
        found.PositionReferenceIndicator = ""
        found.ImagePositionPatient = (np.array([-20.0, -30.0, 5.0]) + 2.5 * index * normal).tolist()
        found.ImageOrientationPatient, found.PixelSpacing, found.SliceThickness = (
            list(orientation),
            [0.8, 0.8],
            2.5,
        )
        found.Rows, found.Columns = plane.shape
        found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
        found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 1
        found.RescaleSlope, found.RescaleIntercept = 1, 0
        found.PixelData = plane.astype(np.int16).tobytes()
        found.save_as(path, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0)])
def test_a_segmentation_object_marks_the_same_pixels_of_the_same_slices(tmp_path, orientation):
    pixels = np.zeros((6, 12, 10), np.int16)
    pixels[1:4, 3:7, 2:8] = 500
    pixels[4, 9, 1] = 900
    folder = dicom_series(tmp_path / "ct", pixels, orientation=orientation)
    scan = read_volume(str(folder))
    labels = np.where(scan.data[0] == 500, 3, 0) + np.where(scan.data[0] == 900, 300, 0)
    write_dicom_seg(labels, scan, tmp_path / "seg.dcm", algorithm="region-growing")
    found = hd.seg.segread(tmp_path / "seg.dcm")
    assert [d.segment_label for d in (found.get_segment_description(n) for n in (1, 2))] == [
        "Lesion 3",
        "Lesion 300",
    ]
    headers = {str(h.SOPInstanceUID): h for h in map(pydicom.dcmread, folder.iterdir())}
    masks = found.get_pixels_by_source_instance(list(headers))
    for (_, header), mask in zip(headers.items(), masks, strict=True):
        plane = header.pixel_array
        np.testing.assert_array_equal(mask[..., 0] > 0, plane == 500)
        np.testing.assert_array_equal(mask[..., 1] > 0, plane == 900)
    again = tmp_path / "again.dcm"
    write_dicom_seg(labels, scan, again, algorithm="region-growing")
    ids = [pydicom.dcmread(p).SegmentSequence[0].TrackingUID for p in (tmp_path / "seg.dcm", again)]
    assert ids[0] == ids[1]


def test_a_dicom_series_tells_its_date_and_patient_and_another_patients_is_refused(tmp_path):
    pixels = np.zeros((4, 8, 8), np.int16)
    dicom_series(tmp_path / "a", pixels, date="20240105")
    dicom_series(tmp_path / "b", pixels, date="20240301")
    path = tmp_path / "series.json"
    path.write_text(json.dumps({"patient": "P7", "scans": [{"image": "a"}, {"image": "b"}]}))
    assert read_series(path).days() == [0, 56]
    dicom_series(tmp_path / "c", pixels, date="20240401", patient="P8")
    path.write_text(json.dumps({"patient": "P7", "scans": [{"image": "a"}, {"image": "c"}]}))
    with pytest.raises(DataError) as caught:
        read_series(path)
    assert caught.value.code == "another_patient"


def test_a_nifti_scan_has_no_series_for_a_segmentation_object(patient, tmp_path):
    scan = read_volume(str(patient / "t0.nii.gz"))
    labels = np.ones(scan.geometry.shape, np.uint16)
    with pytest.raises(DataError) as caught:
        write_dicom_seg(labels, scan, tmp_path / "seg.dcm", algorithm="x")
    assert caught.value.code == "not_dicom"
