"""What is to be run, what has been, and one run: resumable by (task, scenario, arm, ε, seed).

A run's result is a file of its own, written when the run is done; what has a file is not run again. Splits, deals and
models follow from the seed, so that all arms of a seed are paired. The noise has no seed: the same run gives another
result when it is made again, within what the intervals say.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from fedvox.errors import ConfigError, DataError
from fedvox.storage import locate, write_atomic
from fedvox_federation.dp_sgd.training import Patient
from fedvox_federation.experiment.arms import ARMS, Arm, noise_of
from fedvox_federation.experiment.clinics import AttestedClinic
from fedvox_federation.experiment.engine import LocalTraining, Participant, federate
from fedvox_federation.experiment.problem import Problem, Scenario
from fedvox_federation.privacy.federation import federation_epsilon
from fedvox_federation.privacy.noise_policy import Promise, SiteNoise, Workload

TASKS: Mapping[str, tuple[Scenario, ...]] = {
    "breast-cancer": ("alike", "labels"),
    "digits": ("labels", "scanners"),
    "brains": ("scanners",),
}
"""Task -> its scenarios."""


@dataclass(frozen=True, order=True)
class Run:
    """One training.

    Attributes:
        task: see `TASKS`.
        scenario: one of the task's.
        seed: of everything but the noise.
        epsilon: promised; 0 for arms that promise nothing.
        arm: a key of `ARMS`.
    """

    task: str
    scenario: Scenario
    seed: int
    epsilon: float
    arm: str

    @property
    def path(self) -> str:
        """Of its result, below the experiment's folder."""
        promise = f"-{self.epsilon:g}" if self.epsilon else ""
        return f"runs/{self.task}/{self.scenario}/{self.arm}{promise}/seed{self.seed:03}.json"


@dataclass(frozen=True)
class ExperimentPlan:
    """All runs.

    Attributes:
        tasks: keys of `TASKS`.
        seeds: how many, from 0.
        epsilons: promised, in arms that promise.
        arms: keys of `ARMS`.
        delta: δ everywhere.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 20
    epsilons: tuple[float, ...] = (1.0, 3.0, 8.0)
    arms: tuple[str, ...] = tuple(ARMS)
    delta: float = 1e-4

    def __post_init__(self) -> None:
        for kind, given, known in (("task", self.tasks, TASKS), ("arm", self.arms, ARMS)):
            if unknown := sorted(set(given) - set(known)):
                raise ConfigError(f"there is no {kind} {unknown[0]!r}", f"Use {', '.join(known)}.")
        if self.seeds < 1 or not self.epsilons or not all(0 < e < math.inf for e in self.epsilons):
            raise ConfigError("an experiment needs at least one seed, and every ε finite and above 0")

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that an experiment that is stopped has whole seeds."""
        for task in self.tasks:
            for seed in range(self.seeds):
                for scenario in TASKS[task]:
                    for arm in self.arms:
                        for epsilon in self.epsilons if ARMS[arm].promises else (0.0,):
                            yield Run(task, scenario, seed, epsilon, arm)


@dataclass(frozen=True)
class SiteResult:
    """What became of one clinic's patients.

    Attributes:
        score: mean over its test patients.
        tests: how many there are.
        patients: that could be trained on.
        compliant: whether a strict study would invite it.
        takes_part: in this arm.
        noise_multiplier: None where it takes no part.
        epsilon: spent on its patients; 0 where it takes no part, None where that is no finite number.
    """

    score: float
    tests: int
    patients: int
    compliant: bool
    takes_part: bool
    noise_multiplier: float | None
    epsilon: float | None


@dataclass(frozen=True)
class RunResult:
    """What came out of a run.

    Attributes:
        run: which.
        sites: by clinic, those that take no part as well: the model is judged on their patients too.
        curve: (round, mean score over all test patients).
        epsilon: of the federation: the largest of its sites; None where that is no finite number.
        seconds: that training took.
    """

    run: Run
    sites: Mapping[str, SiteResult]
    curve: Sequence[tuple[int, float]] = field(default_factory=tuple)
    epsilon: float | None = None
    seconds: float = 0.0

    @property
    def score(self) -> float:
        """Mean over the test patients of all clinics, compliant or not."""
        return self._mean(self.sites.values())

    @property
    def worst(self) -> float:
        """Of the clinic where the model does worst."""
        return min(site.score for site in self.sites.values())

    @property
    def gap(self) -> float:
        """Between the clinics where it does best and worst."""
        return max(site.score for site in self.sites.values()) - self.worst

    def of_group(self, *, compliant: bool) -> float:
        """Mean over the test patients of compliant clinics, or of the others."""
        return self._mean([site for site in self.sites.values() if site.compliant is compliant])

    @staticmethod
    def _mean(sites: Collection[SiteResult]) -> float:
        return math.fsum(s.score * s.tests for s in sites) / sum(s.tests for s in sites)


