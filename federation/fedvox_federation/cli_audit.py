"""`fedvox-federation audit`: train with canaries, attack, and see whether the ledger holds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox_federation.cli_common import JsonOption, emit

if TYPE_CHECKING:
    from fedvox_federation.audit.run import AuditPlan, AuditResult


def audit(
    target: Annotated[str, typer.Option("--target", help="digits, or segmentation.")] = "digits",
    epsilon: Annotated[list[float] | None, typer.Option("--epsilon", help="Promises; repeat it.")] = None,
    delta: Annotated[float, typer.Option("--delta", help="δ.")] = 1e-5,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", help="none, no-noise, no-clipping, placebo; all unless given."),
    ] = None,
    canaries: Annotated[int, typer.Option("--canaries", help="Made-up patients to be found.")] = 1000,
    rounds: Annotated[int, typer.Option("--rounds", help="After each of which weights are seen.")] = 20,
    steps: Annotated[int, typer.Option("--steps", help="Of a round.")] = 1,
    sample_rate: Annotated[
        float, typer.Option("--sample-rate", help="Probability with which each patient takes part in a step.")
    ] = 0.25,
    seed: Annotated[int, typer.Option("--seed", help="Of coins and canaries, not of the training.")] = 0,
    figure: Annotated[Path | None, typer.Option("--figure", help="Write a PNG.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be trained.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Does training leak no more than the ledger says? Leaves with 5 if it does, or if the audit is blind."""
    from fedvox_federation.audit.run import CONTROLS, AuditPlan

    plans = [
        AuditPlan(
            epsilon=promise,
            delta=delta,
            canaries=canaries,
            sample_rate=sample_rate,
            rounds=rounds,
            steps_per_round=steps,
            control=kind,  # type: ignore[arg-type]  # checked there
            seed=seed,
        )
        for kind in control or CONTROLS
        for promise in epsilon or [2.0]
    ]
    if dry_run:
        told = f"{len(plans)} trainings of {target}, each of {rounds * steps} steps with {canaries} canaries"
        emit({"target": target, "trainings": len(plans), "steps": rounds * steps}, told, as_json=as_json)
        return
    from fedvox_federation.audit.report import as_text, draw, require_sound

    results = _run(target, plans)
    emit({"target": target, "audits": [one.summary() for one in results]}, as_text(results), as_json=as_json)
    if figure:
        draw(results, figure)  # after the table, which is not lost if the picture cannot be written
    require_sound(results)


def _run(target: str, plans: list[AuditPlan]) -> list[AuditResult]:
    from rich.console import Console
    from rich.progress import Progress

    from fedvox_federation.audit.run import audit as run_audit
    from fedvox_federation.audit.targets import build_target

    results: list[AuditResult] = []
    with (
        Progress(console=Console(stderr=True), transient=True) as bar,
        tempfile.TemporaryDirectory() as folder,
    ):
        task = bar.add_task("auditing", total=sum(plan.rounds for plan in plans))

        def advance(_: Any) -> None:
            bar.advance(task)

        for number, plan in enumerate(plans):
            ledger = Path(folder) / str(number)
            results.append(run_audit(build_target(target), plan, ledger, on_round=advance))
    return results
