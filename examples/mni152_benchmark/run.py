"""The worked example: six networks of three origins through the whole protocol, on two CPU cores.

    python examples/mni152_benchmark/run.py -o results/mni152

makes the data (MNI152 heads as three simulated sites see them), trains every network with the same number of steps,
has the third party run each in its sandbox, and writes the report and the leaderboard to results/mni152/bench. Run
again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The code beside this file is the code that runs, whatever version is installed.
_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "platform")]

import yaml  # noqa: E402
from settings import (  # noqa: E402
    BASELINE,
    BATCH,
    DATASET,
    JOBS,
    LEARNING_RATE,
    METHODS,
    OVERLAP,
    PATCH,
    SPACING_MM,
    STRUCTURES,
    THREADS,
    Budget,
    Method,
)  # fmt: skip

from fedvox.benchmark.manifest import load_benchmark  # noqa: E402
from fedvox.benchmark.protocol import run_benchmark  # noqa: E402
from fedvox.benchmark.runner import ShardTask, plan_shards, run_shard  # noqa: E402
from fedvox.benchmark.submission import load_submission  # noqa: E402
from fedvox.data.demo import DemoOptions, write_demo  # noqa: E402
from fedvox.data.ingest import ingest  # noqa: E402
from fedvox.data.ingest_config import IngestConfig  # noqa: E402

SETS = {"sites-a-b": "internal", "site-c": "external"}
ONE_BRAIN = "every head is the same MNI152 brain, deformed and scanned anew: an example of the protocol, not of anatomy"


def say(text: str) -> None:
    """Tell what is being done."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


# ---- data ------------------------------------------------------------------------------------------------------


def make_data(output: Path, budget: Budget) -> dict[str, list[str]]:
    """Write training cases and test sets; returns the cases of each."""
    per_site = (budget.training + budget.tested + 1) // 2
    count = 3 * max(per_site, budget.tested)
    demo = write_demo(output / "demo", DemoOptions(cases=count, resolution_mm=SPACING_MM))
    sites = json.loads((demo / "sources.json").read_text())
    inside = sorted((c for c in sites if sites[c] in ("site_a", "site_b")), key=lambda c: (c[-2:], c))
    cases = {
        "training": inside[: budget.training],
        "sites-a-b": inside[budget.training :][: budget.tested],
        "site-c": [c for c in sites if sites[c] == "site_c"][: budget.tested],
    }
    _copy(demo, cases["training"], output / "raw" / DATASET, "imagesTr", "labelsTr")
    description = json.loads((demo / "dataset.json").read_text())
    description["numTraining"] = len(cases["training"])
    (output / "raw" / DATASET / "dataset.json").write_text(json.dumps(description, indent=1))
    for name in SETS:
        _copy(demo, cases[name], output / "bench" / name, "images", "labels")
        _write_metadata(demo, cases[name], output / "bench" / name / "cases.csv")
    return cases


