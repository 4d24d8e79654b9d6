"""Ingest over a real Ray: the same store as without it, whoever is killed meanwhile; S3 on both ends; a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedvox.data.store import BrickStore
from fedvox.storage import list_files, locate, read_bytes, upload_file, write_atomic

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CASES = 8
SHAPE = (96, 96, 64)  # x, y, z: half a second of work for a case


def write_raw(root: Path, cases: int = CASES, mark: str = "case") -> Path:
    """An nnU-Net folder of noisy CTs with a box in each."""
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    for number in range(cases):
        image = np.random.default_rng(number).normal(0, 300, SHAPE).astype(np.int16)
        image[:48] -= 900
        label = np.zeros(SHAPE, np.uint8)
        label[60:80, 20 + number : 40 + number, 20:40] = 1 + number % 2
        nib.save(nib.Nifti1Image(image, affine), root / f"imagesTr/{mark}-{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), root / f"labelsTr/{mark}-{number}.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw") / "Dataset001_Boxes", mark=f"case-{uuid.uuid4().hex[:8]}")


def arguments(raw: Path | str, output: Path | str, *more: str) -> list[str]:
    fixed = ["--spacing", "1,1,1", "--set", "memory_gib=0.5", "--set", "contact_sheet_cases=0"]
    return [sys.executable, "jobs/ingest.py", "-i", str(raw), "-o", str(output), *fixed, *more]


def environment(cluster) -> dict[str, str]:
    address = {} if cluster is None else {"RAY_ADDRESS": cluster.gcs_address}
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, **address, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def run(cluster, raw, output, *more: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        arguments(raw, output, *more), cwd=ROOT, env=environment(cluster), capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def start(cluster, raw, output, *more: str) -> subprocess.Popen[bytes]:
    log = (Path(output).parent / f"{Path(output).name}.log").open("wb")
    return subprocess.Popen(
        arguments(raw, output, *more), cwd=ROOT, env=environment(cluster), stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def contents(output: str | Path) -> dict[str, str]:
    """Case id -> SHA-256 of its file."""
    store = BrickStore.open(str(output))
    return {store.record(row).case_id: store.record(row).sha256 for row in range(len(store))}


def voxels(output: str | Path) -> dict[str, str]:
    """Case id -> SHA-256 of its image and label: what does not depend on where the files came from."""
    store, found = BrickStore.open(str(output)), {}
    for row in range(len(store)):
        record = store.record(row)
        image, label = store.read_patch(row, (0, 0, 0), record.shape)
        found[record.case_id] = hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
    return found


def written(output: Path) -> dict[str, int]:
    """Finished cases -> when their file was written."""
    done = {path.stem for path in (output / "records").glob("*.json")}
    return {
        path.stem: path.stat().st_mtime_ns for path in (output / "cases").glob("*.arrow") if path.stem in done
    }


def wait_for(condition, process: subprocess.Popen[bytes], what: str, timeout_s: float = 120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, f"it ended before {what}"
        time.sleep(0.02)
    raise AssertionError(f"no {what} within {timeout_s:.0f} s")


def working_pids(raw: Path, step: str) -> list[int]:
    """Worker processes that are at a case of this data set, which carries a random name."""
    mark = next((raw / "labelsTr").iterdir()).name.rsplit("-", 1)[0]
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if title.startswith(b"ray::") and f"{step}:{mark}".encode() in title:
            pids.append(int(folder.name))
    return pids


@pytest.fixture(scope="module")
def reference_store(raw, tmp_path_factory) -> Path:
    """What an ingest without Ray and without trouble stores."""
    output = tmp_path_factory.mktemp("reference") / "store"
    run(None, raw, output, "--workers", "0")
    return output


@pytest.fixture(scope="module")
def reference(reference_store) -> dict[str, str]:
    return contents(reference_store)


def test_a_cluster_stores_the_same_bytes_as_a_single_process(cluster, raw, tmp_path, reference):
    done = run(cluster, raw, tmp_path / "store")
    assert f"accepted   {CASES} of {CASES} cases" in done.stdout
    assert contents(tmp_path / "store") == reference


def test_a_ray_of_its_own_is_started_where_none_is_named_and_ended(raw, tmp_path, reference):
    done = run(None, raw, tmp_path / "store", "--workers", "2")
    assert f"accepted   {CASES} of {CASES} cases" in done.stdout
    assert contents(tmp_path / "store") == reference


def test_a_killed_driver_loses_at_most_the_cases_under_way(cluster, raw, tmp_path, reference):
    output = tmp_path / "store"
    process = start(cluster, raw, output, "--workers", "2")
    wait_for(lambda: len(written(output)) >= 2, process, "two finished cases")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # Ray ends the tasks of a driver that is gone
    before = written(output)
    assert 2 <= len(before) < CASES
    assert not (output / "store.json").exists()
    done = run(cluster, raw, output, "--workers", "2")
    assert f"{len(before)} of them done before" in done.stdout
    after = written(output)
    assert {case: after[case] for case in before} == before
    assert contents(output) == reference


def test_a_killed_worker_costs_nothing_but_time(cluster, raw, tmp_path, reference):
    output = tmp_path / "store"
    process = start(cluster, raw, output, "--workers", "2")
    victim = wait_for(lambda: working_pids(raw, "write_case"), process, "worker at a case")[0]
    os.kill(victim, signal.SIGKILL)
    assert process.wait(300) == 0, Path(f"{output}.log").read_text()
    assert contents(output) == reference


def test_a_case_that_kills_every_worker_is_reported_and_the_others_go_on(cluster, raw, tmp_path):
    script = tmp_path / "poison.py"
    script.write_text(
        f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT / "platform")!r}]
from fedvox.data.ingest_case import write_case
from fedvox.data.ingest_config import IngestConfig
from fedvox.data.ingest import plan_ingest
from fedvox.data.ingest_ray import connected, run_over_ray

def deadly(case, plan):
    if case.case_id.endswith("-3"):
        os.kill(os.getpid(), signal.SIGKILL)
    return write_case(case, plan)

planned = plan_ingest(IngestConfig(sources=({str(raw)!r},), output={str(tmp_path / "s")!r}, spacing_mm=(2, 2, 2)))
outcomes = []
with connected("auto"):
    run_over_ray(deadly, planned.sources.cases, planned.plan, workers="auto", memory_gib=0.5, retries=1,
                 on_outcome=outcomes.append)
for outcome in outcomes:
    print(outcome.case_id, outcome.status, *(error.code for error in outcome.errors))
"""
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment(cluster),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = sorted(
        re.sub(r".*-(\d+) ", r"\1 ", line) for line in done.stdout.splitlines() if line.startswith("case-")
    )
    expected = ["3 failed worker_died" if n == 3 else f"{n} accepted" for n in range(CASES)]
    assert lines == expected, done.stderr


