"""What the Ray shell costs: step time of the same training under Ray Train and in a bare process, in one run.

    python benchmarks/ray_overhead.py [--steps 60] [--repeats 3] [--json]

Both sides run `fedvox.training.loop.train` on the same store, network and seed with one worker; they alternate, and
the ratio is taken of the median step over all repeats. The fixed cost of starting Ray is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.local_cluster import local_cluster

ROOT = Path(__file__).resolve().parents[1]


def write_store(folder: Path) -> None:
    """Four noisy volumes of 96³."""
    meta = StoreMeta(
        name="noise", channel_names=("CT",), modality="CT", structures=("background", "cube"),
        label_sets={"all": (0, 1)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    writer = StoreWriter.create(str(folder), meta)
    rng = np.random.default_rng(0)
    for i in range(4):
        image = rng.normal(0, 60, (1, 96, 96, 96)).astype(np.int16)
        label = np.zeros((96, 96, 96), np.uint8)
        label[30:60, 30:60, 30:60] = 1
        writer.add_case(f"case{i}", image, label, source="a", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
    writer.finish()


def train(
    folder: Path, name: str, steps: int, workers: int, environment: dict[str, str]
) -> tuple[list[float], float]:
    """Runs one training; returns the seconds of its steps and of the whole process."""
    config = {
        "name": name, "storage": str(folder / "runs"), "steps": steps, "log_every": 1, "global_batch_size": 2,
        "data": {"store": str(folder / "store"), "patch_size": [32, 32, 32], "validation_cases": ["case3"],
                 "augment_on": "cpu", "loader_threads": 1, "prefetch_batches": 4},
        "model": {"name": "mednext-v2-tiny"}, "optimizer": {"warmup_steps": 2},
        "validation": {"every_steps": steps, "overlays": 0}, "checkpoint": {"every_steps": 20},
        "compute": {"num_workers": workers, "torch_threads": 1},
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "jobs/pretrain.py", "--config", str(path)], cwd=ROOT, env=environment, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    whole = time.perf_counter() - began
    lines = [
        json.loads(t)
        for t in (folder / "runs" / name / "metrics" / "attempt-0000.jsonl").read_text().splitlines()
    ]
    # The first steps warm up allocators and caches.
    return [line["step_s"] for line in lines if line["kind"] == "train" and line["step"] > 5], whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    bare: list[float] = []
    ray: list[float] = []
    fixed: list[float] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_cluster(2, environment={"OMP_NUM_THREADS": "1"}) as cluster,
    ):
        folder = Path(scratch)
        write_store(folder / "store")
        joined = {**environment, "RAY_ADDRESS": cluster.gcs_address}
        for i in range(arguments.repeats):
            alone, alone_s = train(folder, f"bare{i}", arguments.steps, 0, environment)
            under, under_s = train(folder, f"ray{i}", arguments.steps, 1, joined)
            bare += alone
            ray += under
            fixed.append(under_s - alone_s)
    result = {
        "schema": "fedvox.benchmark/1", "benchmark": "ray_overhead", "steps": len(bare),
        "bare_step_ms": 1000 * statistics.median(bare), "ray_step_ms": 1000 * statistics.median(ray),
        "ratio": statistics.median(ray) / statistics.median(bare), "goal": 1.03,
        "fixed_s": statistics.median(fixed),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"bare loop   {result['bare_step_ms']:.1f} ms a step (median of {len(bare)})")
        print(f"under Ray   {result['ray_step_ms']:.1f} ms a step")
        print(f"ratio       {result['ratio']:.3f}   (goal: at most {result['goal']})")
        print(f"once a run  {result['fixed_s']:.1f} s for the worker group to start and stop")


if __name__ == "__main__":
    main()
