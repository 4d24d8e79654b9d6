"""An elastic run over two nodes, one of which is lost: training goes on with the worker that is left."""

import signal
import subprocess
import sys
import time

import pytest

from fedvox.local_cluster import local_cluster, local_node

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(cluster_environment):
    """A head with room for one worker."""
    with local_cluster(1, environment=cluster_environment) as started:
        yield started


def raylet_of(session):
    done = subprocess.run(["ps", "-ewwo", "pid=,sess=,args="], capture_output=True, text=True, check=True)
    raylets = [line.split(None, 2)[:2] for line in done.stdout.splitlines() if "raylet/raylet" in line]
    ours = [int(pid) for pid, sess in raylets if int(sess) == session]
    assert len(ours) == 1, raylets
    return ours[0]


def test_a_lost_node_leaves_a_run_that_goes_on_with_fewer_workers(
    tmp_path, cluster, pretraining_in, write_store
):
    store = write_store(tmp_path / "store")
    values = {"steps": 40, "validation__every_steps": 40}
    alone = pretraining_in(tmp_path, store, name="alone", compute__num_workers=0, **values)
    alone.run()
    with local_node(cluster, 1) as node:
        run = pretraining_in(tmp_path, store, name="elastic", compute__num_workers=[1, 2], **values)
        deadline = time.monotonic() + 60
        while nodes(cluster) < 2:
            assert time.monotonic() < deadline, "the second node did not join"
            time.sleep(0.5)
        run.start().wait_for_step(6)
        subprocess.run(["kill", f"-{int(signal.SIGKILL)}", str(raylet_of(node.pid))], check=True)
        run.finish(timeout=500)
    assert run.losses() == pytest.approx(alone.losses(), rel=5e-3)
    workers = [line["workers"] for line in run.lines("train")]
    assert (workers[0], workers[-1]) == (2, 1)


def nodes(cluster):
    code = (
        f"import ray; ray.init('{cluster.gcs_address}', log_to_driver=False, logging_level='ERROR');"
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0