def execute(run: Run, problem: Problem, clinics: Mapping[str, AttestedClinic], delta: float) -> RunResult:
    """Train and judge once.

    Args:
        run: which arm and ε.
        problem: of the run's task, scenario and seed.
        clinics: those of the problem.
        delta: δ.
    """
    started = time.perf_counter()
    arm, training = ARMS[run.arm], problem.training
    workload = Workload(training.sample_rate, training.total_steps)
    promise = Promise(run.epsilon or training.total_steps, delta)  # without a promise, only its δ counts
    noises = noise_of(arm, clinics, promise, workload)
    model = problem.build_model()
    curve: list[tuple[int, float]] = []

    def judge(number: int) -> None:
        if number % training.judged_every == 0:
            scores = [problem.score(model, site.tests) for site in problem.sites.values()]
            curve.append((number, float(np.mean(np.concatenate(scores)))))

    federate(
        model,
        _parts(arm, problem, noises),
        _local(problem, private=any(noise.noise_multiplier for noise in noises.values())),
        rounds=training.rounds,
        weighting=arm.weighting,
        on_round=judge,
    )
    sites = {name: _judged(problem, model, name, clinics[name], noises.get(name)) for name in clinics}
    spent = federation_epsilon({name: noise.epsilon for name, noise in noises.items()})
    return RunResult(run, sites, tuple(curve), _finite(spent), time.perf_counter() - started)


def _parts(arm: Arm, problem: Problem, noises: Mapping[str, SiteNoise]) -> dict[str, Participant]:
    taking_part = {name: problem.sites[name].patients for name in noises}
    if arm.who == "pooled":
        pooled = [patient for patients in taking_part.values() for patient in patients]
        return {"everybody": Participant(_always(pooled), 0.0)}
    return {
        name: Participant(_always(patients), noises[name].noise_multiplier)
        for name, patients in taking_part.items()
    }


def _always(patients: Sequence[Patient]) -> Callable[[int], Sequence[Patient]]:
    return lambda _: patients


def _local(problem: Problem, *, private: bool) -> LocalTraining:
    training = problem.training
    lr = training.lr if private else training.lr_open
    return LocalTraining(
        loss=problem.loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        steps=training.steps,
        sample_rate=training.sample_rate,
        clipping_norm=training.clipping_norm,
        mode=training.mode,
        at_once=training.at_once,
    )


def _judged(
    problem: Problem, model: torch.nn.Module, name: str, clinic: AttestedClinic, noise: SiteNoise | None
) -> SiteResult:
    site = problem.sites[name]
    return SiteResult(
        score=float(np.mean(problem.score(model, site.tests))),
        tests=len(site.tests),
        patients=len(site.patients),
        compliant=clinic.compliant,
        takes_part=noise is not None,
        noise_multiplier=None if noise is None else noise.noise_multiplier,
        epsilon=0.0 if noise is None else _finite(noise.epsilon),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def save(result: RunResult, folder: Path) -> None:
    """Write a run's result, atomically."""
    document = json.dumps(asdict(result), indent=1, allow_nan=False)
    write_atomic(locate(folder / result.run.path), document.encode())


def load(run: Run, folder: Path) -> RunResult | None:
    """A run's result, or None if it has not been made.

    Raises:
        DataError: the file is not one of these.
    """
    path = folder / run.path
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        sites = {name: SiteResult(**site) for name, site in raw["sites"].items()}
        curve = tuple((int(number), float(score)) for number, score in raw["curve"])
        return RunResult(Run(**raw["run"]), sites, curve, raw["epsilon"], raw["seconds"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise DataError(f"{path}: no result of a run ({wrong})", "Delete it, and run it again.") from None
