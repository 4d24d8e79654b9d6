"""`fedvox backbones` and `jobs/benchmark_backbones.py`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fedvox.backbone_benchmark.config import BackboneBenchmarkConfig
from fedvox.config import load_config, to_yaml
from fedvox.errors import ConfigError

_EVERY_S = 15.0


def backbones(
    config: Annotated[Path, typer.Option(help="YAML file; what it leaves out has its default.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set budget.amount=5 (repeatable).")
    ] = None,
    pretrained: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=PATH: pretrained weights of a backbone, to measure their gain (repeatable)."
        ),
    ] = None,
    pretrain: Annotated[
        bool,
        typer.Option("--pretrain/--no-pretrain", help="Pretrain as the configuration says, and fine-tune."),
    ] = True,
    demo_data: Annotated[
        bool, typer.Option("--demo-data", help="First write the embedded MNI152 stores that the demo names.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List trials and their cost; start nothing.")
    ] = False,
    hardware: Annotated[
        str, typer.Option(help="What --dry-run estimates for: a100-80gb, h100-80gb, …, cpu-core.")
    ] = "a100-80gb",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Compares backbones from scratch under one compute budget, then what pretraining adds to each.

    Run again, it goes on where it stopped: what has finished is not repeated.

    Examples:
        fedvox backbones --config jobs/configs/benchmark_backbones_demo.yaml --demo-data

        fedvox backbones --config mine.yaml --pretrained mednext-v2-base=runs/mednext/final --dry-run

        ray job submit --working-dir . -- python jobs/benchmark_backbones.py --config mine.yaml
    """
    found = load_config(BackboneBenchmarkConfig, config, set_ or [])
    found = _with_pretrained(found, pretrained or [])
    if not pretrain:
        found = found.model_copy(update={"pretrain": None})
    if demo_data:
        from fedvox.backbone_benchmark.demo import prepare

        prepare(found)
    if dry_run:
        _show(found, hardware, as_json)
    else:
        _run(found, as_json)


def _with_pretrained(config: BackboneBenchmarkConfig, given: list[str]) -> BackboneBenchmarkConfig:
    paths = {}
    for text in given:
        label, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(
                f"--pretrained {text!r} is not of the form LABEL=PATH", "For example: resenc=runs/r/final"
            )
        paths[label] = path
    unknown = sorted(paths.keys() - {backbone.title for backbone in config.backbones})
    if unknown:
        known = ", ".join(backbone.title for backbone in config.backbones)
        raise ConfigError(
            f"--pretrained names no backbone of the comparison: {', '.join(unknown)}", f"Known: {known}."
        )
    changed = [
        b.model_copy(update={"pretrained": paths.get(b.title, b.pretrained)}) for b in config.backbones
    ]
    return config.model_copy(update={"backbones": tuple(changed)})


def _show(config: BackboneBenchmarkConfig, hardware: str, as_json: bool) -> None:
    from fedvox.backbone_benchmark.dry_run import describe, plan

    found = plan(config, hardware)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        print(to_yaml(config))
        print(describe(found))


def _run(config: BackboneBenchmarkConfig, as_json: bool) -> None:
    from fedvox.backbone_benchmark.benchmark import run_benchmark
    from fedvox.backbone_benchmark.report import markdown, to_dict, write_report

    began = time.monotonic()
    found = run_benchmark(config, _Progress())
    folder = write_report(found)
    if as_json:
        print(json.dumps({"folder": folder.uri, **to_dict(found)}))
    else:
        print(markdown(found))
        print(
            f"report     {folder.uri}/report.html, report.md, results.json, backbones.csv, cases.csv, figures/"
        )
        print(f"in all     {(time.monotonic() - began) / 60:.1f} minutes")
    error = found.error()
    if error is not None:
        raise error


class _Progress:
    """A line on stderr for every task, and now and then how many are under way."""

    def __init__(self) -> None:
        self._running: dict[str, float] = {}
        self._ended = 0
        self._next = time.monotonic() + _EVERY_S

    def __call__(self, name: str, event: str) -> None:
        now = time.monotonic()
        if event == "started":
            self._running[name] = now
        elif event:
            self._ended += 1
            seconds = now - self._running.pop(name, now)
            print(
                f"{event:<7} {name} after {seconds:.0f} s ({self._ended} ended)", file=sys.stderr, flush=True
            )
        elif now >= self._next:
            self._next = now + _EVERY_S
            running = ", ".join(f"{n} {now - since:.0f} s" for n, since in self._running.items())
            print(f"running {running or 'nothing yet'}", file=sys.stderr, flush=True)
