"""Compares backbones from scratch under one compute budget, over Ray Tune: what `ray job submit` runs.

    ray job submit --working-dir . -- python jobs/benchmark_backbones.py --config mine.yaml
    python jobs/benchmark_backbones.py --config jobs/configs/benchmark_backbones_demo.yaml --demo-data

The same command goes on where an earlier run stopped. Exit codes: 0 done, 1 a trial failed, 2 the input is wrong.
"""

import sys
from pathlib import Path

# The code beside this file is the code that runs, whatever version is installed.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "federation", "compliance")
]

from fedvox.cli import run_command  # noqa: E402
from fedvox.commands.backbones import backbones  # noqa: E402

if __name__ == "__main__":
    run_command(backbones)
