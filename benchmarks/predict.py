"""Prediction of one case from files to label map: Fedvox against nnU-Net, same network, same image, same settings.

    python benchmarks/predict.py [--classes 168] [--network territories|unet] [--precision fp32|bf16] [--repeats 3]
                                 [--json]
    python benchmarks/predict.py --export 300     labels of a 512 × 512 × N CT from 168 classes at 1.5 mm, Fedvox alone

Both sides read NIfTI files, resample to the network's spacing, evaluate overlapping windows, bring the logits back to
the file's grid and write a NIfTI; each in a process of its own, measured after imports, with one thread.

    territories   a network that costs next to nothing and gives a label map like an anatomical atlas: the image's three
                  channels are coordinates, and each class is the territory of a centre. What is measured is everything
                  but the network: on a GPU, that is where the time of many classes goes.
    unet          nnU-Net's own architecture, small: on a CPU the network is nearly all of the time, for both sides.

Time is the processor's; memory is the peak of the process above what it held before (Linux only).
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
from typing import Any

import numpy as np

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_raw": "/x",
    "nnUNet_preprocessed": "/x", "nnUNet_results": "/x",
}  # fmt: skip
SIDES = ("fedvox", "nnunet")
SHAPE = (126, 155, 131)
"""Voxels (D, H, W) of the image: a brain at 1.5 mm."""
SPACING_MM, NETWORK_MM = 1.5, 2.25
PATCH = (48, 48, 48)


def write_image(folder: Path, channels: int) -> None:
    """Coordinates as images, a file a channel, with noise that no threshold survives unsmoothed."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    grid = np.meshgrid(*(np.arange(n) + 1.0 for n in SHAPE), indexing="ij")
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    for channel in range(channels):
        values = grid[channel] + rng.normal(0, 0.3, SHAPE)
        nib.save(
            nib.Nifti1Image(values.astype(np.float32).transpose(2, 1, 0), affine),
            folder / f"case_{channel:04d}.nii.gz",
        )


