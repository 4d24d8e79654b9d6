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
from typing import Any

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
    report = commands.add_parser("report", help="tables, claims and figures of what is done")
    report.add_argument("--out", type=Path, required=True)
    report.add_argument("--images", type=Path)
    report.add_argument(
        "--strict", action="store_true", help="fail where a claim does not hold or was not measured"
    )
    cost = commands.add_parser("cost", help="seconds and peak memory a lesion and a scan")
    cost.add_argument("--out", type=Path, required=True)
    cost.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        {"study": run_study, "report": report_study, "cost": measure_cost}[arguments.command](arguments)
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


def report_study(arguments: argparse.Namespace) -> None:
    from fedvox import storage
    from fedvox.tracking.study import pictures
    from fedvox.tracking.study.cells import METHODS
    from fedvox.tracking.study.summary import read_cells, tables, verdicts
    from fedvox.training.figures import save_figure

    cells = read_cells(arguments.out)
    print(tables(cells))
    print("\n| must hold | least | measured | |\n|---|---|---|---|")
    found = verdicts(cells)
    for verdict in found:
        measured = "" if verdict.value is None else f"{verdict.value:.3f}"
        print(f"| {verdict.text} | {verdict.limit:.2f} | {measured} | {verdict.told} |")
    seconds = [value["trained_cpu_s"] for cell, value in cells.items() if cell.method in METHODS]
    print(f"\n{len(seconds)} trainings; nnInteractive: {nninteractive()}")
    if arguments.images is not None:
        folder = storage.locate(str(arguments.images))
        save_figure(pictures.scores(cells), folder.child("lesion_scores.png"))
        figure = followed_lesion(arguments.out)
        if figure is not None:
            save_figure(figure, folder.child("lesion_followed.png"))
    if arguments.strict and any(verdict.told != "holds" for verdict in found):
        sys.exit(1)


def nninteractive() -> str:
    """Whether the peer can be run here."""
    from importlib.util import find_spec

    if find_spec("nnInteractive") is None:
        return "not judged, the package is not installed here and its weights are a separate download"
    return "installed, but its weights were not given; not judged"


def followed_lesion(folder: Path) -> Any:
    """The largest lesion of the first patient that judges, as followed by registration alone and by the network."""
    import numpy as np

    from fedvox.tracking.observers import prompted
    from fedvox.tracking.registration import RegistrationConfig
    from fedvox.tracking.study import pictures
    from fedvox.tracking.study.cells import PATIENTS, Cell, segmenter_of
    from fedvox.tracking.study.patients import KeptRegistrations, judges
    from fedvox.tracking.track import Anchor, Tracker, track

    if not (folder / "runs" / "prompted.0" / "final").is_dir():
        return None
    judge = judges(folder, 0, PATIENTS)[0]
    ids, counts = np.unique(judge.lesions[-1][judge.lesions[-1] > 0], return_counts=True)
    maps = {}
    for method in ("carried", "prompted"):
        tracker = Tracker(
            prompted(segmenter_of(Cell(method, 0), folder)), RegistrationConfig(stage="affine"),
            register=KeptRegistrations(folder / "registrations"),
        )  # fmt: skip
        states = track(judge.scans, {0: Anchor(judge.lesions[0])}, tracker)
        maps[method] = [state.lesions for state in states]
    return pictures.followed(judge, int(ids[counts.argmax()]), maps)


def measure_cost(arguments: argparse.Namespace) -> None:
    """Each method in a process of its own, because a peak is a process's."""
    import subprocess

    from fedvox.tracking.study.cells import PEERS

    print("one patient of two scans of 94x116x98 voxels, one CPU thread; registration included, at affine")
    print("| method | lesions | s a lesion | s a scan | s a scan, registration alone | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for method in (*PEERS, "prompted"):
        command = [sys.executable, __file__, "_cost", method, str(arguments.out), str(arguments.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout.strip(), flush=True)


def one_cost(method: str, folder: Path, seed: int) -> None:
    import resource

    import numpy as np
    import torch

    from fedvox.tracking.prompts import Mask
    from fedvox.tracking.registration import RegistrationConfig, register
    from fedvox.tracking.segmenters import Request
    from fedvox.tracking.study.cells import PATIENTS, Cell, segmenter_of
    from fedvox.tracking.study.patients import judges

    torch.set_num_threads(1)
    segment = segmenter_of(Cell(method, seed), folder)
    judge = judges(folder, seed, PATIENTS)[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = register(judge.scans[1], judge.scans[0], RegistrationConfig(stage="affine"))
    carried = found.carry(judge.lesions[0], judge.scans[1].geometry)
    registered = time.process_time() - began
    ids = [int(i) for i in np.unique(carried) if i]
    began = time.process_time()
    for lesion in ids:
        mask = Mask(carried == lesion)
        segment(Request(judge.scans[1].data[0], judge.scans[1].geometry.spacing_mm, (mask,)))
    spent = time.process_time() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"| {method} | {len(ids)} | {spent / len(ids):.3f} | {registered + spent:.2f} | {registered:.2f} | {peak:.0f} |"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["_cost"]:
        one_cost(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
