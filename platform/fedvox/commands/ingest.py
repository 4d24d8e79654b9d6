"""`fedvox ingest` and `jobs/ingest.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.config import load_config
from fedvox.data.ingest_config import IngestConfig
from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from fedvox.data.ingest import Ingest

_LISTED_CASES = 20


def ingest(
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="Data set: folder or manifest, local or s3:// (repeatable)."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The store to build: local folder or s3://.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; what it leaves out has its default.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set codec=lz4 (repeatable).")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="auto, nnunet, msd, totalsegmentator or manifest, for every --input."),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="auto (nnU-Net's rule over all cases), native, or D,H,W in mm: 3,1,1."),
    ] = None,
    label_mapping: Annotated[
        str | None, typer.Option(help="YAML file that joins, renames or drops labels of the sources.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Cases at a time over Ray; auto: every CPU; 0: this process, no Ray.")
    ] = None,
    tolerate: Annotated[
        list[str] | None,
        typer.Option(help="Accept cases with this fault, e.g. affine_mismatch (repeatable)."),
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Exit code 2 when any case was rejected.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be read; read no image, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Turns raw volumes into a brick store; run again, it goes on where it stopped.

    Each --input is an nnU-Net raw folder, a task of the Medical Segmentation Decathlon, a TotalSegmentator folder, or
    a CSV or Parquet manifest (columns case_id, image, label, source); several are joined in one store. Cases that
    cannot be used are rejected with their reasons (STORE/ingest/report.csv) and never stop the others.

    Examples:
        fedvox ingest -i nnUNet_raw/Dataset003_Liver -o stores/liver

        ray job submit --working-dir . -- python jobs/ingest.py -i s3://raw/cohort.csv -o s3://data/cohort

        fedvox ingest -i Task03_Liver -i cohort.csv -o stores/joined --label-mapping names.yaml --dry-run
    """
    flags = {
        "sources": _sources(input_, format_),
        "output": output,
        "spacing_mm": _spacing(spacing),
        "label_mapping": label_mapping,
        "workers": workers if workers in (None, "auto") else _number("--workers", workers),
        "tolerate": tolerate,
        "strict": strict,
    }
    given = [f"{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]
    found = load_config(IngestConfig, config, [*(set_ or []), *given])
    if dry_run:
        _show_plan(found, as_json)
        return
    _run(found, as_json)


def _sources(inputs: list[str] | None, format_: str | None) -> list[dict[str, str]] | None:
    if not inputs:
        return None
    return [{"path": path, **({"format": format_} if format_ else {})} for path in inputs]


def _spacing(text: str | None) -> str | list[float] | None:
    if text is None or text in ("auto", "native"):
        return text
    parts = [_number("--spacing", part) for part in text.replace("x", ",").split(",")]
    if len(parts) not in (1, 3):
        raise ConfigError(
            f"--spacing {text} has {len(parts)} numbers", "Give D,H,W in mm (3,1,1), or one for all axes."
        )
    return parts * 3 if len(parts) == 1 else parts


def _number(flag: str, text: str) -> float | int:
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"{flag}: {text!r} is not a number", f"See --help for {flag}.") from None
    return int(number) if number.is_integer() else number


def _run(config: IngestConfig, as_json: bool) -> None:
    from fedvox.data.ingest import ingest as build

    report = build(config)
    error = report.error(strict=config.strict)
    print(json.dumps(report.to_dict()) if as_json else report.summary())
    print(f"report     {report.output}/ingest/report.csv", file=sys.stderr)
    if error is not None:
        raise error


def _show_plan(config: IngestConfig, as_json: bool) -> None:
    from fedvox.data.ingest import plan_ingest

    planned = plan_ingest(config)
    if as_json:
        print(json.dumps(_plan_dict(planned)))
        return
    sources = planned.sources
    print(f"would build {planned.plan.output}")
    for dataset in sources.datasets:
        print(f"  {dataset.describe()}")
    print(f"  structures: {', '.join(planned.space.structures[1:])}")
    print(f"  spacing: {config.spacing_mm}; normalization: {planned.plan.meta.normalization}")
    for case in sources.cases[:_LISTED_CASES]:
        print(f"  {case.case_id:<24} {case.source:<20} {' '.join(case.files[:4])}")
    if len(sources.cases) > _LISTED_CASES:
        print(f"  ... {len(sources.cases) - _LISTED_CASES} more (--json lists all)")
    for rejected in sources.rejected:
        for error in rejected.errors:
            print(f"  rejected {rejected.case_id}: {error.code}: {error.message}")


def _plan_dict(planned: Ingest) -> dict[str, Any]:
    sources = planned.sources
    return {
        "schema": "fedvox.ingest.plan/1",
        "output": planned.plan.output,
        "sources": [dataset.describe() for dataset in sources.datasets],
        "structures": list(planned.space.structures),
        "label_sets": {key: list(indices) for key, indices in planned.space.annotated.items()},
        "cases": [
            {"case_id": case.case_id, "source": case.source, "images": list(case.images), "label": case.label}
            for case in sources.cases
        ],
        "rejected": [
            {"case_id": rejected.case_id, "code": error.code, "message": error.message}
            for rejected in sources.rejected
            for error in rejected.errors
        ],
        "config": planned.config.model_dump(mode="json"),
    }
