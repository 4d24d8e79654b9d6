"""Advances a collection's curation until people are needed: what `ray job submit` runs.

    ray job submit --working-dir . -- python jobs/curate_round.py --config jobs/configs/curate_demo.yaml
    python jobs/curate_round.py --set store=curation --dry-run

Run after the review, it retrains, judges and reports; run again, it begins the next round. The same command resumes a
round that was interrupted, at the step, case or training step where it was. Exit codes: 0 done, 1 failed, 2 the input
is wrong, 143 stopped on request after writing a checkpoint.
"""

import sys
from pathlib import Path

# The code beside this file is the code that runs, whatever version is installed.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "federation", "compliance")
]

from fedvox.cli import run_command  # noqa: E402
from fedvox.commands.curate import run  # noqa: E402

if __name__ == "__main__":
    run_command(run)
