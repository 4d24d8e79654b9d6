import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow.fs as pafs
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from fedvox.errors import StorageError, StorageRefused
from fedvox.storage import (
    RangeReader,
    RetryPolicy,
    call_with_retry,
    delete,
    exists,
    is_transient,
    list_files,
    locate,
    open_file,
    read_bytes,
    read_range,
    upload_file,
    write_atomic,
)

BACKENDS = ["pyarrow", "s3fs"]
BRIEF = RetryPolicy(deadline_s=1.0, first_delay_s=0.05, max_delay_s=0.2)


@pytest.fixture(params=["local", *BACKENDS])
def root(request, tmp_path):
    """A folder on each kind of storage."""
    if request.param == "local":
        return locate(tmp_path)
    return locate(request.getfixturevalue("bucket"), backend=request.param).child("folder")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def boto(server):
    """An independent client."""
    return boto3.client("s3", endpoint_url=server.endpoint, config=Config(retries={"max_attempts": 0}))


class TestLocating:
    def test_relative_paths_become_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert locate("a/b").local_path == tmp_path / "a" / "b"
        assert locate(Path("a")).uri == str(tmp_path / "a")

    def test_file_uris_are_paths(self):
        assert locate("file:///data/with%20space").path == "/data/with space"

    def test_s3_keys_may_hold_question_marks_and_hashes(self, s3_server):
        location = locate("s3://bucket/a?b#c/d")
        assert location.path == "bucket/a?b#c/d"
        assert location.uri == "s3://bucket/a?b#c/d"

    def test_a_scheme_of_its_own_chooses_s3fs(self, s3_server, bucket):
        through = locate(bucket.replace("s3://", "s3fs://")).child("x")
        assert through.uri.startswith("s3fs://")
        assert type(through.filesystem) is not type(locate(bucket).filesystem)
        write_atomic(through, b"1")
        assert read_bytes(locate(through.uri)) == read_bytes(locate(bucket).child("x")) == b"1"

    def test_children_and_parents(self, s3_server):
        location = locate("s3://bucket/a/").child("b", "c.json")
        assert (location.path, location.uri, location.name) == (
            "bucket/a/b/c.json",
            "s3://bucket/a/b/c.json",
            "c.json",
        )
        assert location.parent.uri == "s3://bucket/a/b"
        assert not location.is_local
        with pytest.raises(StorageError, match="not on this machine"):
            _ = location.local_path

    @pytest.mark.parametrize("uri", ["gs://bucket/key", "s3://", "http://host/x"])
    def test_what_cannot_be_located_is_named(self, uri):
        with pytest.raises(StorageError, match=uri.split(":")[0]):
            locate(uri)

    def test_a_location_can_be_sent_to_another_process(self, s3_server, bucket):
        location = pickle.loads(pickle.dumps(locate(bucket).child("x")))
        write_atomic(location, b"1")
        assert read_bytes(location) == b"1"


class TestFilesOnEachKindOfStorage:
    def test_what_was_written_is_read(self, root):
        file = root.child("sub", "a.bin")
        data = bytes(range(256)) * 100
        write_atomic(file, data)
        assert read_bytes(file) == data
        assert read_range(file, 1000, 50) == data[1000:1050]
        assert read_range(file, len(data) - 10, 100) == data[-10:]
        assert read_range(file, len(data) + 5, 100) == b""
        with open_file(file) as opened:
            opened.seek(5)
            assert opened.read(3) == data[5:8]

    def test_a_file_is_replaced(self, root):
        write_atomic(root.child("a"), b"long old content")
        write_atomic(root.child("a"), b"new")
        assert read_bytes(root.child("a")) == b"new"

    def test_files_larger_than_one_upload_part(self, root, tmp_path_factory):
        source = tmp_path_factory.mktemp("source") / "big"
        data = os.urandom(1 << 20) * 18
        source.write_bytes(data)
        upload_file(source, root.child("big"))
        assert read_bytes(root.child("big")) == data

    def test_an_empty_file(self, root, tmp_path_factory):
        source = tmp_path_factory.mktemp("source") / "empty"
        source.touch()
        upload_file(source, root.child("empty"))
        assert read_bytes(root.child("empty")) == b""

    def test_names_of_compressed_files_do_not_compress_them(self, root):
        write_atomic(root.child("x.nii.gz"), b"as it is")
        assert read_bytes(root.child("x.nii.gz")) == b"as it is"

    def test_listing_is_sorted_and_recursive_by_choice(self, root):
        for name in ("b", "a", "deep/c"):
            write_atomic(root.child(name), b"1")
        assert [one.path for one in list_files(root)] == [root.child(n).path for n in ("a", "b", "deep/c")]
        assert [one.name for one in list_files(root, recursive=False)] == ["a", "b"]
        assert list_files(root.child("nothing")) == []

    def test_deleting_twice_is_fine(self, root):
        write_atomic(root.child("a"), b"1")
        assert exists(root.child("a"))
        delete(root.child("a"))
        assert not exists(root.child("a"))
        delete(root.child("a"))

    def test_a_missing_file_is_named_at_once(self, root):
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"nothing\.bin: does not exist"):
            read_bytes(root.child("nothing.bin"))
        with pytest.raises(StorageError, match=r"nothing\.bin: does not exist"):
            read_range(root.child("nothing.bin"), 0, 1)
        assert time.monotonic() - started < 5

    def test_many_threads_read_ranges_of_one_handle(self, root):
        data = os.urandom(200_000)
        write_atomic(root.child("a"), data)
        wrong = []
        with RangeReader(root.child("a")) as reader:
            assert reader.size() == len(data)

            def read(begin):
                for offset in range(begin, 200_000, 4000):
                    if reader.read_at(offset, 777) != data[offset : offset + 777]:
                        wrong.append(offset)

            threads = [threading.Thread(target=read, args=(500 * k,)) for k in range(8)]
            [one.start() for one in threads]
            [one.join() for one in threads]
        assert not wrong


