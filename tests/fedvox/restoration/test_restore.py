"""`fedvox restore` from files to files: what it writes, and what it refuses."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from fedvox.cli import app
from fedvox.errors import DataError
from fedvox.restoration.kspace import estimated_coils, read_kspace


def save(path, volume, affine=None):
    nib.save(
        nib.Nifti1Image(volume.transpose(2, 1, 0), np.diag([1, 2, 3, 1]) if affine is None else affine), path
    )
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["restore", *map(str, arguments)])


@pytest.fixture
def scan(tmp_path, phantom, kspace_of):
    """A fastMRI file of the phantom with a smooth phase, half of its columns measured."""

    def write(name="scan.h5", *, coils=None, mask=None, **datasets):
        phase = np.exp(1j * np.linspace(-1, 1, 40))
        images = phantom * phase if coils is None else phantom[:, None] * phase * coils
        columns = np.zeros(40, np.float32)
        columns[[2, 7, 11, 14, *range(16, 25), 27, 30, 33, 36, 38]] = 1
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            file["kspace"] = (kspace_of(images) * columns * 0.003).astype(np.complex64)
            file["mask"] = columns if mask is None else mask
            for key, value in datasets.items():
                del file[key]
                file[key] = value
        return path

    return write


def test_a_scan_becomes_image_uncertainty_residual_figure_and_side_car(scan, phantom, released, tmp_path):
    found = run("-i", scan(), "-p", released, "-o", tmp_path / "out", "--samples", 3, "--steps", 6, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["task"] == "reconstruct"
    assert told["data_consistency"] < 0.1
    volumes = {
        name: nib.load(tmp_path / "out" / f"{name}.nii.gz").get_fdata()
        for name in ("image", "uncertainty", "residual")
    }
    assert {v.shape for v in volumes.values()} == {(40, 32, 2)}
    assert volumes["uncertainty"].std() > 0
    image = volumes["image"].transpose(2, 1, 0)
    assert np.corrcoef(image.ravel(), phantom.ravel())[0, 1] > 0.9
    assert image.max() == pytest.approx(0.003 * phantom.max(), rel=0.3)
    assert (tmp_path / "out" / "consistency.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "restoration.json").read_text())["notes"]


def test_fully_measured_kspace_gives_the_image_whatever_the_prior(tmp_path, phantom, kspace_of, released):
    with h5py.File(tmp_path / "full.h5", "w") as file:
        file["kspace"] = kspace_of(phantom).astype(np.complex64)
    options = ("--no-phase", "--noise", "0.0001", "--steps", 4)
    assert run("-i", tmp_path / "full.h5", "-p", released, "-o", tmp_path / "out", *options).exit_code == 0
    image = nib.load(tmp_path / "out" / "image.nii.gz").get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(image, phantom, atol=0.01)


@pytest.mark.parametrize("given", [True, False])
def test_several_coils_are_combined_by_maps_given_or_estimated(scan, phantom, tmp_path, released, given):
    from fedvox.restoration.physics import simulated_coils

    maps = simulated_coils((32, 40), 3).numpy()
    path = scan(coils=maps)
    np.save(tmp_path / "maps.npy", maps)
    coils = ("--coils", tmp_path / "maps.npy") if given else ()
    found = run("-i", path, "-p", released, "-o", tmp_path / "out", "--steps", 6, *coils)
    assert found.exit_code == 0, found.output
    image = nib.load(tmp_path / "out" / "image.nii.gz").get_fdata().transpose(2, 1, 0)
    assert np.corrcoef(image.ravel(), phantom.ravel())[0, 1] > 0.95
    if not given:
        energy = np.square(np.abs(estimated_coils(read_kspace(path)))).sum(axis=1)
        np.testing.assert_allclose(energy, 1, atol=1e-3)


@pytest.mark.parametrize(
    ("task", "options", "shape"),
    [
        ("denoise", ("--noise", "0.05"), (40, 32, 2)),
        ("super-resolution", ("--factor", "3,1,2"), (80, 32, 6)),
        ("inpaint", (), (40, 32, 2)),
    ],
)
def test_magnitude_images_are_restored_on_their_own_grid(task, options, shape, phantom, released, tmp_path):
    path = save(tmp_path / "image.nii.gz", phantom * 100)
    known = np.ones_like(phantom)
    known[0, 10:14, 10:14] = 0
    save(tmp_path / "known.nii.gz", known)
    more = ("--mask", tmp_path / "known.nii.gz") if task == "inpaint" else ()
    out = tmp_path / "out"
    found = run("-i", path, "--task", task, "-p", released, "-o", out, "--steps", 4, *options, *more)
    assert found.exit_code == 0, found.output
    image = nib.load(out / "image.nii.gz")
    assert image.shape == shape
    before, after = nib.load(path), image
    np.testing.assert_allclose(  # the outer corner of the first voxel stays where it is
        before.affine @ [-0.5, -0.5, -0.5, 1], after.affine @ [-0.5, -0.5, -0.5, 1], atol=1e-5
    )
    if task == "super-resolution":
        means = image.get_fdata().reshape(40, 2, 32, 1, 2, 3).mean(axis=(1, 3, 5))
        np.testing.assert_allclose(means, before.get_fdata(), atol=5)


def test_an_image_smaller_than_a_patch_is_one_padded_patch(released, tmp_path, phantom):
    path = save(tmp_path / "small.nii.gz", phantom[:, 10:20, 12:22] * 100)
    found = run(
        "-i", path, "--task", "denoise", "--noise", 0.1, "-p", released, "-o", tmp_path / "o", "--steps", 2
    )
    assert found.exit_code == 0, found.output
    assert nib.load(tmp_path / "o" / "image.nii.gz").shape == (10, 10, 2)


def test_a_dry_run_checks_and_writes_nothing(scan, released, tmp_path):
    found = run(
        "-i", scan(), "-p", released, "-o", tmp_path / "out", "--dry-run", "--json", "--memory-mib", 8
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["expected_mib"] <= 8
    assert not (tmp_path / "out").exists()


def spoilt_cases(tmp_path, scan, phantom):
    image = save(tmp_path / "image.nii.gz", phantom)
    holes = phantom.copy()
    holes[0, 0, 0] = np.nan
    np.save(tmp_path / "mask.npy", np.ones(39, np.float32))
    np.save(tmp_path / "maps.npy", np.full((1, 32, 40), 0.5, np.complex64))
    np.save(tmp_path / "few.npy", np.ones((2, 32, 40), np.complex64))
    bad_kspace = np.full((2, 32, 40), np.nan, np.complex64)
    return {
        "no task": (("-i", image), "needs --task"),
        "magnitude to reconstruct": (("-i", image, "--task", "reconstruct"), "needs complex k-space"),
        "magnitude in HDF5": (("-i", scan("m.h5", kspace=phantom)), "magnitudes, not k-space"),
        "k-space to denoise": (("-i", scan(), "--task", "denoise"), "is k-space"),
        "mask of another shape": (("-i", scan(), "--mask", tmp_path / "mask.npy"), "mask of shape (39,)"),
        "non-finite k-space": (("-i", scan("n.h5", kspace=bad_kspace)), "non-finite k-space"),
        "non-finite image": (("-i", save(tmp_path / "h.nii.gz", holes), "--task", "denoise"), "non-finite voxels"),
        "coils not normalised": (("-i", scan(), "--coils", tmp_path / "maps.npy"), "not normalised"),
        "too many coils": (("-i", scan(), "--coils", tmp_path / "few.npy"), "coil maps of shape"),
        "too small": (
            ("-i", save(tmp_path / "s.nii.gz", phantom[:, :5, :5]), "--task", "denoise"), "too small for any patch",
        ),
        "samples without randomness": (("-i", scan(), "--solver", "pgd", "--samples", 2), "has no randomness"),
        "no such file": (("-i", tmp_path / "gone.h5"), "does not exist"),
    }  # fmt: skip


def test_bad_input_is_refused_with_what_is_wrong_and_what_to_do(tmp_path, scan, phantom, released):
    for name, (arguments, expected) in spoilt_cases(tmp_path, scan, phantom).items():
        found = run(*arguments, "-p", released, "-o", tmp_path / "out")
        told = str(found.exception)
        assert expected in told, (name, told)
        assert found.exception.exit_code == 2, name
        assert found.exception.remedy, name
    assert not (tmp_path / "out").exists()


# ---- ISMRMRD --------------------------------------------------------------------------------------------------

_HEAD = np.dtype(
    [
        ("version", "<u2"), ("flags", "<u8"), ("number_of_samples", "<u2"), ("active_channels", "<u2"),
        ("center_sample", "<u2"),
        ("idx", [("kspace_encode_step_1", "<u2"), ("kspace_encode_step_2", "<u2"), ("slice", "<u2")]),
    ]
)  # fmt: skip
_XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace>
<matrixSize><x>40</x><y>32</y><z>1</z></matrixSize><fieldOfView_mm><x>80</x><y>96</y><z>5</z></fieldOfView_mm>
</encodedSpace></encoding></ismrmrdHeader>"""


