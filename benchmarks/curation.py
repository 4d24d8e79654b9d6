"""What curation is worth, and what it costs, on simulated brains of which some labels are wrong and recorded.

    python benchmarks/curation.py detection --seeds 0 1 2     # planted errors in the first tenth of the queue
    python benchmarks/curation.py loop --seeds 0 1 2          # Dice against reviewed share: queue, random, none, clean
    python benchmarks/curation.py report --seeds 0 1 2        # tables and the curve of what is done
    python benchmarks/curation.py scale                       # 25,000 cases and 100,000 versions: time to a queue
    python benchmarks/curation.py collection --output DIR     # a collection to try the commands on

All but `scale` keep what they have done in --folder and go on from there; `--budget-s` stops between two cells.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np

from fedvox.config import load_config
from fedvox.curation.cycle.config import CurateConfig
from fedvox.curation.simulation.study import ARMS, Study, StudyOptions, curves

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "jobs" / "configs" / "curate_demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["detection", "loop", "report", "scale", "collection"])
    parser.add_argument("--folder", type=Path, default=Path("bench-curation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--gold", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.1, help="of the cases that are corrupted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    {"detection": detection, "loop": loop, "report": report, "scale": scale, "collection": collection}[
        arguments.what
    ](arguments)


def study_of(arguments: argparse.Namespace) -> Study:
    import torch

    from fedvox.training.ray_shell import run

    torch.set_num_threads(1)
    config = load_config(
        CurateConfig, CONFIG, [f"rules={ROOT / 'jobs/configs/curation_rules/brain_halves.yaml'}"]
    )
    options = StudyOptions(
        arguments.folder.absolute(), arguments.cases, arguments.gold, arguments.share, arguments.rounds
    )
    began = time.monotonic()
    return Study(
        options, config, run, lambda text: print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)
    )


def detection(arguments: argparse.Namespace) -> None:
    study, began = study_of(arguments), time.monotonic()
    for seed in arguments.seeds:
        found = study.detection(seed)
        print(json.dumps({"seed": seed, **found}), flush=True)
        if time.monotonic() - began > arguments.budget_s:
            break


def loop(arguments: argparse.Namespace) -> None:
    study, began = study_of(arguments), time.monotonic()
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if time.monotonic() - began > arguments.budget_s:
                return
            points = study.arm(seed, arm)["points"]
            print(
                f"seed {seed} {arm}: " + ", ".join(f"{p['reviewed']:.1%} {p['gold']:.4f}" for p in points),
                flush=True,
            )


def report(arguments: argparse.Namespace) -> None:
    folder = arguments.folder
    for seed in arguments.seeds:
        path = folder / f"detection-{seed}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            kinds = ", ".join(f"{kind} {hits} of {of}" for kind, (hits, of) in found["by_kind"].items())
            print(f"seed {seed}: {found['recall']:.0%} of {found['corrupted']} in the first tenth ({kinds})")
    found = curves(folder, arguments.seeds)
    for arm, runs in found.items():
        for number in range(len(runs[0]) if runs else 0):
            gold = [points[number]["gold"] for points in runs]
            labels = [points[number]["label_dice"] for points in runs]
            reviewed = np.mean([points[number]["reviewed"] for points in runs])
            print(
                f"{arm:<7} round {number}: reviewed {reviewed:6.1%}  gold Dice {np.mean(gold):.4f} "
                f"({min(gold):.4f} to {max(gold):.4f})  label Dice {np.mean(labels):.4f}  seeds {len(runs)}"
            )
    if arguments.output is not None:
        draw(found, arguments.output)


def draw(found: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axis, (key, title) in zip(
        figure.subplots(1, 2),
        (("gold", "Dice on the gold set"), ("label_dice", "Dice of the labels")),
        strict=True,
    ):
        for arm, runs in found.items():
            if not runs:
                continue
            x = [100 * np.mean([points[n]["reviewed"] for points in runs]) for n in range(len(runs[0]))]
            y = np.array([[point[key] for point in points] for points in runs])
            if arm in (
                "none",
                "clean",
            ):  # nothing is reviewed to any effect: the round is the axis all the same
                x = [5.0 * n for n in range(len(x))]
            line = axis.plot(x, y.mean(axis=0), "o-", label=arm, markersize=3)
            axis.fill_between(
                x, y.min(axis=0), y.max(axis=0), alpha=0.15, color=line[0].get_color(), linewidth=0
            )
        axis.set_xlabel("reviewed, % of the cases")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def collection(arguments: argparse.Namespace) -> None:
    from fedvox.curation.simulation.brains import write_brains
    from fedvox.curation.simulation.collections import write_collection

    folder = arguments.output or arguments.folder / "demo"
    truth = write_brains(
        str(folder.with_name(folder.name + "-brains").absolute()),
        arguments.cases + arguments.gold,
        resolution_mm=6.0,
    )
    store = write_collection(
        str(folder.absolute()), truth, gold=arguments.gold, share=arguments.share, seed=arguments.seeds[0]
    )
    print(f"{len(store.cases())} cases in {folder}; planted.json in it tells what is wrong")


def scale(_: argparse.Namespace) -> None:
    from sqlalchemy import insert

    from fedvox.curation.cycle import steps
    from fedvox.curation.queueing.priority import Scores
    from fedvox.curation.store import Finding, LabelStore, schema

    cases, per_case, earlier = 25_000, 4, 3750
    rng = np.random.default_rng(0)
    names = ["background", *(f"structure {n}" for n in range(24))]
    with tempfile.TemporaryDirectory() as scratch:
        store = LabelStore.create(Path(scratch) / "store", name="scale", structures=names, images="/none")
        ids = [f"case_{n:05d}" for n in range(cases)]
        # Rows as the store writes them, without the masks, which neither step looks at.
        with store.database.write() as connection:
            geometry = json.dumps({"shape": [300, 512, 512], "spacing_mm": [1, 0.8, 0.8], "affine": []})
            connection.execute(insert(schema.cases), [
                {"case_id": name, "geometry": geometry, "site": f"site {n % 112}", "gold": False, "deleted": False,
                 "head": per_case, "revision": per_case} for n, name in enumerate(ids)
            ])  # fmt: skip
            connection.execute(insert(schema.versions), [
                {"case_key": n + 1, "number": v + 1, "mask_sha256": f"{n * per_case + v:064x}",
                 "source_kind": "model", "source_name": f"model {v}", "weights_sha256": "0" * 64, "round": v,
                 "parent": v or None, "reviewer": "", "seconds": 0.0, "reason": "", "created": "2026-01-01T00:00:00"}
                for n in range(cases) for v in range(per_case)
            ])  # fmt: skip
        for number in range(1, 4):
            store.rounds.open({}, actor="benchmark")
            with store.database.write() as connection:
                chosen = rng.choice(cases, earlier // 3, replace=False)
                connection.execute(insert(schema.reviews), [
                    {"case_key": int(n) + 1, "seen": 1, "result": 2, "decision": "edit", "round": number,
                     "reviewer": f"reviewer {n % 9}", "seconds": 90.0, "reason": "", "purpose": "queue",
                     "request_id": None, "created": "2026-01-01T00:00:00"} for n in chosen
                ])  # fmt: skip
            store.rounds.close(number, actor="benchmark")
        round_ = store.rounds.open({}, actor="benchmark")
        store.findings.replace(round_, [
            Finding(ids[int(n)], per_case, round_, names[1], "volume", 0.5, {"robust_z": 4.2}, "")
            for n in rng.choice(cases, 50_000)
        ], actor="benchmark")  # fmt: skip
        wrong = rng.beta(0.2, 4, cases)
        scores = Scores(tuple(ids), wrong * rng.random(cases), wrong * 1e4, wrong, wrong * 2)
        steps.write_scores(store.round_folder(round_), scores)
        config = CurateConfig(store=store.location.uri)
        store.close()
        store = LabelStore.open(store.location.uri)
        began = time.perf_counter()
        found = steps.queue(config, store, round_, actor="benchmark")
        filled = time.perf_counter()
        item = store.queue.next("reviewer 1")
        given = time.perf_counter()
        store.findings.of(round=round_, case_id=item.case_id)
        told = time.perf_counter()
        size = (Path(scratch) / "store" / "curation.db").stat().st_size
        print(
            f"{cases:,} cases, {cases * per_case:,} versions, {earlier:,} reviews, 50,000 findings ({size / 2**20:.0f} "
            f"MiB): queue of {sum(found['items'].values()):,} items in {filled - began:.2f} s, next item in "
            f"{1000 * (given - filled):.0f} ms, its findings in {1000 * (told - given):.0f} ms"
        )


if __name__ == "__main__":
    main()
