"""Promptable networks: patches there and back, weights taken over without a change, a short training that learns."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.commands.lesion import segment as segment_command
from fedvox.errors import CheckpointError, DataError
from fedvox.models.registry import build_model
from fedvox.tracking.config import PromptSection
from fedvox.tracking.examples import ArraySource, TrainingScan
from fedvox.tracking.network import (
    NetworkSegmenter,
    load_image_weights,
    load_segmenter,
    promptable,
    write_segmenter,
)
from fedvox.tracking.patches import SEEN, Patch, PatchPlan
from fedvox.tracking.prompts import CHANNELS, Box, Mask, Point
from fedvox.tracking.segmenters import Request
from fedvox.tracking.training import collate, corrected_samples, draw_sample
from fedvox.training.pretrained import Pretrained

PLAN = PatchPlan((16, 16, 16), (4.0, 4.0, 4.0))
NAME = "mednext-v2-nano"


@pytest.fixture(scope="module")
def scans(phantom):
    found = []
    for seed in range(2):
        head = phantom(seed=seed)
        lesions = {1: ((0.0, 9.0, -8.0), 8, 1.9), 2: ((9.0, -12.0, 8.0), 7, 0.2)}
        volume, labels = head.scan(lesions, seed=seed)
        found.append(TrainingScan(volume.data[0], labels, volume.geometry.spacing_mm))
    return found


def pretrained(network):
    return Pretrained(
        "memory", "release", dict(network.state_dict()), network.config, NAME, {}, ("background", "brain")
    )


@pytest.mark.parametrize("kind", [Point((14, 20, 20)), Box((10, 14, 16), (18, 26, 24)), Point((1, 1, 38))])
def test_a_mask_comes_back_from_its_patch_to_its_place(scans, kind):
    mask = np.zeros(scans[0].image.shape, bool)
    middle = np.asarray(kind.at if isinstance(kind, Point) else (14, 20, 20)).astype(int)
    mask[tuple(slice(max(0, m - 4), m + 4) for m in middle)] = True
    patch = Patch.around((kind,), mask.shape, scans[0].spacing_mm, PLAN)
    back = patch.whole(patch.mask(mask).astype(np.float32))
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.8


def test_a_lesion_larger_than_the_patch_is_seen_whole_with_coarser_voxels(scans):
    mask = np.zeros(scans[0].image.shape, bool)
    mask[3:25, 3:37, 3:37] = True
    plan = PatchPlan((8, 8, 8), (3.0, 2.0, 2.0))
    patch = Patch.around((Mask(mask),), mask.shape, scans[0].spacing_mm, plan)
    back = patch.whole(patch.mask(mask).astype(np.float32))
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.85


def test_patches_are_normalised_and_carry_the_prompts(scans):
    patch = Patch.around((Point((14, 24, 16)),), scans[0].image.shape, scans[0].spacing_mm, PLAN)
    image = patch.image(scans[0].image)
    assert abs(float(image.mean())) < 0.5
    assert image.shape == PLAN.size
    prompts = patch.prompts((Point((14, 24, 16)),))
    assert prompts.shape == (len(CHANNELS), *PLAN.size)
    assert prompts[0].max() > 0.2
    assert not prompts[1:].any()


def test_weights_without_prompts_are_taken_over_so_that_the_image_is_seen_as_before():
    torch.manual_seed(0)
    before = build_model(NAME, in_channels=1, classes=2, deep_supervision=False).eval()
    network = promptable(NAME, deep_supervision=False).eval()
    report = load_image_weights(network, pretrained(before))
    assert report.share("encoder") == 1
    image = torch.randn(1, 1, 16, 16, 16)
    seen = [network.encoder(network.stem(torch.cat([image, p], 1))) for p in (
        torch.zeros(1, len(SEEN), 16, 16, 16), torch.rand(1, len(SEEN), 16, 16, 16))]  # fmt: skip
    expected = before.encoder(before.stem(image))
    for found in seen:
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b)
    again = promptable(NAME, deep_supervision=False)
    load_image_weights(again, pretrained(network))  # of a network with prompts: as it is
    torch.testing.assert_close(next(again.stem.parameters()), next(network.stem.parameters()))


def test_samples_are_a_function_of_seed_and_index_and_every_lesion_counts_the_same(scans):
    prompts, source = PromptSection(empty_share=0.2), ArraySource(scans)
    assert source.lesions == 4
    samples = [draw_sample(source, prompts, PLAN, 0, i) for i in range(40)]
    again = draw_sample(source, prompts, PLAN, 0, 17)
    torch.testing.assert_close(collate([again])[0], collate([samples[17]])[0], rtol=0, atol=0)
    sizes = {int(s.target.sum()) for s in samples if s.target.any()}
    assert sizes == {int((scan.lesions == i).sum()) for scan in scans for i in (1, 2)}
    empty = [s for s in samples if not s.target.any()]
    assert 2 <= len(empty) <= 18
    for sample in empty:
        assert isinstance(sample.prompts[0], Mask)
        assert not (sample.prompts[0].volume & (sample.scan.lesions > 0)).any()
    seen, label = collate(samples[:3])
    assert seen.shape == (3, 9, 16, 16, 16)
    assert label.shape == (3, 1, 16, 16, 16)
    with pytest.raises(DataError):
        ArraySource([TrainingScan(scans[0].image, scans[0].lesions * 0, (1, 1, 1))])


def test_a_reader_corrects_what_the_network_says(scans):
    torch.manual_seed(0)
    network = promptable(NAME)
    network.train()
    prompts = PromptSection(empty_share=0)
    samples = [draw_sample(ArraySource(scans), prompts, PLAN, 0, i) for i in range(2)]
    found = corrected_samples(network, samples, 2, np.random.default_rng(0))
    assert network.training
    assert all(len(a.prompts) > len(b.prompts) for a, b in zip(found, samples, strict=True))
    assert all(p.round >= 1 for s in found for p in s.prompts[1:])


def test_a_network_comes_back_from_its_release_and_segments_from_the_command_line(scans, tmp_path):
    torch.manual_seed(0)
    network = promptable(NAME, deep_supervision=False)
    write_segmenter(
        network, PLAN, str(tmp_path / "model"), model=NAME, options={}, run="lesions of a phantom"
    )
    assert "fedvox lesion segment --model" in (tmp_path / "model" / "README.md").read_text()
    segment = load_segmenter(str(tmp_path / "model"))
    assert segment.plan == PLAN
    mask = scans[0].lesions == 1
    request = Request(scans[0].image, scans[0].spacing_mm, (Mask(mask),))
    found = segment(request)
    assert found.shape == mask.shape
    np.testing.assert_array_equal(found, NetworkSegmenter(network.eval(), PLAN)(request))
    for name, array in (("image", scans[0].image), ("marks", scans[0].lesions)):
        affine = np.diag([*scans[0].spacing_mm[::-1], 1.0])
        nib.save(nib.Nifti1Image(np.asarray(array).transpose(2, 1, 0), affine), tmp_path / f"{name}.nii.gz")
    segment_command(
        image=str(tmp_path / "image.nii.gz"),
        prompts=str(tmp_path / "marks.nii.gz"),
        output=tmp_path / "out",
        model=str(tmp_path / "model"),
    )
    assert json.loads((tmp_path / "out" / "lesions.json").read_text())["method"] == str(tmp_path / "model")


def test_an_untrained_network_answers_as_the_random_walker_does(scans):
    network = promptable(NAME, deep_supervision=False)
    lesion = scans[0].lesions == 1
    request = Request(scans[0].image, scans[0].spacing_mm, (Mask(lesion),))
    said = NetworkSegmenter(network.eval(), PLAN)(request)
    patch = Patch.around(request.prompts, lesion.shape, scans[0].spacing_mm, PLAN)
    walker = patch.seen(scans[0].image, request.prompts)[-1]
    np.testing.assert_array_equal(said, patch.whole(1 / (1 + np.exp(-(2 * walker - 1)))))
    assert 2 * (said & lesion).sum() / (said.sum() + lesion.sum()) > 0.7


def test_a_model_that_takes_no_prompts_is_refused_by_name(tmp_path):
    from fedvox import storage
    from fedvox.training.release import ModelInfo, write_release

    plain = build_model(NAME, in_channels=1, classes=2, deep_supervision=False)
    info = ModelInfo(
        NAME, {"deep_supervision": False}, ("background", "brain"), ("T1",), (16, 16, 16), None, "zscore", []
    )
    write_release(plain, info, storage.locate(str(tmp_path / "plain")))
    with pytest.raises(CheckpointError, match="not one that takes prompts"):
        load_segmenter(str(tmp_path / "plain"))
