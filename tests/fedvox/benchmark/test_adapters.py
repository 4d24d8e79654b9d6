"""Adapters: each gives what its own library gives for the same weights, in the sandbox, and says what is missing."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from fedvox.benchmark.adapters.launch import ADAPTERS, command_of, parse_adapter, read_paths_of, relabel
from fedvox.benchmark.manifest import load_benchmark
from fedvox.benchmark.protocol import run_benchmark
from fedvox.benchmark.sandbox import landlock_version
from fedvox.benchmark.submission import load_submission
from fedvox.errors import ConfigError, RunError
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release

SIZE = (16, 24, 16)  # (D, H, W)
PATCH = (16, 16, 16)
SEGRESNET = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "in_channels": 1, "out_channels": 3}


@pytest.fixture
def images(tmp_path):
    """Two images stored in another orientation each, with voxels that are not cubes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, axes in (("one", "RAS"), ("two", "LPS")):
        values = rng.normal(200, 60, SIZE[::-1]).astype(np.float32)
        image = nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
        turn = nib.orientations.axcodes2ornt(axes)
        nib.save(image.as_reoriented(turn), folder / f"{name}_0000.nii.gz")
    return folder


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def labels(path):
    image = nib.load(path)
    assert np.asarray(image.dataobj).dtype.kind == "u"
    return nib.as_closest_canonical(image).get_fdata().transpose(2, 1, 0).astype(int)


def normalized(path):
    """(1, 1, D, H, W), RAS+, zero mean and unit variance, as a network is given it."""
    volume = nib.as_closest_canonical(nib.load(path)).get_fdata().transpose(2, 1, 0)
    return torch.from_numpy((volume - volume.mean()) / volume.std()).float()[None, None]


def segresnet(folder, seed=0):
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(seed)
    network = nets.SegResNet(**SEGRESNET).eval()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, folder / "weights.pt"
    )
    return network


def monai(folder, **changes):
    values = {
        "kind": "monai",
        "network": "SegResNet",
        "arguments": SEGRESNET,
        "weights": str(folder / "weights.pt"),
    }
    return parse_adapter(
        {**values, "classes": 3, "patch_size": SIZE, "mirror": False, "device": "cpu", **changes}
    )


# ---- our own -------------------------------------------------------------------------------------------------


def test_a_release_of_ours_predicts_what_its_network_says(images, output, tmp_path):
    torch.manual_seed(1)
    options = {"deep_supervision": False}
    network = build_model("mednext-v2-nano", in_channels=1, classes=3, **options).eval()
    info = ModelInfo(
        "mednext-v2-nano", options, ("background", "a", "b"), ("T1",), SIZE, None, "zscore", None
    )
    write_release(network, info, locate(str(tmp_path / "model")))
    adapter = parse_adapter(
        {"kind": "fedvox", "models": [str(tmp_path / "model")], "mirror": False, "device": "cpu"}
    )
    adapter.predict(images, output)
    for case in ("one", "two"):
        with torch.no_grad():
            logits = network(normalized(images / f"{case}_0000.nii.gz"))
        agreement = (logits.argmax(1)[0].numpy() == labels(output / f"{case}.nii.gz")).mean()
        assert agreement > 0.999  # the rest are ties up to rounding


# ---- MONAI ---------------------------------------------------------------------------------------------------


def test_a_network_of_monai_predicts_what_its_class_says(images, output, tmp_path):
    network = segresnet(tmp_path)
    monai(tmp_path).predict(images, output)
    for case in ("one", "two"):
        with torch.no_grad():
            logits = network(normalized(images / f"{case}_0000.nii.gz"))
        assert (logits.argmax(1)[0].numpy() == labels(output / f"{case}.nii.gz")).mean() > 0.999
        given, made = (nib.load(p) for p in (images / f"{case}_0000.nii.gz", output / f"{case}.nii.gz"))
        assert np.allclose(given.affine, made.affine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "SegResNett"}, "Near: SegResNet"),
        ({"arguments": {**SEGRESNET, "filters": 8}}, "filters"),
        ({"arguments": {**SEGRESNET, "init_filters": 16}}, "does not fit SegResNet"),
        ({"weights": "nowhere.pt"}, "nowhere.pt does not exist"),
    ],
)
def test_what_does_not_fit_together_is_named(images, output, tmp_path, change, message):
    segresnet(tmp_path)
    with pytest.raises(ConfigError) as caught:
        monai(tmp_path, **change).predict(images, output)
    assert message in str(caught.value)


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_weights_file_that_holds_a_program_is_not_run(images, output, tmp_path, capsys):
    segresnet(tmp_path)
    torch.save({"a": Payload()}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="more than weights"):
        monai(tmp_path).predict(images, output)
    assert "this ran" not in capsys.readouterr().out


