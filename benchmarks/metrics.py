"""Speed and memory of the metrics against the peers, on one case of 256³ voxels with 9 organs.

    python benchmarks/metrics.py                 # about 1.5 minutes; MONAI takes most of it
    python benchmarks/metrics.py --repeat 5 --json result.json

Every backend runs in a process of its own, on the same volumes, and reports the best of `--repeat` times and the
peak of its memory. All measure Dice, NSD at 2 mm and HD95 of each organ; `fedvox` measures them with both surface
definitions at once (and HD, ASSD, MASD, volume errors besides). The last lines compare with the fastest peer and
check that the values agree. Peers: surface-distance, MONAI, and a plain SciPy distance transform that is cut to
each organ.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.uint8]
SPACING = (1.5, 0.8, 0.8)
TOLERANCE_MM = 2.0
NUM_ORGANS = 9

# Centre and radii of each organ as fractions of the volume; sizes from a liver to a gall bladder.
ORGANS = (
    ((0.50, 0.50, 0.32), (0.22, 0.24, 0.22)),
    ((0.45, 0.45, 0.75), (0.13, 0.12, 0.09)),
    ((0.35, 0.65, 0.30), (0.14, 0.07, 0.07)),
    ((0.35, 0.65, 0.70), (0.14, 0.07, 0.07)),
    ((0.50, 0.38, 0.60), (0.12, 0.10, 0.14)),
    ((0.42, 0.50, 0.52), (0.04, 0.05, 0.16)),
    ((0.50, 0.68, 0.50), (0.45, 0.035, 0.035)),
    ((0.50, 0.64, 0.42), (0.40, 0.035, 0.04)),
    ((0.30, 0.40, 0.55), (0.05, 0.05, 0.04)),
)


def organs(size: int, seed: int = 0) -> tuple[Volume, Volume]:
    """A reference of 9 bumpy organs and a prediction of it with a mean Dice of about 0.9."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)

    def bumps(step: int, height: float) -> npt.NDArray[np.float32]:
        coarse = rng.standard_normal((size // step + 3,) * 3)
        return (height * ndimage.zoom(coarse, step, order=1)[:size, :size, :size]).astype(np.float32)

    grid = np.ogrid[:size, :size, :size]
    shape, error = bumps(16, 0.05), bumps(8, 0.11)
    reference, prediction = np.zeros((2, size, size, size), np.uint8)
    for label, (centre, radii) in enumerate(ORGANS, 1):
        for volume, shift, noise in ((reference, 0.0, shape), (prediction, 0.4 / size, shape + error)):
            terms = [((g / size - c - shift) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)]
            radius = np.sqrt(sum(terms), dtype=np.float32)
            volume[(radius + noise < 1) & (volume == 0)] = label
    return reference, prediction


def fedvox(*surfaces: str, threads: int = 1) -> Callable[[Volume, Volume], npt.NDArray[np.float64]]:
    def run(reference: Volume, prediction: Volume) -> npt.NDArray[np.float64]:
        from fedvox.evaluation.metrics import MetricPlan, measure_labels

        plan = MetricPlan((TOLERANCE_MM,), surfaces)  # type: ignore[arg-type]
        structures = {str(k): k for k in range(1, NUM_ORGANS + 1)}
        scores = measure_labels(reference, prediction, SPACING, structures, plan=plan, threads=threads)
        names = ["dice", *(f"{m}/{s}" for s in surfaces for m in ("nsd@2mm", "hd95"))]
        return np.array([[s[n] for n in names] for s in scores.values()])

    return run


def surface_distance(reference: Volume, prediction: Volume) -> npt.NDArray[np.float64]:
    import surface_distance as peer

    rows = []
    for k in range(1, NUM_ORGANS + 1):
        a, b = reference == k, prediction == k
        found = peer.compute_surface_distances(a, b, SPACING)
        nsd, hd95 = (
            peer.compute_surface_dice_at_tolerance(found, TOLERANCE_MM),
            peer.compute_robust_hausdorff(found, 95),
        )
        rows.append((peer.compute_dice_coefficient(a, b), nsd, hd95))
    return np.array(rows)


def cropped_scipy(reference: Volume, prediction: Volume) -> npt.NDArray[np.float64]:
    from scipy import ndimage

    boxes = [ndimage.find_objects(v, NUM_ORGANS) for v in (reference, prediction)]
    cross = ndimage.generate_binary_structure(3, 1)
    rows = []
    for k in range(1, NUM_ORGANS + 1):
        pair = zip(boxes[0][k - 1], boxes[1][k - 1], strict=True)
        crop = tuple(slice(max(min(a.start, b.start) - 1, 0), max(a.stop, b.stop) + 1) for a, b in pair)
        a, b = reference[crop] == k, prediction[crop] == k
        rim_a, rim_b = (m & ~ndimage.binary_erosion(m, cross) for m in (a, b))
        to_b = ndimage.distance_transform_edt(~rim_b, sampling=SPACING)[rim_a]
        to_a = ndimage.distance_transform_edt(~rim_a, sampling=SPACING)[rim_b]
        near = (to_b <= TOLERANCE_MM).sum() + (to_a <= TOLERANCE_MM).sum()
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        rows.append(
            (dice, near / (len(to_a) + len(to_b)), max(np.percentile(to_a, 95), np.percentile(to_b, 95)))
        )
    return np.array(rows)


def monai(reference: Volume, prediction: Volume) -> npt.NDArray[np.float64]:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    labels = np.arange(1, NUM_ORGANS + 1)[:, None, None, None]
    a, b = (torch.from_numpy(v[None] == labels)[None] for v in (reference, prediction))
    dice = compute_dice(b.float(), a.float())
    nsd = compute_surface_dice(b, a, [TOLERANCE_MM] * NUM_ORGANS, include_background=True, spacing=SPACING)
    hd95 = compute_hausdorff_distance(b, a, include_background=True, percentile=95, spacing=SPACING)
    return np.stack([t[0].numpy().astype(float) for t in (dice, nsd, hd95)], axis=1)


BACKENDS: dict[str, Callable[[Volume, Volume], npt.NDArray[np.float64]]] = {
    "fedvox, both surfaces": fedvox("voxel", "surfel"),
    "fedvox, both, 2 threads": fedvox("voxel", "surfel", threads=2),
    "fedvox, surfel": fedvox("surfel"),
    "fedvox, voxel": fedvox("voxel"),
    "scipy, cropped": cropped_scipy,
    "surface-distance": surface_distance,
    "monai": monai,
}


def run_backend(name: str, volumes: Path, repeat: int) -> dict[str, Any]:
    """Measure one backend in this process, whose memory then is that backend's."""
    reference, prediction = (np.load(volumes / f"{n}.npy") for n in ("reference", "prediction"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        values = BACKENDS[name](reference, prediction)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": min(seconds),
        "all_seconds": seconds,
        "volumes_mib": before,
        "peak_mib": peak,
        "values": values.tolist(),
    }


def report(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print the table, compare with the fastest peer, and check that equal definitions gave equal values."""
    print(f"{'backend':26s} {'s/case':>8s} {'peak MiB':>9s}   mean Dice, then NSD@2mm and HD95 per surface")
    for name, r in results.items():
        means = " ".join(f"{v:.4f}" for v in np.mean(r["values"], axis=0))
        print(f"{name:26s} {r['seconds']:8.3f} {r['peak_mib']:9.0f}   {means}")
    ours = np.array(results["fedvox, both surfaces"]["values"])
    for name, columns, rtol in (
        ("scipy, cropped", [0, 1, 2], 1e-9),
        ("surface-distance", [0, 3, 4], 1e-9),
        ("monai", [0, 1, 2], 1e-4),  # float32
    ):
        if name in results:
            np.testing.assert_allclose(
                ours[:, columns], np.array(results[name]["values"]), rtol=rtol, err_msg=name
            )
    peers = {n: r for n, r in results.items() if not n.startswith("fedvox")}
    fastest = min(peers, key=lambda n: float(peers[n]["seconds"]))
    summary = {
        "fastest_peer": fastest,
        "time_ratio": results["fedvox, both surfaces"]["seconds"] / peers[fastest]["seconds"],
        "memory_ratio": results["fedvox, both surfaces"]["peak_mib"] / peers[fastest]["peak_mib"],
    }
    print(
        f"\nall values agree; both surfaces take {summary['time_ratio']:.2f} × the time and "
        f"{summary['memory_ratio']:.2f} × the memory of the fastest peer ({fastest})"
    )
    return summary


def in_new_process(*arguments: str) -> str:
    """Run this script again. A process's peak memory starts at its parent's, so the parent does no work itself."""
    return subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--skip", action="append", default=[], help="leave out a backend, for instance monai")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    parser.add_argument("--volumes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.backend:
        print(json.dumps(run_backend(options.backend, options.volumes, options.repeat)))
    elif options.volumes:
        for name, volume in zip(("reference", "prediction"), organs(options.size), strict=True):
            np.save(options.volumes / f"{name}.npy", volume)
    else:
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            in_new_process("--volumes", folder, "--size", str(options.size))
            for name in [n for n in BACKENDS if n not in options.skip]:
                arguments = ("--backend", name, "--volumes", folder, "--repeat", str(options.repeat))
                results[name] = json.loads(in_new_process(*arguments).splitlines()[-1])
        summary = report(results)
        if options.json:
            options.json.write_text(
                json.dumps({"size": options.size, **summary, "backends": results}, indent=1)
            )


if __name__ == "__main__":
    main()
