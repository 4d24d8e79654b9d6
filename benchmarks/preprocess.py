"""Preprocessing of one case: Fedvox against nnU-Net, on the same image, each side in a process of its own.

    python benchmarks/preprocess.py [--repeats 3] [--target 0.8,0.8,0.8] [--labels 26] [--json]
    python benchmarks/preprocess.py --growth          label resampling with 2 … 167 labels
    python benchmarks/preprocess.py --large 2000      512 × 512 × N CT: memory of a case as large as users report

Both sides crop to nonzero voxels, normalise and resample the MNI152 brain (1 mm) and a label map with the given number
of labels. Time is the processor's (the machine may be shared), and wall time beside it; memory is the peak of the
process above what it held before the case, imports and the input arrays included in "before" (Linux only).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_raw": "/x",
    "nnUNet_preprocessed": "/x", "nnUNet_results": "/x",
}  # fmt: skip
SIDES = ("fedvox", "nnunet")


def brain() -> np.ndarray:
    """MNI152 T1, 1 mm, (D, H, W)."""
    import nibabel as nib

    found = importlib.util.find_spec("nilearn")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "datasets" / "data"
    return np.asarray(
        nib.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz").dataobj
    ).transpose(2, 1, 0)


def label_map(image: np.ndarray, labels: int) -> np.ndarray:
    """Blocky territories of the brain, `labels` of them with background: borders as anatomical label maps have."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    inside = np.argwhere(image > 0)
    seeds = inside[rng.choice(len(inside), labels - 1, replace=False)]
    result = np.zeros(image.shape, np.uint8)
    result[tuple(inside.T)] = cKDTree(seeds).query(inside)[1] + 1
    return result


class Measured:
    """Seconds of what is done within, and the peak of resident memory above what was held before."""

    def __enter__(self) -> Measured:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
        self._before = _status("VmRSS")
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.mib = (_status("VmHWM") - self._before) / 1024

    def tell(self, **more: Any) -> None:
        """As a line of JSON for the parent process."""
        print(json.dumps({"cpu_s": self.cpu, "wall_s": self.wall, "mib": self.mib, **more}))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# ---- one side, one case --------------------------------------------------------------------------------------


def run_fedvox(target: tuple[float, float, float], labels: int) -> None:
    from fedvox.data.case_volumes import nonzero_box
    from fedvox.data.fingerprint import sample_channel
    from fedvox.data.intensity import CaseIntensity
    from fedvox.data.normalize import normalize
    from fedvox.data.records import StoreMeta
    from fedvox.data.resample import coarse_axis, resample_image, resample_label, resampled_shape

    image = brain()
    label = label_map(image, labels)
    meta = StoreMeta("x", ("T1",), "MR", ("background",), {}, "zscore")
    resample_image(image[:8, :8, :8], (9, 9, 9))  # BLAS buffers are not the case's
    with Measured() as measured:
        box = nonzero_box(image[None])
        cropped, cropped_label = image[box], label[box]
        shape = resampled_shape(cropped.shape, (1, 1, 1), target)
        axis = coarse_axis((1, 1, 1), target)
        resampled = resample_image(cropped, shape, slice_axis=axis)
        found = resample_label(cropped_label, shape, slice_axis=axis)
        channel = sample_channel(resampled).intensity
        result = normalize(resampled[None], CaseIntensity((channel,), (channel,)), meta)
    measured.tell(shape=list(result.shape[1:]), labels=len(np.unique(found)))


def run_nnunet(target: tuple[float, float, float], labels: int) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    image = brain()
    label = label_map(image, labels)
    manager = PlansManager(nnunet_plans(target))
    configuration = manager.get_configuration("3d_fullres")
    dataset = {"labels": {"background": 0}, "channel_names": {"0": "T1"}}
    preprocessor = DefaultPreprocessor(verbose=False)
    properties = {"spacing": [1.0, 1.0, 1.0]}
    # what Fedvox does not do either: coordinates for oversampling
    preprocessor._sample_foreground_locations = lambda *_, **__: {}  # type: ignore[method-assign]
    with Measured() as measured:
        result, found, _ = preprocessor.run_case_npy(
            image[None], label[None].astype(np.int16), properties, manager, configuration, dataset
        )
    measured.tell(shape=list(result.shape[1:]), labels=len(np.unique(found[found >= 0])))


def nnunet_plans(spacing: tuple[float, float, float]) -> dict[str, Any]:
    """As little of a plan as the preprocessor needs."""
    common = {"order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [64, 64, 64], "median_image_size_in_voxels": [64, 64, 64], "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": function, "resampling_fn_seg": function, "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **common},
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    return {
        "dataset_name": "x", "plans_name": "x", "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}}, "configurations": {"3d_fullres": configuration},
    }  # fmt: skip


