"""One trial in this process: an ordinary training run, and its held-out Dice case by case.

A trial that is finished has a `result.json` and is not run again; one that was interrupted goes on from its newest
checkpoint, as every training run does.
"""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch

from fedvox import storage
from fedvox.backbone_benchmark.trials import Trial
from fedvox.config import to_yaml
from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone
from fedvox.models.transfer import LoadReport, load_pretrained
from fedvox.training.config import PretrainConfig
from fedvox.training.loop import train
from fedvox.training.pretrained import read_pretrained
from fedvox.training.release import write_release
from fedvox.training.run_directory import RunDirectory, environment
from fedvox.training.session import model_info, new_network, open_data
from fedvox.training.validation import ValidationResult
from fedvox.training.world import World

RESULT = "result.json"
SCHEMA = "fedvox.backbone_trial/1"


def finished(trial: Trial) -> dict[str, Any] | None:
    """What a trial found, None if it has not finished."""
    found: dict[str, Any] | None = RunDirectory.of(trial.config).read_json(RESULT)
    return found


def run_trial(trial: Trial) -> dict[str, Any]:
    """Runs a trial, or goes on with it, or reads what it found before.

    Returns:
        What `result.json` holds: Dice per held-out case and structure, and what it took.

    Raises:
        FedvoxError: training failed, or the pretrained weights do not fit.
    """
    before = finished(trial)
    if before is not None:
        return before
    config, began = trial.config, time.monotonic()
    directory = RunDirectory.of(config)
    device = _device(config)
    if config.compute.torch_threads is not None:
        torch.set_num_threads(config.compute.torch_threads)
    loaded: dict[str, Any] | None = None
    if trial.start is not None:
        config, report = _started(trial, directory)
        loaded = report.as_dict()["share"]
    directory.check_resumable(config)
    storage.write_atomic(directory.child("config.resolved.yaml"), to_yaml(config).encode())
    directory.write_json(environment(str(device)), "environment.json")
    done = train(config, World(device=device))
    directory.finish(done)
    result = {
        "schema": SCHEMA,
        "label": trial.label,
        "phase": trial.phase,
        "seed": trial.seed,
        "steps": done.step,
        "tflop": trial.tflop,
        "seconds_of_last_attempt": round(time.monotonic() - began, 2),
        "pretrained_share": loaded,
        "damaged_cases": done.damaged,
        "dice": _table(done.dice),
    }
    directory.write_json(result, RESULT)
    return result


def _device(config: PretrainConfig) -> torch.device:
    if config.compute.use_gpu != "yes":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "compute.gpus_per_trial asks for a GPU, and this process sees none",
            "Set compute.gpus_per_trial=0.",
        )
    return torch.device("cuda")


def _table(dice: ValidationResult | None) -> dict[str, Any] | None:
    if dice is None:
        return None
    values = [[None if np.isnan(v) else round(float(v), 6) for v in row[1:]] for row in dice.dice]
    return {"cases": list(dice.case_ids), "structures": list(dice.structures[1:]), "values": values}


def _started(trial: Trial, directory: RunDirectory) -> tuple[PretrainConfig, LoadReport]:
    """The trial's run, starting from its network filled with pretrained weights as far as they fit.

    Raises:
        CheckpointError: they are unreadable, or fill less than half of the encoder.
    """
    assert trial.start is not None
    config = trial.config
    store, split = open_data(config.data)
    torch.manual_seed(config.seed)  # what is not pretrained starts as it would from scratch
    network = cast(Backbone, new_network(config, len(store.meta.channel_names), len(store.meta.structures)))
    source = read_pretrained(trial.start)
    by_name = source.structures is not None
    report = load_pretrained(
        network,
        source.tensors,
        pretrained_config=source.config,
        structures=store.meta.structures if by_name else None,
        pretrained_structures=source.structures,
    )
    folder = directory.child("start")
    write_release(network, model_info(config, store, split, {"pretrained": source.origin()}), folder)
    return config.model_copy(update={"init_from": folder.uri}), report
