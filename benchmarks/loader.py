"""Patches ready for the network: Fedvox's augmentation and loader against nnU-Net's, side by side in one run.

    python benchmarks/loader.py                          # about 4 minutes on one thread
    python benchmarks/loader.py --threads 2 --json result.json
    python benchmarks/loader.py --device cuda            # the batched augmentation on a GPU

Three sections, each on 2-channel 128³ patches with nnU-Net's full training list:

1. `augment`: from normalised voxels in memory to a patch in the batch. batchgeneratorsv2 gets the enlarged box that
   nnU-Net reads (205³), Fedvox the box that each sample needs; both of the same volume.
2. `disk`: from a compressed store on disk (warm) to a patch in the batch: read, decode, normalise, augment. nnU-Net's
   side reads its own format, blosc2 arrays of normalised float32 with its own chunks and blocks.
3. `cuda`: whole batches augmented on the GPU, from voxels on the CPU.

Both sides take turns patch by patch, so that what else the machine does hits both alike, and each draws its own
random numbers. Times are wall-clock; `cpu` is the mean of the CPU time of the working threads.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.nnunet_transforms import initial_patch_size, nnunet_transforms
from scipy import ndimage

from fedvox.data.augment import AugmentConfig, Augmenter, draw, read_box
from fedvox.data.loader_samples import SampleSource
from fedvox.data.sampler import SamplerConfig
from fedvox.data.store import BrickStore, ChannelIntensity, StoreMeta, StoreWriter

Array = np.ndarray[Any, Any]
Size3 = tuple[int, int, int]
Work = Callable[[], object]
Side = Callable[[int], Work]
"""Prepares patch number i off the clock, and returns the work to be timed."""

CHANNELS = 2
STRUCTURES = 6
INTENSITY = ChannelIntensity(mean=0.0, std=300.0, min=-1000.0, max=1000.0, p005=-900.0, p995=900.0)


@dataclass(frozen=True)
class Timing:
    """Milliseconds a patch, and patches a second over all threads."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    patches_per_s: float