def _copy(demo: Path, cases: list[str], target: Path, images: str, labels: str) -> None:
    for case in cases:
        for source, folder, ending in (("imagesTr", images, "_0000.nii.gz"), ("labelsTr", labels, ".nii.gz")):
            (target / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(demo / source / f"{case}{ending}", target / folder / f"{case}{ending}")


def _write_metadata(demo: Path, cases: list[str], path: Path) -> None:
    """Site, and how noisy and uneven each image is: what the subgroups are made of."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "patient", "site", "coil"])
        for case in cases:
            done = json.loads((demo / "parameters" / f"{case}.json").read_text())
            coil = "uneven" if done["bias"] > 0.2 else "even"
            writer.writerow([case, case, done["site"], coil])


def make_benchmark(output: Path, tested: int) -> None:
    """Write benchmark.yaml: every rule, before the first training."""
    manifest = {
        "name": "mni152-sites",
        "title": "MNI152 at three simulated sites",
        "description": f"Gray and white matter of deformed MNI152 heads at {SPACING_MM:g} mm. Training: sites A and B.",
        "structures": STRUCTURES,
        "training": {"images": str((output / "raw" / DATASET / "imagesTr").resolve())},
        "test_sets": [
            {"name": name, "kind": kind, "images": f"{name}/images", "references": f"{name}/labels"}
            | {"metadata": f"{name}/cases.csv"}
            for name, kind in SETS.items()
        ],
        "metrics": ["dice", "nsd@4mm/surfel", "hd95/voxel"],
        "ranking": {"metric": "dice", "margin": 0.005, "min_group": min(10, max(2, tested // 2))},
        "subgroups": ["site"],
        "waivers": {f"leakage/{name}": ONE_BRAIN for name in SETS},
    }
    (output / "bench" / "benchmark.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


# ---- training --------------------------------------------------------------------------------------------------


def train_all(output: Path, budget: Budget) -> None:
    """Every network, each in a process of its own."""
    if not (output / "store" / "store.json").is_file():
        source = {"path": str(output / "raw" / DATASET)}
        config = {
            "sources": [source],
            "output": str(output / "store"),
            "spacing_mm": [SPACING_MM] * 3,
            "workers": 0,
        }
        ingest(IngestConfig.model_validate(config))
    waiting = [t for t in _trainings(budget) if not _is_trained(output, *t)]
    (output / "models").mkdir(exist_ok=True)
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda training: _train(output, budget, *training), waiting))


def _train(output: Path, budget: Budget, name: str, seed: int) -> None:
    say(f"training {name}, seed {seed}")
    environment = {**os.environ, "PYTHONPATH": str(_ROOT / "platform"), "OMP_NUM_THREADS": str(THREADS)}
    script, options = Path(__file__).with_name("train.py"), json.dumps(dataclasses.asdict(budget))
    command = [sys.executable, str(script), str(output), name, str(seed), options]
    log = output / "models" / f"{name}-{seed}.log"
    with log.open("w") as stream:
        done = subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False)
    if done.returncode != 0:
        raise SystemExit(f"training {name} failed: see {log}")


def _is_trained(output: Path, name: str, seed: int) -> bool:
    return (output / "models" / f"{name}-{seed}" / "training.json").is_file()


def _trainings(budget: Budget) -> list[tuple[str, int]]:
    return [(name, 0) for name in METHODS] + [(BASELINE, seed) for seed in budget.seeds[1:]]


# ---- submissions -----------------------------------------------------------------------------------------------


def make_submission(output: Path, name: str, seed: int, training: list[str], steps: int) -> Path:
    """Write submission.yaml with an adapter and all that there is to say of the method; returns its folder."""
    method, model = METHODS[name], output / "models" / f"{name}-{seed}"
    home = output / "bench" / "submissions" / (name if seed == 0 else f"{name}-{seed}")
    home.mkdir(parents=True, exist_ok=True)
    cost = json.loads((model / "training.json").read_text())
    values: dict[str, Any] = {
        "name": name if seed == 0 else f"{name}-{seed}",
        "role": "method" if method.claims else "baseline",
        "adapter": _adapter(method, Path(os.path.relpath(model, home))),
        "method": {**_recipe(training, steps, seed), **method.card, **_cost(cost)},
    }
    if method.claims:
        values |= {"claims": ["architecture"], "compares_to": BASELINE}
    (home / "submission.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return home


def _adapter(method: Method, model: Path) -> dict[str, Any]:
    common: dict[str, Any] = {"device": "cpu", "threads": THREADS, "mirror": False, "overlap": OVERLAP}
    if method.origin == "nnunet":
        return {"kind": "nnunet", "model": str(model / "model"), "folds": ["all"], **common}
    if method.origin == "fedvox":
        return {"kind": "fedvox", "models": [str(model / "model")], **common}
    return {
        "kind": "monai", "network": method.network, "arguments": method.arguments, "weights": str(model / "weights.pt"),
        "classes": len(STRUCTURES) + 1, "patch_size": list(PATCH), "spacing_mm": [SPACING_MM] * 3, **common,
    }  # fmt: skip


def _recipe(training: list[str], steps: int, seed: int) -> dict[str, Any]:
    """What all methods have in common; one epoch is one pass over as many patches as there are cases."""
    return {
        "residual_encoder": True, "framework": f"PyTorch {version('torch')}", "code": "examples/mni152_benchmark",
        "training_cases": training, "extra_data": False, "pretrained": "",
        "epochs": max(1, round(steps * BATCH / len(training))), "patch_size": list(PATCH), "batch_size": BATCH,
        "spacing_mm": [SPACING_MM] * 3, "augmentation": "nnU-Net's list, fedvox", "loss": "Dice + cross-entropy",
        "optimizer": f"AdamW {LEARNING_RATE:g}, polynomial", "hardware": f"{THREADS} CPU core, {platform.machine()}",
        "seeds": [seed], "ensemble_size": 1, "test_time_augmentation": False, "postprocessing": "",
    }  # fmt: skip


def _cost(cost: dict[str, Any]) -> dict[str, Any]:
    """On a CPU, memory is the process's and hours are those of its cores."""
    return {
        "parameters_millions": cost["parameters_millions"],
        "vram_gib": cost["peak_gib"],
        "gpu_hours": cost["cpu_hours"],
    }


def add_replicates(output: Path, home: Path, others: list[Path]) -> None:
    """The baseline's other seeds, for the spread within a method."""
    found = {
        name: [str((work_of(output, other.name, name) / "predictions").resolve()) for other in others]
        for name in SETS
    }
    path = home / "submission.yaml"
    path.write_text(path.read_text() + yaml.safe_dump({"replicates": found}))


def work_of(output: Path, submission: str, test_set: str) -> Path:
    """Where `run_benchmark` looks for what a submission has predicted."""
    return output / "results" / "submissions" / submission / test_set / "run"


def predict_all(output: Path, homes: list[Path]) -> None:
    """Run every submission in its sandbox, two at a time; `run_benchmark` would do it one after the other."""
    benchmark = load_benchmark(output / "bench")
    hidden = [t.references for t in benchmark.test_sets]
    tasks: list[ShardTask] = []
    for submission in map(load_submission, homes):
        for test_set in benchmark.test_sets:
            assert test_set.images is not None
            work = work_of(output, submission.name, test_set.name)
            command, read = submission.runs(), submission.reads()
            tasks += plan_shards(test_set.images, command, work, hidden=hidden, read_paths=read)

    def run(task: ShardTask) -> None:
        say(f"running {task.work.parent.parent.name} on {task.work.parent.name}")
        run_shard(task)

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(run, tasks))


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for data, models and results"
    )
    for field in ("steps", "training", "tested"):
        parser.add_argument(f"--{field}", type=int, default=getattr(Budget, field))
    options = parser.parse_args()
    output, budget = options.output.resolve(), Budget(options.steps, options.training, options.tested)
    output.mkdir(parents=True, exist_ok=True)
    cases = make_data(output, budget)
    make_benchmark(output, budget.tested)
    train_all(output, budget)
    homes = {
        (name, seed): make_submission(output, name, seed, cases["training"], budget.steps)
        for name, seed in _trainings(budget)
    }
    predict_all(output, list(homes.values()))
    add_replicates(output, homes[BASELINE, 0], [home for (_, seed), home in homes.items() if seed])
    result = run_benchmark(
        load_benchmark(output / "bench"),
        [load_submission(home) for (_, seed), home in homes.items() if not seed],
        output / "results",
        on_progress=say,
    )
    for analysis in result.analysis.test_sets:
        say(f"{analysis.test_set.name}: {', '.join(analysis.ranking.order())}")
    say(f"report {output / 'results' / 'report.html'}")


if __name__ == "__main__":
    main()
