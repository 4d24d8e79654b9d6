"""`flower-simulation`: a whole federation on this machine, from one command."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fedvox.cli import run_command
from fedvox.errors import ConfigError
from fedvox_federation import simulation
from fedvox_federation.config import FederationConfig
from fedvox_federation.simulation import App, PlannedFederation, Scalar

_MODULE = "fedvox_federation.cli_simulation"
_RESTARTED = "FEDVOX_SIMULATION_RESTARTED"


def flower_simulation(
    app: Annotated[
        Path, typer.Option("--app", help="The Flower app's folder, with a pyproject.toml.")
    ] = Path(),
    num_supernodes: Annotated[
        int | None,
        typer.Option("--num-supernodes", min=1, help="Simulated clinics; with our app also its hospitals."),
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", help="key=value pairs: fields of the federation (repeatable)."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The federation's YAML, in place of the app's own.")
    ] = None,
    backend_config: Annotated[
        str, typer.Option("--backend-config", help="Flower's backend configuration as JSON.")
    ] = "{}",
    client_cpus: Annotated[
        float, typer.Option("--client-cpus", min=0, help="Cores of a clinic at work.")
    ] = 1,
    client_gpus: Annotated[float, typer.Option("--client-gpus", min=0, help="GPUs of a clinic at work.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print each clinic's noise and ε, and train nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Flower's own log, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:
    """Runs a Flower app with simulated SuperNodes on this machine, to its end.

    Without --app it is the app in the present folder. All files that the run starts from are checked before Ray is.

    Examples:
        flower-simulation --config jobs/configs/federation_demo.yaml --dry-run

        flower-simulation --config jobs/configs/federation_demo.yaml

        flower-simulation --num-supernodes 6 --run-config "rounds=5 privacy.epsilon=4"

        flower-simulation --app ../my-app --num-supernodes 10 --run-config "num-server-rounds=3"
    """
    found = simulation.read_app(app)
    if simulation.elsewhere(found):
        _restart(found)
    configuration = _configuration(found, num_supernodes, run_config or [], config)
    backend = _backend(backend_config, client_cpus, client_gpus)
    if not found.is_ours:
        _run_foreign(found, configuration, num_supernodes, backend, dry_run=dry_run, verbose=verbose)
        return
    settings = simulation.federation_config(found, configuration)
    supernodes = num_supernodes or settings.clinics.partition.hospitals
    simulation.check(settings, supernodes)
    planned = simulation.plan(settings)
    if dry_run:
        print(json.dumps(planned.as_dict(), indent=1, allow_nan=False) if as_json else told(planned))
        return
    print(told(planned), file=sys.stderr)
    started = time.monotonic()
    simulation.run(found, configuration, supernodes, backend, verbose=verbose)
    _report(settings, time.monotonic() - started, as_json=as_json)


def told(planned: PlannedFederation) -> str:
    """A plan for people."""
    config, privacy = planned.config, planned.config.privacy
    head = [
        f"{config.name}: {config.rounds} rounds of {config.training.steps} steps, {config.strategy.name}, weighted by "
        f"{config.strategy.weighting}",
        f"{planned.model}, {config.training.scope}: {planned.shared:,} of {planned.parameters:,} parameters travel, "
        f"{planned.shared * 4 / 2**20:.2f} MiB an update",
        f"promised to every patient: ε {privacy.epsilon:g} at δ {privacy.delta:g}, policy {privacy.policy.name}",
        "",
        f"{'clinic':14} {'profile':18} tier  patients  held out   rate   noise       ε  verdict",
    ]
    rows = [
        f"{one.name:14.14} {one.profile:18.18} {one.tier:4}  {one.patients:8}  {one.held_out:8}  {one.sample_rate:5.3f}"
        f"  {_number(one.noise_multiplier, '6.3f')}  {_number(one.epsilon, '6.3g')}  {one.verdict}"
        for one in planned.clinics
    ]
    return "\n".join(head + rows)


def _number(value: float | None, form: str) -> str:
    return "     –" if value is None else format(value, form)


def _configuration(
    app: App, supernodes: int | None, given: list[str], config: Path | None
) -> dict[str, Scalar]:
    if not app.is_ours:
        if config is not None:
            raise ConfigError("--config is for the federations of this package", "Use --run-config.")
        return simulation.run_config(app, given)
    if supernodes is not None and not any("clinics.partition.hospitals=" in text for text in given):
        given = [*given, f"clinics.partition.hospitals={supernodes}"]
    found = simulation.run_config(app, given)
    return found if config is None else {**found, "config": str(config.resolve())}


def _backend(text: str, cpus: float, gpus: float) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"--backend-config is no JSON: {error}",
            """For example '{"client_resources": {"num_cpus": 2, "num_gpus": 0.5}}'.""",
        ) from None
    if not isinstance(value, dict):
        raise ConfigError("--backend-config is no JSON object", "Write {…}.")
    if not (math.isfinite(cpus) and math.isfinite(gpus)):
        raise ConfigError(f"--client-cpus {cpus} --client-gpus {gpus}", "Give finite numbers.")
    return {"client_resources": {"num_cpus": cpus, "num_gpus": gpus}, **value}


def _run_foreign(
    app: App,
    configuration: dict[str, Scalar],
    supernodes: int | None,
    backend: dict[str, Any],
    *,
    dry_run: bool,
    verbose: bool,
) -> None:
    if supernodes is None:
        raise ConfigError("this app does not say how many SuperNodes it needs", "Give --num-supernodes.")
    if dry_run:
        value = {"app": str(app.folder), "supernodes": supernodes, "run_config": configuration, **backend}
        print(json.dumps(value, indent=1))
        return
    simulation.run(app, configuration, supernodes, backend, verbose=verbose)


def _restart(app: App) -> NoReturn:
    """The same command again, by the version of this package in the app's folder: that is what is simulated."""
    if _RESTARTED in os.environ:
        raise ConfigError(
            f"{app.folder} cannot be put before the installed version", "Install it: pip install -e."
        )
    simulation.prepare(app)
    os.environ[_RESTARTED] = "1"
    os.execv(sys.executable, [sys.executable, "-m", _MODULE, *sys.argv[1:]])


def _report(settings: FederationConfig, seconds: float, *, as_json: bool) -> None:
    from fedvox import storage
    from fedvox.training.config import expand
    from fedvox.training.run_directory import without_nan
    from fedvox_federation.server.journal import Journal, Row

    place = storage.locate(expand(settings.output)).child(settings.name)
    journal = Journal(place)
    none: Row = {"round": 0, "epsilon": 0.0, "worst_clinic": "nobody"}  # all budgets were spent beforehand
    last = journal.rounds[-1] if journal.rounds else none
    if as_json:
        value = {
            "run": place.uri,
            "seconds": round(seconds, 1),
            "rounds": journal.rounds,
            "clinics": journal.last_round(),
        }
        print(json.dumps(without_nan(value), indent=1, ensure_ascii=False))
        return
    epsilon = last["epsilon"]
    spent = "no guarantee" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.4g}"
    print(
        f"{last['round']} rounds in {seconds:.0f} s; ε of the federation {spent}, of {last['worst_clinic']}\n"
        f"run      {place.uri}\nmodel    {place.child('final').uri}\nledgers  "
        f"{Path(expand(settings.clinics.folder)) / settings.name / 'clinics'}"
    )


def main() -> NoReturn:
    """Entry point of the `flower-simulation` command."""
    run_command(flower_simulation)


if __name__ == "__main__":
    main()
