"""Runs a benchmark over Ray, thousands of cases at a time: what `ray job submit` runs.

    ray job submit --working-dir . -- python jobs/benchmark.py -b abdomen -s resenc -s ours -o results --workers auto
    python jobs/benchmark.py -b abdomen -s resenc -o results

The same command goes on where an earlier run stopped. Exit codes: 0 done, 1 the work failed, 2 the input is wrong.
"""

import sys
from pathlib import Path

# The code beside this file is the code that runs, whatever version is installed.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "federation", "compliance")
]

from fedvox.cli import run_command  # noqa: E402
from fedvox.commands.benchmark import benchmark  # noqa: E402

if __name__ == "__main__":
    run_command(benchmark)
