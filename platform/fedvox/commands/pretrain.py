"""`fedvox pretrain` and `jobs/pretrain.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.config import load_config, to_yaml
from fedvox.errors import ConfigError
from fedvox.training.config import PretrainConfig, TrainingConfig, require_lasting

if TYPE_CHECKING:
    from fedvox.training.ray_shell import Task
    from fedvox.training.run_directory import RunDirectory


class Resume(StrEnum):
    """What to do about checkpoints of a run of the same name."""

    auto = "auto"
    never = "never"
    must = "must"


ConfigFile = Annotated[Path | None, typer.Option(help="YAML file; what it leaves out has its default.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, e.g. --set optimizer.lr=3e-4 (repeatable).")
]
ResumeChoice = Annotated[
    Resume,
    typer.Option(
        help="auto: go on where the run stopped; must: fail without a checkpoint; never: fail with one."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan (steps, memory, data volume, hours) and start nothing."),
]
HardwareName = Annotated[
    str, typer.Option(help="What --dry-run estimates for: a100-80gb, h100-80gb, …, cpu-core.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


def pretrain(
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: ResumeChoice = Resume.auto,
    dry_run: DryRun = False,
    hardware: HardwareName = "a100-80gb",
    as_json: AsJson = False,
) -> None:
    """Pretrains a segmentation backbone on a brick store, or resumes where a run stopped.

    Examples:
        ray job submit --working-dir . -- python jobs/pretrain.py --config jobs/configs/demo.yaml

        fedvox pretrain --config jobs/configs/demo.yaml --set compute.num_workers=0

        fedvox pretrain --config jobs/configs/mednext_v2_18k.yaml --dry-run --hardware h100-80gb
    """
    found = load_config(PretrainConfig, config, set_ or [])
    if dry_run:
        show_plan(found, hardware, as_json)
    else:
        start(found, resume, as_json)


def start(config: PretrainConfig, resume: Resume, as_json: bool) -> None:
    """Runs or resumes a training of a segmentation network, and prints what came out."""
    run_training(config, resume, as_json, _summary)


def run_training(
    config: TrainingConfig,
    resume: Resume,
    as_json: bool,
    summary: Callable[[str, dict[str, Any]], str],
    task: Task | None = None,
) -> None:
    """Runs or resumes a training, and prints what came out.

    Args:
        config: of the run.
        resume: what to do about checkpoints that are there.
        as_json: for programs.
        summary: address of the run directory and outcome -> text for people.
        task: see `fedvox.training.ray_shell.run`.
    """
    from fedvox.training.ray_shell import run  # ray and torch
    from fedvox.training.run_directory import RunDirectory

    require_lasting(config.storage, "storage")  # before anybody waits for a bucket called $BUCKET
    directory = RunDirectory.of(config)
    check_resume(directory, resume)
    # not between the lines of the JSON; `fedvox submit` reads both streams
    print(f"run directory: {directory.location.uri}", file=sys.stderr if as_json else sys.stdout, flush=True)
    outcome = run(config, task)
    print(
        json.dumps({"run_directory": directory.location.uri, **outcome})
        if as_json
        else summary(directory.location.uri, outcome)
    )


def show_task_plan(
    config: TrainingConfig, found: dict[str, Any], describe: Callable[[dict[str, Any]], str], as_json: bool
) -> None:
    """Prints what `--dry-run` of another task than segmentation promises.

    Args:
        config: of the run.
        found: what the task's `estimate` found.
        describe: it for people.
        as_json: for programs.
    """
    told = {"schema": "fedvox.plan/1", **found, "config": config.model_dump(mode="json")}
    print(json.dumps(told) if as_json else f"{to_yaml(config)}\n{describe(found)}")


def check_resume(directory: RunDirectory, resume: Resume) -> None:
    """Holds what `--resume` asks for against the checkpoints that there are.

    Raises:
        ConfigError: a checkpoint is missing, or there is one that must not be.
    """
    from fedvox.training.checkpoint import committed_steps

    steps = committed_steps(directory.checkpoints)
    if resume is Resume.must and not steps:
        raise ConfigError(
            f"--resume must: {directory.location.uri} has no committed checkpoint",
            "Check `name` and `storage`.",
        )
    if resume is Resume.never and steps:
        raise ConfigError(
            f"--resume never: {directory.location.uri} has checkpoints up to step {steps[-1]}",
            "Give the run another name (--set name=…), or leave --resume out to go on.",
        )


def show_plan(
    config: PretrainConfig, hardware: str, as_json: bool, more: Mapping[str, object] | None = None
) -> None:
    """Prints what `--dry-run` promises; `more` goes into the JSON."""
    from fedvox.training.estimate import describe, plan  # torch

    found = plan(config, hardware)
    if as_json:
        told = {"schema": "fedvox.plan/1", **asdict(found), "config": config.model_dump(mode="json")}
        print(json.dumps({**told, **(more or {})}))
    else:
        print(to_yaml(config))
        print(describe(found))


def _summary(uri: str, outcome: dict[str, object]) -> str:
    lines = [f"finished at step {outcome['step']}"]
    dice = outcome["dice"]
    if isinstance(dice, dict) and dice:
        lines += [f"  Dice {name:<24} {value:.4f}" for name, value in dice.items()]
        lines += [f"  Dice mean of structures       {outcome['mean_foreground_dice']:.4f}"]
    lines += [
        f"checkpoint   {uri}/final/model.safetensors",
        f"curves       {uri}/figures/curves.png",
        f"overlays     {uri}/figures/overlay-*.png",
    ]
    damaged = outcome["damaged_cases"]
    if isinstance(damaged, dict) and damaged:
        lines.append(
            f"skipped {len(damaged)} damaged cases: " + "; ".join(f"{c}: {why}" for c, why in damaged.items())
        )
    return "\n".join(lines)