def run_large(slices: int) -> None:
    """A 512 × 512 × N int16 CT to 1.5 mm: what Fedvox holds beside input and output."""
    from fedvox.data.resample import resample_image, resample_label, resampled_shape

    image = np.zeros((slices, 512, 512), np.int16)
    for index, plane in enumerate(image):
        plane[:] = (index % 97) - 1000
    shape = resampled_shape(image.shape, (1.0, 0.8, 0.8), (1.5, 1.5, 1.5))
    resample_image(image[:64, :64, :64], (40, 40, 40), dtype=np.dtype(np.int16))
    marked = np.empty(image.shape, np.uint8)
    np.greater(image, -950, out=marked.view(bool))
    with Measured() as measured:
        resampled = resample_image(image, shape, dtype=np.dtype(np.int16))
        label = resample_label(marked, shape)
    measured.tell(input_mib=image.nbytes / 2**20, output_mib=(resampled.nbytes + label.nbytes) / 2**20)


def run_label(side: str, labels: int, target: tuple[float, float, float]) -> None:
    from fedvox.data.resample import resample_label, resampled_shape

    label = label_map(brain(), labels)
    shape = resampled_shape(label.shape, (1, 1, 1), target)
    if side == "fedvox":
        with Measured() as measured:
            resample_label(label, shape)
    else:
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

        with Measured() as measured:
            resample_data_or_seg_to_shape(
                label[None], shape, (1, 1, 1), target, is_seg=True, order=1, order_z=0, force_separate_z=None
            )
    measured.tell()


# ---- both sides ----------------------------------------------------------------------------------------------


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compare(repeats: int, target: str, labels: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):  # in turns, so that a busy minute meets both
        for side in SIDES:
            runs[side].append(child("case", side, target, str(labels)))
    summary = {
        side: {key: statistics.median(run[key] for run in runs[side]) for key in ("cpu_s", "wall_s", "mib")}
        for side in SIDES
    }
    assert runs["fedvox"][0]["shape"] == runs["nnunet"][0]["shape"], "the two sides did not do the same"
    ratio = {key: summary["nnunet"][key] / summary["fedvox"][key] for key in ("cpu_s", "wall_s", "mib")}
    return {
        "schema": "fedvox.benchmark/1", "benchmark": "preprocess", "target_mm": target, "labels": labels, **summary,
        "times_faster": ratio["cpu_s"], "times_less_memory": ratio["mib"],
    }  # fmt: skip


def growth(target: str) -> dict[str, Any]:
    counts = (2, 26, 60, 167)
    seconds = {side: {n: child("label", side, target, str(n))["cpu_s"] for n in counts} for side in SIDES}
    return {
        "schema": "fedvox.benchmark/1",
        "benchmark": "label_resampling",
        "target_mm": target,
        "cpu_s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", default="0.8,0.8,0.8")
    parser.add_argument("--labels", type=int, default=26)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--large", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child)
        return
    if arguments.large:
        result = {
            "schema": "fedvox.benchmark/1",
            "benchmark": "large_ct",
            **child("large", str(arguments.large)),
        }
    elif arguments.growth:
        result = growth(arguments.target)
    else:
        result = compare(arguments.repeats, arguments.target, arguments.labels)
    print(json.dumps(result) if arguments.json else told(result))


def run_child(child_arguments: list[str]) -> None:
    kind, *rest = child_arguments
    if kind == "large":
        run_large(int(rest[0]))
        return
    side, target, labels = rest
    z, y, x = (float(part) for part in target.split(","))
    if kind == "label":
        run_label(side, int(labels), (z, y, x))
    else:
        (run_fedvox if side == "fedvox" else run_nnunet)((z, y, x), int(labels))


def told(result: dict[str, Any]) -> str:
    if result["benchmark"] == "large_ct":
        working = result["mib"] - result["output_mib"]
        return (
            f"input {result['input_mib']:.0f} MiB, output {result['output_mib']:.0f} MiB, beside them "
            f"{working:.0f} MiB, {result['cpu_s']:.1f} s of processor time"
        )
    if result["benchmark"] == "label_resampling":
        rows = [f"labels {n:>4}  fedvox {result['cpu_s']['fedvox'][n]:7.2f} s   nnunet {s:7.2f} s"
                for n, s in result["cpu_s"]["nnunet"].items()]  # fmt: skip
        return "\n".join(rows)
    rows = [
        f"{side:<7} {result[side]['cpu_s']:7.2f} s of processor, {result[side]['wall_s']:7.2f} s by the clock, "
        f"{result[side]['mib']:6.0f} MiB"
        for side in SIDES
    ]
    return "\n".join(
        [
            *rows,
            f"ratio   {result['times_faster']:.1f} × faster, {result['times_less_memory']:.1f} × less memory",
        ]
    )


if __name__ == "__main__":
    main()
