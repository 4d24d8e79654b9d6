"""Pretraining with data and run directory on S3: outages, the node's cache, and errors that say what to do."""

import json
import os
import signal
import threading

import pytest

from fedvox import storage
from fedvox.local_cluster import local_cluster
from fedvox.training.release import load_release

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(s3_proxy, cluster_environment):
    """A Ray whose nodes have the S3 variables, as a cluster's nodes have."""
    with local_cluster(4, environment=cluster_environment) as started:
        yield started


@pytest.fixture(scope="module")
def store(s3_proxy, write_store):
    return write_store("s3://fedvox-test/stores/shapes")


@pytest.fixture(scope="module")
def remote(tmp_path_factory, pretraining_in, store):
    """Builds a pretraining whose data and run directory are on S3."""

    def build(name, **values):
        folder = tmp_path_factory.mktemp(name)
        # Metrics reach S3 every two seconds: long enough that a fault finds the run under way.
        values = {"steps": 60, "validation__every_steps": 30, "checkpoint__every_steps": 10, **values}
        values = {"data__cache": {"folder": str(folder / "cache"), "budget_gib": 0.1}, **values}
        return pretraining_in(folder, store, name=name, storage="s3://fedvox-test/runs", **values)

    return build


@pytest.fixture(scope="module")
def uninterrupted(remote):
    run = remote("uninterrupted")
    run.run()
    return run


def test_everything_is_on_s3_and_the_released_model_loads_from_there(uninterrupted):
    outcome = json.loads(storage.read_bytes(uninterrupted.location.child("outcome.json")))
    assert outcome["state"] == "finished"
    model, info = load_release(f"{uninterrupted.location.uri}/final")
    assert info.structures == ("background", "ball", "box")
    assert sum(p.numel() for p in model.parameters()) > 0
    names = {location.path.split("/")[3] for location in storage.list_files(uninterrupted.location)}
    assert {"checkpoints", "figures", "metrics", "tensorboard", "validation"} <= names


def test_an_s3_server_that_refuses_for_thirty_seconds_costs_no_sample(remote, s3_proxy, uninterrupted):
    run = remote("outage").start()
    run.wait_for_step(5)
    s3_proxy.refuse()
    try:
        threading.Event().wait(30)
        assert run.process.poll() is None, run.log()
    finally:
        s3_proxy.allow()
    run.finish()
    assert run.losses() == uninterrupted.losses()


def test_a_worker_killed_during_training_on_s3_resumes_from_there(remote, worker_pids, uninterrupted):
    run = remote("killed").start()
    run.wait_for_step(6)
    os.kill(worker_pids()[0], signal.SIGKILL)
    run.finish()
    assert run.losses() == uninterrupted.losses()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__store": "s3://no-such-bucket/store"}, "no-such-bucket"),
        ({"data__store": "s3://fedvox-test/nothing-here"}, "holds no finished store"),
        ({"storage": "s3://no-such-bucket/runs"}, "no-such-bucket"),
    ],
)
def test_a_missing_bucket_or_store_is_one_clear_error(remote, values, words):
    run = remote("wrong", compute__num_workers=0, **values) if "storage" not in values else None
    if run is None:
        run = remote("wrong-storage", compute__num_workers=0)
        run.config["storage"] = values["storage"]
    done = run.run(expect=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
