"""`fedvox restore` and `jobs/diffusion_prior.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.commands.predict import parse_sizes
from fedvox.commands.pretrain import (
    AsJson,
    ConfigFile,
    DryRun,
    Overrides,
    Resume,
    ResumeChoice,
    run_training,
    show_task_plan,
)
from fedvox.config import load_config
from fedvox.errors import ConfigError
from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.training.config import require_lasting

if TYPE_CHECKING:
    from fedvox.restoration.memory import Fit
    from fedvox.restoration.problem import Problem, Request
    from fedvox.restoration.tiling import TiledPrior

_MODES = ("whole", "tiles", "random", "overlap")


def restore(
    input_: Annotated[Path, typer.Option("--input", "-i", help="NIfTI magnitude, or k-space in HDF5.")],
    prior: Annotated[
        str, typer.Option("--prior", "-p", help="Run of a diffusion prior, or its `final` folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    task: Annotated[
        str | None,
        typer.Option(help="reconstruct, denoise, super-resolution or inpaint; k-space: reconstruct."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Of k-space (.npy, .h5), or NIfTI that is 1 where the image is known.")
    ] = None,
    coils: Annotated[Path | None, typer.Option(help="Coil maps (.npy, or /maps in .h5).")] = None,
    normalize_coils: Annotated[
        bool, typer.Option("--normalize-coils", help="Accept coil maps that are not normalised.")
    ] = False,
    phase: Annotated[
        bool, typer.Option("--phase/--no-phase", help="Estimate the smooth phase of a k-space image.")
    ] = True,
    factor: Annotated[str | None, typer.Option(help="D,H,W of super-resolution, for example 1,2,2.")] = None,
    noise: Annotated[
        float | None,
        typer.Option(min=0, help="Its standard deviation, as a share of the image's full scale."),
    ] = None,
    solver: Annotated[
        str, typer.Option(help="diffpir, ddnm, dps, pnpdm, reddiff, pgd, fista, admm, red or ddrm.")
    ] = "diffpir",
    steps: Annotated[int | None, typer.Option(min=1, help="Of the solver.")] = None,
    weight: Annotated[
        float | None, typer.Option(min=0, help="Of the data; larger follows them more closely.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Runs with other noise; two or more show uncertainty.")
    ] = 1,
    coverage: Annotated[
        str, typer.Option(help="whole, tiles, random or overlap: how patches cover an image.")
    ] = "random",
    patch_size: Annotated[
        str | None, typer.Option(help="D,H,W; default: of training, or what memory allows.")
    ] = None,
    halo: Annotated[int, typer.Option(min=0, help="Voxels of margin around each patch.")] = 8,
    memory_mib: Annotated[
        float,
        typer.Option("--memory-mib", min=1, help="Budget beside the program itself: sets patch and batch."),
    ] = 512.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input, say what would be done, do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restores an MR image from incomplete k-space, from noise, from few voxels or from holes, with a diffusion prior.

    OUTPUT gets image.nii.gz, residual.nii.gz, consistency.png, restoration.json and, with --samples,
    uncertainty.nii.gz. Research software: a prior can make up what was not measured.

    Examples:
        fedvox restore -i scan.h5 --prior runs/diffusion-prior-demo -o out --samples 4

        fedvox restore -i t1.nii.gz --task denoise --noise 0.05 --prior runs/diffusion-prior-demo -o out

        fedvox restore -i thick.nii.gz --task super-resolution --factor 1,2,2 --prior runs/prior -o out --memory-mib 64
    """
    from fedvox.restoration.problem import Request
    from fedvox.restoration.solvers import DEFAULTS, with_options

    if coverage not in _MODES:
        raise ConfigError(f"--coverage {coverage!r} does not exist", f"Known: {', '.join(_MODES)}.")
    if solver not in DEFAULTS:
        raise ConfigError(f"--solver {solver!r} does not exist", f"Known: {', '.join(DEFAULTS)}.")
    request = Request(input_, task, mask, coils, normalize_coils, _three("--factor", factor), noise, phase)
    tiled, fit, problem = _prepared(
        request, prior, coverage, _three("--patch-size", patch_size), halo, memory_mib, device, seed
    )
    options = with_options(solver, steps=steps, weight=weight)
    told = {
        "prior": prior, "solver": solver, "options": vars(options), "samples": samples, "seed": seed,
        "coverage": vars(tiled.coverage), "expected_mib": round(fit.mib, 1),
    }  # fmt: skip
    if dry_run:
        _tell_plan(
            {
                "schema": "fedvox.restoration.dry_run/1",
                "task": problem.task,
                "size": list(problem.size),
                **told,
            },
            as_json,
        )
        return
    _restored(problem, tiled, solver, told, output, as_json)


