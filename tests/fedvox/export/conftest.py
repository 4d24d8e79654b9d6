"""Released models with weights that give logits worth comparing, and a brain to segment."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.data.intensity import ChannelIntensity
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release

STATISTICS = ChannelIntensity(mean=110.0, std=60.0, min=0.0, max=255.0, p005=5.0, p995=230.0)


@pytest.fixture
def release(tmp_path):
    """Writes a released model of three structures; gives its folder and network."""

    def write(name, *, name_of_folder="model", options=None, **changes):
        info = ModelInfo(
            name=name, options={"deep_supervision": False, **(options or {})},
            structures=("background", "gray matter", "white matter"), channel_names=("T1",),
            patch_size=(32, 32, 32), spacing_mm=None, normalization="zscore", intensity=[STATISTICS],
            provenance={"run": "brain"}, modality="MR",
        )  # fmt: skip
        info = replace(info, **changes)
        torch.manual_seed(1)
        channels, classes = len(info.channel_names), len(info.structures)
        network = build_model(name, in_channels=channels, classes=classes, **info.options)
        with torch.no_grad():
            for parameter in network.parameters():  # GRN and positions start at zero: nothing to compare
                parameter.add_(torch.randn_like(parameter) * 0.05)
        folder = tmp_path / name_of_folder
        write_release(network, info, locate(str(folder)))
        return folder, network.eval()

    return write


@pytest.fixture(scope="session")
def brain(tmp_path_factory):
    """A folder with one image: 48³ voxels of 2 mm from the middle of MNI152, stored as LPS."""
    found = importlib.util.find_spec("nilearn")
    assert found is not None
    assert found.origin is not None
    source = nib.load(
        Path(found.origin).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    )
    voxels = np.asarray(source.dataobj)[::2, ::2, ::2][20:68, 40:88, 20:68].astype(np.int16)
    image = nib.Nifti1Image(voxels, source.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    )
    folder = tmp_path_factory.mktemp("images")
    nib.save(image.as_reoriented(turn), folder / "brain.nii.gz")
    return folder
