"""Files that were made to harm: sizes that no memory holds, bombs, names that lead elsewhere, addresses of others."""

import gzip
import io
import resource
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from fedvox.config import load_config, parse_scalar
from fedvox.data.nifti import read_nifti
from fedvox.data.readers import read_volume
from fedvox.errors import ConfigError, DataError, StorageError
from fedvox.storage import locate
from fedvox.training.config import PretrainConfig

SMALL_MIB = 400
READ = """
import resource, sys
from fedvox.data.readers import read_volume
from fedvox.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_volume(sys.argv[1])
except DataError as error:
    print(error.code)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def header(shape, *, offset=352.0, spacing=(1, 1, 1)):
    """A NIfTI-1 header of 16-bit voxels, as a hostile writer fills it."""
    raw = nib.Nifti1Header()
    raw.set_data_dtype(np.int16)
    raw["dim"][: len(shape) + 1] = [len(shape), *shape]
    raw["pixdim"][1:4] = spacing
    raw["magic"] = b"n+1"
    raw.set_sform(np.eye(4), code=1)
    raw["vox_offset"] = offset
    return raw.binaryblock + bytes(4)


def bomb(start, size):
    """`start` and `size` zeros, gzipped a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(start)]
    block = bytes(1 << 22)
    parts += [packer.compress(block) for _ in range(size >> 22)]
    return b"".join([*parts, packer.flush()])


def refused(path):
    """The code with which a file is refused, and by how many MiB the process grew for it."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *code, grown = done.stdout.split()
    return code, int(grown)


@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (32767, 32767, 32767, 32767)])
def test_a_header_that_announces_terabytes_costs_nothing(tmp_path, shape):
    (tmp_path / "huge.nii").write_bytes(header(shape) + bytes(4096))
    with pytest.raises(DataError, match="announces") as caught:
        read_nifti(str(tmp_path / "huge.nii"))
    assert caught.value.code == "truncated"


def test_a_gzip_bomb_that_keeps_its_promise_is_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVOX_MAX_VOLUME_GIB", "0.25")
    (tmp_path / "bomb.nii.gz").write_bytes(bomb(header((1024, 1024, 256)), 512 << 20))
    code, grown = refused(tmp_path / "bomb.nii.gz")
    assert code == ["too_large"]
    assert grown < 100


def test_the_largest_volume_is_sixteen_gib_unless_it_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDVOX_MAX_VOLUME_GIB", raising=False)
    start = gzip.compress(header((3000, 3000, 1000)))
    path = tmp_path / "x.nii.gz"
    path.write_bytes(start + bytes(17_000_000))  # as large as deflate could make 16.8 GiB
    with pytest.raises(DataError, match=r"16\.8 GiB of voxels, more than the 16 GiB") as caught:
        read_nifti(str(path))
    assert "FEDVOX_MAX_VOLUME_GIB" in caught.value.remedy
    monkeypatch.setenv("FEDVOX_MAX_VOLUME_GIB", "much")
    with pytest.raises(ConfigError, match="'much'"):
        read_nifti(str(path))


def test_a_bomb_behind_a_small_volume_is_left_packed(tmp_path):
    """Only what the header asks for is inflated."""
    path = tmp_path / "x.nii.gz"
    path.write_bytes(bomb(header((4, 4, 4)), 256 << 20))
    began = time.perf_counter()
    code, grown = refused(path)
    assert code == []
    assert grown < 100
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -1e9, 3e9])
def test_voxels_that_begin_nowhere_are_no_nifti(tmp_path, offset):
    (tmp_path / "x.nii").write_bytes(header((4, 4, 4), offset=offset) + bytes(256))
    with pytest.raises(DataError) as caught:
        read_nifti(str(tmp_path / "x.nii"))
    assert caught.value.code == "not_nifti"


def ct_slice(path, *, rows, columns, pixels, syntax=ExplicitVRLittleEndian, z=0):
    """A CT slice that may say of itself what it is not."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.{z + 1}"
    meta.TransferSyntaxUID = syntax
    found = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    found.SOPClassUID, found.SOPInstanceUID, found.SeriesInstanceUID = CTImageStorage, f"1.2.3.{z + 1}", "1.2"
    found.Modality, found.Rows, found.Columns = "CT", rows, columns
    found.ImagePositionPatient, found.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    found.PixelSpacing, found.RescaleSlope, found.RescaleIntercept = [1, 1], 1, 0
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 1
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.PixelData = pixels
    found.save_as(path, enforce_file_format=True)


