"""Trains a promptable lesion network on pooled lesion data sets: what `ray job submit` runs.

    ray job submit --working-dir . -- python jobs/lesion_pretrain.py --config jobs/configs/lesion_demo.yaml
    python jobs/lesion_pretrain.py --config jobs/configs/lesion_demo.yaml --dry-run

The same command resumes a training that was interrupted. Exit codes: 0 done, 1 failed, 2 the input is wrong, 143
stopped on request after writing a checkpoint.
"""

import sys
from pathlib import Path

# The code beside this file is the code that runs, whatever version is installed.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "federation", "compliance")
]

from fedvox.cli import run_command  # noqa: E402
from fedvox.commands.lesion import pretrain  # noqa: E402

if __name__ == "__main__":
    run_command(pretrain)
