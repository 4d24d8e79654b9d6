"""`fedvox forecast` and `jobs/forecast.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.commands.predict import parse_sizes
from fedvox.commands.pretrain import (
    AsJson,
    ConfigFile,
    Overrides,
    Resume,
    ResumeChoice,
    run_training,
    show_task_plan,
)
from fedvox.config import load_config
from fedvox.errors import ConfigError
from fedvox.forecasting.config import ForecastConfig
from fedvox.training.config import require_lasting

if TYPE_CHECKING:
    from fedvox.forecasting.output import Written
    from fedvox.forecasting.predict import Forecast, Model
    from fedvox.forecasting.sequence import Sequence4D

BASELINE_NAMES = ("lci", "mean", "linear", "spline")


def forecast(
    input_: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="A patient: folder, times.csv, series.json or 4D NIfTI."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="When: a number in the scans' unit, or a date.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Run directory, or its `final` folder.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Forecast without a model: lci, mean, linear or spline.")
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Folder of patients: score the model on all of them instead.")
    ] = None,
    layout: Annotated[str, typer.Option(help="auto, table, cine, bids, acdc, isles or lumiere.")] = "auto",
    unit: Annotated[
        str | None, typer.Option(help="Of --time, and of the scans' times where the files do not say.")
    ] = None,
    uncertainty: Annotated[
        int, typer.Option(min=0, help="Stochastic draws for an uncertainty map; 0: none.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the solver.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler, midpoint or adaptive.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="mean of the slots, or last.")] = None,
    patch_size: Annotated[str | None, typer.Option(help="D,H,W of tiles; default: of training.")] = None,
    overlap: Annotated[float, typer.Option(min=0, max=0.9, help="Share that tiles share.")] = 0.5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of stochastic draws and of the evaluation's plan.")] = 0,
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: ResumeChoice = Resume.auto,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Forecasts a patient's scan at any time from the scans before it; with --config, trains a model that does.

    OUTPUT gets forecast.nii.gz on the grid of the scans, forecast.json, forecast.gif, difference.png and, with
    --uncertainty, uncertainty.nii.gz.

    Examples:
        fedvox forecast -i patient_07 --time 2024-10-01 -m runs/lesions -o forecasts/patient_07

        fedvox forecast -i cine_4d.nii.gz --unit cycle --time 0.9 --baseline linear -o out

        fedvox forecast --evaluate cohort -m runs/lesions -o scores

        ray job submit --working-dir . -- python jobs/forecast.py --config jobs/configs/forecast_demo.yaml
    """
    if input_ is None and evaluate is None:
        _train(load_config(ForecastConfig, config, set_ or []), resume, dry_run=dry_run, as_json=as_json)
        return
    if input_ is not None and evaluate is not None:
        raise ConfigError(
            "--input and --evaluate exclude each other", "Give one patient, or a folder of them."
        )
    if evaluate is not None and (time is not None or uncertainty):
        raise ConfigError(
            "--time and --uncertainty are of one patient, not of --evaluate",
            "Leave them out: what is asked of each patient stands in OUTPUT/plan.json.",
        )
    if output is None or (input_ is not None and time is None):
        raise ConfigError("--output and, for one patient, --time are needed", "See `fedvox forecast --help`.")
    if (model is None) == (baseline is None):
        raise ConfigError("give either --model or --baseline", "For example: --baseline lci")
    if baseline is not None and baseline not in BASELINE_NAMES:
        raise ConfigError(f"--baseline {baseline!r} does not exist", f"Known: {', '.join(BASELINE_NAMES)}.")
    chosen = _model(model, solver, steps, aggregate, device) if model is not None else str(baseline)
    tiles = {"patch_size": parse_sizes(patch_size), "overlap": overlap}
    if evaluate is not None:
        cohort = {"layout": layout, "unit": unit, "seed": seed}
        if dry_run:
            _plan_evaluation(evaluate, output, cohort, as_json)
        else:
            _evaluate(evaluate, chosen, output, cohort, tiles, as_json)
        return
    assert input_ is not None  # either, by the first lines
    from fedvox.forecasting.loaders import load_sequence
    from fedvox.forecasting.times import asked_time

    sequence = load_sequence(input_, layout=layout, unit=unit)
    at = asked_time(str(time), unit, sequence)
    if dry_run:
        _plan(sequence, at, chosen, tiles, as_json)
        return
    found = _forecast(sequence, at, chosen, tiles, draws=uncertainty, seed=seed)
    _write(found, output, chosen, as_json)


# ---- one patient ---------------------------------------------------------------------------------------------


