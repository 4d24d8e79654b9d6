"""Models that are used together: what they must share, and what their average is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.data.intensity import ChannelIntensity
from fedvox.errors import CheckpointError, ConfigError
from fedvox.inference.config import PredictConfig
from fedvox.inference.ensemble import Ensemble, Member, load_ensemble, release_folder
from fedvox.inference.inputs import find_cases
from fedvox.inference.predictor import Predictor
from fedvox.inference.prepare import read_images
from fedvox.inference.recipe import Recipe
from fedvox.inference.sliding_window import SlidingWindow, predict_logits

RECIPE = Recipe((4.0, 4.0, 4.0), (16, 16, 16), "zscore")


def test_a_run_or_its_final_folder_names_a_model(release):
    run = release()
    assert release_folder(run) == release_folder(f"{run}/final")


def test_folds_share_windows_and_other_grids_do_not(release):
    runs = [release("f0"), release("f1", seed=1), release("fine", spacing_mm=(3.0, 3.0, 3.0))]
    ensemble = load_ensemble(runs)
    assert [[member.name for member in group] for group in ensemble.groups] == [runs[:2], runs[2:]]
    assert all(member.sha256 for member in ensemble.members)


def test_intensities_come_back_from_the_description(release):
    channel = ChannelIntensity(100.0, 40.0, -1000.0, 3000.0, -20.0, 200.0)
    run = release(normalization="ct", intensity=(channel,), channel_names=("CT",))
    assert load_ensemble([run]).members[0].recipe.intensity == (channel,)


def test_the_label_map_of_folds_is_the_argmax_of_their_mean_logits(small_brain, saved, release):
    path = saved(small_brain, "a")
    ensemble = load_ensemble([release("f0"), release("f1", seed=1)])
    case = find_cases(str(path), ("MR",))[0]
    predictor = Predictor(ensemble, PredictConfig(device="cpu", mirror=False))
    (prepared,) = predictor._prepare(read_images(case), case)
    logits = torch.stack(
        [predict_logits(m.network, prepared.image, SlidingWindow((16, 16, 16))) for m in ensemble.members]
    ).mean(0)
    size = prepared.original_size
    dense = torch.nn.functional.interpolate(logits[None], size=size, mode="trilinear", align_corners=False)[0]
    top = dense.topk(2, dim=0)
    sure = ((top.values[0] - top.values[1]) > 1e-4).numpy()
    found = predictor.predict(read_images(case), case).labels
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], top.indices[0].numpy()[sure])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"structures": ("background", "a", "c")}, "number 2 is 'b' and 'c'"),
        ({"structures": ("background", "a")}, "3 and 2"),
        ({"channel_names": ("T2",)}, "channel_names .* 'MR' and 'T2'"),
    ],
)
def test_models_that_do_not_fit_together_are_refused_with_the_difference(release, changes, match):
    with pytest.raises(ConfigError, match=match):
        load_ensemble([release("one"), release("other", **changes)])


def test_a_patch_that_its_network_cannot_take_is_refused_with_one_that_fits(release):
    with pytest.raises(
        ConfigError, match=r"patch_size \(20, 16, 16\) is not divisible by \(4, 4, 4\)|not divisible"
    ) as e:
        load_ensemble([release()], patch_size=(21, 16, 16))
    assert "--patch-size" in e.value.remedy
    assert load_ensemble([release("again")], patch_size=(32, 16, 16)).members[0].recipe.patch_size == (
        32,
        16,
        16,
    )


def test_no_model_at_all_is_refused():
    with pytest.raises(ConfigError, match="no model"):
        load_ensemble([])
    with pytest.raises(ConfigError, match="no model"):
        Ensemble((), ("background",), ("CT",))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda final: (final / "model.json").unlink(), "holds no released model"),
        (lambda final: (final / "model.json").write_text("{"), "not readable"),
        (lambda final: (final / "model.safetensors").write_bytes(b"broken"), "model.safetensors"),
        (lambda final: (final / "model.safetensors").unlink(), "model.safetensors"),
        (
            lambda final: (final / "model.json").write_text(
                json.dumps({**json.loads((final / "model.json").read_text()), "intensity": [{"mean": 1}]})
            ),
            "intensity is not readable",
        ),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_by_name(release, damage, match):
    run = release()
    damage(Path(run) / "final")
    with pytest.raises(CheckpointError, match=match):
        load_ensemble([run])


def test_several_grids_are_averaged_to_what_each_agrees_on(small_brain, saved, tmp_path):
    """Two networks that threshold the same intensity at different spacings find the same bright structure."""

    class Threshold(torch.nn.Module):
        def forward(self, x):
            return torch.cat([-4 * x, 4 * x], dim=1)

    members = tuple(
        Member(str(s), Threshold(), Recipe((s, s, s), (16, 16, 16), "zscore")) for s in (2.0, 3.0)
    )
    path = saved(small_brain, "a")
    config = PredictConfig(device="cpu", output=str(tmp_path / "out"), uncertainty=True)
    outcome = Predictor(Ensemble(members, ("background", "bright"), ("MR",)), config)(
        find_cases(str(path), ("MR",))[0]
    )
    assert outcome.status == "done", outcome.message
    labels = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    image = np.asarray(small_brain.dataobj).astype(float)
    dice = 2 * (labels * (image > image.mean())).sum() / (labels.sum() + (image > image.mean()).sum())
    assert dice > 0.95
    entropy = nib.load(tmp_path / "out" / "a_uncertainty.nii.gz").get_fdata()
    unsure = np.abs(image - image.mean()) < 0.05 * image.std()
    assert entropy[unsure].mean() > 3 * entropy[~unsure].mean()
