import json
import pickle
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvox.data.intensity import measure_intensity
from fedvox.data.records import CaseRecord
from fedvox.data.store import BrickStore, StoreMeta, StoreWriter
from fedvox.data.store_writer import MANIFEST_FILE, manifest_bytes
from fedvox.errors import DamagedCase, DataError, StorageError
from fedvox.storage import delete, exists, list_files, locate, read_bytes, upload_file, write_atomic

META = StoreMeta(
    name="demo",
    channel_names=("ct",),
    modality="CT",
    structures=("background", "liver", "spleen"),
    label_sets={"all": (0, 1, 2), "liver only": (0, 1)},
    normalization="ct",
)


def case(seed, shape=(40, 50, 36)):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 200, (1, *shape)).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[5:15, 5:25, 5:20] = 1
    label[20:30, 20:30, 10:20] = 2
    return image, label


def add(writer, case_id, seed=0, **changes):
    image, label = case(seed)
    options = {"source": "site_a", "label_set": "all", "spacing_mm": (2.0, 0.7, 0.7)} | changes
    return writer.add_case(case_id, image, options.pop("label", label), **options)


@pytest.fixture(params=["local", "pyarrow", "s3fs"])
def place(request, tmp_path):
    """(uri, backend) of an empty place on each kind of storage."""
    if request.param == "local":
        return str(tmp_path / "store"), "pyarrow"
    return request.getfixturevalue("bucket") + "/store", request.param


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "store")


class TestWritingAndReading:
    def test_what_was_added_is_read_on_every_storage(self, place):
        uri, backend = place
        writer = StoreWriter.create(uri, META, backend=backend)
        records = {}
        for k in range(3):
            records[f"c{k}"] = add(
                writer,
                f"c{k}",
                k,
                source=["site_b", "site_a"][k % 2],
                label_set=["all", "liver only"][k == 2],
            )
        final = writer.finish()
        store = BrickStore.open(uri, backend=backend)
        assert store.meta == final
        assert len(store) == 3
        assert list(store.case_ids) == ["c0", "c1", "c2"]
        assert list(store.case_ids[1:]) == ["c1", "c2"]
        assert [store.source_names[code] for code in store.sources] == ["site_b", "site_a", "site_b"]
        assert store.annotated(0).tolist() == [True, True, True]
        assert store.annotated(2).tolist() == [True, True, False]
        assert store.shapes.tolist() == [[40, 50, 36]] * 3
        for k in range(3):
            image, label = case(k)
            assert store.record(k) == records[f"c{k}"]
            assert store.intensity(k) == records[f"c{k}"].intensity
            read_image, read_label = store.read_patch(k, (-3, 0, 0), (43, 50, 36))
            np.testing.assert_array_equal(read_image[:, 3:], image)
            np.testing.assert_array_equal(read_label[3:], label)
            assert sorted(store.foreground(k)) == [1, 2]

    def test_the_record_tells_the_truth(self, uri):
        record = add(StoreWriter.create(uri, META), "c", 7, origin="a.nii.gz")
        image, label = case(7)
        inside = image[0][label > 0].astype(np.float64)
        assert record.class_voxels == {0: label.size - 3000 - 1000, 1: 3000, 2: 1000}
        assert record.shape == (40, 50, 36)
        assert record.num_bytes == len(read_bytes(locate(uri).child("cases", "c.arrow")))
        (statistics,) = record.intensity.foreground
        assert statistics.mean == pytest.approx(inside.mean())
        assert statistics.std == pytest.approx(inside.std())
        assert (statistics.min, statistics.max) == (inside.min(), inside.max())
        assert (statistics.p005, statistics.p995) == tuple(np.percentile(inside, [0.5, 99.5]))
        assert record.intensity.whole[0].mean == pytest.approx(image.mean(dtype=np.float64))
        assert CaseRecord.from_json(record.to_json()) == record
        assert CaseRecord.from_row(record.to_row()) == record

    def test_without_foreground_the_whole_image_is_measured(self):
        image, label = case(0)
        assert measure_intensity(image, None).foreground == measure_intensity(image, None).whole
        assert (
            measure_intensity(image, np.zeros_like(label)).foreground == measure_intensity(image, label).whole
        )

    def test_unlabelled_cases_are_stored(self, uri):
        writer = StoreWriter.create(uri, META)
        record = add(writer, "c", label=None)
        writer.finish()
        assert record.class_voxels == {}
        assert BrickStore.open(uri).read_patch(0, (0, 0, 0), (8, 8, 8))[1] is None

    def test_the_description_survives_json(self, uri):
        meta = replace(META, spacing_mm=(1.0, 1.0, 1.0), intensity=measure_intensity(*case(0)).whole)
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        final = writer.finish(meta)
        assert BrickStore.open(uri).meta == final
        assert replace(final, created="", fedvox_version="") == meta
        assert final.created.endswith("+00:00")