def scene(size: int) -> tuple[Array, Array]:
    """A volume of smooth tissue with noise, (C, D, H, W) int16, and organs as blobs, (D, H, W) uint8."""
    rng = np.random.default_rng(0)
    coarse = ndimage.zoom(rng.standard_normal((size // 12 + 2,) * 3), 12, order=1)[:size, :size, :size]
    image = np.stack(
        [coarse * 300 + 40 * rng.standard_normal(coarse.shape, np.float32) for _ in range(CHANNELS)]
    )
    label = np.digitize(coarse, (0.9, 1.2, 1.5, 1.9, 2.4))
    return np.clip(image, -1000, 1000).astype(np.int16), label.astype(np.uint8)


def centred(volume: torch.Tensor, size: Size3) -> torch.Tensor:
    """The box of a size about the volume's centre, as a copy."""
    (z, d), (y, h), (x, w) = (((n - s) // 2, s) for n, s in zip(volume.shape[-3:], size, strict=True))
    return volume[..., z : z + d, y : y + h, x : x + w].contiguous()


def race(sides: dict[str, Side], patches: int, threads: int, warm_up: int = 3) -> dict[str, Timing]:
    """Lets the sides take turns: patch by patch on one thread, in rounds of a patch a thread on several."""
    for side in sides.values():
        for index in range(warm_up):
            side(index)()
    times: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    rounds: dict[str, float] = dict.fromkeys(sides, 0.0)

    def timed(name: str, work: Work) -> None:
        began, began_cpu = time.perf_counter(), time.thread_time()
        work()
        times[name].append(time.perf_counter() - began)
        cpu[name].append(time.thread_time() - began_cpu)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for first in range(warm_up, warm_up + patches, threads):
            for name in sides:
                ready = [sides[name](index) for index in range(first, first + threads)]
                began = time.perf_counter()
                list(pool.map(timed, [name] * threads, ready))
                rounds[name] += time.perf_counter() - began
    return {name: summarize(times[name], cpu[name], rounds[name]) for name in sides}


def summarize(times: Sequence[float], cpu: Sequence[float], elapsed: float) -> Timing:
    """Seconds of single patches -> `Timing`."""
    ms = np.array(times) * 1e3
    return Timing(
        float(ms.mean()),
        float(np.median(ms)),
        float(np.percentile(ms, 95)),
        float(np.mean(cpu) * 1e3),
        len(times) / elapsed,
    )


def augment_section(patch: Size3, patches: int, threads: int) -> dict[str, Timing]:
    """Section 1. Boxes are cut before the clock starts: reading is no part of it."""
    largest = math.ceil(max(patch) * 1.4 * 1.75) + 4  # 1.4 × the widest that three turns of 30° make a cube
    raw, segmentation = scene(largest)
    image = torch.from_numpy(raw).float() / 300
    label = torch.from_numpy(segmentation)
    theirs = (
        centred(image, initial_patch_size(patch)),
        centred(label, initial_patch_size(patch))[None].to(torch.int16),
    )
    transforms, augmenter = nnunet_transforms(patch), Augmenter(patch)
    out = torch.empty(threads, CHANNELS, *patch), torch.empty(threads, 1, *patch, dtype=torch.int16)
    indices = range(patches + 3 * threads + 3)
    drawn = [draw(AugmentConfig(), 0, [index], patch, CHANNELS) for index in indices]
    boxes = {
        size: (centred(image, size), centred(label, size)) for size in {read_box(p, patch) for p in drawn}
    }

    def batchgenerators(index: int) -> Work:
        x, y = theirs[0].clone(), theirs[1].clone()  # it works in place

        @torch.no_grad()
        def work() -> None:
            done = transforms(image=x, segmentation=y)
            out[0][index % threads].copy_(done["image"])  # nnU-Net collates into buffers, too
            out[1][index % threads].copy_(done["segmentation"])

        return work

    def fedvox(index: int) -> Work:
        own = slice(index % threads, index % threads + 1)
        x, y = boxes[read_box(drawn[index], patch)]

        def work() -> None:
            params = draw(AugmentConfig(), 0, [index], patch, CHANNELS)
            augmenter.into(out[0][own], out[1][own], [x], [y], params)

        return work

    return race({"batchgeneratorsv2": batchgenerators, "fedvox": fedvox}, patches, threads)


def disk_section(patch: Size3, patches: int, threads: int) -> dict[str, Timing]:
    """Section 2, on stores in a temporary folder."""
    raw, segmentation = scene(max(300, 2 * max(patch)))
    with tempfile.TemporaryDirectory(prefix="fedvox-loader-") as folder:
        ours = fedvox_store(Path(folder) / "bricks", raw, segmentation, patch)
        read = blosc2_store(Path(folder), raw.astype(np.float32) / 300, segmentation.astype(np.int16), patch)
        transforms, augmenter = nnunet_transforms(patch), Augmenter(patch)
        out = torch.empty(threads, CHANNELS, *patch), torch.empty(threads, 1, *patch, dtype=torch.int16)

        @torch.no_grad()
        def nnunet(index: int) -> None:
            x, y = read(index)
            done = transforms(image=torch.from_numpy(x), segmentation=torch.from_numpy(y))
            out[0][index % threads].copy_(done["image"])
            out[1][index % threads].copy_(done["segmentation"])

        def fedvox(index: int) -> None:
            own = slice(index % threads, index % threads + 1)
            sample, voxels = ours.read(index)
            x, y = ours.normalized(sample, voxels)
            augmenter.into(out[0][own], out[1][own], [x], [y], sample.params)

        sides = {"nnU-Net": nnunet, "fedvox": fedvox}
        return race({name: partial(partial, side) for name, side in sides.items()}, patches, threads)


def fedvox_store(folder: Path, image: Array, label: Array, patch: Size3) -> SampleSource:
    """The volume as a brick store of one case."""
    names = ("background", *(f"s{k}" for k in range(1, STRUCTURES)))
    meta = StoreMeta(
        "bench",
        ("a", "b"),
        "CT",
        names,
        {"all": tuple(range(STRUCTURES))},
        "ct",
        intensity=(INTENSITY,) * CHANNELS,
    )
    writer = StoreWriter.create(str(folder), meta)
    writer.add_case("case", image, label, source="s", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
    writer.finish()
    return SampleSource(BrickStore.open(str(folder)), SamplerConfig(0, patch), AugmentConfig())


def blosc2_store(
    folder: Path, image: Array, label: Array, patch: Size3
) -> Callable[[int], tuple[Array, Array]]:
    """The volume as nnU-Net stores it, and a function which reads a patch of the enlarged size at random."""
    import blosc2

    chunks, blocks = (
        (128, 192, 128),
        (64, 32, 32),
    )  # what nnU-Net's rule gives for 128³ patches on common caches
    paths = []
    for name, array in (("image", image), ("label", label[None])):
        paths.append(str(folder / f"{name}.b2nd"))
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=paths[-1],
            chunks=(1, *(min(c, n) for c, n in zip(chunks, array.shape[1:], strict=True))),
            blocks=(1, *blocks),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8},
        )
    stored = [blosc2.open(path, mode="r", dparams={"nthreads": 1}, mmap_mode="r") for path in paths]
    size = initial_patch_size(patch)
    room = [n - s for n, s in zip(label.shape, size, strict=True)]

    def read(index: int) -> tuple[Array, Array]:
        start = np.random.default_rng(index).integers(0, np.array(room) + 1)
        box = (slice(None), *(slice(int(a), int(a) + s) for a, s in zip(start, size, strict=True)))
        return stored[0][box], stored[1][box]

    return read


def cuda_section(patch: Size3, batches: int, batch: int) -> dict[str, Timing] | str:
    """Section 3; a line that says why not, without a GPU."""
    if not torch.cuda.is_available():
        return "skipped: torch sees no CUDA device here"
    raw, segmentation = scene(math.ceil(max(patch) * 1.4 * 1.75) + 4)
    image, label = torch.from_numpy(raw), torch.from_numpy(segmentation)
    augmenter, config = Augmenter(patch), AugmentConfig()

    def fedvox(index: int) -> None:
        params = draw(config, 0, range(index * batch, (index + 1) * batch), patch, CHANNELS)
        boxes = [read_box(params.row(k), patch) for k in range(batch)]
        images = [centred(image, box).pin_memory().cuda(non_blocking=True).float() / 300 for box in boxes]
        labels = [centred(label, box).pin_memory().cuda(non_blocking=True) for box in boxes]
        augmenter(images, labels, params)
        torch.cuda.synchronize()

    return race({f"fedvox, batch of {batch}": partial(partial, fedvox)}, batches, 1)


def report(results: dict[str, dict[str, Timing] | str]) -> None:
    """A table a section."""
    for section, outcome in results.items():
        print(f"\n{section}")
        if isinstance(outcome, str):
            print(f"  {outcome}")
            continue
        print(f"  {'':22} {'mean ms':>9} {'p50':>8} {'p95':>8} {'cpu ms':>8} {'patches/s':>10}")
        for name, t in outcome.items():
            row = f"{t.mean_ms:9.1f} {t.p50_ms:8.1f} {t.p95_ms:8.1f} {t.cpu_ms:8.1f} {t.patches_per_s:10.2f}"
            print(f"  {name:22} {row}")
        if len(outcome) == 2:
            peer, ours = outcome.values()
            print(
                f"  ratio: {ours.patches_per_s / peer.patches_per_s:.2f} × patches/s, "
                f"{peer.cpu_ms / ours.cpu_ms:.2f} × less CPU a patch, p50 {peer.p50_ms / ours.p50_ms:.2f} ×, "
                f"p95 {peer.p95_ms / ours.p95_ms:.2f} ×"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patch", type=int, default=128, help="edge of the patch in voxels")
    parser.add_argument("--patches", type=int, default=120, help="of each side and section")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda runs section 3 alone")
    parser.add_argument("--batch", type=int, default=2, help="patches of a batch in section 3")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    torch.manual_seed(0)
    patch = (arguments.patch,) * 3
    results: dict[str, dict[str, Timing] | str] = {}
    if arguments.device == "cpu":
        results["augment"] = augment_section(patch, arguments.patches, arguments.threads)
        results["disk"] = disk_section(patch, arguments.patches, arguments.threads)
    results["cuda"] = cuda_section(patch, arguments.patches, arguments.batch)
    report(results)
    if arguments.json:
        plain = {
            section: outcome if isinstance(outcome, str) else {name: asdict(t) for name, t in outcome.items()}
            for section, outcome in results.items()
        }
        arguments.json.write_text(json.dumps(plain, indent=2))


if __name__ == "__main__":
    main()