def build_network(kind: str, classes: int) -> Any:
    """(b, C, *patch) -> (b, classes, *patch), with fixed weights."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if kind == "territories":
        centres = torch.rand(classes, 3) * 3.2 - 1.6  # in standard deviations of the coordinates
        network = nn.Conv3d(3, classes, 1)
        with torch.no_grad():  # -|x - c|² without the part that all classes share
            network.weight.copy_((2 * centres)[:, :, None, None, None] * 10)
            network.bias.copy_(-(centres**2).sum(1) * 10)
        return nn.Sequential(nn.AvgPool3d(3, 1, 1), network).eval()
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        3, 4, (16, 32, 64, 128), nn.Conv3d, 3, (1, 2, 2, 2), (2, 2, 2, 2), classes, (2, 2, 2), True, nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True},
    ).eval()  # fmt: skip


# ---- one side ------------------------------------------------------------------------------------------------


def prepare_fedvox(folder: Path, network: Any, classes: int, precision: str) -> Any:
    from fedvox.inference.config import PredictConfig
    from fedvox.inference.ensemble import Ensemble, Member
    from fedvox.inference.inputs import find_cases
    from fedvox.inference.predictor import Predictor
    from fedvox.inference.recipe import Recipe

    recipe = Recipe(
        (NETWORK_MM,) * 3, PATCH, "zscore", crop_to_nonzero=True, order="normalize_first", pad_value=0.0
    )
    names = tuple(f"structure{index}" for index in range(classes))
    channels = ("z", "y", "x")
    config = PredictConfig(
        device="cpu", mirror=False, output=str(folder / "fedvox"), overwrite=True, precision=precision
    )
    predictor = Predictor(Ensemble((Member("m", network, recipe),), names, channels, "MR"), config)
    (case,) = find_cases(str(folder / "images"), channels)

    def run() -> Path:
        outcome = predictor(case)
        assert outcome.status == "done", outcome.message
        return folder / "fedvox" / "case.nii.gz"

    return run


def prepare_nnunet(folder: Path, network: Any, classes: int) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    common, function = {"order_z": 0, "force_separate_z": None}, "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": list(PATCH),
        "median_image_size_in_voxels": list(PATCH), "spacing": [NETWORK_MM] * 3,
        "normalization_schemes": ["ZScoreNormalization"] * 3, "use_mask_for_norm": [False] * 3,
        "resampling_fn_data": function, "resampling_fn_seg": function, "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **common},
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    plans = {
        "dataset_name": "x", "plans_name": "x", "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(3)},
        "configurations": {"3d_fullres": configuration},
    }  # fmt: skip
    dataset = {
        "channel_names": {"0": "z", "1": "y", "2": "x"}, "file_ending": ".nii.gz", "numTraining": 1,
        "labels": {"background": 0, **{f"structure{i}": i for i in range(1, classes)}},
    }  # fmt: skip
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    manager = PlansManager(plans)
    predictor.manual_initialization(
        network, manager, manager.get_configuration("3d_fullres"), [network.state_dict()], dataset, "x", None
    )
    files = [[str(folder / "images" / f"case_{channel:04d}.nii.gz") for channel in range(3)]]

    def run() -> Path:
        predictor.predict_from_files_sequential(files, [str(folder / "nnunet")])
        return folder / "nnunet.nii.gz"

    return run


def run_child(side: str, kind: str, classes: int, folder: Path, precision: str) -> None:
    """One prediction, measured."""
    import torch

    torch.set_num_threads(1)
    network = build_network(kind, classes)
    run = (
        prepare_fedvox(folder, network, classes, precision)
        if side == "fedvox"
        else prepare_nnunet(folder, network, classes)
    )
    with torch.inference_mode():
        network(torch.zeros(1, 3, *PATCH))  # buffers of the libraries
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, cpu, wall = _status("VmRSS"), time.process_time(), time.perf_counter()
    path = run()
    result = {
        "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall,
        "mib": (_status("VmHWM") - before) / 1024, "path": str(path),
    }  # fmt: skip
    print(json.dumps(result))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run_export(slices: int, classes: int) -> None:
    """The way back alone: logits at 1.5 mm to labels of 512 × 512 × N voxels of 1 × 0.8 × 0.8 mm."""
    import torch

    from fedvox.inference.labels import LogitStream, decode_labels

    torch.set_num_threads(1)
    depth, height, width = round(slices / 1.5), 273, 273
    torch.manual_seed(0)
    centres = torch.rand(classes, 3) * torch.tensor([depth, height, width])
    rows, columns = torch.arange(float(height))[:, None], torch.arange(float(width))[None, :]

    def planes() -> Any:
        for z in range(depth):
            distance = [(z - c[0]) ** 2 + (rows - c[1]) ** 2 + (columns - c[2]) ** 2 for c in centres]
            yield torch.stack(distance).neg_()

    made = time.process_time()
    for _ in planes():
        pass
    made = time.process_time() - made
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu = _status("VmRSS"), time.process_time()
    labels = decode_labels([LogitStream(planes(), (depth, height, width))], (slices, 512, 512))
    result = {
        "cpu_s": time.process_time() - cpu - made, "mib": (_status("VmHWM") - before) / 1024,
        "label_map_mib": labels.nbytes / 2**20, "labels_found": len(np.unique(labels)),
        "all_logits_gib": classes * depth * height * width * 4 / 2**30,
        "all_probabilities_gib": classes * labels.size * 4 / 2**30,
    }  # fmt: skip
    print(json.dumps(result))


# ---- both sides ----------------------------------------------------------------------------------------------


def compare(kind: str, classes: int, repeats: int, precision: str) -> dict[str, Any]:
    import nibabel as nib

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        write_image(folder / "images", 3)
        for _ in range(repeats):  # in turns, so that a busy minute meets both
            for side in SIDES:
                arguments = ["--child", side, kind, str(classes), scratch, "--precision", precision]
                done = subprocess.run(
                    [sys.executable, __file__, *arguments],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=ENVIRONMENT,
                )
                runs[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
        ours, theirs = (np.asarray(nib.load(runs[side][-1]["path"]).dataobj) for side in SIDES)
    keys = ("cpu_s", "wall_s", "mib")
    summary = {
        side: {key: statistics.median(run[key] for run in runs[side]) for key in keys} for side in SIDES
    }
    return {
        "schema": "fedvox.benchmark/1", "benchmark": "predict", "network": kind, "classes": classes,
        "precision": precision, **summary,
        "times_faster": summary["nnunet"]["cpu_s"] / summary["fedvox"]["cpu_s"],
        "times_less_memory": summary["nnunet"]["mib"] / summary["fedvox"]["mib"],
        "voxels_alike": float((ours == theirs).mean()), "labels_found": len(np.unique(theirs)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=168)
    parser.add_argument("--network", choices=("territories", "unet"), default="territories")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="Fedvox's; nnU-Net has fp32 alone on a CPU",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--export", type=int)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, kind, classes, folder = arguments.child
        run_child(side, kind, int(classes), Path(folder), arguments.precision)
        return
    if arguments.export:
        run_export(arguments.export, arguments.classes)
        return
    result = compare(arguments.network, arguments.classes, arguments.repeats, arguments.precision)
    if arguments.json:
        print(json.dumps(result))
        return
    for side in SIDES:
        print(
            f"{side:<7} {result[side]['cpu_s']:7.2f} s of processor, {result[side]['wall_s']:7.2f} s by the clock, "
            f"{result[side]['mib']:6.0f} MiB"
        )
    print(
        f"ratio   {result['times_faster']:.1f} × faster, {result['times_less_memory']:.1f} × less memory; "
        f"{result['voxels_alike']:.4%} of the voxels alike, {result['labels_found']} labels"
    )


if __name__ == "__main__":
    main()
