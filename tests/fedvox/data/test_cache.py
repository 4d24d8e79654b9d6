import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fedvox.data import cache as cache_module
from fedvox.data.bricks import CaseHeader, write_case
from fedvox.data.cache import PAGE_BYTES, CacheConfig, NodeCache
from fedvox.data.case_reader import CaseReader
from fedvox.data.ranges import ByteRange, RemoteFile
from fedvox.data.store import BrickStore, StoreMeta, StoreWriter
from fedvox.errors import DamagedCase, StorageError
from fedvox.storage import RetryPolicy, locate, upload_file, write_atomic

SHAPE = (70, 130, 100)


def config(folder, mib=512.0):
    return CacheConfig(str(folder), mib / 1024, prefetch_threads=2)


def read(source, *ranges):
    """The bytes of each range, through any source."""
    wanted = [ByteRange(*one) for one in ranges]
    out = [None] * len(wanted)
    for part in source.read(wanted):
        for position in part.positions:
            assert out[position] is None
            out[position] = part.cut(wanted[position]).tobytes()
    return out


@pytest.fixture
def content():
    return np.random.default_rng(0).bytes(PAGE_BYTES * 20 + 1234)


@pytest.fixture
def remote(bucket, content):
    location = locate(bucket).child("object")
    write_atomic(location, content)
    return lambda: RemoteFile(location, size=len(content))


