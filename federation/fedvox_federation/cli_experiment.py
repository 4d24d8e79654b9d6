"""`fedvox-federation experiment`: does it help to let clinics of low compliance in, and at which ε?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvox_federation.cli_common import JsonOption, emit

if TYPE_CHECKING:
    from fedvox_federation.experiment.clinics import AttestedClinic
    from fedvox_federation.experiment.problem import Problem
    from fedvox_federation.experiment.runs import ExperimentPlan, Run, RunResult


def experiment(
    folder: Annotated[Path, typer.Argument(help="For clinics, results and report; go on where it stopped.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", help="breast-cancer, digits, brains; all unless given.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="How many, from 0.")] = 20,
    epsilon: Annotated[list[float] | None, typer.Option("--epsilon", help="Promises; repeat it.")] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Arms; all unless given.")] = None,
    delta: Annotated[float, typer.Option("--delta", help="δ.")] = 1e-4,
    no_dp: Annotated[
        bool, typer.Option("--allow-no-dp", help="Also run the arms without a promise, simulations all.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Report on what there is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run what has not been run yet, and report on what there is."""
    from fedvox_federation.experiment.arms import ARMS
    from fedvox_federation.experiment.runs import TASKS, ExperimentPlan, load

    plan = ExperimentPlan(
        tasks=tuple(task or TASKS),
        seeds=seeds,
        epsilons=tuple(epsilon or ExperimentPlan.epsilons),
        arms=tuple(arm or (name for name, one in ARMS.items() if one.promises or no_dp)),
        delta=delta,
    )
    _require_acknowledged(plan, no_dp)
    runs = list(plan.runs())
    missing = [run for run in runs if load(run, folder) is None]
    if dry_run:
        told = f"{len(runs)} runs, {len(runs) - len(missing)} of them done"
        emit({"runs": len(runs), "done": len(runs) - len(missing)}, told, as_json=as_json)
        return
    if not report_only:
        _run_missing(missing, folder, plan)
    _report([result for run in runs if (result := load(run, folder))], folder, as_json=as_json)


def _require_acknowledged(plan: ExperimentPlan, no_dp: bool) -> None:
    from fedvox_federation.errors import PrivacyError
    from fedvox_federation.experiment.arms import ARMS

    unprotected = [name for name in plan.arms if not ARMS[name].promises]
    if unprotected and not no_dp:
        raise PrivacyError(
            f"the arms {', '.join(unprotected)} keep no promise to any patient",
            "For a simulation on public data, say so: --allow-no-dp.",
        )


def _run_missing(missing: Sequence[Run], folder: Path, plan: ExperimentPlan) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fedvox_federation.experiment.clinics import attested_clinics
    from fedvox_federation.experiment.runs import execute, save

    logging.getLogger("flwr").setLevel(logging.WARNING)  # it tells of every aggregation
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    clinics = attested_clinics(folder / "clinics")
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("experiment", total=len(missing))
        for problem, runs in _by_problem(missing, folder, clinics):
            for run in runs:
                bar.update(shown, description=f"{run.task} {run.scenario} seed {run.seed} {run.arm}")
                save(execute(run, problem, clinics, plan.delta), folder)
                bar.advance(shown)


def _by_problem(
    missing: Sequence[Run], folder: Path, clinics: dict[str, AttestedClinic]
) -> Iterator[tuple[Problem, Iterator[Run]]]:
    """Runs of one task, scenario and seed share their data."""
    from fedvox_federation.experiment.brains import brain_problem
    from fedvox_federation.experiment.tabular import tabular_problem

    for (task, seed, scenario), runs in groupby(missing, lambda run: (run.task, run.seed, run.scenario)):
        if task == "brains":
            yield brain_problem(folder / "brains", seed, clinics), runs
        else:
            yield tabular_problem(task, scenario, seed, clinics), runs


def _report(results: Sequence[RunResult], folder: Path, *, as_json: bool) -> None:
    from fedvox_federation.experiment.report import as_json as plain
    from fedvox_federation.experiment.report import as_markdown, summarise, write

    sections = summarise(results)
    files = write(sections, results, folder)
    text = "\n".join(as_markdown(section) for section in sections)
    emit(plain(sections), f"{text}\nwritten: {', '.join(map(str, files))}", as_json=as_json)
