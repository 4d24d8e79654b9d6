"""Reading one random 128³ patch of a 300×512×512 int16 volume: Fedvox's bricks against what else one might use.

    python benchmarks/patch_read.py [--patches 30] [--latency-ms 25] [--connection-mb-s 90] [--json]

One run, side by side: every format holds the same volume (the MNI152 brain at CT size with 15 HU of noise), every
reader gets the same positions in turns, and every patch is compared with the source. Local: warm (page cache) and cold
(the file's pages dropped, file opened anew). Remote: an S3 server on this machine that answers ranges after the given
latency, one patch at a time and eight at once. A reader may keep what a training would keep: open files and indexes.
Where nothing else is said a patch is decoded by one thread, on both sides, as in a loader whose workers each read
their own patch. `--json` prints one object instead of the table.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from peers.range_server import serve
from scipy.ndimage import zoom
from zarr.codecs import BloscCodec

from fedvox.data.bricks import CaseHeader, CaseReader, write_case
from fedvox.data.demo import load_brain
from fedvox.local_cluster import free_ports
from fedvox.storage import locate

SHAPE = (300, 512, 512)
PATCH = 128
BRICK = 64
OURS, B2ND = "fedvox bricks, zstd", "blosc2 b2nd, nnU-Net's"
PARQUET, NIFTI = "Parquet, a row group a brick", "nii.gz"
WHOLE_OBJECT = (B2ND, NIFTI)

Array = np.ndarray[Any, Any]
Read = Callable[[tuple[int, int, int]], Array]


@dataclass(frozen=True)
class Format:
    """One way to keep a volume.

    Attributes:
        name: shown in the table.
        path: file or folder, below the scratch folder.
        open_local: a reader of patches by their start; called anew for every cold read.
        open_remote: the same from the S3 server; None where the format has no way to read ranges or a whole object.
    """

    name: str
    path: Path
    open_local: Callable[[], Read]
    open_remote: Callable[[], Read] | None


def ct_volume() -> Array:
    """The brain stretched to a CT's matrix, in HU, with noise."""
    t1 = load_brain().t1.astype(np.float32)
    head = zoom(t1, [n / m for n, m in zip(SHAPE, t1.shape, strict=True)], order=1) / t1.max()
    hu = np.where(head <= 0.02, -1000, head * 100 - 20) + np.random.default_rng(0).normal(0, 15, SHAPE)
    return np.round(hu).clip(-1024, 3071).astype(np.int16)


def box(start: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    d, h, w = (slice(s, s + PATCH) for s in start)
    return d, h, w


# Formats: each function writes the volume and says how patches are read from it.


def bricks(volume: Array, folder: Path, codec: Any, s3: str) -> list[Format]:
    """By one thread; by two; and opened for each patch, so that every block's checksum is computed, too."""
    path = folder / f"bricks-{codec}.arrow"
    header = CaseHeader("ct", (1.0, 1.0, 1.0), ("CT",))
    write_case(path, volume[None], None, header=header, codec=codec, threads=2)

    def reader(uri: str, threads: int = 1) -> Read:
        case = CaseReader.open(locate(uri))
        return lambda start: case.read_patch(start, (PATCH,) * 3, threads=threads)[0][0]

    def opening() -> Read:
        return lambda start: reader(str(path))(start)

    name = f"fedvox bricks, {codec}"
    return [
        Format(name, path, lambda: reader(str(path)), lambda: reader(f"{s3}/{path.name}")),
        Format(f"{name}, 2 threads", path, lambda: reader(str(path), 2), None),
        Format(f"{name}, opened and checked", path, opening, None),
    ]


def memmap(volume: Array, folder: Path) -> Format:
    path = folder / "volume.npy"
    np.save(path, volume)

    def reader() -> Read:
        mapped = np.load(path, mmap_mode="r")
        return lambda start: np.array(mapped[box(start)])

    return Format("npy memmap", path, reader, None)


def b2nd(volume: Array, folder: Path, s3: str) -> list[Format]:
    """As nnU-Net writes them for a 128³ patch: zstd level 8, blocks and chunks as it computes them from the patch.

    It reads with one thread and a memory map, and opens the file for each patch.
    """
    path = folder / "volume.b2nd"
    blosc2.asarray(
        volume, urlpath=str(path), chunks=(128, 192, 128), blocks=(64, 32, 32),
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8},
    )  # fmt: skip

    def local(threads: int = 1) -> Read:
        array = blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": threads}, mmap_mode="r")
        return lambda start: array[box(start)]

    def opening() -> Read:
        return lambda start: local()(start)

    def remote() -> Read:
        fetch = whole_object(f"{s3}/{path.name}")
        return lambda start: blosc2.ndarray_from_cframe(fetch())[box(start)]

    return [
        Format(B2ND, path, local, remote),
        Format(f"{B2ND}, 2 threads", path, lambda: local(2), None),
        Format(f"{B2ND}, opened", path, opening, None),
    ]


