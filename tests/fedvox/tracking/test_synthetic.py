"""Simulated follow-ups: the truth is exact, anatomy is respected, and the same seed gives the same bytes."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from fedvox.errors import ConfigError
from fedvox.tracking.lesion_scan import LesionScan
from fedvox.tracking.lesion_types import LESION_TYPES
from fedvox.tracking.synthetic import Change, NewLesion, TrueEvent, follow_up, insert_lesion
from fedvox.tracking.synthetic_series import SeriesOptions, simulate_patient, write_series_dataset

SPACING = (2.0, 1.5, 1.5)


def rng(seed=0):
    return np.random.default_rng(seed)


def organ(shape=(36, 48, 48)):
    """A ball of tissue at level 1 with a little texture, dark outside."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    apart = np.linalg.norm((grid - (np.array(shape) - 1) / 2) * SPACING, axis=-1)
    tissue = apart < 31
    image = np.where(tissue, 1 + 0.03 * rng(9).standard_normal(shape), 0).astype(np.float32)
    return LesionScan(image, np.zeros(shape, np.uint16), tissue, SPACING)


@pytest.fixture(scope="module")
def two_lesions():
    scan = organ()
    scan, _ = insert_lesion(scan, NewLesion("enhancing", 1500.0, (18, 24, 14)), 1, rng(1))
    scan, _ = insert_lesion(scan, NewLesion("hypointense", 900.0, (18, 24, 36)), 2, rng(2))
    return scan


def volume(scan, lesion):
    return np.count_nonzero(scan.lesions == lesion) * scan.voxel_mm3


@pytest.mark.parametrize("kind", LESION_TYPES)
def test_every_kind_is_painted_with_its_volume_in_one_piece_and_can_be_seen(kind):
    scan, did = insert_lesion(organ(), NewLesion(kind, 1200.0), 1, rng())
    assert did
    assert 0.7 * 1200 < volume(scan, 1) <= 1200 + scan.voxel_mm3
    before = organ().image
    assert np.abs(scan.image - before)[scan.lesions == 1].mean() > 0.15
    far = ~(np.abs(scan.image - before) > 0.02)
    assert far[scan.lesions == 0].mean() > 0.97


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.6, 3.0])
def test_a_lesion_reaches_exactly_the_wanted_volume_and_keeps_its_place(two_lesions, factor):
    later = follow_up(two_lesions, {1: Change(volume=factor)}, [], rng()).scan
    count = np.count_nonzero(two_lesions.lesions == 1)
    assert np.count_nonzero(later.lesions == 1) == round(factor * count)
    moved = np.subtract(center_of_mass(later.lesions == 1), center_of_mass(two_lesions.lesions == 1))
    assert np.linalg.norm(moved * SPACING) < 2.5
    np.testing.assert_array_equal(later.lesions == 2, two_lesions.lesions == 2)


def test_the_image_follows_the_mask(two_lesions):
    for factor in (0.4, 2.5):
        later = follow_up(two_lesions, {1: Change(volume=factor)}, [], rng()).scan
        bright = (later.image > 1.3) & (later.lesions != 2)
        mask = later.lesions == 1
        assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.85


def test_growth_stays_within_tissue_and_out_of_other_lesions(two_lesions):
    later = follow_up(two_lesions, {1: Change(volume=6.0)}, [], rng()).scan
    assert later.tissue[later.lesions > 0].all()
    np.testing.assert_array_equal(later.lesions == 2, two_lesions.lesions == 2)
    np.testing.assert_array_equal(later.image[~later.tissue], two_lesions.image[~later.tissue])


def test_a_lesion_that_vanishes_leaves_tissue_like_that_around_it(two_lesions):
    later = follow_up(two_lesions, {1: Change(volume=0)}, [], rng())
    assert later.events == (TrueEvent("vanished", 1),)
    assert later.scan.ids == [2]
    assert later.scan.image[two_lesions.lesions == 1].mean() == pytest.approx(1.0, abs=0.05)


