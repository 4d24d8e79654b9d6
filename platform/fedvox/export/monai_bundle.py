"""A MONAI bundle: a folder that segments images without Fedvox being installed.

    OUTPUT/configs/inference.json    preprocessing, sliding window, postprocessing, evaluator
    OUTPUT/configs/metadata.json     what goes in and what comes out
    OUTPUT/models/model.pt           the weights
    OUTPUT/scripts/network.py        builds the network; beside it the sources of Fedvox that it needs
    OUTPUT/docs/README.md, model.json    the model card and the release's description

    cd OUTPUT && python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES

MONAI's arrays are (x, y, z) and Fedvox's (z, y, x): the network is wrapped. The sliding window is Fedvox's, all
transforms are MONAI's own: `docs/release_and_export.md` says where that shows.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedvox
from fedvox import storage
from fedvox.errors import ConfigError
from fedvox.export.network import Exported
from fedvox.inference.recipe import Recipe
from fedvox.storage import Location
from fedvox.training.model_card import model_card

SCRIPT = '''"""This bundle's network and sliding window, from the sources beside this file or an installed Fedvox."""

import json
import sys
from pathlib import Path

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

sys.path.append(str(Path(__file__).parent / "vendored"))

from fedvox.inference.sliding_window import SlidingWindow, predict_logits  # noqa: E402
from fedvox.models.registry import build_model  # noqa: E402


def turned(image):
    """(B, C, x, y, z), as MONAI has it, to (B, C, z, y, x), as Fedvox has it, and back."""
    plain = image.as_tensor() if hasattr(image, "as_tensor") else image  # no metadata through every layer
    return plain.permute(0, 1, 4, 3, 2).contiguous()


