"""The Slurm script, under a Slurm and a Ray made of shell: who is started where, and what is left when it ends."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/slurm/ray_job.sbatch"
SRUN = r"""#!/bin/bash
node=; while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done
echo "$node $*" >>"$LOG"
case $1 in
    hostname) echo "10.0.0.1 fe80::1" ;;
    ray) echo $$ >>"$PIDS"; exec sleep 600 ;;
esac
"""
SCONTROL = r"""#!/bin/bash
if [[ $1 == show ]]; then printf 'n1\nn2\nn3\n'; else echo "scontrol $*" >>"$LOG"; fi
"""
RAY = r"""#!/bin/bash
[[ $1 == health-check && -z $SICK ]]
"""


@pytest.fixture
def slurm(tmp_path):
    """Runs the script with a command, in the background."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    environment = {
        **os.environ, "VENV": str(tmp_path / "venv"), "LOG": str(tmp_path / "log"), "PIDS": str(tmp_path / "pids"),
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "4", "SLURM_GPUS_ON_NODE": "2",
        "RAY_WAIT_S": "0", "SICK": "",
    }  # fmt: skip

    def start(*command, **more):
        return subprocess.Popen(
            ["bash", SCRIPT, *command], env={**environment, **more}, cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def left_running(folder):
    pids = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_ray_starts_on_every_node_with_its_resources_and_goes_with_the_job(slurm, tmp_path):
    all_there = 'until [ "$(grep -c "ray start" "$LOG")" = 3 ]; do sleep 0.05; done'
    run = slurm("bash", "-c", f'{all_there}; echo "driver at $RAY_ADDRESS"; exit 3')
    told, _ = run.communicate(timeout=30)
    assert run.returncode == 3  # the job's own code
    assert told == "driver at 10.0.0.1:6379\n"
    log = (tmp_path / "log").read_text().splitlines()
    ray = sorted(line for line in log if " ray start " in line)
    assert [line.split()[0] for line in ray] == ["n1", "n2", "n3"]
    assert "--head" in ray[0]
    assert "--node-ip-address=10.0.0.1" in ray[0]
    assert all("--address=10.0.0.1:6379" in line for line in ray[1:])
    assert all("--num-cpus=4 --num-gpus=2" in line for line in ray)
    assert left_running(tmp_path) == []


def test_a_job_that_is_preempted_writes_its_checkpoint_and_goes_back_into_the_queue(slurm, tmp_path):
    job = 'trap "echo checkpoint; exit 143" TERM; touch ready; while :; do sleep 0.05; done'
    run = slurm("bash", "-c", job)
    end = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    told, _ = run.communicate(timeout=30)
    assert (run.returncode, told) == (143, "checkpoint\n")
    assert "scontrol requeue 7" in (tmp_path / "log").read_text()
    assert left_running(tmp_path) == []


def test_a_head_that_does_not_start_is_told_and_cleared_away(slurm, tmp_path):
    run = slurm("true", SICK="1")
    _, error = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "Ray's head did not start on n1 (10.0.0.1:6379)" in error
    assert left_running(tmp_path) == []


def test_without_a_command_it_says_how_it_is_used(slurm, tmp_path):
    run = slurm()
    assert run.wait(10) == 2
    assert "error: no command; for example: sbatch" in run.stderr.read()
    assert not (tmp_path / "log").exists()
