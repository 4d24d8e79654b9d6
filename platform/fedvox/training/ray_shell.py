"""Ray Train around the training loop: worker groups, restarts, elasticity.

The only training module that knows Ray.

    driver: check everything -> TorchTrainer.fit() ─┬─ worker 0: train(config, world)
                                                    └─ worker 1: train(config, world)   … restarted on failure

Checkpoints are the loop's own (`fedvox.training.checkpoint`): a restarted worker group, a new driver after
the loss of the head node and a plain rerun all resume alike, from the newest commit in the run directory.
"""

from __future__ import annotations

import _thread
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group

from fedvox import storage
from fedvox.config import to_yaml
from fedvox.errors import (
    CheckpointError,
    CheckpointNotWritten,
    ConfigError,
    DamagedCase,
    DataError,
    FedvoxError,
    NonFiniteLoss,
    OutOfMemory,
    Preempted,
    RunError,
    StorageRefused,
)
from fedvox.training.checkpoint import newest_meta
from fedvox.training.config import TrainingConfig, expand, is_relative, require_lasting
from fedvox.training.finetune import TRANSFER_FILE
from fedvox.training.loop import train
from fedvox.training.preemption import PreemptionWatch
from fedvox.training.run_directory import Finished, RunDirectory, environment
from fedvox.training.session import check_architecture, fill_network, new_network, open_data
from fedvox.training.training_loop import Report
from fedvox.training.world import World

log = logging.getLogger(__name__)

FOR_GOOD = (ConfigError, DataError, CheckpointError, DamagedCase, StorageRefused)
"""What a restart would only repeat, for ever where `max_failures` is -1. Storage that is out of reach may
come back; a bucket that is gone or forbidden does not."""
C = TypeVar("C", bound=TrainingConfig)
SOURCE_ROOTS = ("platform", "federation", "compliance")


class Task(Protocol):
    """What the shell runs where it is not the training of a segmentation network.

    A module (or another object that can be pickled) with these functions.
    """

    def anchored(self, config: Any, absolute: Callable[[str], str]) -> Any:
        """The configuration with every path of its own, beside `storage`, made absolute."""

    def check(self, config: Any, directory: RunDirectory) -> None:
        """Finds what is wrong with a run before any worker is started.

        Raises:
            FedvoxError: data, configuration or checkpoints cannot be used.
        """

    def train(
        self, config: Any, world: World, *, report: Report | None, watch: PreemptionWatch | None
    ) -> Finished:
        """Trains on one worker, from the newest checkpoint; see `fedvox.training.loop.train`."""


def run(config: TrainingConfig, task: Task | None = None) -> dict[str, Any]:
    """Runs (or resumes) a run on the Ray cluster at hand, or in this process with `num_workers=0`.

    Args:
        config: of the run.
        task: what is trained; None trains a segmentation network, and `config` is a `PretrainConfig`.

    Returns:
        What `outcome.json` of the run directory holds: step, Dice per structure, damaged cases.

    Raises:
        FedvoxError: the input cannot be used, training failed for good, or it was asked to stop.
    """
    require_lasting(config.storage, "storage")
    config = anchored(config, task)
    directory = RunDirectory.of(config)
    (task.check if task is not None else check)(config, directory)
    with _only_driver(directory):
        return _drive(config, directory, task)


def _drive(config: TrainingConfig, directory: RunDirectory, task: Task | None) -> dict[str, Any]:
    directory.clear_stop()
    directory.clear_outcome()
    storage.write_atomic(directory.child("config.resolved.yaml"), to_yaml(config).encode())
    if config.compute.num_workers == 0:
        run_in_process(config, directory, task)
    else:
        connect()
        _fit(config, directory, task)
    return directory.outcome()


