"""A bundle run by MONAI's own command segments as Fedvox does, on images in another orientation and spacing."""

import json
import os
import runpy
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.commands.export import Target, export
from fedvox.errors import ConfigError
from fedvox.export.monai_bundle import export_monai_bundle, preprocessing
from fedvox.export.network import read_network
from fedvox.inference.config import PredictConfig
from fedvox.inference.inputs import find_cases
from fedvox.inference.prepare import prepare, read_images
from fedvox.inference.recipe import Recipe
from fedvox.inference.run import plan_predict, predict_cases
from fedvox.storage import locate

NETWORKS = [
    ("mednext-v2-nano", {}),
    ("resenc-unet-tiny", {"features": [8, 16], "blocks": [1, 1], "decoder_convs": [1]}),
    ("primus-v2-tiny", {"patch_size": 32, "depth": 1}),
]


def run_bundle(bundle, images, output):
    """`python -m monai.bundle run` as a hospital would, where there is no Fedvox on the path."""
    command = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
        "--dataset_dir", str(images), "--output_dir", str(output),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return nib.load(output / "brain.nii.gz")


def run_fedvox(model, images, output):
    config = PredictConfig(
        images=str(images), output=str(output), models=(str(model),), mirror=False, device="cpu"
    )
    report = predict_cases(plan_predict(config))
    assert report.error() is None
    return nib.load(output / "brain.nii.gz")


def agreement(first, second):
    assert first.shape == second.shape
    assert np.allclose(first.affine, second.affine)
    return (np.asarray(first.dataobj) == np.asarray(second.dataobj)).mean()


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[name for name, _ in NETWORKS])
def test_the_bundles_network_gives_fedvoxs_logits(release, tmp_path, name, options):
    folder, network = release(name, options=options)
    export(str(folder), Target.monai_bundle, str(tmp_path / "bundle"))
    built = runpy.run_path(str(tmp_path / "bundle" / "scripts" / "network.py"))["build"]()
    built.load_state_dict(torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True))
    image = torch.randn(1, 1, 32, 32, 32)  # (B, C, z, y, x)
    with torch.no_grad():
        expected = network(image)
        found = built(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_vendored_sources_are_enough_where_fedvox_is_not_installed(release, tmp_path):
    folder, _ = release("mednext-v2-nano")
    export_monai_bundle(read_network(str(folder)), locate(str(tmp_path / "bundle")))
    program = (
        "import sys, runpy, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('pydantic', 'pyarrow', 'ray'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.path = [p for p in sys.path if 'platform' not in p]\n"
        "import torch\n"
        "built = runpy.run_path('scripts/network.py')['build']()\n"
        "built.load_state_dict(torch.load('models/model.pt', weights_only=True))\n"
        "import fedvox; print(fedvox.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "bundle", env={**os.environ, "PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "vendored" in done.stdout


def test_monais_command_gives_fedvoxs_labels(release, brain, tmp_path):
    folder, _ = release("mednext-v2-nano")
    export(str(folder), Target.monai_bundle, str(tmp_path / "bundle"))
    theirs = run_bundle(tmp_path / "bundle", brain, tmp_path / "theirs")
    ours = run_fedvox(folder, brain, tmp_path / "ours")
    assert len(np.unique(np.asarray(ours.dataobj))) > 1
    assert agreement(theirs, ours) > 0.9999


def test_clipping_and_resampling_of_ct_agree_up_to_the_interpolation(release, brain, tmp_path):
    folder, _ = release("mednext-v2-nano", normalization="ct", spacing_mm=(3.0, 2.0, 2.5), modality="other")
    export(str(folder), Target.monai_bundle, str(tmp_path / "bundle"))
    theirs = run_bundle(tmp_path / "bundle", brain, tmp_path / "theirs")
    ours = run_fedvox(folder, brain, tmp_path / "ours")
    assert agreement(theirs, ours) > 0.86  # random weights make much of small differences; 0.83 with a shift


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 2.0, 2.5)])
def test_monais_transforms_prepare_an_image_as_fedvox_does(release, brain, spacing):
    from monai.bundle import ConfigParser

    folder, _ = release("mednext-v2-nano", spacing_mm=spacing)
    source = read_network(str(folder))
    parser = ConfigParser({"it": {"_target_": "Compose", "transforms": preprocessing(source)}})
    theirs = parser.get_parsed_content("it")({"image": str(brain / "brain.nii.gz")})["image"].numpy()
    case = find_cases(str(brain), ("T1",))[0]
    ours = prepare(read_images(case), case, Recipe.of(source.info)).image.numpy()
    theirs = theirs.transpose(0, 3, 2, 1)
    assert theirs.shape == ours.shape
    assert (
        np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99
    )  # 0.98 if first voxels were put on first voxels


def test_the_description_names_channels_structures_and_shapes(release, tmp_path):
    folder, _ = release("mednext-v2-nano", patch_size=(16, 32, 48))
    export_monai_bundle(read_network(str(folder)), locate(str(tmp_path / "bundle")))
    found = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    formats = found["network_data_format"]
    assert formats["inputs"]["image"]["channel_def"] == {"0": "T1"}
    assert formats["outputs"]["pred"]["channel_def"]["2"] == "white matter"
    assert formats["inputs"]["image"]["spatial_shape"] == [48, 32, 16]  # (x, y, z)


def test_several_ct_channels_are_refused_with_what_to_do_instead(release):
    statistics = read_network(str(release("mednext-v2-nano", normalization="ct")[0])).info.intensity * 2
    folder, _ = release(
        "mednext-v2-nano", name_of_folder="two", normalization="ct", channel_names=("low", "high"),
        intensity=statistics,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"2 CT channels(.|\n)*ONNX"):
        preprocessing(read_network(str(folder)))


def test_statistics_of_another_number_of_channels_are_refused(release):
    folder, _ = release("mednext-v2-nano", normalization="ct", intensity=[])
    with pytest.raises(ConfigError, match="statistics of 0 channels"):
        preprocessing(read_network(str(folder)))
