"""Tables of the study, from the cells that are done, and a figure of one slice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fedvox import storage
from fedvox.restoration.study.cells import COVERAGES, TASKS
from fedvox.storage import Location
from fedvox.training.figures import PALETTE, STYLE, save_figure

Row = dict[str, Any]


def read_cells(folder: Location) -> list[Row]:
    """The cells that judge; not those that only tuned a baseline."""
    files = storage.list_files(folder.child("cells"))
    rows = [json.loads(storage.read_bytes(file)) for file in files if file.uri.endswith(".json")]
    return [row for row in rows if row["place"] >= 0]


def select(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def mean(rows: Sequence[Row], score: str) -> float:
    """Over slices; NaN without rows."""
    return float(np.mean([row[score] for row in rows])) if rows else float("nan")


def tables(folder: Location) -> str:
    """All tables as Markdown."""
    rows = read_cells(folder)
    return "\n".join(
        [
            "### 4× MRI: prior × evaluation", "", *coverage_table(rows), "", "### Tasks: prior × evaluation", "",
            *task_table(rows), "", "### Tasks × solvers, slice 83", "", *solver_table(rows), "", *memory_table(folder),
        ]
    ) + "\n"  # fmt: skip


def coverage_table(rows: Sequence[Row]) -> list[str]:
    """PSNR, SSIM and seam score of each prior and coverage at 4×."""
    lines = [
        "| method | prior | evaluated | slices | PSNR (dB) | SSIM | NMSE | seam z, each slice | s |",
        "|--|--|--|--|--|--|--|--|--|",
    ]
    for method in ("zero-filled", "tv", "pgd", "diffpir"):
        for prior in ("", "patch", "whole"):
            for coverage in ("", *COVERAGES):
                found = select(rows, task="mri4", method=method, prior=prior, coverage=coverage)
                if found:
                    seams = ", ".join(
                        f"{row['seam_z']:.1f}" for row in sorted(found, key=lambda r: r["place"])
                    )
                    lines.append(
                        f"| {method} | {prior or '–'} | {coverage or '–'} | {len(found)} | {mean(found, 'psnr'):.2f} | "
                        f"{mean(found, 'ssim'):.3f} | {mean(found, 'nmse'):.4f} | {seams} | "
                        f"{mean(found, 'seconds'):.1f} |"
                    )
    return lines


def task_table(rows: Sequence[Row]) -> list[str]:
    """PSNR by task: baselines, and DiffPIR with both priors evaluated both ways; over the slices that all have."""
    crossed = [("patch", "random+halo"), ("patch", "whole"), ("whole", "random+halo"), ("whole", "whole")]
    heads = ["zero-filled", "tv", *(f"diffpir {p} prior, {c}" for p, c in crossed)]
    lines = ["| task | slices | " + " | ".join(heads) + " |", "|--" * (len(heads) + 2) + "|"]
    for task in TASKS:
        groups = [select(rows, task=task, method=m) for m in ("zero-filled", "tv")]
        groups += [select(rows, task=task, method="diffpir", prior=p, coverage=c) for p, c in crossed]
        places = set.intersection(*({row["place"] for row in group} for group in groups))
        cells = [f"{mean([r for r in group if r['place'] in places], 'psnr'):.2f}" for group in groups]
        if places:
            lines.append(f"| {task} | {len(places)} | " + " | ".join(cells) + " |")
    return lines


def solver_table(rows: Sequence[Row]) -> list[str]:
    """PSNR by solver and task, prior of patches, random grid with halo, on the slice that all have."""
    methods = ["zero-filled", "tv", "wavelet", "bm3d"]
    methods += ["pgd", "fista", "admm", "red", "reddiff", "dps", "ddnm", "diffpir", "pnpdm"]
    lines = ["| method | " + " | ".join(TASKS) + " |", "|--" * (len(TASKS) + 1) + "|"]
    for method in methods:
        cells = []
        for task in TASKS:
            found = [
                r
                for r in select(rows, task=task, method=method, place=1)
                if r["coverage"] in ("", "random+halo")
            ]
            found = [r for r in found if r["prior"] in ("", "patch")]
            cells.append(f"{found[0]['psnr']:.2f}" if found else "–")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def memory_table(folder: Location) -> list[str]:
    """Peak memory of one denoising by size and coverage; empty where it was not measured."""
    location = folder.child("memory.json")
    if not storage.exists(location):
        return []
    lines = ["### Memory", "", "| size | evaluated | halo | MiB added at the peak | s |", "|--|--|--|--|--|"]
    for row in json.loads(storage.read_bytes(location)):
        lines.append(
            f"| {row['size']}² | {row['mode']} | {row['halo']} | {row['added_mib']:.1f} | {row['seconds']:.2f} |"
        )
    return lines


def figures(folder: Location, images: Path) -> None:
    """Draws what the tables say of seams and memory."""
    rows = read_cells(folder)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        seams, memory = figure.subplots(1, 2)
        names = list(COVERAGES)
        for colour, (method, prior) in zip(
            PALETTE,
            [("pgd", "patch"), ("diffpir", "patch"), ("pgd", "whole"), ("diffpir", "whole")],
            strict=False,
        ):
            for place in range(3):
                values = [
                    mean(
                        select(rows, task="mri4", method=method, prior=prior, coverage=n, place=place),
                        "seam_z",
                    )
                    for n in names
                ]
                label = f"{method}, {prior} prior" if place == 0 else None
                seams.plot(range(len(names)), values, "o", ms=4, color=colour, label=label)
        seams.axhspan(-3, 3, color="0.9", zorder=0)
        seams.set(title="Seam score z of the error at 4× (grey: no seams)", xticks=range(len(names)))
        seams.set_xticklabels(names, fontsize=8)
        seams.legend(fontsize=7)
        _draw_memory(memory, folder)
    save_figure(figure, storage.locate(str(images)).child("restoration_seams_memory.png"))


def _draw_memory(panel: Any, folder: Location) -> None:
    location = folder.child("memory.json")
    if not storage.exists(location):
        return
    measured = json.loads(storage.read_bytes(location))
    for colour, (mode, halo) in zip(
        PALETTE, [("whole", 0), ("random", 0), ("random", 8), ("overlap", 0)], strict=False
    ):
        found = [row for row in measured if row["mode"] == mode and row["halo"] == halo]
        label = mode + (f", halo {halo}" if halo else "")
        panel.loglog(
            [r["size"] for r in found], [r["added_mib"] for r in found], "o-", color=colour, label=label
        )
    sizes = sorted({row["size"] for row in measured})
    panel.set(title="Memory of one denoising, MiB", xlabel="edge of the image", xticks=sizes)
    panel.set_xticklabels(sizes)
    panel.minorticks_off()
    panel.legend(fontsize=8)