class TestStoppingAndResuming:
    def test_a_finished_case_is_not_written_again(self, uri):
        writer = StoreWriter.create(uri, META)
        record = add(writer, "c", origin="x")
        path = locate(uri).child("cases", "c.arrow").local_path
        before = path.stat().st_mtime_ns
        assert add(StoreWriter.create(uri, META), "c", seed=99, origin="x") == record
        assert path.stat().st_mtime_ns == before

    def test_another_origin_writes_it_again(self, uri):
        writer = StoreWriter.create(uri, META)
        first = add(writer, "c", origin="x")
        second = add(writer, "c", seed=99, origin="y")
        assert second.sha256 != first.sha256
        assert writer.finished("c") == second
        assert writer.finished("c", origin="x") is None

    def test_a_case_without_its_record_is_not_done(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        delete(locate(uri).child("records", "c.json"))
        assert writer.finished("c") is None
        with pytest.raises(DataError, match="no case has been written"):
            writer.finish()

    def test_before_finish_there_is_no_store(self, uri):
        add(StoreWriter.create(uri, META), "c")
        with pytest.raises(DataError, match="no finished store") as caught:
            BrickStore.open(uri)
        assert caught.value.code == "no_store"

    def test_processes_fill_one_store_side_by_side(self, uri):
        code = """
import sys, numpy as np
from fedvox.data.store import *
meta = StoreMeta("demo", ("ct",), "CT", ("background", "liver", "spleen"), {"all": (0, 1, 2)}, "ct")
writer = StoreWriter.create(sys.argv[1], meta)
for k in range(int(sys.argv[2]), 12, 3):
    image = np.full((1, 40, 40, 40), k, np.int16); image[0, 0, 0, :5] = 9999
    writer.add_case(f"c{k:02}", image, None, source="s", label_set="all", spacing_mm=(1., 1., 1.))
"""
        started = [subprocess.Popen([sys.executable, "-c", code, uri, str(k)]) for k in range(3)]
        assert [one.wait(60) for one in started] == [0, 0, 0]
        StoreWriter.create(uri, META).finish()
        store = BrickStore.open(uri)
        assert list(store.case_ids) == [f"c{k:02}" for k in range(12)]
        for k in range(12):
            assert store.read_patch(k, (20, 20, 20), (2, 2, 2))[0].tolist() == [[[[k, k], [k, k]]] * 2]

    def test_a_killed_writer_is_resumed(self, uri):
        code = """
import sys, numpy as np
from fedvox.data.store import *
meta = StoreMeta("demo", ("ct",), "CT", ("background",), {"all": (0,)}, "ct")
writer = StoreWriter.create(sys.argv[1], meta)
for k in range(100):
    image = np.random.default_rng(k).integers(0, 999, (1, 64, 64, 64)).astype(np.int16)
    writer.add_case(f"c{k:02}", image, None, source="s", label_set="all", spacing_mm=(1., 1., 1.))
    print(k, flush=True)
"""
        process = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        meta = replace(META, structures=("background",), label_sets={"all": (0,)})
        writer = StoreWriter.create(uri, meta)
        done = [k for k in range(100) if writer.finished(f"c{k:02}")]
        assert done == list(range(len(done)))
        assert len(done) >= 3
        for k in range(len(done) + 2):
            image = np.random.default_rng(k).integers(0, 999, (1, 64, 64, 64)).astype(np.int16)
            writer.add_case(f"c{k:02}", image, None, source="s", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
        writer.finish()
        store = BrickStore.open(uri)
        for k in range(len(store)):
            expected = np.random.default_rng(k).integers(0, 999, (1, 64, 64, 64))
            np.testing.assert_array_equal(store.reader(k).read_all()[0], expected)

    def test_the_same_cases_make_the_same_manifest(self, tmp_path):
        manifests = []
        for order in ((0, 1, 2), (2, 0, 1)):
            uri = str(tmp_path / str(order[0]))
            writer = StoreWriter.create(uri, META)
            for k in order:
                add(writer, f"c{k}", k)
            writer.finish()
            manifests.append(read_bytes(locate(uri).child(MANIFEST_FILE)))
        assert manifests[0] == manifests[1]

    def test_only_the_named_cases_are_listed(self, uri):
        writer = StoreWriter.create(uri, META)
        for k in range(3):
            add(writer, f"c{k}", k)
        writer.finish(case_ids=["c2", "c0"])
        assert list(BrickStore.open(uri).case_ids) == ["c0", "c2"]
        with pytest.raises(DataError, match="2 cases are not written, the first 'x'"):
            writer.finish(case_ids=["c0", "x", "y"])


class TestWhatIsRefused:
    def test_a_folder_with_another_store(self, uri):
        add(StoreWriter.create(uri, META), "c")
        other = replace(META, name="other", structures=("background", "heart"))
        with pytest.raises(DataError, match="other channels, modality or structures") as caught:
            StoreWriter.create(uri, other)
        assert caught.value.code == "other_store"

    @pytest.mark.parametrize("case_id", ["", "../x", "a/b", ".hidden", "a b", "x" * 201])
    def test_case_ids_that_are_no_file_names(self, uri, case_id):
        with pytest.raises(DataError, match="cannot be a file name"):
            add(StoreWriter.create(uri, META), case_id)

    def test_an_unknown_label_set(self, uri):
        with pytest.raises(DataError, match="unknown label set 'kidney'") as caught:
            add(StoreWriter.create(uri, META), "c", label_set="kidney")
        assert "liver only" in caught.value.remedy

    def test_a_label_beyond_the_structures(self, uri):
        label = case(0)[1]
        label[0, 0, 0] = 3
        with pytest.raises(DataError, match="label 3 in a store of 3 structures"):
            add(StoreWriter.create(uri, META), "c", label=label)

    def test_another_number_of_channels(self, uri):
        writer = StoreWriter.create(uri, META)
        with pytest.raises(DataError, match="2 channels in a store of 1"):
            writer.add_case(
                "c",
                np.zeros((2, 4, 4, 4), np.int16),
                None,
                source="s",
                label_set="all",
                spacing_mm=(1.0, 1.0, 1.0),
            )

    def test_a_store_of_a_newer_version(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        writer.finish(replace(META, schema_version=99))
        with pytest.raises(DataError, match="schema version 99"):
            BrickStore.open(uri)

    def test_a_manifest_that_is_no_parquet(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        writer.finish()
        write_atomic(locate(uri).child(MANIFEST_FILE), b"no parquet")
        with pytest.raises(DataError, match=r"manifest\.parquet"):
            BrickStore.open(uri)

    @pytest.mark.parametrize(
        "text", [b'{"name":', b"{}", b"[1]", b'{"schema_version": 1, "spacing_mm": 3}', b"\xff"]
    )
    def test_a_damaged_description_is_named_with_its_remedy(self, uri, text):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        writer.finish()
        write_atomic(locate(uri).child("store.json"), text)
        with pytest.raises(DataError, match=r"store\.json: is damaged.*\n.*run the ingest again"):
            BrickStore.open(uri)
        write_atomic(locate(uri).child("store.draft.json"), text)
        with pytest.raises(DataError, match=r"store\.draft\.json: is damaged"):
            StoreWriter.create(uri, META)

    @pytest.mark.parametrize("place", [slice(40, 300), slice(-200, -60)], ids=["pages", "footer"])
    def test_a_manifest_damaged_inside_is_not_taken_for_a_server_out_of_reach(self, uri, place):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        writer.finish()
        manifest = locate(uri).child(MANIFEST_FILE)
        data = bytearray(read_bytes(manifest))
        data[place] = bytes(byte ^ 0x5A for byte in data[place])
        write_atomic(manifest, bytes(data))
        with pytest.raises(DataError, match=r"manifest\.parquet.*\n.*Run the ingest again"):
            BrickStore.open(uri)

    def test_a_manifest_of_other_columns_or_label_sets_or_none_at_all(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        writer.finish()
        manifest = locate(uri).child(MANIFEST_FILE)
        table = pq.read_table(manifest.local_path)
        pq.write_table(table.drop_columns(["shape"]), manifest.local_path)
        with pytest.raises(DataError, match="lacks shape"):
            BrickStore.open(uri)
        pq.write_table(table, manifest.local_path)
        writer.finish(replace(META, label_sets={"other": (0,)}))
        with pytest.raises(DataError, match=r"label sets \['all'\] are unknown"):
            BrickStore.open(uri)
        delete(manifest)
        with pytest.raises(DataError, match=r"manifest\.parquet: is missing"):
            BrickStore.open(uri)

    def test_a_damaged_record_counts_as_a_case_to_do_again(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "c")
        write_atomic(locate(uri).child("records", "c.json"), b'{"case_id": "c", ')
        assert writer.finished("c") is None
        add(writer, "c")
        writer.finish()
        assert BrickStore.open(uri).record(0).case_id == "c"

    def test_a_missing_folder_and_a_missing_bucket(self, tmp_path, s3_server):
        with pytest.raises(DataError, match="no finished store"):
            BrickStore.open(str(tmp_path / "nothing"))
        with pytest.raises(StorageError, match="no bucket 'no-such-bucket-at-all'"):
            BrickStore.open("s3://no-such-bucket-at-all/store")
        with pytest.raises(StorageError, match="no bucket 'no-such-bucket-at-all'"):
            StoreWriter.create("s3://no-such-bucket-at-all/store", META)

    def test_a_case_in_the_place_of_another(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "a", 0)
        add(writer, "b", 0)
        writer.finish()
        upload_file(locate(uri).child("cases", "a.arrow").local_path, locate(uri).child("cases", "b.arrow"))
        with pytest.raises(DamagedCase, match=r"b\.arrow: holds case 'a' instead of 'b'"):
            BrickStore.open(uri).reader(1)

    def test_a_row_that_is_not_there(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "a", 0)
        writer.finish()
        for row in (1, -1):
            with pytest.raises(IndexError):
                BrickStore.open(uri).record(row)


class TestSharing:
    def test_a_pickled_store_reads_on(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "a", 3)
        writer.finish()
        store = BrickStore.open(uri)
        store.reader(0)
        sent = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(sent.read_patch(0, (0, 0, 0), (40, 50, 36))[0], case(3)[0])

    def test_more_cases_than_readers_stay_open_from_many_threads(self, uri, monkeypatch):
        monkeypatch.setattr("fedvox.data.store._OPEN_READERS", 2)
        writer = StoreWriter.create(uri, META)
        for k in range(6):
            add(writer, f"c{k}", k)
        writer.finish()
        store = BrickStore.open(uri)
        wrong = []

        def work(seed):
            for k in np.random.default_rng(seed).integers(0, 6, 30).tolist():
                if not np.array_equal(store.read_patch(k, (0, 0, 0), (40, 50, 36))[0], case(k)[0]):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        [one.start() for one in threads]
        [one.join() for one in threads]
        assert not wrong
        assert len(store._readers) <= 2

    def test_nothing_temporary_is_left(self, uri):
        writer = StoreWriter.create(uri, META)
        add(writer, "a")
        writer.finish()
        names = {one.path.removeprefix(locate(uri).path + "/") for one in list_files(locate(uri))}
        assert names == {
            "store.draft.json",
            "store.json",
            "manifest.parquet",
            "cases/a.arrow",
            "records/a.json",
        }
        assert exists(locate(uri).child("cases"))

    def test_the_manifest_is_plain_parquet(self, uri):
        writer = StoreWriter.create(uri, META)
        record = add(writer, "a")
        writer.finish()
        (row,) = pq.read_table(f"{uri}/{MANIFEST_FILE}").to_pylist()
        assert row["case_id"] == "a"
        assert row["shape"] == [40, 50, 36]
        assert dict(row["class_voxels"]) == record.class_voxels
        assert json.loads(read_bytes(locate(uri).child("store.json")))["structures"] == list(META.structures)


def big_store(folder, rows):
    """A store of `rows` cases of which only the manifest is written: one row repeated, with intensities of its own."""
    record = CaseRecord(
        "x", "s", "cases/x.arrow", (300, 512, 512), (1.5, 0.8, 0.8), 1, "all", dict.fromkeys(range(30), 1000),
        measure_intensity(*case(0)), "ab" * 32, 40_000_000,
    )  # fmt: skip
    template = pq.read_table(
        pa.BufferReader(manifest_bytes([record])), read_dictionary=["source", "label_set"]
    )
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(f"{folder}/{MANIFEST_FILE}", template.schema) as out:
        for begin in range(0, rows, 2048):
            count = min(2048, rows - begin)
            part = pa.concat_tables([template] * count).combine_chunks()
            part = part.set_column(
                0, "case_id", pa.array([f"case_{k:08}" for k in range(begin, begin + count)])
            )
            for name in ("foreground_intensity", "whole_intensity"):
                numbers = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(0, 100, count * 6)), 6)
                column = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), numbers)
                part = part.set_column(part.column_names.index(name), template.schema.field(name), column)
            out.write_table(part)
    write_atomic(locate(folder).child("store.json"), META.to_json())


MEASURE = """
import sys, time, resource
import numpy, pyarrow.parquet, fedvox.data.store as s, fedvox.storage
def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20
before = rss(); started = time.monotonic()
store = s.BrickStore.open(sys.argv[1])
store.sources, store.annotated(5), store.case_ids[len(store) - 1]
opened = time.monotonic() - started
for i in range(0, len(store), max(1, len(store) // 50)): store.intensity(i), store.annotated(i), store.case_ids[i]
per_row = (time.monotonic() - started - opened) / 50
assert store.case_ids[len(store) - 1] == f"case_{len(store) - 1:08}"
assert store.record(len(store) - 1).class_voxels[29] == 1000
print(len(store), opened, rss() - before, per_row)
"""


@pytest.mark.parametrize(
    ("rows", "seconds", "mib"),
    [(18_000, 1.5, 120), pytest.param(1_000_000, 20.0, 600, marks=pytest.mark.slow)],
)
def test_a_large_manifest_opens_quickly_and_stays_small(tmp_path, rows, seconds, mib):
    big_store(tmp_path, rows)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found, opened, grown, per_row = map(float, done.stdout.split())
    assert found == rows
    assert opened < seconds
    assert grown < mib
    assert per_row < 0.02
