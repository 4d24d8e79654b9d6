"""A brain to predict on, and nnU-Net's predictor around a small network."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

os.environ.setdefault("nnUNet_def_n_proc", "1")
for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(variable, "/nonexistent")  # nnU-Net complains on import without them


@pytest.fixture(scope="session")
def brain() -> nib.Nifti1Image:
    """The MNI152 T1 brain at 2 mm, (x, y, z), with its affine (RAS+)."""
    found = importlib.util.find_spec("nilearn")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "datasets" / "data"
    image = nib.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    step = np.diag([2.0, 2.0, 2.0, 1.0])
    return nib.Nifti1Image(np.asarray(image.dataobj)[::2, ::2, ::2], image.affine @ step)


@pytest.fixture(scope="session")
def small_unet() -> nn.Module:
    """nnU-Net's own architecture, small, with weights that give smooth logits of 6 classes."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(3)
    network = PlainConvUNet(
        1, 3, (8, 16, 32), nn.Conv3d, 3, (1, 2, 2), (1, 1, 1), 6, (1, 1), True, nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip
    return network.eval()


@pytest.fixture
def nnunet_predictor(small_unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Builds nnU-Net's predictor for a network, a spacing (transposed order) and a patch."""

    def build(
        spacing: tuple[float, float, float],
        patch: tuple[int, int, int],
        *,
        mirror: bool = True,
        exact: bool = True,
    ) -> Any:
        from nnunetv2.inference import predict_from_raw_data as module
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        if (
            exact
        ):  # nnU-Net sums in half precision; in single precision the two can be compared to the last digits
            gaussian = module.compute_gaussian.__wrapped__

            @functools.lru_cache
            def single(*args: Any, **kwargs: Any) -> torch.Tensor:
                return gaussian(*args, **{**kwargs, "dtype": torch.float32})

            monkeypatch.setattr(module, "compute_gaussian", single)
            monkeypatch.setattr(torch, "half", torch.float32)
        resampling = {"order_z": 0, "force_separate_z": None}
        configuration = {
            "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
            "patch_size": list(patch), "median_image_size_in_voxels": list(patch), "spacing": list(spacing),
            "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
            "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
            "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
            "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
        }  # fmt: skip
        plans = {
            "dataset_name": "x", "plans_name": "x", "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"3d_fullres": configuration},
        }  # fmt: skip
        dataset = {
            "channel_names": {"0": "MR"}, "file_ending": ".nii.gz", "numTraining": 1,
            "labels": {"background": 0, **{f"s{i}": i for i in range(1, 6)}},
        }  # fmt: skip
        predictor = module.nnUNetPredictor(
            tile_step_size=0.5,
            use_gaussian=True,
            use_mirroring=mirror,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        manager = PlansManager(json.loads(json.dumps(plans)))
        predictor.manual_initialization(
            small_unet, manager, manager.get_configuration("3d_fullres"), [small_unet.state_dict()], dataset,
            "nnUNetTrainer", (0, 1, 2),
        )  # fmt: skip
        return predictor

    return build


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves an image as tmp_path/images/NAME.nii.gz."""

    def save(image: nib.Nifti1Image, name: str = "brain_0000") -> Path:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        nib.save(image, folder / f"{name}.nii.gz")
        return folder / f"{name}.nii.gz"

    return save


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., str]:
    """Writes a released model with random weights; returns its run directory."""

    def write(
        name: str = "run",
        *,
        structures: tuple[str, ...] = ("background", "a", "b"),
        seed: int = 0,
        **changes: Any,
    ) -> str:
        from fedvox.models.registry import build_model
        from fedvox.storage import locate
        from fedvox.training.release import ModelInfo, write_release

        torch.manual_seed(seed)
        channels = changes.get("channel_names", ("MR",))
        model = build_model("mednext-v2-nano", in_channels=len(channels), classes=len(structures))
        fields: dict[str, Any] = {
            "name": "mednext-v2-nano", "options": {}, "structures": structures, "channel_names": channels,
            "patch_size": (16, 16, 16), "spacing_mm": (4.0, 4.0, 4.0), "normalization": "zscore", "intensity": (),
            "modality": "MR",
        }  # fmt: skip
        folder = tmp_path / "runs" / name / "final"
        write_release(model, ModelInfo(**{**fields, **changes}), locate(folder))
        return str(tmp_path / "runs" / name)

    return write


@pytest.fixture
def small_brain(brain: nib.Nifti1Image) -> nib.Nifti1Image:
    """A crop that takes a second to predict."""
    return brain.slicer[20:68, 20:72, 20:60]
