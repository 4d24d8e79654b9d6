"""One method on one data set with one seed: trained as every forecasting model is, judged on unseen patients.

The patients that judge, their missing scans and the times that are asked for are the same for every method and seed.
A finished cell is a JSON file and is not repeated; an unfinished training goes on from its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedvox import storage
from fedvox.config import validate
from fedvox.forecasting.baselines import BASELINES, Baseline, last_context_image
from fedvox.forecasting.config import ForecastConfig
from fedvox.forecasting.examples import Examples, keep_valid
from fedvox.forecasting.flow import Forecaster
from fedvox.forecasting.metrics import STILL, changing_region, mean_squared_error, relative_volume_error, ssim
from fedvox.forecasting.release import flow_of, load_release, solver_of
from fedvox.forecasting.simulation import SIMULATIONS, TEST, Schedule, Simulated, Target
from fedvox.forecasting.study import futures
from fedvox.forecasting.training import train
from fedvox.forecasting.trust import weighed
from fedvox.storage import Location
from fedvox.training.world import World

TEST_SEED = 777
TEST_PATIENTS = 64
STEPS = 1000

SETS: Mapping[str, dict[str, str]] = {
    "heart-irregular": {"kind": "heart", "schedule": "irregular"},
    "heart-regular": {"kind": "heart", "schedule": "regular"},
    "brain": {"kind": "brain", "schedule": "irregular"},
    "contrast": {"kind": "contrast", "schedule": "irregular"},
    "response": {"kind": "response", "schedule": "irregular", "target": "after"},
}
"""Data sets by name, as the `data.simulated` section of a configuration."""

METHODS: Mapping[str, dict[str, Any]] = {
    "cronos": {},
    "cronos-grid": {"times": "grid"},
    "tfm": {"method": "tfm"},
    "cronos-noisy": {"sigma": 0.3},
    "regression": {"objective": "regression"},
    "convlstm": {"method": "convlstm", "objective": "regression"},
}
"""Trained methods by name, as the `flow` section of a configuration."""

MUST: tuple[tuple[str, str], ...] = (
    ("heart-irregular", "cronos"), ("brain", "cronos"), ("heart-irregular", "tfm"), ("brain", "tfm"),
    ("heart-regular", "tfm"), ("heart-irregular", "cronos-grid"),
)  # fmt: skip
"""What the claims that must hold are about."""

MORE: tuple[tuple[str, str], ...] = (
    ("heart-irregular", "regression"), ("brain", "regression"), ("heart-irregular", "convlstm"),
    ("contrast", "cronos"), ("brain", "convlstm"), ("contrast", "tfm"), ("response", "cronos-noisy"),
    ("response", "cronos"), ("response", "regression"),
)  # fmt: skip
"""What puts them into perspective."""


@dataclass(frozen=True)
class Cell:
    """A method on a data set with a seed."""

    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.data}.{self.method}.{self.seed}"


def config_of(cell: Cell, folder: str, steps: int = STEPS) -> ForecastConfig:
    """The training of a cell, whose run directory lies in `folder`/runs."""
    section = SETS[cell.data]
    grid_step = SIMULATIONS[section["kind"]].duration / 10
    values = {
        "name": cell.name, "storage": f"{folder}/runs", "seed": cell.seed, "steps": steps, "global_batch_size": 8,
        "log_every": 50, "optimizer": {"lr": 2e-3, "warmup_steps": min(50, steps // 10)},
        "data": {"simulated": section}, "flow": {**METHODS[cell.method], "grid_step": grid_step},
        "validation": {"every_steps": 10 * steps, "examples": 64, "trust_examples": 128},
        "checkpoint": {"every_steps": 250, "keep": 1}, "compute": {"num_workers": 0, "torch_threads": 1},
    }  # fmt: skip
    return validate(ForecastConfig, values, source=f"study cell {cell.name}")


def run_cell(cell: Cell, folder: str, *, steps: int = STEPS, patients: int = TEST_PATIENTS) -> dict[str, Any]:
    """Trains and judges a cell, or reads what was found before.

    Args:
        cell: a trained method, or one of `BASELINES`.
        folder: local folder or address for runs and results.
        steps: of training.
        patients: that judge.

    Returns:
        Per condition and metric a number per patient.
    """
    location = result_of(cell, folder)
    if storage.exists(location):
        found: dict[str, Any] = json.loads(storage.read_bytes(location))
        return found
    began, cpu = time.monotonic(), time.process_time()
    if cell.method in BASELINES:
        forecast: Baseline = BASELINES[cell.method]
    else:
        config = config_of(cell, folder, steps)
        train(config, World())
        network, info = load_release(f"{config.storage}/{config.name}")
        forecast = Forecaster(network, flow_of(info), solver_of(info), info.trust)
    trained, trained_cpu = time.monotonic() - began, time.process_time() - cpu
    value = {
        "schema": "fedvox.forecast.cell/2", "data": cell.data, "method": cell.method, "seed": cell.seed,
        "steps": steps, "trained_s": round(trained, 1), "trained_cpu_s": round(trained_cpu, 1),
        **verdict(cell.data, forecast, patients),
    }  # fmt: skip
    storage.write_atomic(location, json.dumps(value).encode())
    return value


def verdict(data: str, forecast: Baseline, patients: int) -> dict[str, Any]:
    """What unseen patients say of a forecast: `conditions`; of a model also errors in full trust, `untrusting`."""
    asked = conditions(data, patients)
    value: dict[str, Any] = {"conditions": {}}
    if isinstance(forecast, Forecaster):
        value |= {"trust": None if forecast.trust is None else asdict(forecast.trust), "untrusting": {}}
    weight, seen = None, None
    for name, (simulated, examples) in asked.items():
        given = examples.scans, examples.times, examples.valid, examples.target_time
        if isinstance(forecast, Forecaster):
            base, change = forecast.change(*given)
            if seen is None or not torch.equal(
                seen, examples.scans
            ):  # the same patients are asked several times
                weight, seen = forecast.weight(*given[:3]), examples.scans
            image = base + (change if weight is None else weighed(weight, change))
            value["untrusting"][name] = judged(base + change, simulated, examples)["mse"]
        else:
            image = forecast(*given)
        value["conditions"][name] = judged(image, simulated, examples)
    if data == "response":
        examples, both = futures.asked(next(iter(asked.values()))[0], patients)
        value["futures"] = futures.judged_futures(futures.ensemble(forecast, examples), both)
    return value


def result_of(cell: Cell, folder: str) -> Location:
    """Where a cell's result lies."""
    return storage.locate(folder).child("cells", f"{cell.name}.json")


