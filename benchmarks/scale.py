"""Does the sampler carry 18,000 volumes, and a million? Start-up, memory and time per sample, without the voxels.

    python benchmarks/scale.py                       # 18,000 and 1,000,000 rows; about a minute
    python benchmarks/scale.py --rows 18000 --json result.json

For each size a manifest is written as the ingest writes it (30 sources, 20 structures a case), and a fresh process
opens the store and builds the sampler, as every training worker does. It reports

- `open_s`, `sampler_s`: seconds to open the store and to build the sampler;
- `rss_mib`: resident memory of the whole process, and `store_rss_mib`: what store and sampler add to the imports;
- `case_us`, `augment_us`, `start_us`, `sample_us`: median microseconds to draw the case, the augmentation, the
  place, and all of it, for samples in random order. (Voxels of structures come from memory; reading them is
  input/output and measured by `benchmarks/patch_read.py`.)

Goals: seconds to start, under 1 GiB a worker, under 1 ms a sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedvox.data.augment_config import AugmentConfig
from fedvox.data.augment_draw import draw, read_box
from fedvox.data.records import MANIFEST_SCHEMA, StoreMeta
from fedvox.data.sampler import CounterSampler, SamplerConfig
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import MANIFEST_FILE, ROW_GROUP_ROWS, STORE_FILE

PATCH = (128, 128, 128)
SOURCES = 30
STRUCTURES = 168
PRESENT = 20  # structures of one case
DRAWS = 3000


def write_store(folder: Path, rows: int) -> None:
    """A store without case files: `store.json` and a manifest of `rows` rows."""
    rng = np.random.default_rng(0)
    source = np.minimum(rng.zipf(1.6, rows) - 1, SOURCES - 1)  # few large sources, many small ones
    names = pa.array([f"source_{s:02d}" for s in range(SOURCES)])
    codes = pa.DictionaryArray.from_arrays(pa.array(source, pa.int32()), names)
    shape = rng.integers((120, 400, 400), (600, 513, 513), (rows, 3))
    present = np.tile(np.arange(1, PRESENT + 1, dtype=np.uint16), rows)
    numbers = rng.normal(size=(rows, 6))
    columns = {
        "case_id": pa.array([f"case_{row:07d}" for row in range(rows)]),
        "source": codes,
        "label_set": codes,
        "shape": fixed_lists(shape.astype(np.int32)),
        "spacing_mm": fixed_lists(rng.uniform(0.7, 3.0, (rows, 3))),
        "channels": pa.array(np.ones(rows, np.uint16)),
        "num_bytes": pa.array(rng.integers(10_000_000, 200_000_000, rows)),
        "foreground_intensity": channel_lists(numbers),
        "whole_intensity": channel_lists(numbers),
        "class_voxels": pa.MapArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * PRESENT),
            pa.array(present),
            pa.array(rng.integers(1, 10**7, rows * PRESENT)),
        ),
        "uri": pa.array([f"cases/case_{row:07d}.arrow" for row in range(rows)]),
        "sha256": pa.array([f"{row:064x}" for row in range(rows)]),
        "origin": pa.array([f"{row:032x}" for row in range(rows)]),
    }
    table = pa.table(
        [columns[field.name].cast(field.type) for field in MANIFEST_SCHEMA], schema=MANIFEST_SCHEMA
    )
    pq.write_table(table, folder / MANIFEST_FILE, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    structures = ("background", *(f"structure_{k}" for k in range(1, STRUCTURES)))
    label_sets = {f"source_{s:02d}": tuple(range(0, STRUCTURES, 1 + s % 3)) for s in range(SOURCES)}
    meta = StoreMeta("scale", ("CT",), "CT", structures, label_sets, "ct")
    (folder / STORE_FILE).write_bytes(meta.to_json())


def fixed_lists(values: np.ndarray[Any, Any]) -> pa.Array:
    """(n, k) numbers as n lists of k."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def channel_lists(numbers: np.ndarray[Any, Any]) -> pa.Array:
    """(n, 6) statistics as n lists of one channel."""
    return pa.ListArray.from_arrays(
        pa.array(np.arange(len(numbers) + 1, dtype=np.int32)), fixed_lists(numbers)
    )


class StoreWithoutFiles:
    """A brick store that takes the voxels of structures from memory."""

    def __init__(self, store: BrickStore) -> None:
        self._store = store
        rng = np.random.default_rng(0)
        self._voxels = {k: rng.integers(0, 120, (512, 3)) for k in range(1, PRESENT + 1)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __len__(self) -> int:
        return len(self._store)

    def foreground(self, _: int) -> dict[int, np.ndarray[Any, Any]]:
        """The same sample of voxels for every case."""
        return self._voxels


def measure(folder: str) -> dict[str, float]:
    """What one training worker needs, in this process."""
    imports = rss_mib()
    began = time.perf_counter()
    store = BrickStore.open(folder)
    opened = time.perf_counter()
    sampler = CounterSampler(
        StoreWithoutFiles(store), SamplerConfig(seed=0, patch_size=PATCH, source_temperature=2.0)
    )
    built = time.perf_counter()
    result = {"rows": float(len(store)), "open_s": opened - began, "sampler_s": built - opened}
    indices = [int(i) for i in np.random.default_rng(1).integers(0, 10**8, DRAWS)]
    config = AugmentConfig()

    def augment(index: int) -> None:
        read_box(draw(config, 0, [index], PATCH, 1), PATCH)

    def sample(index: int) -> None:
        size = read_box(draw(config, 0, [index], PATCH, 1), PATCH)
        sampler.start(index, size)

    works: dict[str, Callable[[int], object]] = {
        "case": sampler.case,
        "augment": augment,
        "start": sampler.start,
        "sample": sample,
    }
    for name, work in works.items():
        result[f"{name}_us"] = microseconds(work, indices)
    result["rss_mib"] = rss_mib()
    result["store_rss_mib"] = result["rss_mib"] - imports
    return result


def microseconds(work: Callable[[int], object], indices: list[int]) -> float:
    """Median time of one call, which other processes on the machine disturb least."""
    for index in indices[:100]:
        work(index)
    times = []
    for index in indices:
        began = time.perf_counter()
        work(index)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e6


def rss_mib() -> float:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[18_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="fedvox-scale-") as folder:
            write_store(Path(folder), rows)
            command = [sys.executable, __file__, "--measure", folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(output))
        print(f"\n{rows:,} rows")
        for name, value in results[-1].items():
            print(f"  {name:14} {value:12,.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