def test_necrosis_darkens_the_middle_and_contrast_scales_the_difference(two_lesions):
    mask = two_lesions.lesions == 1
    dying = follow_up(two_lesions, {1: Change(necrosis=0.3)}, [], rng()).scan
    dark = (dying.image < 0.8) & mask
    assert 0.15 < dark.sum() / mask.sum() < 0.4
    middle = tuple(np.rint(center_of_mass(mask)).astype(int))
    assert dying.image[middle] < 0.6
    fading = follow_up(two_lesions, {1: Change(contrast=0.5)}, [], rng()).scan
    inner = two_lesions.image > 1.5
    assert fading.image[inner & mask].mean() == pytest.approx(1.3, abs=0.06)


def test_lesions_that_appear_split_and_merge_are_told_with_their_ids(two_lesions):
    later = follow_up(
        two_lesions, {2: Change(splits=True)}, [NewLesion("ring", 400.0)], rng(), first_new_id=7
    )
    assert later.events == (TrueEvent("split", 7, 2), TrueEvent("appeared", 8))
    assert later.scan.ids == [1, 2, 7, 8]
    merged = follow_up(later.scan, {2: Change(volume=2.5), 7: Change(volume=2.5)}, [], rng())
    assert TrueEvent("merged", 7, 2) in merged.events or TrueEvent("merged", 2, 7) in merged.events
    assert len(merged.scan.ids) == 3


def test_an_unknown_lesion_and_impossible_changes_are_refused(two_lesions):
    with pytest.raises(ConfigError, match="no lesion 5"):
        follow_up(two_lesions, {5: Change()}, [], rng())
    with pytest.raises(ConfigError):
        Change(volume=-1)
    with pytest.raises(ConfigError, match="lesion type"):
        SeriesOptions(kinds=("wart",))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    options = SeriesOptions(patients=2, visits=2, resolution_mm=4.0, radius_mm=(8.0, 14.0), seed=3)
    return write_series_dataset(tmp_path_factory.mktemp("series") / "lesions", options), options


def hashes(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_data_set_is_a_function_of_its_options_and_goes_on_where_it_was_cut_short(dataset, tmp_path):
    folder, options = dataset
    again = tmp_path / "again"
    again.mkdir()
    (again / "options.json").write_bytes((folder / "options.json").read_bytes())
    write_series_dataset(again, options)
    images = {n: h for n, h in hashes(folder).items() if not n.endswith(".gz")}
    assert images == {n: h for n, h in hashes(again).items() if not n.endswith(".gz")}
    for name in ("patient_001/scan_01.nii.gz", "patient_002/lesions_00.nii.gz"):
        a, b = (np.asarray(nib.load(root / name).dataobj) for root in (folder, again))
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ConfigError, match="another folder"):
        write_series_dataset(folder, SeriesOptions(patients=3))


def test_files_say_what_truth_says(dataset):
    folder, _ = dataset
    truth = json.loads((folder / "patient_001" / "truth.json").read_text())
    series = json.loads((folder / "patient_001" / "series.json").read_text())
    assert [s["date"] for s in series["scans"]] == sorted(s["date"] for s in series["scans"])
    for scan, visit in zip(series["scans"], truth["visits"], strict=True):
        mask = nib.load(folder / "patient_001" / scan["mask"])
        found = np.asarray(mask.dataobj)
        mm3 = np.prod(mask.header.get_zooms())
        volumes = {str(i): pytest.approx(np.count_nonzero(found == i) * mm3) for i in np.unique(found) if i}
        assert visit["volume_mm3"] == volumes
        assert mask.shape == nib.load(folder / "patient_001" / scan["image"]).shape


def test_patients_are_drawn_apart(dataset):
    _, options = dataset
    a, b = simulate_patient(options, 0), simulate_patient(options, 1)
    assert a.visits[0].image.shape == b.visits[0].image.shape
    assert np.abs(a.visits[0].image - b.visits[0].image).mean() > 10