def conditions(data: str, patients: int) -> dict[str, tuple[Simulated, Examples]]:
    """Unseen patients at unseen times: all targets, and those between, after, and beyond the training's horizon.

    `static` are patients who never change. Where training asks for one kind of target, it alone is asked for.
    """
    section = SETS[data]
    schedule = Schedule(kind="regular" if section["schedule"] == "regular" else "irregular")
    base = Simulated(SIMULATIONS[section["kind"]], schedule, TEST_SEED)
    targets: tuple[Target, ...] = ("any", "between", "after", "beyond")
    if "target" in section:
        targets = (section["target"],)  # type: ignore[assignment]  # what training asks for
    elif schedule.kind == "regular":
        targets = ("any",)
    found: dict[str, tuple[Simulated, Examples]] = {}
    for target in targets:
        simulated = replace(base, schedule=replace(schedule, target=target))
        found[target] = simulated, simulated.examples(range(TEST, TEST + patients))
    static = replace(found[targets[0]][0], static=1.0)
    found["static"] = static, static.examples(range(TEST, TEST + patients))
    return found


def judged(forecast: Tensor, simulated: Simulated, examples: Examples) -> dict[str, list[float]]:
    """The errors of forecast volumes and of LCI, a number per patient; -1 where a region is empty."""
    given = (examples.scans, examples.times, examples.valid, examples.target_time)
    assert examples.truth is not None  # simulated
    assert examples.scans_truth is not None
    truth, last = examples.truth, last_context_image(*given)
    slots = keep_valid(examples.scans_truth, examples.times, examples.valid, examples.scans.shape[1]).images
    region, still = changing_region(slots, truth), ~changing_region(slots, truth, STILL)
    found: dict[str, Tensor] = {}
    volume = simulated.simulation.volume
    true_volume = volume(truth[:, 0])
    for suffix, image in (("", forecast), ("_lci", last)):
        found |= {
            f"mse{suffix}": mean_squared_error(image, truth),
            f"region_mse{suffix}": mean_squared_error(image, truth, region),
            f"still_mse{suffix}": mean_squared_error(image, truth, still),
            f"ssim{suffix}": ssim(image, truth),
            f"volume_error{suffix}": relative_volume_error(volume(image[:, 0]), true_volume),
        }
    return {
        name: [round(float(v), 8) for v in torch.nan_to_num(values, nan=-1.0)]
        for name, values in found.items()
    }
