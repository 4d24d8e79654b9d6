"""How long the analysis of a whole benchmark takes: 17 methods on 743 cases with 9 structures, as Touchstone has them.

    python benchmarks/analysis.py                # seconds
    python benchmarks/analysis.py --methods 30 --cases 5000 --json result.json

Scores are drawn at random (40 % of the structures are absent, as in TotalSegmentator's volumes). Timed is everything
from the tables of scores on: three metrics, rankings by every metric and aggregation with resampled rank intervals,
all ordered pairs (Wilcoxon, Holm over pairs and structures, BCa intervals), Friedman's test with critical differences,
power, three attributes of subgroups, and the figures of the report.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedvox.benchmark.analysis import TestSetAnalysis, analyse_test_set
from fedvox.benchmark.manifest import BenchmarkManifest
from fedvox.evaluation import figures

METRICS = ("dice", "nsd@2mm/surfel", "hd95/surfel")
ABSENT = 0.4
ATTRIBUTES = {"sex": ("F", "M"), "age": ("31", "52", "68", "84"), "manufacturer": ("A", "B", "C", "D")}
GOAL_S = 30.0


def make_manifest(folder: Path, cases: int, structures: int) -> BenchmarkManifest:
    """A benchmark whose references are empty files: their names are all that the analysis reads."""
    rng = np.random.default_rng(1)
    (folder / "labels").mkdir()
    rows = ["case," + ",".join(ATTRIBUTES)]
    for i in range(cases):
        (folder / "labels" / f"case_{i:05d}.nii.gz").touch()
        rows.append(f"case_{i:05d}," + ",".join(rng.choice(values) for values in ATTRIBUTES.values()))
    (folder / "cases.csv").write_text("\n".join(rows))
    test_set = {"name": "all", "references": str(folder / "labels"), "metadata": str(folder / "cases.csv")}
    return BenchmarkManifest.model_validate(
        {
            "name": "speed",
            "structures": {f"organ{i}": i for i in range(1, structures + 1)},
            "test_sets": [test_set],
            "metrics": METRICS,
            "subgroups": list(ATTRIBUTES),
        }
    )


def make_frames(manifest: BenchmarkManifest, methods: int) -> dict[str, pd.DataFrame]:
    """Scores of every method: a difficulty that all share, and noise of their own."""
    rng = np.random.default_rng(0)
    cases, structures = list(manifest.test_sets[0].cases()), list(manifest.structures)
    size = (len(cases), len(structures))
    absent, difficulty = rng.random(size) < ABSENT, rng.beta(8, 2, size)
    index = pd.MultiIndex.from_product([cases, structures], names=["case", "structure"])
    frames = {}
    for m in range(methods):
        frame = index.to_frame(index=False).assign(status="scored", presence="present")
        for metric in METRICS:
            score = np.clip(difficulty - 0.004 * m + rng.normal(0, 0.05, size), 0, 1)
            value = 40 * (1 - score) if metric.startswith("hd95") else score
            frame[metric] = np.where(absent, np.nan, value).ravel()
        frame.loc[absent.ravel(), "presence"] = "absent"
        frames[f"method{m:02d}"] = frame
    return frames


def draw(analysis: TestSetAnalysis) -> int:
    """The figures of the report; returns the size of their files in bytes."""
    order = analysis.ranking.order()
    drawn = [
        figures.score_distribution(analysis.tables["dice"], order),
        figures.rank_distribution(analysis.ranking),
        figures.significance_map(analysis.pairwise, order=order),
    ]
    if analysis.critical is not None:
        drawn.append(figures.critical_difference_diagram(analysis.critical))
    return sum(len(figures.to_svg(figure, "figure")) for figure in drawn)


def measure(methods: int, cases: int, structures: int) -> dict[str, Any]:
    """Seconds of each part."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_manifest(Path(folder), cases, structures)
        frames = make_frames(manifest, methods)
        start, cpu = time.perf_counter(), time.process_time()
        analysis = analyse_test_set(manifest, manifest.test_sets[0], frames)
        assert analysis is not None
        analysed = time.perf_counter()
        size = draw(analysis)
        end = time.perf_counter()
    return {
        "methods": methods,
        "cases": cases,
        "structures": structures,
        "pairs_tested": sum(1 for _ in analysis.pairwise.comparisons()),
        "analysis_s": round(analysed - start, 2),
        "figures_s": round(end - analysed, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "figures_kib": size // 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", type=int, default=17)
    parser.add_argument("--cases", type=int, default=743)
    parser.add_argument("--structures", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.methods, options.cases, options.structures)
    for name, value in found.items():
        print(f"{name:14} {value}")
    total = found["analysis_s"] + found["figures_s"]
    print(f"in all {total:.1f} s; {GOAL_S:.0f} s are allowed")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