def whole_object(uri: str) -> Callable[[], bytes]:
    """Fetches an object in one request."""
    location = locate(uri)

    def fetch() -> bytes:
        with location.filesystem.open_input_file(location.path) as file:
            data: bytes = file.readall()
        return data

    return fetch


def zarr_sharded(volume: Array, folder: Path, s3: str) -> Format:
    path = folder / "volume.zarr"
    array = zarr.create_array(
        str(path), shape=SHAPE, dtype="int16", chunks=(BRICK,) * 3, shards=(320, 256, 256),
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
    )  # fmt: skip
    array[:] = volume

    def local() -> Read:
        opened = zarr.open_array(str(path), mode="r")
        return lambda start: np.asarray(opened[box(start)])

    def remote() -> Read:
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "anon": True}
        opened = zarr.open_array(f"{s3}/{path.name}", mode="r", storage_options=options)
        return lambda start: np.asarray(opened[box(start)])

    return Format("zarr v3, sharded", path, local, remote)


def parquet(volume: Array, folder: Path, s3: str) -> Format:
    """A row group a brick, blosc2-compressed as the bricks are; the footer is read once."""
    path = folder / "volume.parquet"
    grid = [range(0, n, BRICK) for n in SHAPE]
    starts = [(d, h, w) for d in grid[0] for h in grid[1] for w in grid[2]]
    schema = pa.schema([("image", pa.binary())])
    parameters = {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 5,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "typesize": 2,
    }
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for d, h, w in starts:
            brick = np.zeros((BRICK,) * 3, np.int16)
            part = volume[d : d + BRICK, h : h + BRICK, w : w + BRICK]
            brick[tuple(slice(n) for n in part.shape)] = part
            writer.write_table(pa.table({"image": [blosc2.compress2(brick, **parameters)]}, schema))

    def read_from(file: pq.ParquetFile) -> Read:
        def read(start: tuple[int, int, int]) -> Array:
            touched = [i for i, s in enumerate(starts) if all(a < b + PATCH and b < a + BRICK
                       for a, b in zip(s, start, strict=True))]  # fmt: skip
            out = np.empty((PATCH,) * 3, np.int16)
            for i, payload in zip(touched, file.read_row_groups(touched)["image"], strict=True):
                brick = np.frombuffer(blosc2.decompress2(payload.as_buffer()), np.int16).reshape((BRICK,) * 3)
                low = [max(a, b) for a, b in zip(starts[i], start, strict=True)]
                high = [min(a + BRICK, b + PATCH) for a, b in zip(starts[i], start, strict=True)]
                target = tuple(slice(x - b, y - b) for x, y, b in zip(low, high, start, strict=True))
                origin = tuple(slice(x - a, y - a) for x, y, a in zip(low, high, starts[i], strict=True))
                out[target] = brick[origin]
            return out

        return read

    def remote() -> Read:
        location = locate(f"{s3}/{path.name}")
        return read_from(pq.ParquetFile(location.filesystem.open_input_file(location.path), pre_buffer=True))

    return Format(PARQUET, path, lambda: read_from(pq.ParquetFile(path, memory_map=True)), remote)


