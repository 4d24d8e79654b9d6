"""The comparison in order: profiles, scratch and pretraining, fine-tuning, statistics.

    ROOT/profiles/LABEL-….json      cost of a step
    ROOT/trials/LABEL-PHASE-…/      a run directory each, with result.json once it has finished
    ROOT/results.json, report.*     see `report`

What has finished is read, not repeated.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from fedvox import storage
from fedvox.backbone_benchmark.analysis import (
    Correlation,
    Gain,
    Sampled,
    Scores,
    Standing,
    correlate,
    gains,
    sample,
    standings,
)
from fedvox.backbone_benchmark.config import Backbone, BackboneBenchmarkConfig
from fedvox.backbone_benchmark.profile import Profile, StepSpec, count, profile
from fedvox.backbone_benchmark.tasks import Task, Told, run_here
from fedvox.backbone_benchmark.trial_run import finished, run_trial
from fedvox.backbone_benchmark.trials import (
    Facts,
    Phase,
    Trial,
    finetune_trials,
    pretrain_trial,
    recipe_of,
    root_of,
    scratch_trials,
    step_spec,
)
from fedvox.config import to_yaml
from fedvox.errors import ConfigError, FedvoxError, RunError
from fedvox.storage import Location
from fedvox.training.config import DataSection
from fedvox.training.session import open_data


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        config: as given.
        facts: of the store.
        profiles: cost of a step, by label.
        results: what each finished trial found, by phase and label, in the order of the seeds.
        standings: from scratch, best first; without backbones of which a trial failed.
        gains: of pretraining, in the order of `standings`; empty without pretrained weights.
        correlation: whether scratch strength predicts pretrained strength; None for fewer than three backbones.
        failures: why trials failed, by name.
    """

    config: BackboneBenchmarkConfig
    facts: Facts
    profiles: dict[str, Profile]
    results: dict[Phase, dict[str, list[dict[str, Any]]]]
    standings: list[Standing]
    gains: list[Gain]
    correlation: Correlation | None
    failures: dict[str, FedvoxError]

    def error(self) -> FedvoxError | None:
        """What the command has to end with; None for success."""
        if not self.failures:
            return None
        name, first = next(iter(self.failures.items()))
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        return RunError(f"{name} failed: {first.message}{more}", first.remedy)


def read_facts(config: BackboneBenchmarkConfig) -> Facts:
    """Looks into the store that all backbones are compared on.

    Raises:
        FedvoxError: it cannot be opened, or no case is held out.
    """
    data = recipe_of(config, config.backbones[0]).data
    facts = _facts(data)
    if len(facts.held_out) < 2:
        raise ConfigError(
            f"{data.store} holds out {len(facts.held_out)} of {len(facts.cases)} cases: too few for an interval",
            "Name recipe.data.validation_cases, or raise recipe.data.validation_fraction.",
        )
    return facts


def _facts(data: DataSection) -> Facts:
    store, split = open_data(data)
    names = tuple(store.case_ids)
    held_out = tuple(names[int(row)] for row in split.validation)
    return Facts(len(store.meta.channel_names), tuple(store.meta.structures), names, held_out)


def check(config: BackboneBenchmarkConfig, facts: Facts) -> dict[str, StepSpec]:
    """Finds what is wrong with a comparison before anything is run.

    Raises:
        FedvoxError: a backbone or its recipe cannot be used, or the pretraining's store cannot.
    """
    specs = {backbone.title: step_spec(config, backbone, facts) for backbone in config.backbones}
    if config.pretrain is not None:
        base = recipe_of(config, config.backbones[0]).data
        changes = {"validation_cases": None, **config.pretrain.data, "store": config.pretrain.store}
        of_pretraining = _facts(DataSection.model_validate({**base.model_dump(), **changes}))
        if of_pretraining.in_channels != facts.in_channels:
            raise ConfigError(
                f"pretrain.store has {of_pretraining.in_channels} channels, the recipe's store {facts.in_channels}",
                "Pretrain on images of the same channels.",
            )
    return specs


def known_profile(config: BackboneBenchmarkConfig, title: str, spec: StepSpec) -> Profile | None:
    """A profile that was measured before."""
    location = _profile_location(config, title, spec)
    return Profile(**json.loads(storage.read_bytes(location))) if storage.exists(location) else None


def counted_profile(spec: StepSpec) -> Profile:
    """A profile of which nothing is measured: for a dry run."""
    parameters, tflop, activation_gib = count(spec)
    return Profile(parameters, tflop, activation_gib, float("nan"), float("nan"), "not measured")


def all_trials(
    config: BackboneBenchmarkConfig, profiles: Mapping[str, Profile]
) -> tuple[list[Trial], list[Trial]]:
    """Trials that can start at once (scratch, pretraining), and those that need them (fine-tuning)."""
    first: list[Trial] = []
    second: list[Trial] = []
    for backbone in config.backbones:
        cost = profiles[backbone.title]
        first += scratch_trials(config, backbone, cost)
        pretraining = pretrain_trial(config, backbone, cost)
        first += [] if pretraining is None else [pretraining]
        second += finetune_trials(config, backbone, cost)
    return first, second