def test_a_submitted_job_runs_the_uploaded_code(cluster, raw, tmp_path, reference):
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster.jobs_address,
        "--working-dir", ".", "--", "python", *arguments(raw, tmp_path / "store")[1:],
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment(None), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"accepted   {CASES} of {CASES} cases" in done.stdout
    assert contents(tmp_path / "store") == reference


def test_more_memory_than_any_node_has_is_refused_at_once(cluster, raw, tmp_path):
    done = run(cluster, raw, tmp_path / "store", "--set", "memory_gib=100000", expect=2)
    assert "memory_gib is 100000, and the largest node offers Ray" in done.stderr


# ---- storage -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(s3_proxy, raw) -> str:
    """The data set on S3."""
    root = locate("s3://fedvox-test/raw/Dataset001_Boxes")
    for path in sorted(path for path in raw.rglob("*") if path.is_file()):
        upload_file(path, root.child(path.relative_to(raw).as_posix()))
    return root.uri


def test_from_s3_to_s3(s3_proxy, bucket, reference_store):
    output = "s3://fedvox-test/stores/boxes"
    done = run(None, bucket, output, "--workers", "0")
    assert f"accepted   {CASES} of {CASES} cases" in done.stdout
    assert voxels(output) == voxels(reference_store)
    again = run(None, bucket, output, "--workers", "0")
    assert f"{CASES} of them done before" in again.stdout
    names = {location.name for location in list_files(locate(output).child("ingest"), recursive=False)}
    assert names == {"report.json", "report.csv"}


def test_a_manifest_on_s3_with_a_missing_object_rejects_that_case(s3_proxy, bucket):
    folder = locate("s3://fedvox-test/raw")
    labels = sorted(location.name for location in list_files(locate(bucket).child("labelsTr")))
    cases = [name.removesuffix(".nii.gz") for name in labels[:2]]
    rows = [
        f"{c},Dataset001_Boxes/imagesTr/{c}_0000.nii.gz,Dataset001_Boxes/labelsTr/{c}.nii.gz" for c in cases
    ]
    rows.append("gone,absent.nii.gz,Dataset001_Boxes/labelsTr/absent.nii.gz")
    write_atomic(folder.child("cohort.csv"), "\n".join(["case_id,image,label", *rows]).encode())
    write_atomic(folder.child("cohort.labels.json"), b'{"background": 0, "a": 1, "b": 2}')
    done = run(None, folder.child("cohort.csv").uri, "s3://fedvox-test/stores/cohort", "--workers", "0")
    assert "accepted   2 of 3 cases" in done.stdout
    assert "gone: s3://fedvox-test/raw/absent.nii.gz does not exist" in done.stdout
    report = json.loads(read_bytes(locate("s3://fedvox-test/stores/cohort/ingest/report.json")))
    gone = next(case for case in report["cases"] if case["case_id"] == "gone")
    assert [error["code"] for error in gone["errors"]] == ["missing_file", "missing_file"]


def test_missing_buckets_are_named(s3_proxy, raw, bucket):
    missing = run(None, "s3://no-such-bucket/raw", "s3://fedvox-test/x", "--workers", "0", expect=2)
    assert "no-such-bucket" in missing.stderr
    assert "no-such-bucket" in run(None, raw, "s3://no-such-bucket/x", "--workers", "0", expect=2).stderr


def test_a_full_disk_stops_with_2_and_the_run_goes_on_when_there_is_room(raw, tmp_path, reference):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    try:
        done = run(None, raw, mount / "store", "--workers", "0", expect=2)
        assert "no space left" in done.stderr
        before = written(mount / "store")
        assert 0 < len(before) < CASES
        subprocess.run(["mount", "-o", "remount,size=200m", str(mount)], check=True)
        again = run(None, raw, mount / "store", "--workers", "0")
        assert f"{len(before)} of them done before" in again.stdout
        assert contents(mount / "store") == reference
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
