"""What a cluster user types: `ray job submit --working-dir .`, followed to its end by `fedvox submit`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedvox.commands.submit import submit_and_follow
from fedvox.errors import RunError
from fedvox.local_cluster import local_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
IMPOSTOR = 'raise ImportError("the version that the image has installed, not the one that was submitted")\n'


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray whose every Python finds another fedvox first, as on an image with an older version installed."""
    image = tmp_path_factory.mktemp("image")
    (image / "fedvox").mkdir()
    (image / "fedvox" / "__init__.py").write_text(IMPOSTOR)
    with local_cluster(4, environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(image)}) as started:
        yield started


def test_the_submitted_code_runs_on_driver_and_workers_whatever_is_installed(
    tmp_path, cluster, write_store, pretraining_in
):
    run = pretraining_in(tmp_path, write_store(tmp_path / "store"), steps=4, validation__every_steps=4)
    _, *arguments = run.command()
    code = submit_and_follow(["python", *arguments], cluster.jobs_address, ROOT)
    assert code == 0
    environment = json.loads((run.directory / "environment.json").read_text())
    assert "/working_dir_files/" in environment["fedvox_file"]
    assert len(run.losses()) == 4


def test_the_impostor_is_really_in_the_way(cluster, tmp_path):
    """Without its own source roots the job would have run the installed version."""
    (tmp_path / "job.py").write_text("import fedvox\n")
    assert submit_and_follow(["python", "job.py"], cluster.jobs_address, tmp_path) == 1


@pytest.mark.parametrize("expected", [0, 2, 143])
def test_the_exit_code_of_the_job_is_passed_on(cluster, tmp_path, expected):
    (tmp_path / "job.py").write_text(f"import sys; sys.exit({expected})\n")
    assert submit_and_follow(["python", "job.py"], cluster.jobs_address, tmp_path) == expected


def test_wrong_input_leaves_the_job_with_2_and_one_error(cluster, capfd):
    code = submit_and_follow(
        ["python", "jobs/pretrain.py", "--config", "jobs/configs/demo.yaml", "--set", "stepz=1"],
        cluster.jobs_address, ROOT,
    )  # fmt: skip
    output = "".join(capfd.readouterr())
    assert code == 2
    assert "did you mean 'steps'" in output
    assert "Traceback" not in output


def test_a_job_server_that_is_not_there_is_one_clear_error():
    with pytest.raises(RunError, match="ray job submit"):
        submit_and_follow(["true"], "http://127.0.0.1:1", ROOT / "jobs" / "configs")


def test_nothing_of_a_local_cluster_is_left_running(tmp_path):
    with local_cluster(1, environment={"FEDVOX_LEFTOVER": str(tmp_path)}):
        assert processes_with(str(tmp_path))
    assert not processes_with(str(tmp_path))


def processes_with(marker):
    done = subprocess.run(["ps", "eww", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if f"FEDVOX_LEFTOVER={marker}" in line]


def test_the_command_line_leaves_with_the_jobs_code(cluster, tmp_path):
    (tmp_path / "job.py").write_text("import sys; sys.exit(5)\n")
    done = subprocess.run(
        [sys.executable, "-m", "fedvox", "submit", "--address", cluster.jobs_address, "--working-dir", str(tmp_path),
         "--", "python", "job.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