def _model(uri: str, solver: str | None, steps: int | None, aggregate: str | None, device: str) -> Model:
    from fedvox.config import validate
    from fedvox.forecasting.config import SolverSection
    from fedvox.forecasting.predict import Model
    from fedvox.forecasting.release import load_release
    from fedvox.inference.device import choose_device

    network, info = load_release(uri)
    changes = {"name": solver, "steps": steps, "aggregate": aggregate}
    given = {name: value for name, value in changes.items() if value is not None}
    section = validate(SolverSection, info.solver | given, source="the options of the solver")
    return Model(network.to(choose_device(device)), info, section)


def _forecast(
    sequence: Sequence4D, at: float, model: Model | str, tiles: dict[str, Any], *, draws: int, seed: int
) -> Forecast:
    from rich.console import Console
    from rich.progress import Progress

    from fedvox.forecasting.predict import forecast as make_forecast

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("tiles", total=None)
        return make_forecast(
            sequence, at, model, tiling=_tiling(tiles), draws=draws, seed=seed,
            on_tile=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip


def _tiling(tiles: dict[str, Any]) -> Any:
    from fedvox.forecasting.predict import Tiling

    size = tiles["patch_size"]
    return Tiling(None if size is None else (size[0], size[1], size[2]), tiles["overlap"])


def _write(found: Forecast, output: Path, model: Model | str, as_json: bool) -> None:
    from fedvox.forecasting.output import write_forecast

    provenance = (
        {}
        if isinstance(model, str)
        else {"model": model.info.provenance, "solver": model.solver.model_dump()}
    )
    written: Written = write_forecast(found, output, provenance)
    if as_json:
        print(json.dumps({**found.as_dict(), **provenance, "files": written}))
        return
    print(f"forecast of {found.context.patient} at {found.time:g} {found.context.unit} by {found.method}")
    for note in found.notes:
        print(f"note       {note}")
    for name, path in written.items():
        print(f"{name:<10} {path}")


def _plan(sequence: Sequence4D, at: float, model: Model | str, tiles: dict[str, Any], as_json: bool) -> None:
    from fedvox.forecasting.predict import patch_of
    from fedvox.inference.windows import WindowGrid

    context = sequence.before(at)
    value: dict[str, Any] = {
        "schema": "fedvox.forecast.dry_run/1", "patient": sequence.patient, "time": at, "unit": sequence.unit,
        "context": [float(t) for t in context.times], "size": list(context.volumes.shape[2:]), "tiles": 0,
    }  # fmt: skip
    if not isinstance(model, str):
        tiling, size = _tiling(tiles), context.volumes.shape[2:]
        patch = patch_of(size, model, tiling)
        value |= {"patch_size": list(patch), "tiles": WindowGrid.of(size, patch, tiling.overlap).num_windows}
    print(json.dumps(value) if as_json else "\n".join(f"{name:<11}{part}" for name, part in value.items()))


# ---- many patients, training ---------------------------------------------------------------------------------


def _plan_evaluation(folder: Path, output: Path, cohort: dict[str, Any], as_json: bool) -> None:
    from dataclasses import asdict

    from fedvox.forecasting.evaluate import planned_cohort
    from fedvox.storage import locate

    _, planned = planned_cohort(folder, locate(str(output)), **cohort)
    if as_json:
        told = [asdict(one) for one in planned]
        print(json.dumps({"schema": "fedvox.forecast.dry_run/1", "forecasts": told}))
        return
    for one in planned:
        context = ", ".join(f"{time:g}" for time in one.times[:-1])
        print(f"{one.patient}: the scan at {one.times[-1]:g} from those at {context}")


def _evaluate(
    folder: Path,
    model: Model | str,
    output: Path,
    cohort: dict[str, Any],
    tiles: dict[str, Any],
    as_json: bool,
) -> None:
    from fedvox.forecasting.evaluate import evaluate_cohort, table

    report = evaluate_cohort(folder, model, output, **cohort, tiling=_tiling(tiles))
    print(json.dumps(report) if as_json else table(report))


def _train(config: ForecastConfig, resume: Resume, *, dry_run: bool, as_json: bool) -> None:
    require_lasting(config.storage, "storage")
    if dry_run:
        from fedvox.forecasting.estimate import describe, estimate

        show_task_plan(config, estimate(config), describe, as_json)
        return
    from fedvox.forecasting import training

    run_training(config, resume, as_json, _summary, training)


def _summary(uri: str, outcome: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"finished at step {outcome['step']}",
            f"  error on held-out targets       {outcome['mse']:.3e}",
            f"  relative to last context image  {outcome['relative_mse']:.3f}",
            f"model        {uri}/final",
            f"curves       {uri}/figures/curves.png",
        ]
    )
