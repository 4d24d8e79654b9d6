"""`fedvox benchmark` and `jobs/benchmark.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvox.commands.evaluate import parse_workers

if TYPE_CHECKING:
    from fedvox.benchmark.protocol import BenchmarkResult


def benchmark(
    manifest: Annotated[
        Path, typer.Option("--benchmark", "-b", help="Folder with benchmark.yaml, or that file.")
    ],
    submission: Annotated[
        list[Path], typer.Option("--submission", "-s", help="Folder or file (repeatable).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results, report and leaderboard.")
    ],
    workers: Annotated[
        str, typer.Option(help="Cases and commands at a time over Ray; auto: every CPU; 0: this process.")
    ] = "0",
    gpus_per_run: Annotated[
        float, typer.Option(help="GPUs that Ray sets aside for a submitted command.")
    ] = 0.0,
    cases_per_shard: Annotated[
        int, typer.Option(min=1, help="Cases that one call of a command predicts.")
    ] = 50,
    memory_gib: Annotated[float, typer.Option(help="Memory that Ray sets aside for scoring a case.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Runs a benchmark: predictions or commands, scores, fairness checks, statistics, report, leaderboard.

    Commands of submitters run in a sandbox that cannot read the references. Run again, it goes on where it stopped.

    Examples:
        fedvox benchmark -b abdomen -s submissions/resenc -s submissions/ours -o results

        ray job submit --working-dir . -- python jobs/benchmark.py -b abdomen -s a -s b -o results --workers auto
    """
    from fedvox.benchmark.manifest import load_benchmark
    from fedvox.benchmark.protocol import run_benchmark
    from fedvox.benchmark.results import to_dict
    from fedvox.benchmark.submission import load_submission
    from fedvox.benchmark.volumes import to_json

    result = run_benchmark(
        load_benchmark(manifest),
        [load_submission(path) for path in submission],
        output,
        workers=parse_workers(workers),
        gpus_per_run=gpus_per_run,
        cases_per_shard=cases_per_shard,
        memory_gib=memory_gib,
        on_progress=lambda text: print(text, file=sys.stderr),
    )
    print(to_json(to_dict(result)) if as_json else _summary(result, output))


def _summary(result: BenchmarkResult, output: Path) -> str:
    from fedvox.benchmark.views import statements

    lines = [found["text"] for found in statements(result)]
    failed = [c for c in result.checks if not c.holds]
    lines += [f"fails      {c.id} {c.subject}: {c.reason}" for c in failed]
    lines.append(f"report     {output / 'report.html'}")
    lines.append(f"site       {output / 'site' / 'index.html'}")
    return "\n".join(lines)