def test_a_window_that_the_network_refuses_fails_its_cases_by_name(images, output, tmp_path):
    segresnet(tmp_path)
    with pytest.raises(RunError, match="2 of 2 cases failed"):
        monai(tmp_path, patch_size=(9, 9, 9)).predict(images, output)


def bundle(folder, **changes):
    """A bundle as MONAI's specification has it; its evaluator and data do not exist."""
    config = {
        "imports": ["$import glob"], "bundle_root": ".", "output_dir": "$@bundle_root + '/eval'",
        "dataset": {"_target_": "Dataset", "data": "$glob.glob('/nowhere/*')", "transform": "@preprocessing"},
        "network_def": {"_target_": "SegResNet", **SEGRESNET},
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
        ]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": SIZE[::-1], "overlap": 0.5},
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
             "nearest_interp": False, "to_tensor": True},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "trans",
             "output_dtype": "$numpy.float32", "print_log": False},
        ]},
        "evaluator": {"_target_": "SupervisedEvaluator", "network": "@network_def"},
        **changes,
    }  # fmt: skip
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "bundle" / "configs").mkdir(parents=True)
    (folder / "bundle" / "models").mkdir()
    (folder / "bundle" / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "weights.pt").rename(folder / "bundle" / "models" / "model.pt")
    return parse_adapter({"kind": "monai-bundle", "bundle": str(folder / "bundle"), "device": "cpu"})


@pytest.mark.parametrize("saves", [True, False])
def test_a_bundle_of_monai_predicts_on_the_grid_of_its_images(images, output, tmp_path, saves):
    network = segresnet(tmp_path)
    adapter = bundle(tmp_path)
    if not saves:
        path = tmp_path / "bundle" / "configs" / "inference.json"
        config = json.loads(path.read_text())
        del config["postprocessing"]["transforms"][-1]
        path.write_text(json.dumps(config))
    adapter.predict(images, output)
    assert sorted(p.name for p in output.glob("*.nii.gz")) == ["one.nii.gz", "two.nii.gz"]
    for case in ("one", "two"):
        volume = normalized(images / f"{case}_0000.nii.gz")
        with torch.no_grad():  # the bundle computes in (x, y, z)
            expected = network(volume.permute(0, 1, 4, 3, 2)).argmax(1)[0].numpy().transpose(2, 1, 0)
        assert (expected == labels(output / f"{case}.nii.gz")).mean() > 0.999


def test_a_bundle_without_an_inferer_is_refused(images, output, tmp_path):
    segresnet(tmp_path)
    with pytest.raises(ConfigError, match="does not define inferer"):
        bundle(tmp_path, inferer=None).predict(images, output)


