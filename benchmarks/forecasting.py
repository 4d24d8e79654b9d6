"""Forecasting methods on simulated patients whose future is known: the study, and what the methods cost.

    python benchmarks/forecasting.py study --out runs/forecasting --seeds 0 1 2 --max-minutes 5
    python benchmarks/forecasting.py report --out runs/forecasting --images docs/images
    python benchmarks/forecasting.py cost

`study` trains what is not done yet and can be stopped and started again at any time. `--dry-run` lists what it would
train.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "platform")]

from fedvox.errors import FedvoxError  # noqa: E402
from fedvox.forecasting.baselines import BASELINES  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="train and judge what is not done yet")
    study.add_argument("--out", required=True)
    study.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    study.add_argument("--only", nargs="+", default=["must", "more"], choices=["must", "more"])
    study.add_argument("--max-minutes", type=float, default=float("inf"))
    study.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    try:
        {"study": run_study}[arguments.command](arguments)
    except FedvoxError as error:
        sys.exit(f"error: {error}")


def run_study(arguments: argparse.Namespace) -> None:
    from fedvox import storage
    from fedvox.forecasting.study.cells import MORE, MUST, SETS, Cell, result_of, run_cell

    pairs = [
        pair for name, group in (("must", MUST), ("more", MORE)) if name in arguments.only for pair in group
    ]
    cells = [Cell(data, method, 0) for data in SETS for method in BASELINES]
    cells += [Cell(data, method, seed) for seed in arguments.seeds for data, method in pairs]
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
        every = found["conditions"]["any"]
        ratio = sum(every["mse"]) / sum(every["mse_lci"])
        print(
            f"{cell.name:<32} {found['trained_cpu_s']:6.0f} CPU s   error relative to LCI {ratio:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
