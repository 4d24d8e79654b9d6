"""`fedvox predict` and `jobs/predict.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.config import load_config, to_yaml
from fedvox.errors import ConfigError
from fedvox.inference.config import PredictConfig

if TYPE_CHECKING:
    from fedvox.inference.estimate import CaseEstimate
    from fedvox.inference.run import Job, PredictReport

_LISTED = 20


def predict(
    input_: Annotated[
        str | None,
        typer.Option("--input", "-i", help="Folder of images (CASE_0000.nii.gz), an image, or a manifest."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder for the label maps.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Run directory or its `final` folder; several are averaged."),
    ] = None,
    selection: Annotated[
        Path | None, typer.Option(help="selection.json of `fedvox crossval`: its models and postprocessing.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; what it leaves out has its default.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set logits=float16 (repeatable).")
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option("--mirror/--no-mirror", help="Average over 8 flips: better, 8 times slower."),
    ] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window that neighbours share.")] = None,
    patch_size: Annotated[
        str | None, typer.Option(help="D,H,W of the windows; default: of training.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows evaluated together.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.")] = None,
    uncertainty: Annotated[
        bool | None, typer.Option("--uncertainty", help="Also write an entropy map, CASE_uncertainty.nii.gz.")
    ] = None,
    postprocessing: Annotated[
        str | None, typer.Option(help="postprocessing.json of a cross-validation.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Cases at a time over Ray; auto: every GPU or CPU; 0: this process.")
    ] = None,
    tolerate: Annotated[
        list[str] | None,
        typer.Option(help="Accept images with this fault, e.g. implausible_ct (repeatable)."),
    ] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Predict again what is done.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List cases, windows and memory; compute and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Segments images with trained models; run again, it goes on where it stopped.

    Label maps lie in OUTPUT under the name of their case, with the affine, orientation and header of their image.

    Examples:
        fedvox predict -i imagesTs -o predictions --model runs/liver

        fedvox predict -i scan.nii.gz -o out -m fold0/final -m fold1/final --uncertainty

        ray job submit --working-dir . -- python jobs/predict.py -i s3://d/in -o s3://d/out -m s3://r/run --workers 8
    """
    flags: dict[str, Any] = {
        "images": input_, "output": output, "models": model, "mirror": mirror, "overlap": overlap,
        "patch_size": parse_sizes(patch_size), "batch_size": batch_size, "device": device, "precision": precision,
        "uncertainty": uncertainty, "postprocessing": postprocessing, "workers": _workers(workers),
        "tolerate": tolerate, "overwrite": overwrite,
    }  # fmt: skip
    given = [f"{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]
    chosen = [] if selection is None else _selected(selection)
    found = load_config(PredictConfig, config, [*chosen, *(set_ or []), *given])
    from fedvox.inference.run import plan_predict  # torch

    job = plan_predict(found)
    if dry_run:
        _show(job, as_json)
    else:
        _run(job, as_json)


def parse_sizes(text: str | None) -> list[int] | None:
    """Three sizes from `96,128,128`, `96x128x128` or one number for all axes.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    parts = text.replace("x", ",").replace(" ", ",").split(",")
    if len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise ConfigError(
            f"--patch-size {text!r} is not a size", "Give D,H,W in voxels (96,128,128), or one number."
        )
    sizes = [int(part) for part in parts]
    return sizes * 3 if len(sizes) == 1 else sizes


def _workers(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdigit():
        raise ConfigError(f"--workers {text!r} is not a number", "Give a number, 0, or auto.")
    return int(text)


def _selected(path: Path) -> list[str]:
    """Models and postprocessing of a selection, as overrides."""
    from fedvox.inference.selection import read_selection

    found = read_selection(str(path))
    overrides = [f"models={json.dumps(list(found.models))}"]
    if found.postprocessing is not None:
        overrides.append(f"postprocessing={json.dumps(found.postprocessing)}")
    return overrides


def _run(job: Job, as_json: bool) -> None:
    from fedvox.inference.progress import followed
    from fedvox.inference.run import predict_cases

    with followed(len(job.cases)) as (on_outcome, on_windows):
        report = predict_cases(job, on_outcome=on_outcome, on_windows=on_windows)
    print(json.dumps(report.to_dict()) if as_json else _summary(report))
    error = report.error()
    if error is not None:
        raise error


def _summary(report: PredictReport) -> str:
    done, skipped = report.of_status("done"), report.of_status("skipped")
    lines = [f"predicted  {len(done)} of {len(report.outcomes)} cases -> {report.output}"]
    if skipped:
        lines.append(f"skipped    {len(skipped)} that were done before")
    for status in ("rejected", "failed"):
        found = report.of_status(status)
        if found:
            lines.append(f"{status:<10} {len(found)}: {', '.join(o.case_id for o in found[:_LISTED])}")
    if done:
        steps = {name: sum(o.seconds.get(name, 0) for o in done) / len(done) for name in done[0].seconds}
        lines.append(
            "seconds    " + ", ".join(f"{name} {s:.1f}" for name, s in steps.items()) + " (mean of a case)"
        )
    lines.append(
        f"in all     {report.seconds:.1f} s, at most {report.peak_memory_gib:.2f} GiB of main memory"
    )
    return "\n".join(lines)


def _show(job: Job, as_json: bool) -> None:
    from fedvox.inference.estimate import estimate_job

    estimates = estimate_job(job)
    if as_json:
        value = {
            "schema": "fedvox.predict.plan/1",
            "structures": list(job.structures),
            "cases": [estimate.to_dict() for estimate in estimates],
            "config": job.config.model_dump(mode="json"),
        }
        print(json.dumps(value))
        return
    print(to_yaml(job.config))
    print(_plan(job, estimates))


def _plan(job: Job, estimates: list[CaseEstimate]) -> str:
    channels = ", ".join(job.infos[0].channel_names)
    lines = [f"{len(job.infos)} model(s) of {len(job.structures) - 1} structures, channels {channels}"]
    for estimate in estimates[:_LISTED]:
        if estimate.problem or estimate.shape is None:
            lines.append(f"  {estimate.case_id}: {estimate.problem or 'its size is known once it is read'}")
            continue
        assert estimate.spacing_mm is not None  # it comes with the shape
        lines.append(
            f"  {estimate.case_id}: {'×'.join(map(str, estimate.shape))} voxels of "
            f"{'×'.join(f'{s:.3g}' for s in estimate.spacing_mm)} mm (D×H×W), {estimate.windows} windows, "
            f"{estimate.evaluations} evaluations, logits {estimate.logits_gib:.2f} GiB"
            + (", done" if estimate.is_done else "")
        )
    if len(estimates) > _LISTED:
        lines.append(f"  … and {len(estimates) - _LISTED} more")
    total = sum(estimate.evaluations for estimate in estimates if not estimate.is_done)
    done = sum(estimate.is_done for estimate in estimates)
    lines.append(f"{len(estimates)} cases, {done} of them done; {total:,} evaluations of a network to come")
    return "\n".join(lines)