def run_benchmark(config: BackboneBenchmarkConfig, told: Told) -> Comparison:
    """Runs the comparison, or goes on with it.

    Args:
        config: what to compare.
        told: told what becomes of each task; see `tune_shell.Told`.

    Raises:
        FedvoxError: it cannot be run as configured. Trials that fail are reported, not raised.
    """
    facts = read_facts(config)
    specs = check(config, facts)
    root = root_of(config)
    storage.write_atomic(root.child("config.resolved.yaml"), to_yaml(config).encode())
    with contextlib.ExitStack() as cluster:  # Ray is started once, and only if there is something to run
        run: _Run = functools.partial(_run, config, told, cluster)
        profiles = _profiles(config, specs, run)
        first, second = all_trials(config, profiles)
        failures = run(_open(first))
        bereft = {trial.label for trial in first if trial.phase == "pretrain" and trial.trial_id in failures}
        second = [trial for trial in second if trial.label not in bereft]
        failures |= run(_open(second))
    return _compared(config, facts, profiles, [*first, *second], failures)


def _profiles(
    config: BackboneBenchmarkConfig, specs: Mapping[str, StepSpec], run: _Run
) -> dict[str, Profile]:
    """Measures what was not measured before, one at a time so that they do not disturb each other.

    Raises:
        FedvoxError: a step cannot be run: nothing can be compared without its price.
    """
    tasks: dict[str, Task] = {
        f"{title}-profile": functools.partial(_measure, spec, _profile_location(config, title, spec))
        for title, spec in specs.items()
        if known_profile(config, title, spec) is None
    }
    for error in run(tasks, most=1).values():
        raise error
    found = {title: known_profile(config, title, spec) for title, spec in specs.items()}
    return {title: known for title, known in found.items() if known is not None}


def _profile_location(config: BackboneBenchmarkConfig, title: str, spec: StepSpec) -> Location:
    digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode()).hexdigest()[:8]
    return root_of(config).child("profiles", f"{title}-{digest}.json")


def _measure(spec: StepSpec, location: Location) -> dict[str, Any]:
    found = asdict(profile(spec))
    storage.write_atomic(location, (json.dumps(found, indent=1) + "\n").encode())
    return found


def _open(trials: Sequence[Trial]) -> dict[str, Task]:
    return {
        trial.trial_id: functools.partial(run_trial, trial) for trial in trials if finished(trial) is None
    }


class _Run(Protocol):
    """Runs tasks, at most so many at a time, and returns why some failed."""

    def __call__(self, tasks: Mapping[str, Task], most: int | None = None) -> dict[str, FedvoxError]: ...


def _run(
    config: BackboneBenchmarkConfig,
    told: Told,
    cluster: contextlib.ExitStack,
    tasks: Mapping[str, Task],
    most: int | None = None,
) -> dict[str, FedvoxError]:
    at_a_time = config.compute.concurrent
    if not at_a_time or not tasks:
        return run_here(tasks, told)
    from fedvox.backbone_benchmark.tune_shell import run_over_tune  # ray
    from fedvox.data.ingest_ray import connected

    cluster.enter_context(connected("auto"))
    folder = root_of(config).child("tune")
    return run_over_tune(
        tasks, config.compute, folder, at_a_time=min(at_a_time, most or at_a_time), told=told
    )


def _compared(
    config: BackboneBenchmarkConfig,
    facts: Facts,
    profiles: dict[str, Profile],
    trials: Sequence[Trial],
    failures: dict[str, FedvoxError],
) -> Comparison:
    results: dict[Phase, dict[str, list[dict[str, Any]]]] = {}
    for trial in trials:
        found = None if trial.trial_id in failures else finished(trial)
        if found is not None:
            results.setdefault(trial.phase, {}).setdefault(trial.label, []).append(found)
    from_scratch = _whole(config, results.get("scratch", {}))
    if not from_scratch:
        raise next(iter(failures.values()))
    scratch = _sampled(config, facts, results["scratch"], from_scratch)
    ranked = standings(scratch, config.statistics)
    tuned = _whole(config, results.get("finetune", {}))
    both = [row.label for row in ranked if row.label in tuned]
    gained: list[Gain] = []
    correlation = None
    if both:
        before = _sampled(config, facts, results["scratch"], both)
        after = _sampled(config, facts, results["finetune"], both)
        gained, correlation = (
            gains(before, after, config.statistics),
            correlate(before, after, config.statistics),
        )
    return Comparison(config, facts, profiles, results, ranked, gained, correlation, failures)


def _whole(config: BackboneBenchmarkConfig, results: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The backbones whose trials all finished."""
    return [title for title in _titles(config.backbones) if len(results.get(title, ())) == len(config.seeds)]


def _titles(backbones: Sequence[Backbone]) -> Iterator[str]:
    return (backbone.title for backbone in backbones)


def _sampled(
    config: BackboneBenchmarkConfig,
    facts: Facts,
    results: Mapping[str, list[dict[str, Any]]],
    labels: Sequence[str],
) -> Sampled:
    structures = facts.structures[1:]
    dice = np.full((len(labels), len(config.seeds), len(facts.held_out), len(structures)), np.nan)
    for m, label in enumerate(labels):
        for s, found in enumerate(results[label]):
            rows = dict(zip(found["dice"]["cases"], found["dice"]["values"], strict=True))
            dice[m, s] = np.array([rows[case] for case in facts.held_out], dtype=np.float64)
    scores = Scores(tuple(labels), config.seeds, facts.held_out, structures, dice)
    return sample(scores, config.statistics)
