"""Pretraining under real faults: every fault is injected into real Ray workers, drivers, disks and servers.

The yardstick is one uninterrupted run: whatever happens to a run, its losses must be the same, sample for sample.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store):
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, store, pretraining_in):
    run = pretraining_in(tmp_path_factory.mktemp("uninterrupted"), store)
    run.run()
    return run


def test_a_run_leaves_everything_that_is_promised(uninterrupted):
    directory = uninterrupted.directory
    outcome = json.loads((directory / "outcome.json").read_text())
    assert outcome["state"] == "finished"
    assert outcome["step"] == 24
    assert set(outcome["dice"]) == {"ball", "box"}
    for name in (
        "config.resolved.yaml", "environment.json", "status.json", "final/model.safetensors", "final/model.json",
        "best/model.safetensors", "figures/curves.png", "figures/overlay-case_05.png", "validation/step-00000012.json",
    ):  # fmt: skip
        assert (directory / name).stat().st_size > 0, name
    assert list(directory.glob("tensorboard/attempt-0000/events*"))
    assert [line["step"] for line in uninterrupted.lines("train")] == list(range(1, 25))
    assert json.loads((directory / "status.json").read_text())["phase"] == "finished"


def test_one_worker_sees_the_same_samples_and_computes_the_same_gradients(pretraining, store, uninterrupted):
    alone = pretraining(store, compute__num_workers=1)
    alone.run()
    for one, two in zip(alone.lines("train"), uninterrupted.lines("train"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=2e-3)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=2e-2)
    first, other = alone.lines("train")[0], uninterrupted.lines("train")[0]
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert first["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_without_ray_the_run_is_the_same(pretraining, store, uninterrupted):
    alone = pretraining(store, compute__num_workers=0)
    alone.run()
    assert alone.losses() == pytest.approx(uninterrupted.losses(), rel=2e-3)


def test_a_killed_worker_costs_no_sample(pretraining, store, uninterrupted, worker_pids):
    run = pretraining(store).start()
    run.wait_for_step(8)
    os.kill(worker_pids()[-1], signal.SIGKILL)
    run.finish()
    assert run.losses() == uninterrupted.losses()
    assert run.attempts() == [0, 1]


def test_a_killed_driver_is_resumed_by_running_the_same_command_again(
    pretraining, store, uninterrupted, worker_pids
):
    run = pretraining(store).start()
    run.wait_for_step(8)
    run.kill()
    wait_until(lambda: not worker_pids())
    assert "resumed at step" in run.start().finish()
    assert run.losses() == uninterrupted.losses()


def test_a_preempted_worker_writes_a_checkpoint_first(pretraining, store, uninterrupted, worker_pids):
    """SIGTERM, as a spot node sends it: no step is done twice."""
    run = pretraining(store, checkpoint__every_steps=1000).start()
    run.wait_for_step(5)
    os.kill(worker_pids()[0], signal.SIGTERM)
    run.finish()
    assert run.losses() == uninterrupted.losses()
    assert run.attempts() == [0, 1]  # without the checkpoint, attempt 1 would have logged every step


def test_stopping_the_job_writes_a_checkpoint_and_says_how_to_go_on(pretraining, store, uninterrupted):
    run = pretraining(store, checkpoint__every_steps=1000, steps=2000, validation__every_steps=2000).start()
    run.wait_for_step(5)
    run.process.send_signal(signal.SIGTERM)
    log = run.finish(expect=143)
    assert "checkpoint was written" in log
    # Ray's own actors may complain while they are being ended; driver and workers must not.
    ours = [
        line
        for line in log.splitlines()
        if "PlacementGroupCleaner" not in line and "TrainController" not in line
    ]
    assert "Traceback" not in "\n".join(ours)
    (committed,) = (run.directory / "checkpoints").iterdir()
    assert committed.name == f"step-{len(run.losses()):08d}"
    assert run.run("--dry-run", "--hardware", "cpu-core").stdout  # the run is whole and can be described


def test_a_damaged_brick_is_named_skipped_and_counted(pretraining, tmp_path, store):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    victim = copy / "cases" / "case_02.arrow"
    data = bytearray(victim.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(b ^ 0x5A for b in data[middle : middle + 2000])
    victim.write_bytes(data)
    run = pretraining(str(copy))
    done = run.run()
    outcome = json.loads((run.directory / "outcome.json").read_text())
    assert list(outcome["damaged_cases"]) == ["case_02"]
    assert "case_02" in done.stdout
    assert len(run.losses()) == 24
    again = pretraining(str(copy), name="again")
    again.run()
    assert again.losses() == run.losses()  # the substitutes, too, are a function of seed and index


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_costs_checkpoints_but_not_the_run(
    pretraining, small_disk, store, uninterrupted
):
    run = pretraining(store, folder=small_disk).start()
    run.wait_for_step(5)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    wait_until(lambda: "not written" in run.log() or "no space" in run.log(), timeout=60)
    ballast.unlink()
    log = run.finish()
    assert "no space left" in log
    assert run.losses()[-1] == uninterrupted.losses()[-1]


def test_a_disk_that_stays_full_ends_in_one_clear_error(pretraining, small_disk, store):
    (small_disk / "ballast").write_bytes(bytes((24 << 20) - 200_000))
    done = pretraining(store, folder=small_disk, compute__num_workers=0).run(expect=2)
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr


def wait_until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.1)
