"""Turns raw volumes into a brick store, a Ray task a case: what `ray job submit` runs.

    ray job submit --working-dir . -- python jobs/ingest.py -i s3://raw/cohort.csv -o s3://data/cohort
    python jobs/ingest.py -i nnUNet_raw/Dataset003_Liver -o stores/liver --dry-run

The same command goes on where an earlier run stopped. Exit codes: 0 done (rejected cases are listed), 1 failed,
2 the input is wrong or no case can be used.
"""

import sys
from pathlib import Path

# The code beside this file is the code that runs, whatever version is installed.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / root) for root in ("platform", "federation", "compliance")
]

from fedvox.cli import run_command  # noqa: E402
from fedvox.commands.ingest import ingest  # noqa: E402

if __name__ == "__main__":
    run_command(ingest)
