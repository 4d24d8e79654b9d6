"""`fedvox evaluate`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from fedvox.benchmark.evaluate import Evaluation

_LISTED = 20
_LINE_EVERY_S = 30.0


def evaluate(
    references: Annotated[Path, typer.Option("--references", "-r", help="Folder of CASE.nii.gz.")],
    predictions: Annotated[Path, typer.Option("--predictions", "-p", help="Folder of CASE.nii.gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and report.")],
    structure: Annotated[
        list[str] | None,
        typer.Option("--structure", "-s", help="NAME=LABEL or NAME=LABEL,LABEL (repeatable)."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="nnU-Net's dataset.json, instead of --structure.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Metric id, e.g. nsd@1mm/voxel (repeatable).")
    ] = None,
    ignore_label: Annotated[
        int | None, typer.Option(help="Reference label that belongs to no structure.")
    ] = None,
    workers: Annotated[
        str, typer.Option(help="Cases at a time over Ray; auto: every CPU; 0: this process.")
    ] = "0",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Scores a folder of predictions; run again, it goes on where it stopped.

    No case is lost: a missing or unusable prediction scores as an empty one and is listed with its reason.

    Examples:
        fedvox evaluate -r labelsTs -p predictions -o results -s liver=1 -s kidneys=2,3

        fedvox evaluate -r labelsTs -p predictions -o results --dataset dataset.json -m dice -m nsd@2mm/surfel
    """
    from fedvox.benchmark.cases import Rules
    from fedvox.benchmark.evaluate import evaluate as run
    from fedvox.benchmark.manifest import BenchmarkManifest, TestSetConfig
    from fedvox.benchmark.volumes import to_json
    from fedvox.config import validate

    structures, ignored = (_named(structure or []), None) if dataset is None else _of_dataset(dataset)
    metrics = tuple(metric or ("dice", "nsd@2mm/surfel", "hd95/surfel"))
    test_set = TestSetConfig(name="references", references=references)
    values = {
        "name": "evaluation",
        "structures": structures,
        "ignore_label": ignored if ignore_label is None else ignore_label,
        "test_sets": (test_set,),
        "metrics": metrics,
        "ranking": {"metric": metrics[0]},
    }
    given = validate(BenchmarkManifest, values, source="the options")
    rules = Rules(given.structures, given.structures, given.plan(), given.ignore_label)
    with counted("scored", len(test_set.cases())) as tick:
        found = run(
            references,
            predictions,
            output,
            rules,
            workers=parse_workers(workers),
            on_outcome=lambda _: tick(),
        )
    print(to_json(found.summary()) if as_json else _summary(found, output, metrics))


def parse_workers(text: str) -> int | Literal["auto"]:
    """`auto`, or a number.

    Raises:
        ConfigError: it is neither.
    """
    if text == "auto":
        return "auto"
    if not text.isdigit():
        raise ConfigError(f"--workers {text!r} is not a number", "Give a number, 0, or auto.")
    return int(text)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Progress on stderr: a bar on a terminal, a line every 30 s in a log; `FEDVOX_PROGRESS=0` turns it off."""
    if os.environ.get("FEDVOX_PROGRESS") == "0":
        yield lambda: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
    else:
        yield _lines(what, total)


def _lines(what: str, total: int) -> Callable[[], None]:
    done, last = 0, time.monotonic()

    def tick() -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last >= _LINE_EVERY_S or done == total:
            last = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr)

    return tick


def _named(options: list[str]) -> dict[str, list[int]]:
    """Structures from NAME=LABEL,LABEL."""
    found: dict[str, list[int]] = {}
    for option in options:
        name, _, labels = option.partition("=")
        if not name or not all(part.strip().isdigit() for part in labels.split(",")):
            raise ConfigError(
                f"--structure {option!r} is not NAME=LABEL",
                "Write for instance liver=1, or kidneys=2,3 for a region.",
            )
        found[name] = [int(part) for part in labels.split(",")]
    if not found:
        raise ConfigError("no structure is named", "Give --structure NAME=LABEL, or --dataset dataset.json.")
    return found


def _of_dataset(path: Path) -> tuple[dict[str, list[int]], int | None]:
    """Structures (and regions) and the ignore label of nnU-Net's dataset.json."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        listed = {
            str(n): [int(v) for v in (ls if isinstance(ls, list) else [ls])] for n, ls in labels.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} names no labels: {error!r}", "Give nnU-Net's dataset.json.") from error
    ignored = listed.pop("ignore", [None])[0]
    return {name: values for name, values in listed.items() if 0 not in values}, ignored


def _summary(found: Evaluation, output: Path, metrics: tuple[str, ...]) -> str:
    summary = found.summary()
    lines = [f"scored     {summary['scored']} of {summary['cases']} cases ({found.reused} were done before)"]
    for status in ("missing", "rejected"):
        cases = [o.case for o in found.of_status(status)]
        if cases:
            lines.append(f"{status:<10} {len(cases)}, counted as empty: {', '.join(cases[:_LISTED])}")
    width = max(len(name) for name in [*summary["structures"], "mean"])
    lines.append(f"{'':<{width}}  " + "  ".join(f"{m:>14}" for m in metrics))
    means = {name: values["mean"] for name, values in summary["structures"].items()}
    for name, values in [*means.items(), ("mean", summary["mean_over_structures"])]:
        lines.append(f"{name:<{width}}  " + "  ".join(f"{values[m]:>14.4g}" for m in metrics))
    lines.append(f"report     {output / 'report.html'}")
    return "\n".join(lines)