class TestLocalWritesAreAtomic:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        file = locate(tmp_path / "a")
        write_atomic(file, b"old")

        def fail(_):
            raise OSError(errno.EIO, "broken disk")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="broken disk"):
            write_atomic(file, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        assert read_bytes(file) == b"old"

    def test_a_killed_writer_never_shows_a_partial_file(self, tmp_path):
        target = tmp_path / "a"
        code = (
            "import sys; from fedvox.storage import locate, write_atomic\n"
            "for k in range(10**6): write_atomic(locate(sys.argv[1]), bytes([k % 256]) * 300_000)"
        )
        writer = subprocess.Popen([sys.executable, "-c", code, str(target)])
        try:
            while not target.exists():
                assert writer.poll() is None
                time.sleep(0.01)
            for _ in range(200):
                data = target.read_bytes()
                assert len(data) == 300_000
                assert len(set(data)) == 1
        finally:
            writer.kill()
            writer.wait()
        assert len(target.read_bytes()) == 300_000

    def test_a_forbidden_folder_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="file/below"):
            write_atomic(locate(tmp_path / "file" / "below"), b"1")


class TestS3Faults:
    def test_a_missing_bucket_is_named_by_every_call_at_once(self, s3_server, backend):
        location = locate("s3://there-is-no-such-bucket", backend=backend)
        calls = [
            lambda: read_bytes(location.child("x")),
            lambda: read_range(location.child("x"), 0, 1),
            lambda: write_atomic(location.child("x"), b"1"),
            lambda: list_files(location.child("folder")),
            lambda: exists(location.child("x")),
        ]
        started = time.monotonic()
        for call in calls:
            with pytest.raises(StorageRefused, match="no bucket 'there-is-no-such-bucket'") as caught:
                call()
            assert "Create the bucket" in caught.value.remedy
        assert time.monotonic() - started < 10

    def test_refused_credentials_are_told_at_once(self, s3_server, bucket, backend):
        location = locate(bucket, backend=backend)
        write_atomic(location.child("x"), b"1")
        s3_server.require_credentials(0)
        try:
            started = time.monotonic()
            for call in (
                lambda: read_bytes(location.child("x")),
                lambda: write_atomic(location.child("y"), b"1"),
            ):
                with pytest.raises(StorageRefused, match=r"denied|credentials") as caught:
                    call()
                assert "credentials" in caught.value.remedy or "AWS_" in caught.value.remedy
            assert time.monotonic() - started < 10
        finally:
            s3_server.require_credentials(None)

    def test_missing_credentials_are_told_by_name(self, s3_server, bucket, monkeypatch, tmp_path):
        s3_server.door.refuse_unsigned = True
        code = "import sys; from fedvox.storage import *; read_bytes(locate(sys.argv[1]))"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        environment |= {
            "AWS_ENDPOINT_URL": s3_server.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(tmp_path),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, f"{bucket}/x"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            s3_server.door.refuse_unsigned = False
        assert "StorageRefused" in done.stderr
        assert "AWS_ACCESS_KEY_ID is not set" in done.stderr

    def test_slow_down_is_retried(self, s3_server, bucket, backend):
        location = locate(bucket, backend=backend).child("x")
        s3_server.door.answer_unavailable(3)
        write_atomic(location, b"content")
        s3_server.door.answer_unavailable(3)
        assert read_bytes(location) == b"content"
        assert s3_server.door.fail_next == 0

    def test_a_server_that_refuses_for_a_while_is_waited_for(self, s3_server, bucket, backend):
        location = locate(bucket, backend=backend)
        write_atomic(location.child("x"), b"content")
        s3_server.stop()
        again = threading.Timer(2.5, s3_server.start)
        again.start()
        try:
            write_atomic(location.child("y"), b"written during the outage")
            again.join()
            s3_server.stop()
            again = threading.Timer(1.5, s3_server.start)
            again.start()
            assert read_bytes(location.child("x")) == b"content"
        finally:
            again.join()
        key = location.child("y").path.split("/", 1)[1]
        body = boto(s3_server).get_object(Bucket=bucket.removeprefix("s3://"), Key=key)["Body"].read()
        assert body == b"written during the outage"

    @pytest.mark.parametrize("action", ["read", "write", "list", "exists"])
    def test_the_deadline_ends_the_waiting(self, s3_server, bucket, backend, action):
        location = locate(bucket, backend=backend).child("x")
        write_atomic(location, b"1")
        s3_server.stop()
        calls = {
            "read": lambda: read_bytes(location, retry=BRIEF),
            "write": lambda: write_atomic(location, b"2", retry=BRIEF),
            "list": lambda: list_files(location.parent, retry=BRIEF),
            "exists": lambda: exists(location, retry=BRIEF),
        }
        started = time.monotonic()
        try:
            with pytest.raises(StorageError, match="unreachable for"):
                calls[action]()
        finally:
            s3_server.start()
        assert 1.0 <= time.monotonic() - started < 12

    def test_an_interrupted_upload_leaves_no_object(self, s3_server, bucket):
        location = locate(bucket).child("big")
        s3_server.stop()
        with pytest.raises(StorageError):
            write_atomic(location, os.urandom(12 << 20), retry=RetryPolicy(deadline_s=0.0))
        s3_server.start()
        assert not exists(location)

    def test_the_objects_are_plain_ones(self, s3_server, bucket):
        data = os.urandom(100_000)
        write_atomic(locate(bucket).child("x"), data)
        body = boto(s3_server).get_object(Bucket=bucket.removeprefix("s3://"), Key="x")["Body"].read()
        assert body == data


class TestRetrying:
    @pytest.mark.parametrize(
        "error",
        [
            ConnectionRefusedError(),
            ConnectionResetError(),
            TimeoutError(),
            OSError(errno.ETIMEDOUT, "x"),
            OSError(
                "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached"
            ),
            OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate"),
            OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
            OSError(
                "AWS Error INTERNAL_FAILURE during UploadPart operation: We encountered an internal error"
            ),
        ],
    )
    def test_what_may_pass_is_retried(self, error):
        failures = [error, error]

        def action():
            if failures:
                raise failures.pop()
            return "done"

        assert is_transient(error)
        assert call_with_retry(action, "s3://b/x", BRIEF) == "done"

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
            (OSError(errno.EDQUOT, "quota"), "no space left"),
            (PermissionError(errno.EACCES, "Permission denied"), "access is denied"),
            (FileNotFoundError(errno.ENOENT, "x"), "does not exist"),
            (
                OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: The bucket does not exist"),
                "no bucket 'b'",
            ),
            (
                OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
                "access is denied",
            ),
            (OSError("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation"), "credentials"),
        ],
    )
    def test_what_will_not_pass_is_told_after_one_attempt(self, error, said):
        attempts = []

        def action():
            attempts.append(1)
            raise error

        with pytest.raises(StorageError, match=said) as caught:
            call_with_retry(action, "s3://b/x")
        assert len(attempts) == 1
        assert caught.value.remedy
        assert caught.value.__cause__ is error

    def test_a_mistake_in_the_program_is_not_dressed_up(self):
        with pytest.raises(ZeroDivisionError):
            call_with_retry(lambda: 1 // 0, "s3://b/x")

    @given(st.integers(0, 10_000))
    def test_waits_grow_up_to_a_bound_and_are_never_zero(self, attempt):
        policy = RetryPolicy(first_delay_s=0.2, max_delay_s=5.0)
        bound = min(5.0, 0.2 * 2.0 ** min(attempt, 10))
        assert bound / 2 <= policy.delay_s(attempt) <= bound

    def test_the_last_attempt_is_at_the_deadline(self):
        attempts = []

        def action():
            attempts.append(time.monotonic())
            raise ConnectionRefusedError

        with pytest.raises(StorageError, match="unreachable"):
            call_with_retry(action, "s3://b/x", RetryPolicy(deadline_s=0.3, first_delay_s=0.1, max_delay_s=5))
        assert 0.29 <= attempts[-1] - attempts[0] < 1.0


def test_the_filesystem_is_shared_by_all_locations_of_an_endpoint(s3_server):
    assert locate("s3://a/x").filesystem is locate("s3://b/y").filesystem
    assert isinstance(locate("s3://a/x").filesystem, pafs.S3FileSystem)


class Appearing(pafs.LocalFileSystem):
    """As pyarrow does when a folder is made between its two looks: it could not list what it then finds there."""

    def get_file_info(self, paths_or_selector):
        if isinstance(paths_or_selector, pafs.FileSelector):
            raise FileNotFoundError("Cannot list directory")
        return super().get_file_info(paths_or_selector)


def test_a_folder_that_is_made_while_it_is_listed_is_empty(tmp_path):
    assert list_files(replace(locate(tmp_path), filesystem=Appearing())) == []
