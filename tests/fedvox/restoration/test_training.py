"""Training a prior in this process: what is held out, resuming, the average, the release."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.config import validate
from fedvox.errors import CheckpointError, ConfigError, DataError
from fedvox.restoration import training
from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.restoration.prior import AveragedPrior
from fedvox.restoration.release import load_release
from fedvox.restoration.volumes import PatchSource, TrainingVolume
from fedvox.training.run_directory import RunDirectory
from fedvox.training.world import World


@pytest.fixture
def configured(tmp_path):
    """A configuration on three blob images in a folder; keyword arguments change `data` or, with __, sections."""
    folder = tmp_path / "images"
    folder.mkdir()
    y, x = np.meshgrid(np.linspace(-1, 1, 36), np.linspace(-1, 1, 40), indexing="ij")
    for n in range(3):
        blobs = np.stack([np.exp(-(3 + n) * (y**2 + (x - 0.1 * z) ** 2)) for z in range(4)])
        nib.save(
            nib.Nifti1Image(blobs.transpose(2, 1, 0).astype(np.float32) * 500, np.eye(4)),
            folder / f"v{n}.nii.gz",
        )

    def make(**changes):
        values = {
            "storage": str(tmp_path / "runs"), "steps": 12, "global_batch_size": 4, "log_every": 1,
            "optimizer": {"lr": 2e-3, "weight_decay": 0.0}, "ema": 0.9,
            "data": {"folder": str(folder), "patch_size": [1, 16, 16], "folds": 3},
            "network": {"widths": [8, 12], "blocks": 1, "embedding": 16},
            "validation": {"every_steps": 12, "examples": 4}, "checkpoint": {"every_steps": 5},
            "compute": {"num_workers": 0},
        }  # fmt: skip
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                values[section] = values.get(section, {}) | {name: value}
            else:
                values[section] = value
        return validate(DiffusionPriorConfig, values, source="test")

    return make


def losses(config):
    return [line["loss"] for line in RunDirectory.of(config).metrics() if line["kind"] == "train"]


def test_an_interrupted_run_ends_as_one_that_was_not(configured):
    whole = configured(name="whole")
    training.train(whole, World())
    half = configured(name="half")
    training.train(half.model_copy(update={"steps": 5}), World())
    resumed = training.train(half, World())
    # The schedule of the first half was another: what counts is the same samples, weights and average from there on.
    again = configured(name="again")
    training.train(again.model_copy(update={"steps": 5}), World())
    training.train(again, World())
    assert resumed.step == 12
    assert losses(half) == losses(again)
    assert losses(half)[5:] != losses(whole)[5:]
    mine, theirs = (load_release(RunDirectory.of(c).location.uri)[0].state_dict() for c in (half, again))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_workers_share_the_patches_of_a_step(configured):
    source = PatchSource(training.read_volumes(configured().data), configured())
    whole, odd = source.patches([0, 1, 2, 3]), source.patches([1, 3])
    assert torch.equal(whole.clean[1::2], odd.clean)
    assert torch.equal(whole.noise[1::2], odd.noise)
    assert torch.equal(whole.sigma[1::2], odd.sigma)


@pytest.mark.parametrize("slices", [1, 3])
def test_no_training_patch_touches_a_held_out_slab_or_its_margin(configured, slices):
    image = np.broadcast_to(np.arange(1, 41, dtype=np.float32)[:, None, None], (40, 20, 20)).copy()
    config = configured(
        data__held_out=[[10, 16], [30, 34]], data__margin=2, data__patch_size=[slices, 16, 16]
    )
    source = PatchSource([TrainingVolume("one", image)], config)
    seen = set(np.unique(source.patches(range(300)).clean.numpy()).astype(int)) - {0}
    held = set(np.unique(source.held_out(0.1).clean.numpy()).astype(int)) - {0}
    assert seen == (set(range(1, 41)) - set(range(9, 19)) - set(range(29, 37)))
    assert held <= set(range(11, 17)) | set(range(31, 35))


def test_the_average_lags_behind_and_is_what_is_released(configured, make_prior):
    model = AveragedPrior(make_prior())
    before = model.average.network.exit.bias.clone()
    with torch.no_grad():
        model.online.network.exit.bias += 1.0
    model.follow(0.5, step=1000)
    torch.testing.assert_close(model.average.network.exit.bias, before + 0.5)
    config = configured()
    training.train(config, World())
    prior, info = load_release(RunDirectory.of(config).location.uri)
    session = training.open_session(config, World())
    session.close()
    released, average = prior.state_dict(), session.network.average.state_dict()
    assert all(torch.equal(released[k], average[k]) for k in released)
    assert not torch.equal(prior.network.exit.weight, session.network.online.network.exit.weight)
    assert info.provenance["step"] == 12
    assert len(info.provenance["training"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"network__positions": True}, {"data__patch_size": [3, 16, 16]}])
def test_training_makes_a_better_denoiser_in_every_kind(configured, options):
    config = configured(steps=60, validation__at_start=True, **options)
    training.train(config, World())
    before, after = (
        [line["psnr_0.1"] for line in RunDirectory.of(config).metrics() if line["kind"] == "validation"][i]
        for i in (0, -1)
    )
    assert after > before + 0.2


def test_what_cannot_be_trained_or_resumed_is_refused(configured, tmp_path):
    config = configured()
    with pytest.raises(ConfigError, match=r"not divisible by \[1, 4, 4\]"):
        training.check(configured(data__patch_size=[1, 18, 16]), RunDirectory.of(config))
    training.train(config, World())
    with pytest.raises(CheckpointError, match="of another architecture"):
        training.open_session(configured(network__widths=[8, 16]), World())
    with pytest.raises(DataError, match="holds no NIfTI"):
        training.read_volumes(configured(data__folder=str(tmp_path / "runs")).data)
    with pytest.raises(CheckpointError, match="holds no released prior"):
        load_release(str(tmp_path / "images"))
    model = tmp_path / "runs" / "diffusion-prior" / "final" / "model.json"
    model.write_text(json.dumps({"schema": "other/1"}))
    with pytest.raises(CheckpointError, match="no diffusion prior"):
        load_release(str(model.parent))
    with pytest.raises(ConfigError, match=r"either data\.folder or data\.template"):
        configured(data__template="mni152")
