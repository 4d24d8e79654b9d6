r"""Diffusion priors of patches and of whole slices on held-out slices of the MNI152 T1: solvers, tasks, seams, memory.

    python benchmarks/restoration.py study --out runs/restoration --patch runs/diffusion-prior-demo \
        --whole runs/diffusion-prior-demo-whole --max-minutes 5
    python benchmarks/restoration.py memory --out runs/restoration --patch runs/diffusion-prior-demo
    python benchmarks/restoration.py report --out runs/restoration

`study` does what is not done yet and can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform")]

from fedvox import storage  # noqa: E402
from fedvox.errors import FedvoxError  # noqa: E402

SIZES = (256, 512, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="restore and judge what is not done yet")
    study.add_argument("--out", required=True)
    study.add_argument("--patch", required=True, help="run of the prior of patches")
    study.add_argument("--whole", required=True, help="run of the prior of whole slices")
    study.add_argument("--only", nargs="+", default=["must", "more"], choices=["must", "more"])
    study.add_argument("--max-minutes", type=float, default=float("inf"))
    study.add_argument("--dry-run", action="store_true")
    memory = commands.add_parser("memory", help="peak memory and seconds of one denoising against size")
    memory.add_argument("--out", required=True)
    memory.add_argument("--patch", required=True)
    report = commands.add_parser("report", help="tables of what is done")
    report.add_argument("--out", required=True)
    report.add_argument("--images", type=Path, help="folder for figures")
    child = commands.add_parser("measure-one")
    child.add_argument("values", nargs=4)
    arguments = parser.parse_args()
    try:
        {"study": run_study, "memory": measure_memory, "report": report_study, "measure-one": measure_one}[
            arguments.command
        ](arguments)
    except FedvoxError as error:
        sys.exit(f"error: {error}")


def run_study(arguments: argparse.Namespace) -> None:
    import torch

    from fedvox.restoration.release import load_release
    from fedvox.restoration.study.cells import Study, more_cells, must_cells

    torch.set_num_threads(1)
    wanted = [
        c
        for kind, cells in (("must", must_cells), ("more", more_cells))
        if kind in arguments.only
        for c in cells()
    ]
    priors = {name: load_release(getattr(arguments, name))[0] for name in ("patch", "whole")}
    study = Study(storage.locate(arguments.out), priors)
    open_ = [cell for cell in wanted if study.done(cell) is None]
    print(f"{len(wanted)} cells, {len(open_)} to do", flush=True)
    began = time.monotonic()
    for cell in [] if arguments.dry_run else open_:
        if time.monotonic() - began > 60 * arguments.max_minutes:
            print("stopped at the time limit; the same command goes on")
            return
        found = study.run(cell)
        print(
            f"{cell.name:<44} {found['psnr']:6.2f} dB  z {found['seam_z']:6.2f}  {found['seconds']:6.1f} s",
            flush=True,
        )


def measure_memory(arguments: argparse.Namespace) -> None:
    """Each size in a process of its own: its peak above what it held with the image loaded."""
    rows = []
    for size in SIZES:
        for mode, halo in (("whole", 0), ("random", 0), ("random", 8), ("overlap", 0)):
            command = [sys.executable, __file__, "measure-one", arguments.patch, str(size), mode, str(halo)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    storage.write_atomic(
        storage.locate(arguments.out).child("memory.json"), json.dumps(rows, indent=1).encode()
    )


def measure_one(arguments: argparse.Namespace) -> None:
    import torch

    from fedvox.restoration.memory import peak_mib
    from fedvox.restoration.release import load_release
    from fedvox.restoration.tiling import Coverage, TiledPrior

    run, size, mode, halo = (
        arguments.values[0],
        int(arguments.values[1]),
        arguments.values[2],
        int(arguments.values[3]),
    )
    torch.set_num_threads(1)
    prior, _ = load_release(run)
    edge = 48 - 2 * halo
    tiled = TiledPrior(prior, Coverage(mode, (1, edge, edge), halo=halo, batch=2))
    with torch.no_grad():
        tiled.with_coverage(mode="whole")(torch.rand(1, 1, 16, 16), 0.1)  # what the libraries set up once
        image = torch.rand(1, 1, size, size)
        before = peak_mib(reset=True)
        began = time.perf_counter()
        tiled(image, 0.1)
        seconds = time.perf_counter() - began
    added = peak_mib() - before
    print(
        json.dumps(
            {
                "size": size,
                "mode": mode,
                "halo": halo,
                "added_mib": round(added, 1),
                "seconds": round(seconds, 2),
            }
        )
    )


def report_study(arguments: argparse.Namespace) -> None:
    from fedvox.restoration.study.summary import figures, tables

    out = storage.locate(arguments.out)
    text = tables(out)
    storage.write_atomic(out.child("report.md"), text.encode())
    print(text)
    if arguments.images is not None:
        figures(out, arguments.images)


if __name__ == "__main__":
    main()