def test_ismrmrd_readouts_are_put_where_their_headers_say(tmp_path, phantom, kspace_of):
    kspace = kspace_of(phantom).astype(np.complex64)
    kind = np.dtype([("head", _HEAD), ("data", h5py.vlen_dtype(np.float32))])
    lines = [(s, y) for s in range(2) for y in range(0, 32, 2)]
    rows = np.zeros(len(lines) + 1, kind)
    for row, (s, y) in zip(rows[1:], lines, strict=True):
        row["head"]["active_channels"], row["head"]["center_sample"] = 1, 16  # starts four samples late
        row["head"]["idx"]["kspace_encode_step_1"], row["head"]["idx"]["slice"] = y, s
        row["data"] = kspace[s, y, 4:].copy().view(np.float32)
    rows[0]["head"]["flags"] = 1 << 18  # a noise scan
    rows[0]["data"] = np.ones(8, np.float32)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["dataset/xml"] = np.array([_XML.encode()], dtype=object).astype(h5py.string_dtype())
        file["dataset/data"] = rows
    found = read_kspace(tmp_path / "raw.h5")
    mask = np.zeros((32, 40))
    mask[::2, 4:] = 1
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.data[:, 0], kspace * mask)
    assert found.spacing_mm == (5, 3, 2)


def test_other_hdf5_is_told_from_kspace(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(DataError, match=r"holds no k-space.*\['image'\]"):
        read_kspace(tmp_path / "x.h5")
    (tmp_path / "y.h5").write_text("no")
    with pytest.raises(DataError, match="no readable HDF5"):
        read_kspace(tmp_path / "y.h5")
