"""Voxels that nobody judged: from the label map to the batch, the loss and the validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvox.data.ignore import BATCH_IGNORE, ignore_value, is_foreground, label_dtype
from fedvox.data.loader import BatchStream
from fedvox.data.store import BrickStore, StoreMeta, StoreWriter
from fedvox.errors import DataError
from fedvox.training.loss import IGNORE

META = StoreMeta(
    name="lesions",
    channel_names=("T1",),
    modality="MR",
    structures=("background", "lesion"),
    label_sets={"all": (0, 1)},
    normalization="zscore",
)


@pytest.fixture
def label() -> np.ndarray:
    label = np.zeros((24, 24, 24), np.uint8)
    label[4:9, 4:9, 4:9] = 1
    label[10:20] = META.ignore_index
    return label


@pytest.fixture
def store(tmp_path, label) -> BrickStore:
    image = np.random.default_rng(0).normal(100, 20, (1, 24, 24, 24)).astype(np.float32)
    writer = StoreWriter.create(str(tmp_path), META)
    writer.add_case("a", image, label, source="s", label_set="all", spacing_mm=(1, 1, 1))
    writer.finish()
    return BrickStore.open(str(tmp_path))


def test_the_value_fits_the_stored_type_and_the_type_of_batches():
    for structures, dtype, value in ((2, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 32767)):
        assert label_dtype(structures) == dtype
        assert ignore_value(label_dtype(structures)) == value
        assert np.int16(value) == value
    assert BATCH_IGNORE == IGNORE


def test_foreground_is_neither_background_nor_ignored():
    assert is_foreground(np.array([0, 1, 254, 255], np.uint8)).tolist() == [False, True, True, False]
    assert is_foreground(np.array([0, 255, 32767], np.uint16)).tolist() == [False, True, False]


def test_a_store_counts_and_samples_structures_alone(store, label):
    record = store.record(0)
    assert record.class_voxels == {0: int((label == 0).sum()), 1: 125}
    assert set(store.foreground(0)) == {1}
    image, _ = store.read_patch(0, (0, 0, 0), (24, 24, 24))
    assert record.intensity.foreground[0].mean == pytest.approx(image[0][label == 1].mean(), rel=1e-6)


def test_any_other_value_beyond_the_structures_is_refused(tmp_path, label):
    label[0, 0, 0] = 2
    writer = StoreWriter.create(str(tmp_path), META)
    image = np.zeros((1, 24, 24, 24), np.float32)
    with pytest.raises(DataError, match="label 2 in a store of 2 structures"):
        writer.add_case("a", image, label, source="s", label_set="all", spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_batches_mark_ignored_voxels_with_the_losss_value(store, batch_stream, augment_on):
    seen = set()
    for batch in batch_stream(store, augment_on=augment_on):
        seen |= set(torch.unique(batch.label).tolist())
    assert seen == {IGNORE, 0, 1}


@pytest.fixture
def batch_stream():
    from fedvox.data.augment import AugmentConfig
    from fedvox.data.loader import LoaderConfig
    from fedvox.data.sampler import SamplerConfig

    opened = []

    def start(store: BrickStore, augment_on: str) -> BatchStream:
        stream = BatchStream(
            store,
            SamplerConfig(seed=0, patch_size=(16, 16, 16)),
            AugmentConfig(),
            LoaderConfig(global_batch_size=2, threads=1, prefetch_batches=1, augment_on=augment_on),
            rank=0,
            world_size=1,
            start_step=0,
            num_steps=6,
            device=torch.device("cpu"),
        )
        opened.append(stream)
        return stream

    yield start
    for stream in opened:
        stream.close()
