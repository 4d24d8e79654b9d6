"""Promptable lesion networks on unseen kinds of lesions in unseen heads: the study, and what methods cost.

    python benchmarks/tracking.py study --out runs/tracking --seeds 0 1 2 --max-minutes 5
    python benchmarks/tracking.py report --out runs/tracking --images docs/images
    python benchmarks/tracking.py cost --out runs/tracking

`study` trains and judges what is not done yet and can be stopped and started again at any time. `--dry-run` lists what
it would do.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "platform")]

from fedvox.errors import FedvoxError  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="train and judge what is not done yet")
    study.add_argument("--out", type=Path, required=True)
    study.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    study.add_argument("--methods", nargs="+", help="some of them; default: all, peers first")
    study.add_argument("--max-minutes", type=float, default=float("inf"))
    study.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    try:
        {"study": run_study}[arguments.command](arguments)
    except FedvoxError as error:
        sys.exit(f"error: {error}")


def run_study(arguments: argparse.Namespace) -> None:
    import torch

    from fedvox import storage
    from fedvox.tracking.study.cells import METHODS, PEERS, Cell, result_of, run_cell

    torch.set_num_threads(1)
    methods = arguments.methods or [*PEERS, *METHODS]
    cells = [Cell(method, seed) for method in methods for seed in arguments.seeds]
    todo = [cell for cell in cells if not storage.exists(result_of(cell, arguments.out))]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are done")
    if arguments.dry_run:
        print("\n".join(cell.name for cell in todo))
        return
    began = time.monotonic()
    for cell in todo:
        if time.monotonic() - began > 60 * arguments.max_minutes:
            print("time is over; the same command goes on from here")
            return
        found = run_cell(cell, arguments.out)
        rows = [row["dice"] for row in found.get("segmentation", [])]
        mean = f"   Dice from prompts {sum(rows) / len(rows):.3f}" if rows else ""
        print(f"{cell.name:<18} {found['trained_cpu_s']:6.0f} CPU s of training{mean}", flush=True)


if __name__ == "__main__":
    main()
