"""Label maps lie exactly where their image lies, whatever its orientation, header version or format."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from fedvox.data.readers import read_volume
from fedvox.errors import StorageError
from fedvox.inference import nifti_out
from fedvox.inference.nifti_out import source_header, write_labels, write_share
from fedvox.storage import locate

ORIENTATIONS = ["RAS", "LPS", "SRA", "PIR", "ASL"]


def oriented(codes: str, version=nib.Nifti1Image) -> nib.Nifti1Image:
    """An image of 7 × 9 × 11 voxels in RAS+ turned to other axes, with a header of its own."""
    values = np.arange(7 * 9 * 11, dtype=np.int16).reshape(7, 9, 11)
    affine = np.array([[0.9, 0.05, 0, -30], [-0.05, 1.1, 0, 12.5], [0, 0, 3.0, 7.25], [0, 0, 0, 1]])
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    image = nib.Nifti1Image(values, affine).as_reoriented(turn)
    found = version(np.asarray(image.dataobj), image.affine)
    found.set_sform(image.affine, code=2)
    found.set_qform(image.affine, code=3)
    found.header["descrip"] = b"scanner A"
    found.header["cal_max"] = 400
    found.header.set_xyzt_units("mm", "sec")
    return found


@pytest.mark.parametrize(
    ("codes", "version"), list(itertools.product(ORIENTATIONS, [nib.Nifti1Image, nib.Nifti2Image]))
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_label_map_has_the_voxels_affine_and_header_of_its_image(tmp_path, codes, version, ending):
    image = oriented(codes, version)
    path = str(tmp_path / f"image{ending}")
    nib.save(image, path)
    volume = read_volume(path)
    labels = (volume.data[0] % 5).astype(np.uint8)
    write_labels(
        labels, volume.geometry, source_header(path, volume.geometry), locate(tmp_path / "label.nii.gz")
    )
    written = nib.load(tmp_path / "label.nii.gz")
    assert type(written) is type(image)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(image.dataobj) % 5)
    assert np.array_equal(written.affine, nib.load(path).affine)
    for transform in ("get_sform", "get_qform"):
        ours, code = getattr(written, transform)(coded=True)
        theirs, expected = getattr(nib.load(path), transform)(coded=True)
        assert code == expected
        assert np.array_equal(ours, theirs)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert bytes(written.header["descrip"]).rstrip(b"\0") == b"scanner A"
    assert written.header.get_data_dtype() == np.uint8
    assert float(written.header["cal_max"]) == 0


def test_a_big_endian_file_of_several_volumes_gives_a_readable_map(tmp_path):
    values = np.zeros((4, 5, 6, 2), np.int16)
    values[1, 2, 3] = 7
    header = nib.Nifti1Header(endianness=">")
    path = str(tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1]), header), path)
    volume = read_volume(path)
    labels = volume.data[0].astype(np.uint16)
    write_labels(
        labels, volume.geometry, source_header(path, volume.geometry), locate(tmp_path / "label.nii.gz")
    )
    written = nib.load(tmp_path / "label.nii.gz")
    assert written.shape == (4, 5, 6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), values[..., 0])


def test_a_share_keeps_four_digits_in_two_bytes(tmp_path):
    path = str(tmp_path / "image.nii.gz")
    nib.save(oriented("LPS"), path)
    volume = read_volume(path)
    values = np.random.default_rng(0).random(volume.data[0].shape).astype(np.float32)
    values[0, 0, :2] = -1e-9, 1 + 1e-7  # rounding of a sum of probabilities
    write_share(
        values, volume.geometry, source_header(path, volume.geometry), locate(tmp_path / "share.nii.gz")
    )
    written = read_volume(str(tmp_path / "share.nii.gz"))
    assert nib.load(tmp_path / "share.nii.gz").header.get_data_dtype() == np.uint16
    assert np.abs(written.data[0] - values.clip(0, 1)).max() < 1e-5
    assert written.geometry == volume.geometry


def test_a_dicom_series_gets_a_header_that_says_where_it_lies(tmp_path):
    path = str(tmp_path / "image.nii.gz")
    nib.save(oriented("PIR"), path)
    volume = read_volume(path)
    header = source_header(str(tmp_path / "series"), volume.geometry)
    write_labels(volume.data[0].astype(np.uint16), volume.geometry, header, locate(tmp_path / "label.nii.gz"))
    written = nib.load(tmp_path / "label.nii.gz")
    np.testing.assert_allclose(written.affine, nib.load(path).affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(nib.load(path).dataobj))


def test_nothing_is_left_where_writing_fails_midway(tmp_path, monkeypatch):
    path = str(tmp_path / "image.nii.gz")
    nib.save(oriented("RAS"), path)
    volume = read_volume(path)
    target = tmp_path / "out" / "label.nii.gz"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti_out.os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_labels(
            volume.data[0].astype(np.uint16),
            volume.geometry,
            source_header(path, volume.geometry),
            locate(target),
        )
    assert list(target.parent.iterdir()) == []
