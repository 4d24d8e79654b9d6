"""Predicts many cases over Ray, each worker with its networks loaded: what `ray job submit` runs.

    ray job submit --working-dir . -- python jobs/predict.py -i s3://d/in -o s3://d/out -m s3://r/liver --workers auto
    python jobs/predict.py -i images -o labels --model runs/liver --dry-run

The same command goes on where an earlier run stopped. Exit codes: 0 done, 1 a case failed, 2 the input is wrong or a
case was rejected.
"""

import sys
from pathlib import Path

# The code beside this file is the code that runs, whatever version is installed.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "federation", "compliance")
]

from fedvox.cli import run_command  # noqa: E402
from fedvox.commands.predict import predict  # noqa: E402

if __name__ == "__main__":
    run_command(predict)