def _three(option: str, text: str | None) -> tuple[int, int, int] | None:
    sizes = parse_sizes(text)
    if sizes is None:
        return None
    if len(sizes) != 3 or min(sizes) < 1:
        raise ConfigError(f"{option} {text!r} is not three whole numbers from 1 on", "For example 1,64,64.")
    return sizes[0], sizes[1], sizes[2]


def _prepared(
    request: Request, prior: str, coverage: Any, patch: tuple[int, int, int] | None, halo: int, budget: float,
    device: str, seed: int,
) -> tuple[TiledPrior, Fit, Problem]:  # fmt: skip
    from fedvox.inference.device import choose_device
    from fedvox.restoration.memory import fit_budget
    from fedvox.restoration.problem import open_problem
    from fedvox.restoration.release import load_release
    from fedvox.restoration.tiling import Coverage, TiledPrior

    problem = open_problem(request)
    network, _ = load_release(prior)
    wanted = Coverage(coverage, patch, halo=halo, seed=seed)
    fit = fit_budget(network, problem.size, wanted, budget)
    return TiledPrior(network.to(choose_device(device)), fit.coverage), fit, problem


def _restored(
    problem: Problem, tiled: TiledPrior, solver: str, told: dict[str, Any], output: Path, as_json: bool
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from fedvox.restoration.output import write_restored
    from fedvox.restoration.restore import restore as make
    from fedvox.restoration.solvers import SolverOptions

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        running = bar.add_task("steps", total=None)
        found = make(
            problem, tiled, solver, SolverOptions(**told["options"]), samples=told["samples"], seed=told["seed"],
            on_step=lambda done, total: bar.update(running, completed=done, total=total),
        )  # fmt: skip
    side_car = write_restored(found, problem, output, told)
    if as_json:
        print(json.dumps(side_car, default=str))
        return
    print(f"restored by {solver} ({problem.task}): {' × '.join(map(str, problem.size))} voxels")
    print(f"data left unexplained {found.consistency:.3g}; noise alone would leave {found.expected:.3g}")
    for note in found.notes:
        print(f"note       {note}")
    for name, path in side_car["files"].items():
        print(f"{name:<12} {path}")


def _tell_plan(value: dict[str, Any], as_json: bool) -> None:
    print(
        json.dumps(value, default=str)
        if as_json
        else "\n".join(f"{name:<13}{part}" for name, part in value.items())
    )


def train(
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: ResumeChoice = Resume.auto,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Trains a diffusion prior for `fedvox restore`, or resumes where the training stopped.

    Examples:
        python jobs/diffusion_prior.py --config jobs/configs/diffusion_prior_demo.yaml --set compute.num_workers=0

        ray job submit --working-dir . -- python jobs/diffusion_prior.py --config jobs/configs/diffusion_prior_demo.yaml
    """
    chosen = load_config(DiffusionPriorConfig, config, set_ or [])
    require_lasting(chosen.storage, "storage")
    if dry_run:
        from fedvox.restoration.estimate import describe, estimate

        show_task_plan(chosen, estimate(chosen), describe, as_json)
        return
    from fedvox.restoration import training

    run_training(chosen, resume, as_json, _summary, training)


def _summary(uri: str, outcome: dict[str, Any]) -> str:
    scores = [
        f"  {name.replace('_', ' '):<24}{value:.2f} dB"
        for name, value in outcome.items()
        if name.startswith("psnr")
    ]
    ends = [f"prior        {uri}/final", f"curves       {uri}/figures/curves.png"]
    return "\n".join([f"finished at step {outcome['step']}", *scores, *ends])