@pytest.fixture
def remote_store(bucket):
    """A store of three cases on S3, and what is in them."""
    rng = np.random.default_rng(1)
    meta = StoreMeta("s", ("ct",), "CT", ("background", "organ"), {"all": (0, 1)}, "ct")
    writer = StoreWriter.create(f"{bucket}/store", meta)
    volumes = []
    for k in range(3):
        image = rng.integers(-1000, 1000, (1, *SHAPE)).astype(np.int16)
        label = (image[0] > 500).astype(np.uint8)
        writer.add_case(f"c{k}", image, label, source="s", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
        volumes.append((image, label))
    writer.finish()
    return f"{bucket}/store", volumes


def gets(requests):
    return [path for method, path in requests if method == "GET" and "list-type" not in path]


class TestServingFromTheDisk:
    def test_a_range_is_fetched_once(self, s3_server, remote, content, tmp_path):
        file = NodeCache(config(tmp_path)).open(remote(), "v1")
        with s3_server.counting() as first:
            assert read(file, (10, 1000), (PAGE_BYTES * 3 - 5, 10)) == [
                content[10:1010],
                content[PAGE_BYTES * 3 - 5 :][:10],
            ]
        with s3_server.counting() as second:
            assert read(file, (10, 1000), (PAGE_BYTES * 3 - 5, 10)) == [
                content[10:1010],
                content[PAGE_BYTES * 3 - 5 :][:10],
            ]
            assert read(file, (0, PAGE_BYTES))[0] == content[:PAGE_BYTES]  # the rest of its page came along
        assert 1 <= len(gets(first)) <= 2
        assert second == []

    def test_only_what_is_missing_is_fetched(self, s3_server, remote, content, tmp_path):
        file = NodeCache(config(tmp_path)).open(remote(), "v1")
        read(file, (0, PAGE_BYTES * 8))
        with s3_server.counting() as seen:
            assert (
                read(file, (PAGE_BYTES * 2, PAGE_BYTES * 8))[0] == content[PAGE_BYTES * 2 : PAGE_BYTES * 10]
            )
        assert len(gets(seen)) == 1
        assert NodeCache(config(tmp_path)).used_bytes() < PAGE_BYTES * 12

    def test_the_last_page_is_shorter(self, remote, content, tmp_path):
        file = NodeCache(config(tmp_path)).open(remote(), "v1")
        assert file.size() == len(content)
        for _ in range(2):
            assert read(file, (len(content) - 50, 50))[0] == content[-50:]
            assert read(file, (len(content) - 50, 500))[0] == content[-50:]

    def test_what_lies_in_the_cache_serves_a_new_process_without_the_server(
        self, s3_server, remote_store, tmp_path
    ):
        uri, volumes = remote_store
        store = BrickStore.open(uri, cache=config(tmp_path))
        store.read_patch(1, (0, 10, 20), (64, 64, 64))
        again = BrickStore.open(uri, cache=config(tmp_path))
        with s3_server.counting() as seen:
            image, label = again.read_patch(1, (0, 10, 20), (64, 64, 64))
        assert seen == []
        np.testing.assert_array_equal(image, volumes[1][0][:, 0:64, 10:74, 20:84])
        np.testing.assert_array_equal(label, volumes[1][1][0:64, 10:74, 20:84])

    def test_a_patch_costs_few_requests_and_then_none(self, s3_server, remote_store, tmp_path):
        uri, _ = remote_store
        store = BrickStore.open(uri, cache=config(tmp_path))
        with s3_server.counting() as opening:
            store.reader(0)
        with s3_server.counting() as first:
            store.read_patch(0, (0, 0, 0), (64, 64, 64))
        with s3_server.counting() as second:
            for _ in range(3):
                store.read_patch(0, (0, 0, 0), (64, 64, 64))
        assert len(gets(opening)) == 1
        assert 1 <= len(gets(first)) <= 4  # of 8 blocks of the image and 8 of the label
        assert second == []

    def test_other_content_under_the_same_name_is_not_mixed_up(self, s3_server, bucket, tmp_path):
        location = locate(bucket).child("object")
        cache = NodeCache(config(tmp_path))
        for version in (b"a", b"b"):
            write_atomic(location, version * 1000)
            file = cache.open(RemoteFile(location, size=1000), version.decode())
            assert read(file, (0, 1000))[0] == version * 1000

    def test_a_case_written_again_is_read_anew(self, remote_store, tmp_path):
        uri, volumes = remote_store
        BrickStore.open(uri, cache=config(tmp_path)).read_patch(0, (0, 0, 0), SHAPE)
        writer = StoreWriter.create(uri, BrickStore.open(uri).meta)
        changed = volumes[0][0] + 1
        writer.add_case(
            "c0",
            changed,
            volumes[0][1],
            source="s",
            label_set="all",
            spacing_mm=(1.0, 1.0, 1.0),
            origin="new",
        )
        writer.finish()
        image, _ = BrickStore.open(uri, cache=config(tmp_path)).read_patch(0, (0, 0, 0), SHAPE)
        np.testing.assert_array_equal(image, changed)

    def test_an_outage_is_not_noticed_where_all_is_cached(self, s3_server, remote_store, tmp_path):
        uri, volumes = remote_store
        store = BrickStore.open(uri, cache=config(tmp_path))
        store.read_patch(2, (0, 0, 0), (40, 40, 40))
        s3_server.stop()
        try:
            image, _ = store.read_patch(2, (0, 0, 0), (40, 40, 40))
        finally:
            s3_server.start()
        np.testing.assert_array_equal(image, volumes[2][0][:, :40, :40, :40])


class TestThreadsAndProcesses:
    def test_threads_that_want_the_same_pages_fetch_them_once(self, s3_server, remote, content, tmp_path):
        file = NodeCache(config(tmp_path)).open(remote(), "v1")
        start = threading.Barrier(8)
        wrong = []

        def work():
            start.wait()
            if read(file, (0, PAGE_BYTES * 10))[0] != content[: PAGE_BYTES * 10]:
                wrong.append(1)

        with s3_server.counting() as seen:
            threads = [threading.Thread(target=work) for _ in range(8)]
            [one.start() for one in threads]
            [one.join() for one in threads]
        assert not wrong
        assert len(gets(seen)) == 1

    def test_processes_share_the_folder_and_all_read_right(self, s3_server, bucket, content, tmp_path):
        write_atomic(locate(bucket).child("object"), content)
        code = """
import sys, numpy as np
from fedvox.data.cache import *; from fedvox.data.ranges import *; from fedvox.storage import locate
uri, folder, size, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
content = np.random.default_rng(0).bytes(size)
rng = np.random.default_rng(seed)
cache = NodeCache(CacheConfig(folder, 6 * 65536 / 2**30))   # far too small: it is evicted all the time
for k in range(60):
    file = cache.open(RemoteFile(locate(uri), size=size), f"v{k % 3}")
    wanted = [ByteRange(int(b), 5000) for b in rng.integers(0, size - 5000, 4)]
    for part in file.read(wanted):
        for i in part.positions:
            assert part.cut(wanted[i]).tobytes() == content[wanted[i].offset:wanted[i].end], k
print("all right")
"""
        command = [sys.executable, "-c", code, f"{bucket}/object", str(tmp_path), str(len(content))]
        started = [
            subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for seed in range(3)
        ]
        for one in started:
            out, err = one.communicate(timeout=120)
            assert out.strip() == "all right", err

    def test_a_killed_process_leaves_a_cache_that_reads_right(self, s3_server, bucket, content, tmp_path):
        write_atomic(locate(bucket).child("object"), content)
        code = """
import sys
from fedvox.data.cache import *; from fedvox.data.ranges import *; from fedvox.storage import locate
cache = NodeCache(CacheConfig(sys.argv[2], 1.0))
size = int(sys.argv[3])
for k in range(10**6):
    file = cache.open(RemoteFile(locate(sys.argv[1]), size=size), f"v{k % 40}")
    for part in file.read([ByteRange(0, size)]): pass
    print(k, flush=True)
    if k >= 39: cache.evict(); [p.unlink(missing_ok=True) for p in cache.folder.glob('*.pages')]
"""
        for kill_after in (2, 5):
            process = subprocess.Popen(
                [sys.executable, "-c", code, f"{bucket}/object", str(tmp_path), str(len(content))],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(kill_after):
                process.stdout.readline()
            time.sleep(0.003 * kill_after)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            cache = NodeCache(config(tmp_path))
            for k in range(40):
                file = cache.open(RemoteFile(locate(bucket).child("object"), size=len(content)), f"v{k}")
                assert read(file, (0, len(content)))[0] == content

    def test_leftovers_of_killed_processes_are_cleared(self, tmp_path):
        cache = NodeCache(config(tmp_path))
        old, fresh = tmp_path / "a.pages.1.tmp", tmp_path / "b.pages.2.tmp"
        old.write_bytes(b"1")
        fresh.write_bytes(b"1")
        os.utime(old, (time.time() - 7200,) * 2)
        cache.evict()
        assert not old.exists()
        assert fresh.exists()


class TestTheBudget:
    def test_the_least_recently_used_go_first(self, remote, content, tmp_path):
        budget = 3.2 * len(content) / 2**20
        cache = NodeCache(config(tmp_path, budget))
        for k, version in enumerate(["a", "b", "c"]):
            read(cache.open(remote(), version), (0, len(content)))
            for path in tmp_path.glob("*.pages"):
                if path.stat().st_mtime > time.time() - 5:
                    os.utime(path, (time.time() - 1000 + k * 100,) * 2)
        read(cache.open(remote(), "a"), (0, 10))  # used again: now b is the oldest
        before = set(tmp_path.glob("*.pages"))
        read(cache.open(remote(), "d"), (0, len(content)))
        cache.evict()
        gone = before - set(tmp_path.glob("*.pages"))
        assert len(gone) == 1
        assert cache.used_bytes() <= budget * 2**20

    def test_it_is_kept_while_reading_goes_on(self, remote, content, tmp_path):
        budget_mib = 4.0
        cache = NodeCache(config(tmp_path, budget_mib))
        for k in range(12):
            file = cache.open(remote(), f"v{k}")
            assert read(file, (0, len(content)))[0] == content
            assert cache.used_bytes() <= budget_mib * 2**20 + len(content) + 2**20
        cache.evict()
        assert 0 < cache.used_bytes() <= budget_mib * 2**20

    def test_an_evicted_file_can_be_read_on_by_who_has_it_open(self, s3_server, remote, content, tmp_path):
        cache = NodeCache(config(tmp_path))
        file = cache.open(remote(), "v")
        read(file, (0, 1000))
        for path in tmp_path.glob("*.pages"):
            path.unlink()
        with s3_server.counting() as seen:
            assert read(file, (0, 1000))[0] == content[:1000]
        assert seen == []
        assert read(file, (PAGE_BYTES * 9, 100))[0] == content[PAGE_BYTES * 9 :][:100]


class TestTrouble:
    def test_a_full_disk_is_told_once_and_reading_goes_on(
        self, remote, content, tmp_path, monkeypatch, caplog
    ):
        cache = NodeCache(config(tmp_path))
        file = cache.open(remote(), "v")
        assert read(file, (0, 10))[0] == content[:10]

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(cache_module.os, "pwrite", full)
        with caplog.at_level(logging.WARNING):
            for begin in range(0, len(content) - 10, PAGE_BYTES):
                assert read(file, (begin, 10), (0, 5)) == [content[begin : begin + 10], content[:5]]
        assert len([one for one in caplog.records if "not written any more" in one.message]) == 1
        assert not cache.writable

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="file/cache"):
            NodeCache(config(tmp_path / "file" / "cache"))

    def test_damage_in_the_cache_is_healed_from_the_store(self, remote_store, tmp_path, caplog):
        uri, volumes = remote_store
        BrickStore.open(uri, cache=config(tmp_path)).read_patch(0, (0, 0, 0), SHAPE)
        for path in tmp_path.glob("*.pages"):
            with path.open("r+b") as file:
                for offset in range(3000, path.stat().st_size - PAGE_BYTES, 40_000):
                    file.seek(offset)
                    file.write(b"\xff\x00\xff\x00" * 8)
        for _ in range(2):
            image, label = BrickStore.open(uri, cache=config(tmp_path)).read_patch(0, (0, 0, 0), SHAPE)
            np.testing.assert_array_equal(image, volumes[0][0])
            np.testing.assert_array_equal(label, volumes[0][1])
        assert "damaged in the cache" in caplog.text

    def test_a_damaged_index_in_the_cache_is_healed_too(self, remote_store, tmp_path):
        uri, volumes = remote_store
        BrickStore.open(uri, cache=config(tmp_path)).reader(0)
        size = BrickStore.open(uri).record(0).num_bytes
        for path in tmp_path.glob("*.pages"):
            with path.open("r+b") as file:
                file.seek(size - 3000)
                file.write(bytes(500))
        image, _ = BrickStore.open(uri, cache=config(tmp_path)).read_patch(0, (0, 0, 0), SHAPE)
        np.testing.assert_array_equal(image, volumes[0][0])

    def test_damage_in_the_store_is_damage(self, bucket, tmp_path):
        rng = np.random.default_rng(0)
        path = tmp_path / "c.arrow"
        write_case(
            path,
            rng.integers(0, 99, (1, 40, 40, 40)).astype(np.int16),
            None,
            header=CaseHeader("c", (1, 1, 1)),
        )
        data = bytearray(path.read_bytes())
        data[2000] ^= 1
        path.write_bytes(data)
        location = locate(bucket).child("c.arrow")
        upload_file(path, location)
        cached = NodeCache(config(tmp_path / "cache")).open(RemoteFile(location, size=len(data)), "v")
        with pytest.raises(DamagedCase, match=r"c\.arrow: brick \(0, 0, 0\)"):
            CaseReader.open(location, source=cached).read_patch((0, 0, 0), (40, 40, 40))

    def test_a_failed_fetch_does_not_block_the_next(self, s3_server, bucket, content, tmp_path):
        location = locate(bucket).child("object")
        write_atomic(location, content)
        hasty = RemoteFile(location, size=len(content), retry=RetryPolicy(deadline_s=0.0))
        file = NodeCache(config(tmp_path)).open(hasty, "v")
        s3_server.stop()
        with pytest.raises(StorageError, match="unreachable"):
            read(file, (0, 100))
        s3_server.start()
        assert read(file, (0, 100))[0] == content[:100]


class TestPrefetching:
    def test_a_prefetched_patch_needs_no_request(self, s3_server, remote_store, tmp_path):
        uri, volumes = remote_store
        store = BrickStore.open(uri, cache=config(tmp_path))
        store.prefetch(1, (-5, 0, 0), (64, 64, 64))
        deadline = time.monotonic() + 20
        while True:
            before = NodeCache(config(tmp_path)).used_bytes()
            time.sleep(0.3)
            if before and NodeCache(config(tmp_path)).used_bytes() == before:
                break
            assert time.monotonic() < deadline
        with s3_server.counting() as seen:
            image, _ = store.read_patch(1, (-5, 0, 0), (64, 64, 64))
        assert seen == []
        np.testing.assert_array_equal(image[:, 5:], volumes[1][0][:, :59, :64, :64])

    def test_what_fails_ahead_fails_only_when_it_is_needed(self, remote_store, tmp_path):
        uri, _ = remote_store
        store = BrickStore.open(uri, cache=config(tmp_path))
        location = locate(uri).child("cases", "c1.arrow")
        write_atomic(location, b"not a case")
        store.prefetch(1, (0, 0, 0), (64, 64, 64))
        with pytest.raises(DamagedCase, match=r"c1\.arrow"):
            store.read_patch(1, (0, 0, 0), (64, 64, 64))

    def test_a_patch_beside_the_volume_fetches_nothing(self, s3_server, remote_store, tmp_path):
        uri, _ = remote_store
        reader = BrickStore.open(uri, cache=config(tmp_path)).reader(0)
        with s3_server.counting() as seen:
            reader.prefetch((500, 0, 0), (64, 64, 64))
        assert seen == []


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a tmpfs")
def test_a_disk_that_is_really_full_only_ends_the_caching(remote_store, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        uri, volumes = remote_store
        store = BrickStore.open(uri, cache=config(folder))
        for _ in range(2):
            for k in range(3):
                image, label = store.read_patch(k, (0, 0, 0), SHAPE)
                np.testing.assert_array_equal(image, volumes[k][0])
                np.testing.assert_array_equal(label, volumes[k][1])
        assert Path(folder).stat().st_dev != tmp_path.stat().st_dev
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
