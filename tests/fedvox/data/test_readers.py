"""NIfTI reading against nibabel, and every way in which a file can be unusable."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.data.geometry import Geometry, shear_degrees
from fedvox.data.nifti import read_nifti
from fedvox.data.readers import read_header, read_volume
from fedvox.errors import DataError

ORIENTATIONS = [a + b + c for a, b, c in itertools.product("LR", "AP", "SI")]
AXIS_ORDERS = ["".join(p) for o in ("RAS", "LPI") for p in itertools.permutations(o)] + ORIENTATIONS


def affine_of(codes: str, zooms=(1.0, 2.0, 3.0)) -> np.ndarray:
    """A file's affine with the given axis codes and voxel size along the file's own axes."""
    turn = nib.orientations.axcodes2ornt(codes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(turn):
        affine[int(world), axis] = sign * zooms[axis]
    affine[:3, 3] = (-20, 30, 7)
    return affine


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None, kind=nib.Nifti1Image) -> Path:
    nib.save(kind(data, np.eye(4) if affine is None else affine), path)
    return path


def error_of(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_volume(str(path))
    assert path.name in caught.value.message
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_every_orientation_is_turned_to_ras_as_nibabel_turns_it_and_back_exactly(tmp_path, codes):
    data = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    path = write(tmp_path / "case.nii.gz", data, affine_of(codes))
    closest = nib.as_closest_canonical(nib.load(path))
    volume = read_volume(str(path))
    np.testing.assert_array_equal(volume.data[0], np.asarray(closest.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.geometry.affine, closest.affine)
    np.testing.assert_allclose(volume.geometry.spacing_mm, closest.header.get_zooms()[::-1])
    assert volume.geometry.file_orientation == codes
    np.testing.assert_array_equal(volume.geometry.to_file(volume.data[0]), data)
    np.testing.assert_array_equal(volume.geometry.file_affine, nib.load(path).affine)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        (np.int16, None, None, np.int16),
        (np.uint8, None, None, np.uint8),
        (np.float32, None, None, np.float32),
        (np.float64, None, None, np.float32),
        (np.int32, None, None, np.int32),
        (np.uint16, 1, -1024, np.int16),  # how many CTs are stored
        (np.int16, 1000, 0, np.int32),
        (np.int16, 0.5, 3, np.float32),
        (np.uint64, None, None, np.int32),
    ],
)
@pytest.mark.parametrize("big_endian", [False, True])
def test_values_equal_nibabels_in_the_smallest_faithful_type(
    tmp_path, stored, slope, intercept, expected, big_endian
):
    data = np.random.default_rng(0).integers(0, 120, (5, 4, 3)).astype(stored)
    header = nib.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(np.dtype(stored).newbyteorder(">" if big_endian else "<"))
    image = nib.Nifti1Image(data, np.eye(4), header, dtype=stored)
    image.header.set_slope_inter(slope, intercept)
    path = tmp_path / "case.nii"
    image.to_filename(path)
    _set_scale(path, slope, intercept, ">" if big_endian else "<")
    volume = read_volume(str(path))
    assert volume.data.dtype == expected
    assert volume.data.dtype.isnative
    np.testing.assert_allclose(volume.data[0], nib.load(path).get_fdata().transpose(2, 1, 0))


def _set_scale(path: Path, slope, intercept, order: str) -> None:
    """Writes scl_slope and scl_inter in place: nibabel would choose its own."""
    if slope is not None:
        raw = bytearray(path.read_bytes())
        raw[112:120] = np.array([slope, intercept], dtype=f"{order}f4").tobytes()
        path.write_bytes(raw)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_both_versions_of_the_format_are_read_plain_and_compressed(tmp_path, kind, ending):
    data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    path = write(tmp_path / f"case{ending}", data, kind=kind)
    np.testing.assert_array_equal(read_volume(str(path)).data[0], data.transpose(2, 1, 0))
    assert read_header(str(path)).shape == (1, 5, 4, 3)


def test_channels_of_a_4d_image_come_first(tmp_path):
    data = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    volume = read_volume(str(write(tmp_path / "case.nii.gz", data, affine_of("LPS"))))
    assert volume.data.shape == (2, 5, 4, 3)
    np.testing.assert_array_equal(volume.data[1], data[::-1, ::-1, :, 1].transpose(2, 1, 0))


def test_gzip_of_several_members_is_read_whole(tmp_path):
    data = np.arange(6000, dtype=np.int16).reshape(10, 20, 30)
    raw = write(tmp_path / "plain.nii", data).read_bytes()
    path = tmp_path / "case.nii.gz"
    path.write_bytes(
        b"".join(gzip.compress(raw[i : i + 1000]) for i in range(0, len(raw), 1000)) + b"\0" * 64
    )
    np.testing.assert_array_equal(read_volume(str(path)).data[0], data.transpose(2, 1, 0))


def test_the_content_decides_whether_a_file_is_compressed_not_its_name(tmp_path):
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = tmp_path / "case.nii.gz"
    path.write_bytes(write(tmp_path / "plain.nii", data).read_bytes())
    np.testing.assert_array_equal(read_volume(str(path)).data[0], data.transpose(2, 1, 0))


def test_a_float64_file_is_never_in_memory_as_float64(tmp_path):
    data = np.random.default_rng(0).normal(size=(160, 128, 128))
    path = write(tmp_path / "case.nii.gz", data)
    tracemalloc.start()
    read_nifti(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.size * 4 + (32 << 20)  # float32 once, and a few chunks


def test_a_text_file_is_not_a_nifti(tmp_path):
    path = tmp_path / "case.nii.gz"
    path.write_text("patient,age\n" * 100)
    assert error_of(path).code == "not_nifti"
    path.write_bytes(gzip.compress(b"patient,age\n" * 100))
    assert error_of(path).code == "not_nifti"
    path.write_bytes(b"")
    assert error_of(path).code == "not_nifti"


def test_half_of_an_hdr_img_pair_is_refused(tmp_path):
    nib.save(nib.Nifti1Pair(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "case.img")
    path = (tmp_path / "case.hdr").rename(tmp_path / "case.nii")
    assert error_of(path).code == "not_nifti"


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.97])
def test_a_truncated_gz_is_named_as_such(tmp_path, kept):
    data = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = write(tmp_path / "case.nii.gz", data)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert error_of(path).code == "truncated"


def test_a_truncated_plain_file_is_named_as_such(tmp_path):
    path = write(tmp_path / "case.nii", np.zeros((20, 20, 20), np.int16))
    path.write_bytes(path.read_bytes()[:5000])
    error = error_of(path)
    assert error.code == "truncated"
    assert "5,000" in error.message


def test_a_header_that_announces_terabytes_does_not_ask_for_the_memory(tmp_path):
    path = write(tmp_path / "case.nii", np.zeros((3, 3, 3), np.int16))
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([32000, 32000, 32000], dtype="<i2").tobytes()
    path.write_bytes(raw)
    assert error_of(path).code == "truncated"


def test_a_flipped_byte_fails_the_checksum_of_gzip(tmp_path):
    data = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = write(tmp_path / "case.nii.gz", data)
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 0xFF  # the stored CRC-32
    path.write_bytes(raw)
    assert error_of(path).code == "corrupt_gzip"


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (1, 64, 64), (64, 64, 1, 3)])
def test_a_2d_image_is_refused(tmp_path, shape):
    error = error_of(write(tmp_path / "case.nii.gz", np.zeros(shape, np.int16)))
    assert error.code == "not_3d"
    assert "64 × 64" in error.message


@pytest.mark.parametrize("pixdim", [(0.0, 1.0, 1.0), (1.0, -2.0, 1.0), (1.0, 1.0, np.nan)])
def test_zero_negative_or_undefined_spacing_is_refused(tmp_path, pixdim):
    path = write(tmp_path / "case.nii", np.zeros((4, 4, 4), np.int16))
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.array(pixdim, dtype="<f4").tobytes()
    path.write_bytes(raw)
    assert error_of(path).code == "bad_spacing"


def test_a_zero_column_in_the_affine_is_a_spacing_of_zero(tmp_path):
    path = write(tmp_path / "case.nii", np.zeros((4, 4, 4), np.int16))
    raw = bytearray(path.read_bytes())
    raw[252:256] = np.array([0, 1], dtype="<i2").tobytes()  # qform_code, sform_code
    raw[280:296] = np.array([0, 0, 0, 5], dtype="<f4").tobytes()  # first row of the sform
    path.write_bytes(raw)
    error = error_of(path)
    assert error.code == "bad_spacing"
    assert "0 × 1 × 1" in error.message


def test_parallel_axes_and_nan_in_the_affine_are_refused(tmp_path):
    path = write(tmp_path / "case.nii", np.zeros((4, 4, 4), np.int16))
    for first in (1, np.nan):
        raw = bytearray(path.read_bytes())
        raw[252:256] = np.array([0, 1], dtype="<i2").tobytes()  # qform_code, sform_code
        sform = [[first, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]  # y and z both point to the front
        raw[280:328] = np.array(sform, dtype="<f4").tobytes()
        path.write_bytes(raw)
        assert error_of(path).code == "bad_affine"


def test_color_and_complex_voxels_are_refused(tmp_path):
    color = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert error_of(write(tmp_path / "color.nii", color)).code == "unsupported_type"
    assert (
        error_of(write(tmp_path / "kspace.nii", np.zeros((3, 3, 3), np.complex64))).code == "unsupported_type"
    )


def test_a_missing_file_and_an_unknown_ending_are_told_apart(tmp_path):
    assert error_of(tmp_path / "absent.nii.gz").code == "missing_file"
    assert error_of(tmp_path / "absent.nrrd").code == "missing_file"
    (tmp_path / "case.nrrd").write_bytes(b"NRRD0004")
    assert error_of(tmp_path / "case.nrrd").code == "not_nifti"


# ---- geometry ----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(AXIS_ORDERS),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.tuples(*[st.floats(-0.3, 0.3)] * 3),
    st.tuples(*[st.integers(2, 9)] * 3),
)
def test_a_voxel_keeps_its_place_in_the_patient_when_the_volume_is_turned(codes, zooms, angles, shape):
    tilt = np.eye(4)
    tilt[:3, :3] = nib.eulerangles.euler2mat(*angles)
    file_affine = tilt @ affine_of(codes, zooms)
    geometry = Geometry.of_file(shape, file_affine)
    index = np.arange(np.prod(shape)).reshape(shape)  # (x, y, z): every voxel has its number
    ras = geometry.to_ras(index.transpose(2, 1, 0))
    assert ras.shape == geometry.shape
    np.testing.assert_array_equal(geometry.to_file(ras), index)
    for voxel in ((0, 0, 0), tuple(n - 1 for n in geometry.shape)):
        there = np.asarray(geometry.affine) @ [*voxel[::-1], 1]
        x, y, z = np.unravel_index(ras[voxel], shape)
        np.testing.assert_allclose(there, file_affine @ [x, y, z, 1], atol=1e-9)
    assert nib.aff2axcodes(np.asarray(geometry.affine)) == ("R", "A", "S")


def test_cropping_moves_the_origin_and_resampling_keeps_the_outer_edges():
    geometry = Geometry.of_file((10, 20, 30), affine_of("LPS", (1.0, 2.0, 3.0)))
    cropped = geometry.cropped((3, 2, 1), (20, 10, 5))
    np.testing.assert_allclose(
        np.asarray(cropped.affine) @ [0, 0, 0, 1], np.asarray(geometry.affine) @ [1, 2, 3, 1]
    )
    halved = geometry.resampled((15, 10, 5))
    assert halved.spacing_mm == pytest.approx((6.0, 4.0, 2.0))
    for old, new in (((-0.5, -0.5, -0.5), (-0.5, -0.5, -0.5)), ((9.5, 19.5, 29.5), (4.5, 9.5, 14.5))):
        np.testing.assert_allclose(
            np.asarray(halved.affine) @ [*new, 1], np.asarray(geometry.affine) @ [*old, 1], atol=1e-9
        )


def test_a_volume_off_the_files_grid_cannot_be_turned_back():
    geometry = Geometry.of_file((10, 20, 30), np.eye(4))
    with pytest.raises(ValueError, match="not on the grid"):
        geometry.to_file(np.zeros((30, 20, 9)))


def test_the_distance_of_two_grids_is_that_of_their_farthest_corners():
    here, there = np.eye(4), np.eye(4)
    there[:3, 3] = (3, 0, 4)
    assert Geometry.of_file((5, 5, 5), here).corner_distance_mm(
        Geometry.of_file((5, 5, 5), there)
    ) == pytest.approx(5)
    turned = np.diag([1.0, 1.0, 1.1, 1.0])  # grids drift apart along z
    assert Geometry.of_file((5, 5, 11), here).corner_distance_mm(
        Geometry.of_file((5, 5, 11), turned)
    ) == pytest.approx(1.0)


def test_shear_is_measured_in_degrees():
    tilted = np.eye(4)
    tilted[:3, 2] = (0, np.sin(np.radians(20)), np.cos(np.radians(20)))
    assert shear_degrees(tilted) == pytest.approx(20)
    assert shear_degrees(affine_of("PSR", (1, 5, 2))) == pytest.approx(0, abs=1e-6)