def test_slices_that_announce_more_than_they_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVOX_MAX_VOLUME_GIB", "16")
    for z in range(3):
        ct_slice(tmp_path / f"{z}.dcm", rows=65535, columns=65535, pixels=bytes(64), z=z)
    with pytest.raises(DataError) as caught:
        read_volume(str(tmp_path))
    assert caught.value.code == "too_large"


def test_a_deflated_dicom_file_is_refused_before_it_is_inflated(tmp_path):
    (tmp_path / "series").mkdir()
    size = SMALL_MIB << 20
    ct_slice(
        tmp_path / "series" / "0.dcm",
        rows=8192,
        columns=8192,
        pixels=bytes(size),
        syntax=DeflatedExplicitVRLittleEndian,
    )
    assert (tmp_path / "series" / "0.dcm").stat().st_size < 2 << 20
    code, grown = refused(tmp_path / "series")
    assert code == ["compressed_dicom"]
    assert grown < SMALL_MIB / 2


def laughs(levels=9):
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1)]
    return "\n".join([*lines, f"name: *a{levels}", ""])


@pytest.mark.parametrize("text", [laughs(), "name: " + "[" * 3000, "a: &a [*a]"])
def test_yaml_that_grows_without_end_is_one_clear_error(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"aliases stand for too many values|nested too deeply") as caught:
        load_config(PretrainConfig, path)
    assert len(str(caught.value)) < 1000


def test_yaml_with_honest_aliases_is_read_as_ever():
    text = "base: &base {lr: 1e-3, list: [1, 2]}\na: *base\nb: {<<: *base, lr: 2}\n"
    assert parse_scalar(text) == {
        "base": {"lr": 1e-3, "list": [1, 2]}, "a": {"lr": 1e-3, "list": [1, 2]}, "b": {"lr": 2, "list": [1, 2]},
    }  # fmt: skip


def test_yaml_makes_no_objects():
    with pytest.raises(yaml.YAMLError):
        parse_scalar("!!python/object/apply:os.mkdir [/tmp/never]")


@pytest.mark.parametrize(
    "uri",
    ["http://169.254.169.254/latest/meta-data/x.nii.gz", "https://intranet/x.nii.gz", "ftp://h/x.nii", "gs://b/x.nii",
     "hdfs://namenode/x.nii", "abfs://c/x.nii"],
)  # fmt: skip
def test_no_uri_makes_us_call_another_server(uri):
    with pytest.raises(StorageError, match="unknown scheme"):
        locate(uri)


@pytest.mark.parametrize("uri", ["s3://b/k.nii?endpoint_override=evil:80", "s3://b/k.nii?scheme=http#x"])
def test_an_s3_uri_cannot_choose_the_server(uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert locate(uri).path == uri.removeprefix("s3://")  # part of the key


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(StorageError) as caught:
        locate("s3://AKIAEXAMPLE:c4n4ry@bucket/key")
    assert "c4n4ry" not in str(caught.value)
    assert "AKIAEXAMPLE" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "a/b", "..", ".hidden", "a\0b", "C:x"])
def test_a_case_cannot_be_named_out_of_its_store(tmp_path, name):
    from fedvox.data.sources import _CASE_ID

    assert not _CASE_ID.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["../evil.py", "/evil.py", "platform/../../evil.py", "a\\..\\b.py", "C:/evil.py"]
)
def test_an_app_cannot_be_unpacked_out_of_its_folder(tmp_path, name):
    from fedvox_federation.guard import objection

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, "x")
    assert "leads out of its folder" in objection(packed.getvalue(), tmp_path / "approved.json")


def test_an_app_that_is_a_bomb_is_refused_unopened(tmp_path):
    from fedvox_federation.guard import objection

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("platform/x.py", bytes(201 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert objection(packed.getvalue(), tmp_path / "approved.json") == "it is too large"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 50


def test_a_path_of_this_machine_is_no_bomb(tmp_path):
    """The guards let an ordinary image through."""
    image = nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4))
    nib.save(image, tmp_path / "x.nii.gz")
    assert read_nifti(str(tmp_path / "x.nii.gz")).data.shape == (1, 4, 4, 4)
    assert Path(locate(str(tmp_path)).path) == tmp_path
