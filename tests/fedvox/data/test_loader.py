"""The loader on a real brick store: order, determinism, resuming, damage, threads that end."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch

from fedvox.data.augment import AugmentConfig
from fedvox.data.cache import CacheConfig
from fedvox.data.intensity import ChannelIntensity
from fedvox.data.loader import Batch, BatchStream, LoaderConfig, replay
from fedvox.data.loader_samples import SampleSource
from fedvox.data.sampler import CounterSampler, SamplerConfig
from fedvox.data.store import BrickStore, StoreMeta, StoreWriter
from fedvox.errors import ConfigError, DamagedCase, RunError, StorageError

PATCH = (16, 20, 16)
SAMPLER = SamplerConfig(seed=5, patch_size=PATCH)
AUGMENT = AugmentConfig(rotation_probability=0.4, noise_probability=0.3, blur_probability=0.4)
PLAIN = AugmentConfig(enabled=False)
META = StoreMeta(
    name="demo",
    channel_names=("a", "b"),
    modality="CT",
    structures=("background", "liver", "spleen", "kidney"),
    label_sets={"abdomen": (0, 1, 2), "kidneys": (0, 3)},
    normalization="ct",
    intensity=(ChannelIntensity(0, 300, -1000, 1000, -900, 900),) * 2,
)


def write_store(folder, cases=7) -> str:
    """Cases of different sizes, the last without a label; two sources which annotate different structures."""
    writer = StoreWriter.create(str(folder), META)
    rng = np.random.default_rng(0)
    for n in range(cases):
        shape = (40 + n, 44, 70)
        image = rng.normal(0, 300, (2, *shape)).astype(np.int16)
        kidneys = n % 3 == 2
        label = np.zeros(shape, np.uint8)
        label[10:20, 5:30, 20 + n : 60] = 3 if kidneys else 1
        label[30:36, 10:14, 3:9] = 3 if kidneys else 2
        writer.add_case(
            f"case_{n}", image, None if n == cases - 1 else label, source="K" if kidneys else "A",
            label_set="kidneys" if kidneys else "abdomen", spacing_mm=(1.0, 1.0, 1.0),
        )  # fmt: skip
    writer.finish()
    return str(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> BrickStore:
    return BrickStore.open(write_store(tmp_path_factory.mktemp("store")))


def stream(store, batch=4, threads=2, augment=AUGMENT, prefetch=2, on="cpu", **where) -> BatchStream:
    loader = LoaderConfig(batch, threads, prefetch, on)
    return BatchStream(store, SAMPLER, augment, loader, **{"num_steps": 5, **where})


def collect(store, **how) -> list[Batch]:
    with stream(store, **how) as batches:
        return list(batches)


def same(a: Batch, b: Batch) -> bool:
    tensors = zip(
        (a.image, a.label, a.annotated, a.indices), (b.image, b.label, b.annotated, b.indices), strict=True
    )
    return a.case_ids == b.case_ids and all(torch.equal(x, y) for x, y in tensors)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fedvox-loader")]


class Slowed:
    """A store whose reads go through a function first."""

    def __init__(self, store: BrickStore, before_read) -> None:
        self._store, self._before_read = store, before_read

    def __getattr__(self, name):
        return getattr(self._store, name)

    def __len__(self):
        return len(self._store)

    def read_patch(self, i, start, size):
        self._before_read(i)
        return self._store.read_patch(i, start, size)


# What is in a batch


def test_a_batch_holds_what_the_contract_says(store):
    batch = collect(store)[0]
    assert batch.image.shape == (4, 2, *PATCH)
    assert batch.label.shape == (4, 1, *PATCH)
    assert (batch.image.dtype, batch.label.dtype) == (torch.float32, torch.int16)
    assert batch.indices.tolist() == [0, 1, 2, 3]
    for case_id, annotated in zip(batch.case_ids, batch.annotated, strict=True):
        kidneys = int(case_id[-1]) % 3 == 2
        assert annotated.tolist() == ([True, False, False, True] if kidneys else [True, True, True, False])


def test_without_augmentation_patches_are_cut_out_of_the_whole_volume_and_normalised(store):
    drawn = CounterSampler(store, SAMPLER)
    for batch in collect(store, augment=PLAIN):
        for index, image, label in zip(batch.indices.tolist(), batch.image, batch.label, strict=True):
            row = drawn.case(index)
            whole, segmentation = store.reader(row).read_all()
            box = tuple(slice(s, s + n) for s, n in zip(drawn.start(index), PATCH, strict=True))
            expected = np.clip(whole[(slice(None), *box)], -900, 900) / 300
            np.testing.assert_allclose(image, expected, atol=1e-6)
            np.testing.assert_array_equal(label[0], 0 if segmentation is None else segmentation[box])


def test_augmented_patches_keep_the_statistics_that_the_stored_voxels_have(store):
    """Mirrored, rotated and scaled patches are of the right place and case: all voxels are N(0, 1), clipped."""
    images = torch.cat([batch.image for batch in collect(store, num_steps=6)])
    assert abs(float(images.mean())) < 0.05
    assert 0.6 < float(images.std()) < 1.1


def test_samples_forced_to_foreground_show_an_annotated_structure(store):
    drawn = CounterSampler(store, SAMPLER)
    forced, others = [], []
    for batch in collect(store, augment=PLAIN, num_steps=14):
        for index, case_id, label in zip(batch.indices.tolist(), batch.case_ids, batch.label, strict=True):
            if case_id != "case_6":
                (forced if drawn.force_foreground(index) else others).append(bool(label.any()))
    assert all(forced)
    assert len(forced) > 10
    assert not all(others)


def test_a_case_without_a_label_is_background(store):
    batches = collect(store, augment=PLAIN, num_steps=14)
    labels = [
        label for b in batches for label, case in zip(b.label, b.case_ids, strict=True) if case == "case_6"
    ]
    assert labels
    assert not any(label.any() for label in labels)


# The same samples, whatever the circumstances


@pytest.mark.parametrize(
    "how",
    [
        {"threads": 0},
        {"threads": 1, "prefetch": 1},
        {"threads": 5, "prefetch": 4},
        {"threads": 3, "on": "device"},
        {"threads": 0, "on": "device"},
    ],
)
def test_threads_prefetching_and_where_augmentation_runs_change_no_bit(store, how):
    expected, found = collect(store), collect(store, **how)
    assert len(expected) == len(found) == 5
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_number_of_workers_changes_no_sample(store, world):
    whole = collect(store)
    parts = [collect(store, rank=rank, world_size=world, threads=1) for rank in range(world)]
    for step, expected in enumerate(whole):
        for rank in range(world):
            mine = parts[rank][step]
            assert torch.equal(mine.indices, expected.indices[rank::world])
            assert torch.equal(mine.image, expected.image[rank::world])
            assert torch.equal(mine.label, expected.label[rank::world])


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_resumed_at_any_step_sees_what_the_uninterrupted_one_would_have(store, step):
    whole = collect(store)
    resumed = collect(store, start_step=step, num_steps=5 - step)
    assert all(same(a, b) for a, b in zip(whole[step:], resumed, strict=True))


def test_a_sample_replayed_alone_is_the_sample_of_the_run(store):
    whole = collect(store)
    for index in (13, 2, 19):
        alone, batch = replay(store, SAMPLER, AUGMENT, index), whole[index // 4]
        assert alone.case_ids == [batch.case_ids[index % 4]]
        assert torch.equal(alone.image[0], batch.image[index % 4])
        assert torch.equal(alone.label[0], batch.label[index % 4])


def test_a_stall_of_the_storage_reorders_nothing(store):
    """Reads take times that have nothing to do with their order, as when some requests are retried."""
    delays = np.random.default_rng(1).uniform(0, 0.03, 1000).tolist()
    slow = Slowed(store, lambda _: time.sleep(delays.pop()))
    assert all(same(a, b) for a, b in zip(collect(store), collect(slow, threads=4, prefetch=3), strict=True))


def test_samples_that_wait_for_a_thread_are_fetched_meanwhile(
    s3_server, bucket, store, tmp_path, monkeypatch
):
    """The threads are held up; once they may go on, the server is gone, and nobody notices."""
    cache = CacheConfig(str(tmp_path), 0.5, prefetch_threads=2)
    remote = BrickStore.open(write_store(f"{bucket}/store"), cache=cache)
    may_read, fetchers_idle = threading.Event(), threading.Barrier(3)
    read = SampleSource.read
    monkeypatch.setattr(SampleSource, "read", lambda self, index: may_read.wait(60) and read(self, index))
    with stream(remote, num_steps=2) as batches:
        for _ in range(2):
            remote.ahead(lambda: fetchers_idle.wait(60))
        fetchers_idle.wait(60)
        s3_server.stop()
        may_read.set()
        found = list(batches)
        s3_server.start()
    monkeypatch.undo()
    assert all(map(same, found, collect(store, num_steps=2)))
    assert len(found) == 2


@pytest.mark.parametrize("fetchers", [0, 1])
def test_nothing_is_fetched_ahead_without_threads_for_it_or_after_the_end(
    bucket, tmp_path, monkeypatch, fetchers
):
    cache = CacheConfig(str(tmp_path), 0.5, prefetch_threads=fetchers)
    remote = BrickStore.open(write_store(f"{bucket}/store"), cache=cache)
    asked, busy, done = [], threading.Event(), threading.Event()
    monkeypatch.setattr(SampleSource, "bring", lambda _self, index: asked.append(index))
    remote.ahead(lambda: busy.wait(60))
    stream(remote, num_steps=2).close()
    busy.set()
    remote.ahead(done.set)
    assert done.wait(60 if fetchers else 0.1) == bool(fetchers)
    assert asked == []


def test_a_split_s_rows_alone_are_loaded(store):
    batches = collect(store, rows=np.array([1, 4]))
    assert {case for batch in batches for case in batch.case_ids} == {"case_1", "case_4"}


# Waiting, prefetching


def test_no_more_is_read_ahead_than_was_asked_for(store):
    reads = []
    with stream(Slowed(store, reads.append), batch=2, prefetch=3, num_steps=50) as batches:
        next(batches)
        deadline = time.monotonic() + 5
        while len(reads) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(reads) == 2 * (1 + 3)


def test_the_time_waited_for_data_is_told(store):
    slow = Slowed(store, lambda _: time.sleep(0.15))
    with stream(slow, batch=1, threads=1, prefetch=1, num_steps=3) as batches:
        waits = []
        for batch in batches:
            waits.append(batch.wait_s)
            if len(waits) == 2:
                time.sleep(0.8)  # the third is ready when it is asked for
    assert waits[1] > 0.1
    assert waits[2] < 0.1
    assert batches.waited_s == pytest.approx(sum(waits))


def test_the_caller_s_torch_threads_are_left_alone_and_workers_use_one(store):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        list(stream(Slowed(store, lambda _: seen.append(torch.get_num_threads()))))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        started_later = []
        thread = threading.Thread(target=lambda: started_later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert started_later == [2]
    finally:
        torch.set_num_threads(before)


# Damage and failures


@pytest.fixture
def damaged(tmp_path) -> BrickStore:
    """The same cases, of which one has a byte turned over in the middle of each brick, and one is cut short."""
    folder = tmp_path / "store"
    write_store(folder)
    turned, cut = folder / "cases" / "case_3.arrow", folder / "cases" / "case_5.arrow"
    data = bytearray(turned.read_bytes())
    for position in range(2000, len(data) - 20_000, 97):
        data[position] ^= 0xFF
    turned.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:-5000])
    return BrickStore.open(str(folder))


def test_damaged_cases_are_replaced_counted_and_named_and_nothing_else_changes(store, damaged):
    sound = collect(store, num_steps=7)
    with stream(damaged, num_steps=7) as batches:
        found = list(batches)
    assert set(batches.damaged) == {"case_3", "case_5"}
    assert all("case_" in reason for reason in batches.damaged.values())
    replaced = 0
    for a, b in zip(sound, found, strict=True):
        for k, case_id in enumerate(a.case_ids):
            if case_id in ("case_3", "case_5"):
                replaced += 1
                assert b.case_ids[k] not in ("case_3", "case_5")
                assert (int(b.case_ids[k][-1]) % 3 == 2) == (int(case_id[-1]) % 3 == 2)  # of the same source
            else:
                assert b.case_ids[k] == case_id
                assert torch.equal(a.image[k], b.image[k])
    assert batches.skipped == replaced > 0


def test_the_replacement_of_a_damaged_case_is_the_same_in_every_run(damaged):
    first = collect(damaged, num_steps=7)
    again = collect(damaged, num_steps=3, start_step=4, threads=4, prefetch=3)
    assert all(same(a, b) for a, b in zip(first[4:], again, strict=True))


def test_a_store_of_damaged_cases_alone_stops_the_run(tmp_path):
    folder = tmp_path / "store"
    write_store(folder)
    for path in (folder / "cases").iterdir():
        path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DamagedCase, match="in a row"):
        collect(BrickStore.open(str(folder)))


def test_an_unexpected_failure_reaches_the_consumer_at_its_step_and_names_the_case(store):
    def fail(row):
        if row == failing_row:
            raise ZeroDivisionError("a bug")

    healthy = collect(store, batch=2)
    failing_case = next(c for c in healthy[2].case_ids if c not in healthy[0].case_ids + healthy[1].case_ids)
    failing_row = int(failing_case[-1])
    batches = stream(Slowed(store, fail), batch=2, threads=3, prefetch=4)
    assert same(next(batches), healthy[0])
    assert same(next(batches), healthy[1])
    with pytest.raises(RunError, match=f"{failing_case}.*ZeroDivisionError") as caught:
        next(batches)
    assert "replay" in caught.value.remedy
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert loader_threads() == []
    assert list(batches) == []


def test_an_error_of_the_storage_keeps_its_class_and_its_remedy(store):
    def fail(row):
        raise StorageError("s3://bucket: access is denied", "Grant access.")

    with pytest.raises(StorageError, match=r"sample 0 \(case 'case_\d'\): s3://bucket") as caught:
        collect(Slowed(store, fail))
    assert caught.value.remedy == "Grant access."


# Threads end


def test_the_end_of_the_stream_ends_its_threads(store):
    batches = stream(store, threads=3)
    assert len(loader_threads()) == 3
    assert len(list(batches)) == 5
    assert loader_threads() == []
    batches.close()


def test_closing_in_the_middle_of_a_read_waits_for_it_and_ends_all_threads(store):
    reading = threading.Event()

    def slow(_):
        reading.set()
        time.sleep(0.3)

    batches = stream(Slowed(store, slow), threads=3, num_steps=100)
    assert reading.wait(5)
    batches.close()
    assert loader_threads() == []
    assert list(batches) == []


def test_closing_from_another_thread_releases_a_waiting_consumer(store):
    release, got = threading.Event(), []
    batches = stream(Slowed(store, lambda _: release.wait(5)), threads=2, num_steps=100)
    consumer = threading.Thread(target=lambda: got.extend(batches))
    consumer.start()
    time.sleep(0.05)
    threading.Timer(0.2, release.set).start()
    batches.close()
    consumer.join(5)
    assert not consumer.is_alive()
    assert got == []


def test_a_read_that_never_returns_does_not_hold_up_closing_for_ever(store, caplog, monkeypatch):
    monkeypatch.setattr(BatchStream, "CLOSE_TIMEOUT_S", 0.2)
    release, reading = threading.Event(), threading.Event()
    batches = stream(Slowed(store, lambda _: (reading.set(), release.wait())), threads=2, num_steps=100)
    assert reading.wait(5)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 5
    assert "still read" in caplog.text
    threads = loader_threads()
    assert threads
    assert all(thread.daemon for thread in threads)
    release.set()
    for thread in threads:
        thread.join(5)
    assert loader_threads() == []


def test_a_stream_that_is_dropped_leaves_no_threads_behind(store):
    batches = stream(store, threads=2, num_steps=100)
    next(batches)
    threads = loader_threads()
    assert threads
    del batches
    gc.collect()
    for thread in threads:
        thread.join(5)
    assert loader_threads() == []


# Refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [("global_batch_size", 0), ("threads", -1), ("prefetch_batches", 0), ("augment_on", "gpu")],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        LoaderConfig(**{"global_batch_size": 2, field: value})
    assert caught.value.remedy


def test_a_worker_without_samples_is_refused_before_threads_start(store):
    with pytest.raises(ConfigError, match="worker 2 of 3"):
        stream(store, batch=2, rank=2, world_size=3)
    assert loader_threads() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("on", ["cpu", "device"])
def test_batches_on_a_gpu_are_those_of_the_cpu(store, on):
    quiet = AugmentConfig(noise_probability=0, rotation_probability=0.5)
    for a, b in zip(
        collect(store, augment=quiet), collect(store, augment=quiet, on=on, device="cuda"), strict=True
    ):
        assert b.image.is_cuda
        np.testing.assert_allclose(b.image.cpu(), a.image, atol=2e-3)
        assert torch.mean((b.label.cpu() != a.label).float()) < 1e-3