def nifti(volume: Array, folder: Path, s3: str) -> Format:
    path = folder / "volume.nii.gz"
    nib.save(nib.Nifti1Image(volume.T, np.eye(4)), path)

    def local() -> Read:
        return lambda start: np.asarray(nib.load(path).dataobj).T[box(start)]

    def remote() -> Read:
        fetch = whole_object(f"{s3}/{path.name}")
        return lambda start: np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(fetch())).dataobj).T[
            box(start)
        ]

    return Format(NIFTI, path, local, remote)


# Measuring


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def drop_pages(path: Path) -> None:
    """Takes a file out of the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(read: Read, start: tuple[int, int, int], expected: Array) -> float:
    began = time.perf_counter()
    patch = read(start)
    took = time.perf_counter() - began
    if not np.array_equal(patch, expected):
        raise AssertionError("a patch differs from the source")
    return 1000 * took


def percentiles(times: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(times), "p95": float(np.percentile(times, 95))}


Starts = list[tuple[int, int, int]]


def measure(formats: list[Format], volume: Array, patches: int) -> dict[str, dict[str, Any]]:
    """Milliseconds a patch, warm, cold and from S3, and patches a second of eight readers at once."""
    rng = np.random.default_rng(1)
    starts: Starts = [tuple(int(rng.integers(0, n - PATCH + 1)) for n in SHAPE) for _ in range(patches)]
    result: dict[str, dict[str, Any]] = {f.name: {"mb": size_of(f.path) / 1e6} for f in formats}
    warm = {f.name: f.open_local() for f in formats}
    slow = {NIFTI: warm.pop(NIFTI)}
    local = in_turns(warm, volume, starts, rounds=7) | in_turns(slow, volume, starts[:3])
    remote = {f.name: f.open_remote() for f in formats if f.open_remote is not None}
    ranged = {name: read for name, read in remote.items() if name not in WHOLE_OBJECT}
    whole = {name: read for name, read in remote.items() if name in WHOLE_OBJECT}
    s3 = in_turns(ranged, volume, starts[: max(5, patches // 2)]) | in_turns(whole, volume, starts[:4])
    cold = [f for f in formats if "threads" not in f.name and "opened" not in f.name]
    for key, found in (("warm_ms", local), ("cold_ms", from_disk(cold, volume, starts)), ("s3_ms", s3)):
        for name, times in found.items():
            result[name][key] = percentiles(times)
    for name, rate in rates(formats, starts).items():
        result[name]["s3_patches_per_s"] = rate
    return result


def in_turns(
    readers: dict[str, Read], volume: Array, starts: Starts, rounds: int = 3
) -> dict[str, list[float]]:
    """Times of every reader at every position: in each round all positions, at each of them all readers.

    A position counts by its best round, the one that other work on the machine disturbed least.
    """
    times = {name: [[0.0] * len(starts) for _ in range(rounds)] for name in readers}
    for round_number in range(rounds):
        for position, start in enumerate(starts):
            expected = volume[box(start)]
            for name, read in readers.items():
                times[name][round_number][position] = timed(read, start, expected)
    return {name: [min(each) for each in zip(*found, strict=True)] for name, found in times.items()}


def from_disk(formats: list[Format], volume: Array, starts: Starts) -> dict[str, list[float]]:
    """Times with the file's pages dropped and the file opened anew."""
    times: dict[str, list[float]] = {f.name: [] for f in formats}
    for start in starts[: max(3, len(starts) // 3)]:
        for f in formats:
            drop_pages(f.path)
            times[f.name].append(timed(lambda s, f=f: f.open_local()(s), start, volume[box(start)]))
    return times


def rates(formats: list[Format], starts: Starts, rounds: int = 3) -> dict[str, float]:
    """Patches a second of eight readers at once; the best of rounds, in which the formats take turns."""
    readers = {f.name: [f.open_remote() for _ in range(8)] for f in formats if f.open_remote is not None}
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, each in readers.items():
            found[name].append(at_once(each, starts[:8] if name in WHOLE_OBJECT else starts))
    return {name: max(each) for name, each in found.items()}


def at_once(readers: list[Read], starts: Starts) -> float:
    """Patches a second of several readers, each in a thread of its own."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(readers)) as pool:
        parts = [starts[i :: len(readers)] for i in range(len(readers))]
        list(pool.map(lambda reader, part: [reader(start) for start in part], readers, parts))
    return len(starts) / (time.perf_counter() - began)


@contextmanager
def s3_server(folder: Path, latency_ms: float, connection_mb_s: float = 0.0) -> Iterator[str]:
    """A read-only S3 server over `folder`, as bucket `bench`, in a process of its own."""
    port = free_ports(1)[0]
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(str(folder), port, latency_ms, connection_mb_s), daemon=True
    )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    process.start()
    try:
        yield "s3://bench"
    finally:
        process.terminate()
        process.join(10)


def goals(result: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ours, theirs, rows = (result[name] for name in (OURS, B2ND, PARQUET))
    found = {
        "warm p50 / b2nd's": (ours["warm_ms"]["p50"] / theirs["warm_ms"]["p50"], "at most", 0.8),
        "warm p50 / b2nd's, 2 threads": (
            result[f"{OURS}, 2 threads"]["warm_ms"]["p50"] / result[f"{B2ND}, 2 threads"]["warm_ms"]["p50"],
            "at most",
            0.8,
        ),
        "size / b2nd's": (ours["mb"] / theirs["mb"], "at most", 1.0),
        "S3 patches/s / b2nd whole object's": (
            ours["s3_patches_per_s"] / theirs["s3_patches_per_s"],
            "at least",
            15.0,
        ),
        "S3 patches/s / Parquet's": (
            ours["s3_patches_per_s"] / rows["s3_patches_per_s"],
            "at least",
            1.5,
        ),
    }
    return {
        name: {
            "ratio": ratio,
            "goal": f"{word} {goal}",
            "met": ratio <= goal if word == "at most" else ratio >= goal,
        }
        for name, (ratio, word, goal) in found.items()
    }


def show(result: dict[str, dict[str, Any]], reached: dict[str, dict[str, Any]]) -> None:
    print(
        f"{'format':<40}{'MB':>7}{'warm p50/p95':>16}{'cold p50/p95':>16}{'S3 p50/p95':>16}{'S3 patches/s':>14}"
    )
    for name, row in result.items():
        cells = [
            f"{row[k]['p50']:.1f}/{row[k]['p95']:.1f}" if k in row else "-"
            for k in ("warm_ms", "cold_ms", "s3_ms")
        ]
        rate = f"{row['s3_patches_per_s']:.1f}" if "s3_patches_per_s" in row else "-"
        print(f"{name:<40}{row['mb']:>7.1f}{cells[0]:>16}{cells[1]:>16}{cells[2]:>16}{rate:>14}")
    for name, goal in reached.items():
        print(f"{'met   ' if goal['met'] else 'MISSED'} {name}: {goal['ratio']:.2f} (goal: {goal['goal']})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=30)
    parser.add_argument("--latency-ms", type=float, default=25.0)
    parser.add_argument(
        "--connection-mb-s", type=float, default=0.0, help="limit of each connection; 0: none"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blosc2.set_nthreads(1)
    with tempfile.TemporaryDirectory(prefix="fedvox-bench-") as scratch:
        folder = Path(scratch)
        volume = ct_volume()
        with s3_server(folder, arguments.latency_ms, arguments.connection_mb_s) as s3:
            formats = [
                *bricks(volume, folder, "zstd", s3), *bricks(volume, folder, "lz4", s3), *b2nd(volume, folder, s3),
                zarr_sharded(volume, folder, s3), parquet(volume, folder, s3), memmap(volume, folder),
                nifti(volume, folder, s3),
            ]  # fmt: skip
            result = measure(formats, volume, arguments.patches)
    reached = goals(result)
    if arguments.json:
        print(
            json.dumps(
                {
                    "schema": "fedvox.benchmark/1",
                    "benchmark": "patch_read",
                    "formats": result,
                    "goals": reached,
                }
            )
        )
    else:
        show(result, reached)


if __name__ == "__main__":
    main()
