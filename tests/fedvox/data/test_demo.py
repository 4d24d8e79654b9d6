"""The demo: the brain is nilearn's own, the simulation does what its parameters say, the files are nnU-Net's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedvox.data import demo
from fedvox.data.demo import ORIGINAL, SITES, DemoOptions, load_brain, plan_acquisitions, write_demo
from fedvox.data.ingest_config import SourceConfig
from fedvox.data.simulated_scanner import Acquisition, Head, acquire, with_spacing
from fedvox.data.sources import open_source
from fedvox.errors import ConfigError

OPTIONS = DemoOptions(cases=4, resolution_mm=4.0, seed=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("raw"), OPTIONS)


@pytest.fixture(scope="module")
def brain() -> Head:
    return with_spacing(load_brain(), (4.0, 4.0, 4.0))


def acquisition(**changes) -> Acquisition:
    """One that changes nothing, but for `changes`."""
    still = Acquisition(
        case_id="x", site="site_a", rotation_degrees=(0, 0, 0), scale=(1, 1, 1), deformation_mm=0.0, bias=0.0,
        gamma=1.0, contrast=1.0, noise=0.0, noise_kind="rician", slice_mm=4.0, gain=1.0, orientation="RAS",
        key=(0, 0),
    )  # fmt: skip
    return replace(still, **changes)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


# ---- the files ---------------------------------------------------------------------------------------------


def test_the_held_out_brain_is_nilearns_template_voxel_for_voxel(folder):
    from nilearn.datasets import load_mni152_template

    published = load_mni152_template(resolution=1)
    ours = nib.load(folder / f"imagesTr/{ORIGINAL}_0000.nii.gz")
    np.testing.assert_array_equal(ours.affine, published.affine)
    voxels = np.asarray(ours.dataobj)
    np.testing.assert_allclose(voxels / voxels.max(), published.get_fdata(), atol=1e-6)


def test_its_label_is_the_likelier_tissue_of_nilearns_maps(folder):
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    gray = load_mni152_gm_template(resolution=1).get_fdata()
    white = load_mni152_wm_template(resolution=1).get_fdata()
    label = np.asarray(nib.load(folder / f"labelsTr/{ORIGINAL}.nii.gz").dataobj)
    assert set(np.unique(label)) == {0, 1, 2}
    gray, white = gray / gray.max(), white / white.max()
    assert (gray[label == 1] >= white[label == 1]).all()
    assert (white[label == 2] > gray[label == 2]).all()
    assert np.maximum(gray, white)[label > 0].min() > 0.5
    milliliters = {value: int((label == value).sum()) / 1000 for value in (1, 2)}
    assert (
        700 < milliliters[1] < 1200
    )  # an adult's brain has 600-800 ml of each; the average brain is blurred
    assert 400 < milliliters[2] < 800


def test_it_is_an_nnunet_data_set_with_sites_and_a_fold(folder):
    dataset = open_source(SourceConfig(path=str(folder)))
    assert (dataset.format, dataset.modality, dataset.rejected) == ("nnunet", "MR", ())
    assert {case.case_id: case.source for case in dataset.cases} == {
        ORIGINAL: "mni152",
        "site_a_01": "site_a",
        "site_a_02": "site_a",
        "site_b_01": "site_b",
        "site_c_01": "site_c",
    }
    assert dataset.splits == (
        {"train": ("site_a_01", "site_b_01", "site_c_01", "site_a_02"), "val": (ORIGINAL,)},
    )
    assert [name for name, _ in dataset.labels[dataset.name].structures] == ["gray_matter", "white_matter"]


def test_every_case_comes_with_its_parameters_and_the_grid_they_say(folder):
    for path in sorted((folder / "parameters").iterdir()):
        parameters = json.loads(path.read_text())
        image = nib.load(folder / f"imagesTr/{path.stem}_0000.nii.gz")
        label = nib.load(folder / f"labelsTr/{path.stem}.nii.gz")
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert "".join(nib.aff2axcodes(image.affine)) == parameters["orientation"]
        zooms = np.sqrt((nib.as_closest_canonical(image).affine[:3, :3] ** 2).sum(0))
        np.testing.assert_allclose(zooms, (4, 4, parameters["slice_mm"]))
        assert parameters["slice_mm"] == (8 if parameters["site"] == "site_c" else 4)


def test_provenance_and_the_templates_notice_are_kept(folder):
    told = json.loads((folder / "demo.json").read_text())
    assert told["options"] == {"cases": 4, "resolution_mm": 4.0, "seed": 7}
    assert "McConnell Brain Imaging Centre" in told["notice"]
    assert set(told["template_sha256"]) == {"t1", "gm", "wm"}


def test_the_same_options_give_the_same_bytes_and_another_seed_other_ones(folder, tmp_path):
    assert digest(write_demo(tmp_path / "again", OPTIONS)) == digest(folder)
    other = write_demo(tmp_path / "other", replace(OPTIONS, seed=8))
    one, two = (nib.load(f / "imagesTr/site_a_01_0000.nii.gz").get_fdata() for f in (folder, other))
    assert np.abs(one - two).mean() > 1


def test_an_existing_demo_is_left_alone_and_anything_else_is_not_overwritten(tmp_path, monkeypatch):
    first = write_demo(tmp_path, DemoOptions(cases=1, resolution_mm=4.0))
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    monkeypatch.setattr(demo, "_write", None)  # may not be needed again
    assert write_demo(tmp_path, DemoOptions(cases=1, resolution_mm=4.0)) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    with pytest.raises(ConfigError, match="exists and is no demo data set with these options"):
        write_demo(tmp_path, DemoOptions(cases=2, resolution_mm=4.0))


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path, OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [DemoOptions(cases=0), DemoOptions(resolution_mm=0.5), DemoOptions(resolution_mm=1.1)]
)
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match="at least one case"):
        write_demo(tmp_path, options)


# ---- the simulation ----------------------------------------------------------------------------------------


def test_an_acquisition_that_changes_nothing_returns_the_brain(brain):
    head, image = acquire(brain, acquisition())
    np.testing.assert_allclose(head.t1, brain.t1, atol=1e-4)
    np.testing.assert_allclose(image[brain.t1 > 0.05], brain.t1[brain.t1 > 0.05], atol=1e-4)
    np.testing.assert_array_equal(head.label(), brain.label())


def test_a_scaled_head_has_the_scaled_volume(brain):
    head, _ = acquire(brain, acquisition(scale=(1.05, 0.95, 1.04)))
    ratio = (head.t1 > 0.3).sum() / (brain.t1 > 0.3).sum()
    assert ratio == pytest.approx(1.05 * 0.95 * 1.04, rel=0.02)


def test_a_rotation_tilts_the_head_about_the_middle_of_the_volume(brain):
    head, _ = acquire(brain, acquisition(rotation_degrees=(15, 0, 0)))
    inside = [np.argwhere(one.t1 > 0.3) for one in (brain, head)]
    middles = [voxels.mean(axis=0) for voxels in inside]
    assert np.abs(middles[1] - middles[0]).max() < 3
    # the angle of the (z, y) plane's principal axis is the rotation about x
    axes = [np.linalg.eigh(np.cov((v - m)[:, :2].T))[1][:, 1] for v, m in zip(inside, middles, strict=True)]
    angle = np.degrees(np.arccos(abs(axes[0] @ axes[1])))
    assert angle == pytest.approx(15, abs=4)


def test_image_and_label_are_deformed_alike(brain):
    head, image = acquire(brain, acquisition(deformation_mm=3.5))
    label, before = head.label(), brain.label()
    assert (label != before).mean() > 0.02
    for tissue in (1, 2):  # the deformed label still lies on the intensities of its tissue
        assert image[label == tissue].mean() == pytest.approx(brain.t1[before == tissue].mean(), rel=0.05)
    assert image[label == 2].mean() - image[label == 1].mean() > 0.1


def test_the_deformation_does_not_fold(brain):
    spec = acquisition(deformation_mm=3.5)
    ramps = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in brain.t1.shape), indexing="ij"))
    moved = [acquire(replace(brain, t1=ramp + 100), spec)[0].t1 for ramp in ramps]
    inner = (slice(4, -4),) * 3
    jacobian = np.stack([np.stack([d[inner] for d in np.gradient(field)]) for field in moved])
    assert np.linalg.det(jacobian.transpose(2, 3, 4, 0, 1)).min() > 0.2


def test_the_bias_field_is_smooth_and_as_strong_as_told(brain):
    _, image = acquire(brain, acquisition(bias=0.4))
    inside = brain.t1 > 0.3
    field = np.where(inside, image / np.maximum(brain.t1, 1e-3), np.nan)
    assert 1.1 < np.nanmax(field) <= 1.4 + 1e-3
    assert np.nanmin(field) >= 1 / 1.4 - 1e-3
    steps = np.abs(np.diff(field, axis=1))
    assert np.nanmax(steps) < 0.1  # a voxel of 4 mm


@pytest.mark.parametrize(
    ("kind", "background"), [("rician", np.sqrt(np.pi / 2)), ("gaussian", 1 / np.sqrt(2 * np.pi))]
)
def test_noise_has_the_distribution_of_its_kind(brain, kind, background):
    _, image = acquire(brain, acquisition(noise=0.05, noise_kind=kind))
    bright = brain.t1 > 0.6
    assert (image - brain.t1)[bright].std() == pytest.approx(0.05, rel=0.05)
    air = brain.t1 < 0.001  # magnitude of pure noise: Rayleigh; clipped at 0: half a Gaussian
    assert image[air].mean() == pytest.approx(0.05 * background, rel=0.05)


def test_gamma_and_contrast_change_what_they_say(brain):
    inside = brain.t1 > 0.05
    _, gamma = acquire(brain, acquisition(gamma=1.4))
    np.testing.assert_allclose(gamma[inside], brain.t1[inside] ** 1.4, atol=1e-3)
    _, flat = acquire(brain, acquisition(contrast=0.7))
    assert flat[inside].std() == pytest.approx(0.7 * brain.t1[inside].std(), rel=1e-3)
    assert flat[inside].mean() == pytest.approx(brain.t1[inside].mean(), rel=1e-3)


def test_thick_slices_average_what_they_cover(brain):
    head, image = acquire(brain, acquisition(slice_mm=8.0))
    assert head.spacing_mm == (8.0, 4.0, 4.0)
    depth = brain.t1.shape[0] // 2
    assert image.shape == (depth, *brain.t1.shape[1:])
    pairs = brain.t1[: 2 * depth].reshape(depth, 2, *brain.t1.shape[1:]).mean(axis=1)
    inside = pairs > 0.3
    assert np.corrcoef(image[inside], pairs[inside])[0, 1] > 0.95
    assert head.origin_mm[2] == brain.origin_mm[2] + 2.0  # the middle of the first thick slice


def test_resampling_keeps_the_brain_at_its_place():
    fine = load_brain()
    for spacing in ((2.0, 2.0, 2.0), (4.5, 1.5, 1.5)):
        coarse = with_spacing(fine, spacing)
        assert coarse.spacing_mm == spacing
        centres = []
        for head in (fine, coarse):
            voxel = np.argwhere(head.t1 > 0.3).mean(axis=0)
            centres.append(voxel[::-1] * head.spacing_mm[::-1] + head.origin_mm)
        np.testing.assert_allclose(centres[0], centres[1], atol=0.3)


def test_each_site_has_its_own_fault():
    plans = plan_acquisitions(DemoOptions(cases=9))
    assert [plan.site for plan in plans] == [*SITES] * 3
    by_site = {site: [plan for plan in plans if plan.site == site] for site in SITES}
    assert min(p.bias for p in by_site["site_a"]) > max(
        p.bias for s in ("site_b", "site_c") for p in by_site[s]
    )
    assert all(p.gamma != 1 and p.noise_kind == "gaussian" for p in by_site["site_b"])
    assert all(p.slice_mm == 4 for p in by_site["site_c"])
    assert len({plan.key for plan in plans}) == 9
