"""The same weights on the same image: Fedvox against nnU-Net's own predictor, step by step and end to end."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.inference.config import PredictConfig
from fedvox.inference.ensemble import Ensemble, Member
from fedvox.inference.inputs import find_cases
from fedvox.inference.predictor import Predictor
from fedvox.inference.prepare import prepare, read_images
from fedvox.inference.recipe import Recipe
from fedvox.inference.sliding_window import SlidingWindow, predict_logits

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own
STRUCTURES = ("background", "s1", "s2", "s3", "s4", "s5")


def recipe(spacing, patch) -> Recipe:
    """How nnU-Net treats an MR."""
    return Recipe(spacing, patch, "zscore", crop_to_nonzero=True, order="normalize_first", pad_value=0.0)


def predictor(network, spacing, patch, **options) -> Predictor:
    member = Member("m", network, recipe(spacing, patch))
    return Predictor(Ensemble((member,), STRUCTURES, ("MR",), "MR"), PredictConfig(device="cpu", **options))


@pytest.mark.parametrize("size", [(40, 33, 50), (20, 36, 17), (32, 32, 32)])
def test_the_logits_of_a_volume_equal_nnunets(small_unet, nnunet_predictor, size):
    patch = (32, 32, 32)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    theirs = nnunet_predictor((1.0, 1.0, 1.0), patch).predict_sliding_window_return_logits(image)
    ours = predict_logits(small_unet, image, SlidingWindow(patch, mirror=True, batch_size=2), pad_value=0.0)
    assert theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("spacing", [(3.0, 2.5, 2.5), (2.0, 2.0, 2.0), (8.0, 2.2, 2.2)])
def test_a_prepared_image_equals_nnunets_preprocessing(brain, saved, nnunet_predictor, spacing):
    path = saved(brain)
    peer = nnunet_predictor(spacing, (32, 32, 32))
    preprocessor = peer.configuration_manager.preprocessor_class(verbose=False)
    theirs, _, properties = preprocessor.run_case(
        [str(path)], None, peer.plans_manager, peer.configuration_manager, peer.dataset_json
    )
    (case,) = find_cases(str(path.parent), ("MR",))
    ours = prepare(read_images(case), case, recipe(spacing, (32, 32, 32)))
    assert tuple(ours.image.shape) == theirs.shape
    assert [[side.start, side.stop] for side in ours.box] == [
        list(map(int, b)) for b in properties["bbox_used_for_cropping"]
    ]
    assert np.abs(ours.image.numpy() - theirs).max() < 2e-3


@pytest.mark.parametrize("spacing", [(3.0, 2.5, 2.5), (8.0, 2.2, 2.2)])
def test_the_written_label_map_equals_nnunets(brain, saved, tmp_path, small_unet, nnunet_predictor, spacing):
    path, patch = saved(brain), (24, 32, 32)
    peer = nnunet_predictor(spacing, patch, mirror=False)
    peer.predict_from_files_sequential([[str(path)]], [str(tmp_path / "theirs")], save_probabilities=False)
    theirs = nib.load(tmp_path / "theirs.nii.gz")
    ours = predictor(small_unet, spacing, patch, mirror=False, output=str(tmp_path / "out"))
    outcome = ours(find_cases(str(path.parent), ("MR",))[0])
    assert outcome.status == "done", outcome.message
    written = nib.load(tmp_path / "out" / "brain.nii.gz")
    np.testing.assert_allclose(written.affine, theirs.affine, atol=1e-5)
    ours_labels, theirs_labels = np.asarray(written.dataobj), np.asarray(theirs.dataobj)
    assert len(np.unique(theirs_labels)) > 3
    assert (ours_labels != theirs_labels).mean() < 1e-5  # where two classes are alike to the last digits
