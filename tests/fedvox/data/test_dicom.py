"""DICOM series written with pydicom: order, geometry and units against what was written; every refusal."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from fedvox.data.readers import read_volume
from fedvox.errors import DataError

SERIES = generate_uid()
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)


def write_slice(
    folder: Path, number: int, pixels: np.ndarray, position, *, orientation=AXIAL, **changes
) -> Path:
    """One slice; `changes` set or (None) remove DICOM attributes."""
    folder.mkdir(exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"IM{number:04d}.dcm"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID = "CT", SERIES
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelSpacing = [0.8, 0.6]  # between rows, between columns
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(pixels.dtype == np.int16)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, heights=(0, 2.5, 5, 7.5, 10), shuffle=True, **changes) -> np.ndarray:
    """Axial slices at the given z; returns the stored pixels (Z, Y, X) from feet to head."""
    stored = np.random.default_rng(0).integers(0, 3000, (len(heights), 6, 5)).astype(np.uint16)
    numbers = np.random.default_rng(1).permutation(len(heights)) if shuffle else range(len(heights))
    for number, pixels, z in zip(numbers, stored, heights, strict=True):
        write_slice(folder, int(number), pixels, (-30.0, -40.0, z), **changes)
    return stored


def error_of(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_volume(str(folder))
    assert folder.name in caught.value.message
    assert caught.value.remedy
    return caught.value


def test_slices_are_ordered_by_position_whatever_their_file_names(tmp_path):
    stored = write_series(tmp_path / "series")
    volume = read_volume(str(tmp_path / "series"))
    # RAS+: x and y of an axial LPS slice run the other way
    np.testing.assert_array_equal(volume.data[0], stored.astype(int)[:, ::-1, ::-1] - 1024)
    assert volume.data.dtype == np.int16
    assert volume.modality == "CT"
    assert volume.geometry.spacing_mm == pytest.approx((2.5, 0.8, 0.6))
    assert volume.geometry.file_orientation == "LPS"


@pytest.mark.parametrize(("orientation", "step"), [(AXIAL, (0, 0, 2)), (SAGITTAL, (3, 0, 0))])
def test_the_affine_is_nibabels_for_the_first_slice_and_points_along_the_stack(tmp_path, orientation, step):
    folder = tmp_path / "series"
    pixels = np.zeros((6, 5), np.uint16)
    for number in range(4):
        write_slice(
            folder, number, pixels, np.array([5.0, 6, 7]) + number * np.array(step), orientation=orientation
        )
    volume = read_volume(str(folder))
    normal = np.cross(orientation[:3], orientation[3:])
    paths = sorted(folder.iterdir())
    first, second = (paths[0], paths[1]) if normal @ step > 0 else (paths[-1], paths[-2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM readers experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    dicom_affine = wrapper_from_data(pydicom.dcmread(first)).affine  # LPS, (row, column, slice) indices
    expected = np.diag([-1.0, -1, 1, 1]) @ dicom_affine[:, [1, 0, 2, 3]]
    ours = np.asarray(volume.geometry.file_affine)
    np.testing.assert_allclose(ours[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=1e-6)
    positions = [np.array(pydicom.dcmread(p).ImagePositionPatient, dtype=float) for p in (first, second)]
    np.testing.assert_allclose(ours[:3, 2], (positions[1] - positions[0]) * [-1, -1, 1], atol=1e-6)


def test_the_same_anatomy_from_dicom_and_from_nifti_is_the_same_volume(tmp_path):
    stored = write_series(tmp_path / "series")
    from_dicom = read_volume(str(tmp_path / "series"))
    hounsfield = stored.transpose(2, 1, 0).astype(np.int16) - 1024
    nib.save(nib.Nifti1Image(hounsfield, np.asarray(from_dicom.geometry.file_affine)), tmp_path / "ct.nii.gz")
    from_nifti = read_volume(str(tmp_path / "ct.nii.gz"))
    np.testing.assert_array_equal(from_dicom.data, from_nifti.data)
    np.testing.assert_allclose(from_dicom.geometry.affine, from_nifti.geometry.affine, atol=1e-5)


def test_rescaling_may_differ_from_slice_to_slice(tmp_path):
    pixels = np.full((4, 4), 100, np.uint16)
    for number, slope in enumerate((0.5, 2.0, 0.25)):
        write_slice(tmp_path / "pet", number, pixels, (0, 0, number), RescaleSlope=slope, RescaleIntercept=1)
    volume = read_volume(str(tmp_path / "pet"))
    assert volume.data.dtype == np.float32
    assert volume.data[0, :, 0, 0].tolist() == [51.0, 201.0, 26.0]


def test_values_beyond_16_bits_are_kept(tmp_path):
    for number, value in enumerate((10, 65000)):
        pixels = np.full((4, 4), value, np.uint16)
        write_slice(tmp_path / "ct", number, pixels, (0, 0, number), RescaleIntercept=0)
    assert read_volume(str(tmp_path / "ct")).data[0, :, 0, 0].tolist() == [10, 65000]


def test_reports_and_folders_indexes_beside_the_slices_are_passed_over(tmp_path):
    stored = write_series(tmp_path / "series")
    (tmp_path / "series" / "DICOMDIR").write_bytes(b"no image")
    (tmp_path / "series" / ".DS_Store").write_bytes(b"\0")
    report = tmp_path / "series" / "report.dcm"
    path = write_slice(tmp_path / "other", 1, stored[0], (0, 0, 0), ImagePositionPatient=None)
    report.write_bytes(path.read_bytes())
    assert read_volume(str(tmp_path / "series")).data.shape == (1, 5, 6, 5)


def test_a_missing_slice_is_reported_with_its_place(tmp_path):
    write_series(tmp_path / "series", heights=(0, 2.5, 7.5, 10))
    error = error_of(tmp_path / "series")
    assert error.code == "missing_slices"
    assert "lacks about 1 slices" in error.message
    assert "2.50 and 7.50" in error.message


def test_uneven_slice_distances_are_reported(tmp_path):
    write_series(tmp_path / "series", heights=(0, 2.5, 5.0, 7.9, 10.4))
    assert "unevenly" in error_of(tmp_path / "series").message


def test_rounded_positions_are_no_gap(tmp_path):
    write_series(tmp_path / "series", heights=(0, 0.62, 1.25, 1.88, 2.5))
    assert read_volume(str(tmp_path / "series")).geometry.spacing_mm[0] == pytest.approx(0.625)


def test_two_slices_at_one_position_are_reported(tmp_path):
    write_series(tmp_path / "series", heights=(0, 2.5, 2.5, 5, 7.5))
    error = error_of(tmp_path / "series")
    assert error.code == "duplicate_slices"
    assert "IM0" in error.message


def test_two_series_in_a_folder_are_reported_and_one_can_be_chosen(tmp_path):
    other = generate_uid()
    write_series(tmp_path / "series")
    for number in (11, 12, 13):
        write_slice(
            tmp_path / "series", number, np.zeros((6, 5), np.uint16), (0, 0, number), SeriesInstanceUID=other
        )
    error = error_of(tmp_path / "series")
    assert error.code == "mixed_series"
    assert SERIES in error.message
    assert other in error.message
    assert read_volume(str(tmp_path / "series"), series_uid=other).data.shape == (1, 3, 6, 5)
    with pytest.raises(DataError, match=r"does not hold series 1\.2\.3"):
        read_volume(str(tmp_path / "series"), series_uid="1.2.3")


@pytest.mark.parametrize(
    "foreign", [{"orientation": SAGITTAL}, {"PixelSpacing": [1, 1]}, {"pixels": np.zeros((8, 8), np.uint16)}]
)
def test_a_scout_within_the_series_is_reported(tmp_path, foreign):
    write_series(tmp_path / "series")
    pixels = foreign.pop("pixels", np.zeros((6, 5), np.uint16))
    write_slice(tmp_path / "series", 99, pixels, (0, 0, 99), **foreign)
    assert error_of(tmp_path / "series").code == "mixed_series"


def test_a_ct_without_rescale_is_refused_and_an_mr_is_not(tmp_path):
    write_series(tmp_path / "ct", RescaleIntercept=None)
    assert error_of(tmp_path / "ct").code == "missing_rescale"
    stored = write_series(tmp_path / "mr", Modality="MR", RescaleIntercept=None, RescaleSlope=None)
    assert read_volume(str(tmp_path / "mr")).data.max() == stored.max()


def test_damaged_and_foreign_files_are_named(tmp_path):
    write_series(tmp_path / "series", shuffle=False)
    bad = tmp_path / "series" / "IM0002.dcm"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-20])
    error = error_of(tmp_path / "series")
    assert error.code == "truncated"
    assert "IM0002.dcm" in error.message
    bad.write_bytes(b"not dicom at all" * 40)
    assert error_of(tmp_path / "series").code == "not_dicom"


def test_a_compressed_series_without_a_decoder_says_which_to_install(tmp_path):
    write_series(tmp_path / "series")
    for path in (tmp_path / "series").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path)
    error = error_of(tmp_path / "series")
    assert error.code in {
        "compressed_dicom",
        "truncated",
    }  # the latter where a decoder happens to be installed
    assert error.code == "truncated" or "pylibjpeg" in error.remedy


def test_a_multi_frame_object_an_empty_folder_and_a_single_slice_are_refused(tmp_path):
    write_series(tmp_path / "enhanced", NumberOfFrames=3)
    assert error_of(tmp_path / "enhanced").code == "unsupported_type"
    (tmp_path / "empty").mkdir()
    assert error_of(tmp_path / "empty").code == "not_dicom"
    write_series(tmp_path / "single", heights=(1.0,))
    assert error_of(tmp_path / "single").code == "not_3d"
    with pytest.raises(DataError, match="names one DICOM slice"):
        read_volume(str(tmp_path / "single" / "IM0000.dcm"))
