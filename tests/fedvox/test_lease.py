import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from fedvox.storage import Held, Holder, exists, lease, locate, write_atomic

HOLD = """
import sys, time
from fedvox.storage import lease, locate
with lease(locate(sys.argv[1]), lambda by: print("lost", flush=True), beat_s=0.1, stale_s=1.0):
    print("held", flush=True)
    time.sleep(60)
"""


def nobody(by):
    raise AssertionError(f"lost to {by}")


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    if request.param == "local":
        return locate(tmp_path / "run" / "control" / "driver.json")
    return locate(request.getfixturevalue("bucket")).child("run", "driver.json")


@pytest.fixture
def other(place):
    """Another process which holds the lease; resumed and ended whatever the test has done to it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, place.uri], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(20)


def elsewhere(**changes):
    """A holder on a machine that this one knows nothing of."""
    return replace(Holder.this_process(), machine="far away", host="node-7", **changes)


def put(place, holder):
    write_atomic(place, json.dumps(asdict(holder)).encode())


def test_a_lease_is_held_during_the_block_only(place):
    with lease(place, nobody):
        assert exists(place)
    assert not exists(place)


def test_a_second_process_is_told_who_is_at_work(place, other):
    with (
        pytest.raises(Held, match=f"process {other.pid} on {os.uname().nodename}"),
        lease(place, nobody, stale_s=5.0),
    ):
        pass
    assert other.poll() is None


def test_a_process_killed_on_this_machine_is_not_waited_for(place, other):
    other.kill()  # a zombie until the fixture waits for it
    time.sleep(0.2)
    began = time.monotonic()
    with lease(place, nobody, stale_s=30.0):
        assert time.monotonic() - began < 5


def test_a_holder_elsewhere_that_beats_no_more_is_waited_out(place):
    put(place, elsewhere())
    began = time.monotonic()
    with lease(place, nobody, stale_s=0.6):
        assert 0.6 <= time.monotonic() - began < 5


def test_a_holder_elsewhere_that_still_beats_is_left_alone(place):
    put(place, elsewhere())
    beat = threading.Timer(0.5, put, (place, elsewhere(beats=1)))
    beat.start()
    with pytest.raises(Held, match="on node-7"), lease(place, nobody, stale_s=5.0):
        pass
    beat.join()


def test_who_stood_still_for_too_long_learns_that_another_has_taken_over(place, other):
    other.send_signal(signal.SIGSTOP)  # as a machine that is suspended, or cut off from the store
    with lease(place, nobody, beat_s=0.1, stale_s=1.0):
        other.send_signal(signal.SIGCONT)
        assert other.stdout.readline() == "lost\n"
        other.terminate()
        other.wait(20)
        assert exists(place)  # the loser has not given back what is not its own


def test_a_damaged_lease_is_nobodys(place, caplog):
    write_atomic(place, b'{"token": 1')
    with lease(place, nobody, stale_s=30.0):
        assert "is no lease" in caplog.text
