"""The Ray shell where a restart would not help, without a Ray: memory that is too small, GPUs that are not there."""

from types import SimpleNamespace

import pytest
import torch

from fedvox.errors import CheckpointError, ConfigError, DamagedCase, DataError, OutOfMemory, StorageError
from fedvox.training import ray_shell
from fedvox.training.config import PretrainConfig
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.run_directory import RunDirectory


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Runs what a Ray worker runs, with a training of our own; gives the run's directory and the runner."""
    config = PretrainConfig(name="run", storage=str(tmp_path), global_batch_size=2)
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ray_shell.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray_shell.ray.train.torch, "get_device", lambda: torch.device("cpu"))

    def run(training):
        monkeypatch.setattr(ray_shell, "train", training)
        ray_shell._worker(config, PreemptionWatch())

    return RunDirectory.of(config), run


def out_of_memory(restart):
    def train(*_, **__):
        raise OutOfMemory("the GPU is too small", "Lower global_batch_size.", restart=restart)

    return train


def test_too_little_memory_ends_a_run_instead_of_starting_it_over_and_over(worker):
    directory, run = worker
    with pytest.raises(OutOfMemory):
        run(out_of_memory(restart=False))
    run(lambda *_, **__: pytest.fail("a restarted worker has trained"))
    with pytest.raises(OutOfMemory, match="too small") as caught:
        directory.outcome()
    assert caught.value.remedy == "Lower global_batch_size."
    assert caught.value.exit_code == 1


def test_memory_that_was_enough_for_a_while_is_worth_a_restart(worker):
    directory, run = worker
    with pytest.raises(OutOfMemory):
        run(out_of_memory(restart=True))
    assert not directory.failed()


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, DamagedCase])
def test_wrong_input_met_by_one_worker_ends_a_run_that_may_restart_for_ever(worker, kind):
    directory, run = worker

    def train(*_, **__):
        raise kind("the case is not what it was", "Ingest it again.")

    with pytest.raises(kind):
        run(train)
    run(lambda *_, **__: pytest.fail("a restarted worker has trained"))
    with pytest.raises(kind, match="not what it was"):
        directory.outcome()


def test_storage_out_of_reach_is_worth_a_restart(worker):
    directory, run = worker

    def train(*_, **__):
        raise StorageError("unreachable for 120 s")

    with pytest.raises(StorageError):
        run(train)
    assert not directory.failed()


@pytest.fixture
def ray_with(monkeypatch):
    """A Ray of so many nodes and GPUs, one of which may come later."""

    def make(nodes, gpus, *, comes=False):
        made = []
        monkeypatch.setattr(ray_shell.ray, "cluster_resources", lambda: {"GPU": gpus} if gpus else {})
        monkeypatch.setattr(ray_shell.ray, "nodes", lambda: [{}] * nodes)
        monkeypatch.setattr(ray_shell.ray, "wait", lambda refs, timeout: (refs, []) if comes else ([], refs))
        group = SimpleNamespace(ready=lambda: "ready")
        monkeypatch.setattr(ray_shell, "placement_group", lambda bundles: made.append(bundles) or group)
        monkeypatch.setattr(ray_shell, "remove_placement_group", lambda asked: made.append(asked))
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return made

    return make


def test_a_machine_without_a_gpu_is_refused_at_once(ray_with):
    ray_with(nodes=1, gpus=0)
    with pytest.raises(ConfigError, match="finds none on this machine"):
        ray_shell._require_gpu(300.0)


def test_a_cluster_is_asked_for_a_gpu_and_given_time(ray_with):
    made = ray_with(nodes=2, gpus=0)
    with pytest.raises(ConfigError, match="within 5 s"):
        ray_shell._require_gpu(5.0)
    assert made[0] == [{"GPU": 1}]
    assert len(made) == 2  # and what was asked for is let go
    ray_with(nodes=2, gpus=0, comes=True)
    ray_shell._require_gpu(5.0)
    ray_with(nodes=1, gpus=8)
    ray_shell._require_gpu(5.0)