def anchored(config: C, task: Task | None = None) -> C:
    """The same run with absolute paths: workers have a working directory of their own.

    In a Ray job nothing changes: there driver and workers all have the uploaded folder.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return config

    def absolute(uri: str) -> str:
        return str(Path(expand(uri)).absolute()) if is_relative(uri) else uri

    found = task.anchored(config, absolute) if task is not None else _anchored_data(config, absolute)
    moved: C = found.model_copy(update={"storage": absolute(config.storage)})
    return moved


def _anchored_data(config: Any, absolute: Callable[[str], str]) -> Any:
    data = config.data.model_copy(update={"store": absolute(config.data.store)})
    if data.cache is not None:
        folder = absolute(data.cache.folder)
        data = data.model_copy(update={"cache": data.cache.model_copy(update={"folder": folder})})
    start = None if config.init_from is None else absolute(config.init_from)
    return config.model_copy(update={"data": data, "init_from": start})


def check(config: Any, directory: RunDirectory) -> None:
    """Finds what is wrong with a `PretrainConfig`'s run before any worker is started.

    Raises:
        FedvoxError: the store, the configuration, the checkpoints or the storage cannot be used.
    """
    directory.check_resumable(config)
    store, _ = open_data(config.data)
    network = new_network(config, len(store.meta.channel_names), len(store.meta.structures))
    newest = newest_meta(directory.checkpoints)
    if newest is not None:
        check_architecture(config, store, newest, directory)
        return
    transferred = fill_network(config, network, store)
    if transferred is not None:
        log.info("%s", transferred)
        directory.write_json(transferred.as_dict(), TRANSFER_FILE)


def run_in_process(config: TrainingConfig, directory: RunDirectory, task: Task | None = None) -> None:
    """The same training without Ray, for a debugger."""
    if config.compute.use_gpu == "yes" and not torch.cuda.is_available():
        raise _no_gpu("this machine has none that PyTorch can use")
    device = torch.device("cuda" if _use_gpu(config, torch.cuda.is_available()) else "cpu")
    if config.compute.torch_threads is not None:
        torch.set_num_threads(config.compute.torch_threads)
    watch = PreemptionWatch()
    watch.install()
    directory.write_json(environment(str(device)), "environment.json")
    try:
        result = _training(task)(config, World(device=device), report=None, watch=watch)
    except (NonFiniteLoss, CheckpointNotWritten, Preempted, OutOfMemory, *FOR_GOOD) as error:
        directory.fail(error)  # for whoever asks where the run is
        raise
    directory.finish(result)


def _training(task: Task | None) -> Callable[..., Finished]:
    return train if task is None else task.train


def connect() -> None:
    """Joins the cluster (or starts a local one) such that workers run the code of this checkout.

    `ray job submit --working-dir .` uploads the checkout; its packages must win over whatever version the
    cluster's image has installed, so the workers' PYTHONPATH starts with the source roots of the working
    directory.
    """
    if ray.is_initialized():
        return
    root = Path(__file__).resolve().parents[3]
    runtime_env: dict[str, Any] = {}
    if (root / "platform" / "fedvox").is_dir():  # a checkout, not an installed package
        # Relative, because Ray changes to the working directory on every node before Python starts.
        runtime_env["env_vars"] = {"PYTHONPATH": ":".join(SOURCE_ROOTS)}
        if (
            "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
        ):  # a job has uploaded its working directory already
            runtime_env["working_dir"] = str(root)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(runtime_env=runtime_env, logging_level=logging.WARNING)


def _use_gpu(config: TrainingConfig, available: bool) -> bool:
    return config.compute.use_gpu == "yes" or (config.compute.use_gpu == "auto" and available)


def _no_gpu(found: str) -> ConfigError:
    return ConfigError(
        f"compute.use_gpu is 'yes', but {found}",
        "Use --set compute.use_gpu=auto to train on CPUs, or see `fedvox doctor` for what is missing.",
    )


def _require_gpu(wait_s: float) -> None:
    """Refuses to wait for ever for a GPU; a cluster that grows on demand is given the time to do so.

    Raises:
        ConfigError: no node has one, and none came.
    """
    if ray.cluster_resources().get("GPU", 0) > 0:  # type: ignore[no-untyped-call]
        return
    if len(ray.nodes()) == 1 and not os.environ.get("RAY_ADDRESS"):  # type: ignore[no-untyped-call]
        raise _no_gpu("Ray finds none on this machine")
    log.warning("no node of the cluster has a GPU; waiting up to %.0f s for one to be added", wait_s)
    group = placement_group([{"GPU": 1}])
    try:
        ready, _ = ray.wait([group.ready()], timeout=wait_s)
    finally:
        remove_placement_group(group)
    if not ready:
        raise _no_gpu(
            f"no node of the cluster has one, nor got one within {wait_s:.0f} s (compute.gpu_wait_s)"
        )


def _fit(config: TrainingConfig, directory: RunDirectory, task: Task | None) -> None:
    compute = config.compute
    if compute.use_gpu == "yes":
        _require_gpu(compute.gpu_wait_s)
    use_gpu = _use_gpu(config, ray.cluster_resources().get("GPU", 0) > 0)  # type: ignore[no-untyped-call]
    location = storage.locate(expand(config.storage))
    trainer = TorchTrainer(
        functools.partial(_worker, config=config, watch=PreemptionWatch(), task=task),
        scaling_config=ScalingConfig(
            num_workers=compute.num_workers,  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=location.path,
            storage_filesystem=location.filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures),
        ),
    )
    with _stop_on_sigterm(directory):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _told(error) from error


def _worker(config: TrainingConfig, watch: PreemptionWatch, task: Task | None = None) -> None:
    """What each Ray Train worker runs.

    Ray restarts the worker group for every exception. Those that all workers agree on and that a restart
    would only repeat are therefore not raised but written down, for the driver to raise. Memory runs out, or wrong
    input is met, on one worker while others wait for it: it is written down and raised, and the restarted workers
    leave at once.
    """
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if config.compute.torch_threads is not None:
        torch.set_num_threads(config.compute.torch_threads)
    world = World(context.get_world_rank(), context.get_world_size(), device)
    directory = RunDirectory.of(config)
    if directory.failed():
        return
    if world.rank == 0:
        directory.write_json(environment(str(device)), "environment.json")
    try:
        result = _training(task)(config, world, report=_report, watch=watch)
    except (NonFiniteLoss, CheckpointNotWritten, Preempted) as error:
        if isinstance(error, Preempted) and not directory.stop_requested():
            raise  # this node goes away: Ray starts the group again, elsewhere if need be
        if world.rank == 0:
            directory.fail(error)
        return
    except (OutOfMemory, *FOR_GOOD) as error:
        if not getattr(error, "restart", False):
            directory.fail(error)
        raise
    if world.rank == 0:
        directory.finish(result)


def _report(metrics: Mapping[str, Any]) -> None:
    """Tells Ray's dashboard the metrics, but no checkpoint.

    Ray's controller writes a note of every reported checkpoint to the run's storage, without retry: a full disk or
    an S3 outage at that moment would end the run.
    """
    ray.train.report(dict(metrics))


@contextmanager
def _only_driver(directory: RunDirectory) -> Iterator[None]:
    """Keeps a second driver away from a run: both would write its checkpoints.

    Raises:
        RunError: another driver works on this run, or has taken it over while this one stood still.
    """
    taken: list[storage.Holder] = []

    def leave(by: storage.Holder) -> None:
        taken.append(by)
        _thread.interrupt_main()  # not by a stop request, which the new driver's workers would obey

    try:
        with storage.lease(directory.child("control", "driver.json"), leave):
            yield
    except storage.Held as error:
        raise RunError(
            f"run {directory.location.uri} is being driven by {error} already",
            f"Watch it with `fedvox status {directory.location.uri}`, or give this run another name"
            " (--set name=…).",
        ) from error
    except KeyboardInterrupt:
        if not taken:
            raise
        raise RunError(
            f"run {directory.location.uri} was taken over by {taken[0]}",
            "This driver had stood still for too long; nothing is lost, and the other one goes on.",
        ) from None


@contextmanager
def _stop_on_sigterm(directory: RunDirectory) -> Iterator[None]:
    """Turns a SIGTERM of the driver (`ray job stop`) into a stop request that every worker sees."""

    def ask(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the driver at once
        threading.Thread(target=directory.request_stop, name="stop-request").start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(error: ray.train.TrainingFailedError) -> FedvoxError:
    """The worker's own error if it was one of ours, else what Ray says and where to look."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, FedvoxError):
            return cause
    return RunError(
        f"training failed for good: {error}",
        "Read the worker's traceback above; compute.max_failures sets how often the workers are restarted.",
    )
