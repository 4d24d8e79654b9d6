"""What a comparison will cost, before it is started."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fedvox.backbone_benchmark.benchmark import all_trials, check, counted_profile, known_profile, read_facts
from fedvox.backbone_benchmark.config import BackboneBenchmarkConfig
from fedvox.backbone_benchmark.profile import Profile
from fedvox.backbone_benchmark.trial_run import finished
from fedvox.backbone_benchmark.trials import Trial
from fedvox.errors import ConfigError
from fedvox.training.estimate import HARDWARE, Hardware


@dataclass(frozen=True)
class PlannedTrial:
    """One trial, not begun.

    Attributes:
        name: of its folder.
        label: of the backbone.
        phase: scratch, pretrain or finetune.
        seed: its own.
        steps: optimiser steps.
        tflop: of all steps.
        hours: estimated.
        done: whether it has finished already.
    """

    name: str
    label: str
    phase: str
    seed: int
    steps: int
    tflop: float
    hours: float
    done: bool


@dataclass(frozen=True)
class Plan:
    """All trials and what they cost.

    Attributes:
        hardware: what hours are estimated for.
        held_out: number of held-out cases.
        profiles: cost of a step by backbone; times are NaN where nothing was measured yet.
        trials: in the order in which they run.
        concurrent: trials at a time.
    """

    hardware: str
    held_out: int
    profiles: dict[str, Profile]
    trials: tuple[PlannedTrial, ...]
    concurrent: int

    @property
    def hours(self) -> float:
        """Hours of a device for what is not done yet."""
        return sum(trial.hours for trial in self.trials if not trial.done)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        profiles = {
            label: {key: None if value != value else value for key, value in asdict(cost).items()}
            for label, cost in self.profiles.items()
        }
        return {
            "schema": "fedvox.backbones.plan/1",
            "hardware": self.hardware,
            "held_out": self.held_out,
            "profiles": profiles,
            "trials": [asdict(trial) for trial in self.trials],
            "hours": self.hours,
            "concurrent": self.concurrent,
        }


def plan(config: BackboneBenchmarkConfig, hardware: str) -> Plan:
    """Counts; nothing is trained or written.

    Raises:
        FedvoxError: the comparison could not be run as configured, or the hardware is unknown.
    """
    if hardware not in HARDWARE:
        raise ConfigError(f"unknown hardware {hardware!r}", f"Known: {', '.join(HARDWARE)}.")
    facts = read_facts(config)
    specs = check(config, facts)
    device = HARDWARE[hardware]
    profiles = {
        title: known_profile(config, title, spec) or _estimated(counted_profile(spec), device, config)
        for title, spec in specs.items()
    }
    first, second = all_trials(config, profiles)
    planned = tuple(_planned(trial, profiles[trial.label]) for trial in [*first, *second])
    return Plan(hardware, len(facts.held_out), profiles, planned, max(1, config.compute.concurrent))


def _estimated(cost: Profile, device: Hardware, config: BackboneBenchmarkConfig) -> Profile:
    cores = config.compute.cpus_per_trial if device.name == "cpu-core" else 1
    seconds = cost.tflop_per_step / (device.tflop_per_s * cores)
    return Profile(
        cost.parameters, cost.tflop_per_step, cost.activation_gib, seconds, math.nan, f"assumed {device.name}"
    )


def _planned(trial: Trial, cost: Profile) -> PlannedTrial:
    steps = trial.config.steps
    hours = steps * cost.seconds_per_step / 3600
    return PlannedTrial(
        trial.trial_id,
        trial.label,
        trial.phase,
        trial.seed,
        steps,
        trial.tflop,
        hours,
        finished(trial) is not None,
    )


def describe(found: Plan) -> str:
    """The plan in words, for people."""
    lines = ["backbone                  parameters  GFLOP a step    step (s)  activations (GiB)  time from"]
    for label, cost in found.profiles.items():
        lines.append(
            f"{label:<24} {cost.parameters:>11,} {cost.tflop_per_step * 1e3:>13,.1f} {cost.seconds_per_step:>11.4g} "
            f"{cost.activation_gib:>18.2f}  {cost.device}"
        )
    lines += ["", "trial                                                steps        TFLOP       hours"]
    for trial in found.trials:
        lines.append(
            f"{trial.name:<50} {trial.steps:>7,} {trial.tflop:>12,.4g} {trial.hours:>11.3g}{'  done' * trial.done}"
        )
    left = [trial for trial in found.trials if not trial.done]
    lines.append(
        f"\n{len(found.trials)} trials, {len(left)} to come: {sum(trial.tflop for trial in left):,.4g} TFLOP, "
        f"{found.hours:,.3g} device hours of training (validation on {found.held_out} cases comes on top), "
        f"{found.concurrent} at a time"
    )
    return "\n".join(lines)