class Ras(torch.nn.Module):
    """Takes and gives (B, C, x, y, z)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return turned(self.network(turned(image)))


class EvenWindows(Inferer):
    """Windows spread evenly over the volume, as `fedvox predict` has them: the same labels, voxel for voxel."""

    def __init__(self, roi_size, overlap=0.5, mirror=False, batch_size=1):
        super().__init__()
        self.window = SlidingWindow(tuple(roi_size)[::-1], overlap, mirror, batch_size)

    def __call__(self, inputs, network, *args, **kwargs):
        def in_our_order(patches):
            return turned(network(turned(patches)))

        images = turned(inputs)
        found = [predict_logits(in_our_order, image, self.window, device=images.device) for image in images]
        logits = turned(torch.stack(found).clone())
        return convert_to_dst_type(logits, inputs, dtype=logits.dtype, device=logits.device)[0]


def build():
    """The network, without weights."""
    info = json.loads((Path(__file__).parents[1] / "docs" / "model.json").read_text())
    network = build_model(
        info["name"], in_channels=len(info["channel_names"]), classes=len(info["structures"]), **info["options"]
    )
    return Ras(network).eval()
'''

_VENDORED = (
    "__init__.py", "errors.py", "models",
    "inference/__init__.py", "inference/windows.py", "inference/sliding_window.py",
)  # fmt: skip


def export_monai_bundle(source: Exported, output: Location) -> None:
    """Writes a bundle; configs/inference.json last, so that it is there only if all of it is.

    Args:
        source: what to export.
        output: the bundle's folder.

    Raises:
        ConfigError: the release does not say what preprocessing needs.
    """
    inference = inference_config(source)
    weights = {f"network.{name}": tensor for name, tensor in source.network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    described = json.dumps(asdict(source.info), indent=1, default=str) + "\n"
    files = {
        "models/model.pt": buffer.getvalue(),
        "scripts/__init__.py": b"",
        "scripts/network.py": SCRIPT.encode(),
        "docs/README.md": model_card(source.info).encode(),
        "docs/model.json": described.encode(),
        "configs/metadata.json": _json(metadata_of(source)),
        **{f"scripts/vendored/fedvox/{name}": data for name, data in _sources().items()},
    }
    for name, data in files.items():
        storage.write_atomic(output.child(*name.split("/")), data)
    storage.write_atomic(output.child("configs", "inference.json"), _json(inference))


def _sources() -> dict[str, bytes]:
    """The files of Fedvox that a network needs, by path."""
    root = Path(fedvox.__file__).parent
    found: dict[str, bytes] = {}
    for name in _VENDORED:
        paths = sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]
        found |= {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    return found


def inference_config(source: Exported) -> dict[str, Any]:
    """What `configs/inference.json` holds.

    Raises:
        ConfigError: the release does not say what preprocessing needs.
    """
    channels = len(source.info.channel_names)
    images = "$sorted(p for p in glob.glob(@dataset_dir + '/*.nii*'))"
    if channels > 1:  # CASE_0000.nii.gz, CASE_0001.nii.gz, …: a file a channel
        first = "glob.glob(@dataset_dir + '/*_0000.nii*')"
        images = f"$[[p.replace('_0000.nii', '_%04d.nii' % c) for c in range({channels})] for p in sorted({first})]"
    return {
        "imports": ["$import glob", "$import os", "$import runpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "images": images,
        "scripts": "$runpy.run_path(@bundle_root + '/scripts/network.py')",
        "network_def": "$@scripts['build']()",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(source)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": f"$@scripts['EvenWindows'](roi_size={list(source.patch_size[::-1])}, overlap=0.5)",
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing(source)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def preprocessing(source: Exported) -> list[dict[str, Any]]:
    """Orientation, crop, spacing and intensities, in the order of the ingest.

    Raises:
        ConfigError: `ct` without one set of statistics a channel, or an unknown normalisation.
    """
    info = source.info
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": True, "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    ]
    if info.crop_to_nonzero:
        crop = {"select_fn": "$lambda x: x != 0", "allow_smaller": True}
        steps.append({"_target_": "CropForegroundd", "keys": "image", "source_key": "image", **crop})
    if info.spacing_mm is not None:
        # Cubic, and edges on edges rather than first voxel on first voxel: as the ingest resamples.
        cubic = {"mode": 3, "padding_mode": "nearest", "scale_extent": True}
        steps.append(
            {"_target_": "Spacingd", "keys": "image", "pixdim": list(info.spacing_mm[::-1]), **cubic}
        )
    return [*steps, *_intensities(source)]


def _intensities(source: Exported) -> list[dict[str, Any]]:
    info = source.info
    if info.normalization == "zscore":
        return [{"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}]
    if info.normalization != "ct":
        raise ConfigError(
            f"model.json: normalization is {info.normalization!r}",
            "A bundle can be made for `ct` and `zscore`.",
        )
    channels = Recipe.of(info).intensity
    if len(channels) != len(info.channel_names):
        raise ConfigError(
            f"model.json has intensity statistics of {len(channels)} channels, the network takes "
            f"{len(info.channel_names)}",
            "Export a model that was trained on a store whose ingest had finished.",
        )
    if len(channels) > 1:
        raise ConfigError(
            f"MONAI has no transform that clips {len(channels)} CT channels each to limits of its own",
            "Export to ONNX, or predict with `fedvox predict`.",
        )
    (channel,) = channels
    std = max(channel.std, 1e-8)
    limits = {"a_min": channel.p005, "a_max": channel.p995, "clip": True}
    scaled = {"b_min": (channel.p005 - channel.mean) / std, "b_max": (channel.p995 - channel.mean) / std}
    return [{"_target_": "ScaleIntensityRanged", "keys": "image", **limits, **scaled}]


def postprocessing(source: Exported) -> list[dict[str, Any]]:
    """Back to the image's own grid as logits, then labels, then a file of the image's name."""
    dtype = "$numpy.uint8" if len(source.info.structures) <= 256 else "$numpy.uint16"
    back = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False, "to_tensor": True}
    return [
        {"_target_": "Invertd", "keys": "pred", **back},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "separate_folder": False,
            "output_dtype": dtype.replace("$numpy", "$__import__('numpy')"),
            "resample": False,
        },
    ]


def metadata_of(source: Exported) -> dict[str, Any]:
    """What `configs/metadata.json` holds."""
    info = source.info
    size = list(source.patch_size[::-1])
    image = {
        "type": "image", "format": info.modality or "other", "modality": info.modality or "other",
        "num_channels": len(info.channel_names), "spatial_shape": size, "dtype": "float32", "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(info.channel_names)},
    }  # fmt: skip
    prediction = {
        "type": "image", "format": "segmentation", "num_channels": len(info.structures), "spatial_shape": size,
        "dtype": "float32", "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(info.structures)},
    }  # fmt: skip
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported {datetime.now(UTC):%Y-%m-%d} by fedvox {fedvox.__version__}"},
        "monai_version": _version("monai", "1.4.0"),
        "pytorch_version": str(torch.__version__).split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": _version("nibabel", "5.2.0"), "pytorch-ignite": "0.4.11"},
        "name": str(info.provenance.get("run") or info.name),
        "task": f"Segmentation of {len(info.structures) - 1} structures",
        "description": f"{info.name} trained with fedvox",
        "intended_use": "Research; not a medical device",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
        "fedvox_weights_sha256": info.provenance.get("sha256"),
    }


def _version(package: str, otherwise: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return otherwise


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, default=str) + "\n").encode()
