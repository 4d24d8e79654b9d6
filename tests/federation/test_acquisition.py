"""Scanners of simulated hospitals: what they do to an image, and the store that they leave."""

import numpy as np
import pytest

from fedvox.data.records import StoreMeta
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import ConfigError
from fedvox_federation.acquisition import ScannerEffects, rescan, write_rescanned_store
from fedvox_federation.hospitals import PartitionPlan, partition, read_cases


@pytest.fixture
def image():
    grid = np.stack(np.meshgrid(*[np.linspace(0, 3, 16)] * 3, indexing="ij"))
    return (100 + 20 * np.sin(grid).sum(0))[None].astype(np.float32)


def rng():
    return np.random.default_rng(3)


def test_a_good_scanner_changes_nothing_and_nothing_is_changed_in_place(image):
    before = image.copy()
    assert np.array_equal(rescan(image, ScannerEffects(), rng()), before)
    rescan(
        image, ScannerEffects(bias=0.3, noise=1.0, gamma=2.0, contrast=-0.5, resolution=(0.5, 1, 1)), rng()
    )
    assert np.array_equal(image, before)


def test_the_coil_multiplies_by_a_smooth_field_within_its_range(image):
    field = rescan(image, ScannerEffects(bias=0.4), rng()) / image
    assert 1 / 1.4 - 1e-5 <= field.min() < field.max() <= 1.4 + 1e-5
    assert max(field.max() / 1.4, 1 / 1.4 / field.min()) == pytest.approx(1, abs=1e-4)
    assert np.abs(np.diff(field[0], axis=0)).max() < 0.15


def test_noise_has_the_given_share_of_the_images_deviation(image):
    difference = rescan(image, ScannerEffects(noise=0.5), rng()) - image
    assert difference.std() == pytest.approx(0.5 * image.std(), rel=0.05)
    assert abs(difference.mean()) < 0.1 * image.std()


def test_contrast_and_its_sign(image):
    mean, flat = image.mean(), image - image.mean()
    assert rescan(image, ScannerEffects(contrast=0.5), rng()) == pytest.approx(mean + 0.5 * flat, abs=1e-3)
    turned = rescan(image, ScannerEffects(contrast=-1.0), rng())
    assert turned == pytest.approx(mean - flat, abs=1e-3)


def test_lost_resolution_loses_differences_between_neighbouring_slices():
    alternating = np.zeros((1, 16, 4, 4), np.float32)
    alternating[:, ::2] = 1
    thick = rescan(alternating, ScannerEffects(resolution=(0.25, 1, 1)), rng())
    assert np.abs(np.diff(thick, axis=1)).max() < 0.5 * np.abs(np.diff(alternating, axis=1)).max()


def test_the_same_random_numbers_give_the_same_image(image):
    effects = ScannerEffects(bias=0.3, noise=0.2)
    assert np.array_equal(rescan(image, effects, rng()), rescan(image, effects, rng()))
    assert not np.array_equal(rescan(image, effects, rng()), rescan(image, effects, np.random.default_rng(4)))


@pytest.mark.parametrize("wrong", [{"bias": -1}, {"gamma": 0}, {"noise": -0.1}, {"resolution": (0, 1, 1)}])
def test_effects_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError):
        ScannerEffects(**wrong)


@pytest.fixture
def store(tmp_path):
    writer = StoreWriter.create(
        str(tmp_path / "store"),
        StoreMeta("test", ("T1",), "MR", ("background", "ball"), {"all": (0, 1)}, "zscore", (1.0, 1.0, 1.0)),
    )
    for number in range(4):
        image = np.random.default_rng(number).integers(0, 500, (1, 10, 10, 10)).astype(np.int16)
        label = (image[0] > 250).astype(np.uint8)
        writer.add_case(
            f"case{number}", image, label, source="one", label_set="all", spacing_mm=(1.0, 1.0, 1.0)
        )
    writer.finish()
    return BrickStore.open(str(tmp_path / "store"))


def test_a_rescanned_store_has_the_same_labels_and_one_source_a_hospital(store, tmp_path):
    dealt = partition(read_cases(store), PartitionPlan("iid", 2))
    worn = {"hospital_02": ScannerEffects(noise=0.5)}
    made = write_rescanned_store(store, dealt, worn, str(tmp_path / "made"))
    again = partition(read_cases(made), PartitionPlan("acquisition", 2))
    names = {name: sorted(made.case_ids[row] for row in rows) for name, rows in again.items()}
    assert names == {name: sorted(store.case_ids[row] for row in rows) for name, rows in dealt.items()}
    for name, rows in dealt.items():
        for row in rows:
            at = list(made.case_ids).index(store.case_ids[row])
            before, label = store.read_patch(row, (0, 0, 0), (10, 10, 10))
            after, kept = made.read_patch(at, (0, 0, 0), (10, 10, 10))
            assert after.dtype == before.dtype
            assert np.array_equal(label, kept)
            assert np.array_equal(before, after) is (name == "hospital_01")


def test_effects_of_a_hospital_that_is_not_there_are_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="no hospital 'x'"):
        write_rescanned_store(store, {"a": (0,)}, {"x": ScannerEffects()}, str(tmp_path / "made"))