# ---- nnU-Net -------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What nnUNetv2_train leaves behind, without the training."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, "/nonexistent")
    pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    names = ["resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"]
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [16] * 3,
        "median_image_size_in_voxels": [16] * 3, "spacing": [2.0, 1.0, 1.0], "use_mask_for_norm": [False],
        "normalization_schemes": ["ZScoreNormalization"], "batch_dice": False,
        **dict.fromkeys(names, "resample_data_or_seg_to_shape"),
        **{f"{n}_kwargs": {"is_seg": n == names[1], "order": 1, "order_z": 0, "force_separate_z": None} for n in names},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3] * 3] * 2, "strides": [[1] * 3, [2] * 3], "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1], "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "dropout_op": None,
                "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    plans = {
        "dataset_name": "x", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}}, "configurations": {"3d_fullres": configuration},
    }  # fmt: skip
    dataset = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ".nii.gz",
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(plans)
    torch.manual_seed(2)
    network = nnUNetTrainer.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, 3, enable_deep_supervision=False
    )
    checkpoint = {
        "trainer_name": "nnUNetTrainer", "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2), "network_weights": network.state_dict(),
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder, network.eval()


def nnunet(folder, **changes):
    return parse_adapter(
        {"kind": "nnunet", "model": str(folder), "device": "cpu", "mirror": False, **changes}
    )


def test_a_model_of_nnunet_predicts_what_its_network_says(images, output, trained):
    folder, network = trained
    nnunet(folder).predict(images, output)
    for case in ("one", "two"):
        # nnU-Net reads voxels as they are stored, and slides a window of 16³ over the middle axis
        volume = nib.load(images / f"{case}_0000.nii.gz").get_fdata().transpose(2, 1, 0)
        volume = torch.from_numpy((volume - volume.mean()) / volume.std()).float()[None, None]
        with torch.no_grad():
            first = (
                network(volume[:, :, :, :16]).argmax(1)[0, :, :4].numpy()
            )  # only the first window sees these
        found = nib.load(output / f"{case}.nii.gz").get_fdata().transpose(2, 1, 0)
        assert (first == found[:, :4]).mean() > 0.95  # nnU-Net averages in half precision: near ties differ


def test_a_bad_case_costs_nnunet_only_that_case(images, output, trained):
    (images / "one_0000.nii.gz").write_text("no image")
    with pytest.raises(RunError, match="1 of 2 cases failed: one"):
        nnunet(trained[0]).predict(images, output)
    assert (output / "two.nii.gz").is_file()


def test_a_fold_that_was_not_trained_is_told(images, output, trained):
    with pytest.raises(ConfigError, match="fold_3"):
        nnunet(trained[0], folds=[3]).predict(images, output)


@pytest.mark.parametrize(
    ("kind", "module", "remedy"),
    [
        ("nnunet", "nnunetv2.inference.predict_from_raw_data", "nnunetv2"),
        ("monai", "monai.networks", "monai"),
    ],
)
def test_a_library_that_is_not_installed_is_told_with_what_to_install(
    images, output, tmp_path, monkeypatch, kind, module, remedy
):
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_text("{}")
    adapter = nnunet(tmp_path) if kind == "nnunet" else monai(tmp_path)
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        adapter.predict(images, output)
    assert f"pip install {remedy}" in caught.value.remedy


# ---- the contract --------------------------------------------------------------------------------------------


def test_an_unknown_kind_or_field_is_refused_with_the_nearest_name(tmp_path):
    def load(**adapter):
        (tmp_path / "submission.yaml").write_text(yaml.safe_dump({"name": "m", "adapter": adapter}))
        return load_submission(tmp_path)

    with pytest.raises(ConfigError, match="did you mean 'nnunet'"):
        load(kind="nnUNet", model="x")
    with pytest.raises(ConfigError, match="did you mean 'folds'"):
        load(kind="nnunet", model="x", fold=0)
    found = load(kind="fedvox", models=["a", "b"])
    assert found.adapter.files() == (tmp_path / "a", tmp_path / "b")
    assert set(found.reads()) >= {tmp_path / "a", tmp_path / "b"}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_adapter_survives_the_way_into_the_sandbox(kind):
    needed = {
        "fedvox": {"models": ["/m"]},
        "monai": {"network": "UNet", "weights": "/w", "classes": 2, "patch_size": [8, 8, 8]},
        "monai-bundle": {"bundle": "/b"},
        "nnunet": {"model": "/n", "folds": [0, "all"]},
    }
    adapter = parse_adapter({"kind": kind, "relabel": {1: 2, 2: 1}, **needed[kind]})
    text = command_of(adapter)[3]
    assert parse_adapter(json.loads(text)) == adapter
    assert set(adapter.files()) < set(read_paths_of(adapter))


def test_labels_are_exchanged_all_at_once(tmp_path):
    values = np.array([[[0, 1, 2, 3]]], np.uint8)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    relabel(tmp_path, {1: 2, 2: 1, 3: 300})
    assert nib.load(tmp_path / "a.nii.gz").get_fdata().ravel().tolist() == [0, 2, 1, 300]


@pytest.mark.integration
@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_adapters_run_in_the_sandbox_and_are_reported_like_any_submission(make_site, tmp_path, trained):
    site = make_site(2, images=True)
    site.change(test_sets=[{"name": "inside", "references": "inside/labels", "images": "inside/images"}])
    segresnet(tmp_path)
    adapters = {
        "segresnet": {"kind": "monai", "network": "SegResNet", "arguments": SEGRESNET, "weights": "w.pt",
                      "classes": 3, "patch_size": [8, 20, 20], "mirror": False},
        "nnunet": {"kind": "nnunet", "model": "model", "mirror": False},
    }  # fmt: skip
    homes = []
    for name, adapter in adapters.items():
        home = site.folder / "submissions" / name
        home.mkdir(parents=True)
        (home / "submission.yaml").write_text(
            yaml.safe_dump({"name": name, "adapter": {**adapter, "device": "cpu", "threads": 1}})
        )
        homes.append(home)
    (tmp_path / "weights.pt").rename(homes[0] / "w.pt")
    trained[0].rename(homes[1] / "model")
    result = run_benchmark(
        load_benchmark(site.folder), [load_submission(h) for h in homes], site.folder / "out"
    )
    for name in adapters:
        shards = [s for found in result.runs[name].values() for s in found]
        assert all(s.returncode == 0 for s in shards), shards[0].log
        assert result.analysis.test_sets[0].coverage[name] == 1
