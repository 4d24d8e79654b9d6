"""Prompts: coordinates come out where the file said, channels hold what was marked, nonsense is refused."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.data.geometry import Geometry, Volume
from fedvox.data.readers import read_volume
from fedvox.errors import DataError
from fedvox.tracking.config import KINDS
from fedvox.tracking.prompt_files import parse_prompts, read_prompts
from fedvox.tracking.prompt_simulation import (
    NO_JITTER,
    Jitter,
    simulate_correction,
    simulate_prompt,
)
from fedvox.tracking.prompts import (
    CHANNELS,
    Box,
    Mask,
    Point,
    PromptEncoding,
    Scribble,
    check_prompts,
    crop,
    cropped,
    encode,
    extent,
)

SPACING = (3.0, 1.0, 0.5)


def image_file(tmp_path, codes="LPS", shape=(20, 24, 12)):
    """A file whose axes point elsewhere than RAS+, with a bright voxel at (x, y, z) = (4, 5, 6) of the file."""
    data = np.zeros(shape, np.int16)
    data[4, 5, 6] = 1000
    affine = np.diag([1.0 if c in "RAS" else -1.0 for c in codes] + [1.0]) @ np.diag([0.5, 1.0, 3.0, 1.0])
    affine[:3, 3] = [10, -20, 30]
    path = tmp_path / f"{codes}.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path), affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAI"])
def test_a_point_lands_on_the_same_voxel_in_all_three_coordinate_spaces_however_the_file_is_oriented(
    tmp_path, codes
):
    path, affine = image_file(tmp_path, codes)
    volume = read_volume(path)
    bright = tuple(np.argwhere(volume.data[0] == 1000)[0].tolist())
    world = (affine @ [4, 5, 6, 1])[:3].tolist()
    for space, numbers in (("voxel-zyx", [6, 5, 4]), ("voxel-xyz", [4, 5, 6]), ("world-ras", world)):
        text = json.dumps({"coordinate_space": space, "1": {"point": numbers}})
        (point,) = parse_prompts(text, volume.geometry, source="p.json")[1]
        np.testing.assert_allclose(point.at, bright, atol=1e-6)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAI"])
def test_a_half_open_box_of_the_file_covers_exactly_its_voxels_in_the_turned_volume(tmp_path, codes):
    path, _ = image_file(tmp_path, codes)
    volume = read_volume(path)
    stored = np.zeros((20, 24, 12), bool)
    stored[3:7, 5:6, 2:10] = True
    turned = volume.geometry.to_ras(np.ascontiguousarray(stored.T))
    boxes = {"voxel-zyx": [2, 10, 5, 6, 3, 7], "voxel-xyz": [3, 7, 5, 6, 2, 10]}
    for space, numbers in boxes.items():
        text = json.dumps({"coordinate_space": space, "3": {"box": numbers}})
        (box,) = parse_prompts(text, volume.geometry, source="p.json")[3]
        expected = np.zeros_like(turned)
        expected[box.slices] = True
        np.testing.assert_array_equal(expected, turned)


def test_the_json_of_lesion_locator_is_read_as_it_is_with_numbers_as_text_gaps_in_ids_and_reversed_corners(
    tmp_path,
):
    path, _ = image_file(tmp_path, "RAS")
    volume = read_volume(path)
    text = '{"2": {"point": ["6", "5", "4"]}, "7": {"box": ["10", "2", "6", "5", "7", "3"]}}'
    prompts = parse_prompts(text, volume.geometry, source="p.json")
    assert prompts == {2: (Point((6.0, 5.0, 4.0)),), 7: (Box((2, 5, 3), (10, 6, 7)),)}


def test_interactions_carry_signs_and_rounds(tmp_path):
    path, _ = image_file(tmp_path, "RAS")
    volume = read_volume(path)
    interactions = [
        {"type": "point", "coordinates": [4, 5, 6], "include_interaction": True},
        {"type": "bbox", "bbox": [[3, 7], [5, 6], [2, 10]]},
        {"type": "scribble", "points": [[4, 5, 6], [9, 5, 6]], "include_interaction": False, "round": 1},
    ]
    text = json.dumps({"coordinate_space": "voxel-xyz", "lesions": [{"id": 4, "interactions": interactions}]})
    assert parse_prompts(text, volume.geometry, source="p.json")[4] == (
        Point((6, 5, 4)),
        Box((2, 5, 3), (10, 6, 7)),
        Scribble(((6, 5, 4), (6, 5, 9)), positive=False, round=1),
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"1": {"point": [99, 5, 4]}}', "outside_volume"),
        ('{"1": {"point": [1, 5, "x"]}}', "bad_prompts"),
        ('{"1": {"point": [1, 5, 4]}, "1": {"point": [2, 5, 4]}}', "duplicate_id"),
        ('{"0": {"point": [1, 5, 4]}}', "bad_id"),
        ('{"1": {"box": [2, 2, 5, 6, 3, 7]}}', "empty_prompt"),
        ('{"1": {"lasso": [2, 2]}}', "bad_prompts"),
        ("{}", "no_prompt"),
        ("[1]", "bad_prompts"),
        ("{", "bad_prompts"),
        ('{"coordinate_space": "ijk", "1": {"point": [1, 5, 4]}}', "bad_prompts"),
        ('{"lesions": []}', "no_space"),
        (
            '{"coordinate_space": "voxel-xyz", "lesions": '
            '[{"id": 1, "interactions": []}, {"id": 1, "interactions": []}]}',
            "duplicate_id",
        ),
        (
            '{"coordinate_space": "voxel-xyz", "lesions": [{"id": 1, "interactions": '
            '[{"type": "point", "coordinates": [1, 1, 1], "include_interaction": false}]}]}',
            "no_prompt",
        ),
    ],
)
def test_prompts_that_mean_nothing_are_refused_by_name(text, code):
    geometry = Geometry.of_file((20, 24, 12), np.eye(4))
    with pytest.raises(DataError) as caught:
        parse_prompts(text, geometry, source="p.json")
    assert caught.value.code == code
    assert "p.json" in caught.value.message
    assert caught.value.remedy


def test_label_maps_become_masks_as_instances_or_by_components_and_another_grid_is_refused(tmp_path):
    path, affine = image_file(tmp_path, "LPS")
    image = read_volume(path)
    labels = np.zeros((20, 24, 12), np.int16)
    labels[2:4, 2:4, 2:4], labels[10:12, 10:12, 8] = 300, 300
    labels[15, 15, 5] = 4
    label_path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, affine), label_path)
    instances = read_prompts(str(label_path), image)
    assert sorted(instances) == [4, 300]
    assert instances[300][0].volume.sum() == 12
    assert len(read_prompts(str(label_path), image, labels="binary")) == 3
    moved = affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(labels, moved), label_path)
    with pytest.raises(DataError) as caught:
        read_prompts(str(label_path), image)
    assert caught.value.code == "affine_mismatch"
    nib.save(nib.Nifti1Image(labels * 0, affine), label_path)
    with pytest.raises(DataError) as caught:
        read_prompts(str(label_path), image)
    assert caught.value.code == "empty_prompt"


def test_a_ball_holds_the_voxels_within_its_radius_in_mm():
    channels = encode([Point((8, 20, 30))], (16, 40, 60), SPACING, PromptEncoding(radius_mm=4))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (16, 40, 60)), indexing="ij"), -1)
    apart = np.linalg.norm((grid - [8, 20, 30]) * SPACING, axis=-1)
    np.testing.assert_array_equal(channels[0], apart <= 4)
    assert not channels[1:].any()


def test_a_point_between_thick_slices_still_marks_its_nearest_voxel():
    channels = encode([Point((4.5, 5, 5))], (10, 10, 10), (20.0, 1.0, 1.0), PromptEncoding(radius_mm=3))
    assert channels[0].max() == 1


def test_every_kind_and_sign_has_a_channel_of_its_own_and_older_rounds_fade():
    mask = np.zeros((10, 20, 20), bool)
    mask[4:6, 4:6, 4:6] = True
    prompts = [
        Point((2, 3, 3)),
        Point((2, 15, 15), positive=False),
        Box((1, 1, 1), (3, 5, 6)),
        Box((5, 9, 9), (6, 12, 12), positive=False, round=2),
        Scribble(((5, 5, 5), (5, 5, 12))),
        Scribble(((7, 5, 5), (7, 12, 5)), positive=False),
        Mask(mask),
    ]
    channels = encode(prompts, mask.shape, (1, 1, 1), PromptEncoding(radius_mm=1, decay=0.5))
    peaks = dict(zip(CHANNELS, channels.max((1, 2, 3)), strict=True))
    assert peaks == {name: (1.0 if name == "box -" else 0.25) for name in CHANNELS}
    assert (channels[2] > 0).sum() == 2 * 4 * 5
    assert (channels[4, 5, 5, 5:13] > 0).all()
    np.testing.assert_array_equal(channels[6] > 0, mask)


def test_the_bell_falls_to_exp_minus_a_half_at_half_the_radius():
    channels = encode([Point((10, 10, 10))], (21, 21, 21), (1, 1, 1), PromptEncoding("gaussian", radius_mm=4))
    assert channels[0, 10, 10, 10] == 1
    assert channels[0, 10, 10, 12] == pytest.approx(np.exp(-0.5))


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(-6, 12)] * 3),
    st.tuples(*[st.integers(4, 14)] * 3),
    st.tuples(*[st.floats(0, 11)] * 3),
)
def test_encoding_a_crop_is_cropping_the_encoding(start, shape, at):
    mask = np.random.default_rng(0).random((12, 12, 12)) < 0.1
    prompts = [Point(at), Box((2, 3, 4), (7, 8, 9)), Scribble((at, (3, 3, 3)), positive=False), Mask(mask)]
    whole = encode(prompts, (12, 12, 12), (1, 1, 1))
    expected = crop(whole, start, shape, fill=0)
    inside = crop(np.ones((12, 12, 12), bool), start, shape, fill=False)
    found = encode(cropped(prompts, start, shape), shape, (1, 1, 1)) * inside
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_mask_of_another_shape_and_a_lesion_without_prompts_are_refused():
    with pytest.raises(DataError, match="has a mask of"):
        check_prompts({1: (Mask(np.ones((2, 2, 2), bool)),)}, (3, 3, 3), source="prompts")
    with pytest.raises(DataError) as caught:
        extent([])
    assert caught.value.code == "no_prompt"


def ellipsoid(shape=(24, 40, 40), center=(12, 20, 18), radii=(5, 9, 6)):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return (((grid - center) / radii) ** 2).sum(-1) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_simulated_prompts_touch_their_lesion_and_are_the_same_for_the_same_hand(kind):
    lesion = ellipsoid()
    for seed in range(5):
        prompt = simulate_prompt(lesion, kind, (1.0, 1.0, 1.0), np.random.default_rng(seed))
        again = simulate_prompt(lesion, kind, (1.0, 1.0, 1.0), np.random.default_rng(seed))
        check_prompts({1: (prompt,)}, lesion.shape, source="simulated")
        channels = encode([prompt], lesion.shape, (1, 1, 1), PromptEncoding(radius_mm=1))
        np.testing.assert_array_equal(
            channels, encode([again], lesion.shape, (1, 1, 1), PromptEncoding(radius_mm=1))
        )
        marked = channels.max(0) > 0
        assert (marked & lesion).sum() > 0.5 * min(marked.sum(), lesion.sum())


def test_simulated_prompts_vary_and_without_jitter_they_are_exact():
    lesion = ellipsoid()
    clicks = {
        simulate_prompt(lesion, "point", (1, 1, 1), np.random.default_rng(s), Jitter()).at for s in range(10)
    }
    assert len(clicks) > 5
    box = simulate_prompt(lesion, "box", (1, 1, 1), np.random.default_rng(0), NO_JITTER)
    assert (box.start, box.stop) == ((7, 11, 12), (18, 30, 25))
    mask = simulate_prompt(lesion, "mask", (1, 1, 1), np.random.default_rng(0), NO_JITTER)
    np.testing.assert_array_equal(mask.volume, lesion)


def test_a_correction_clicks_into_the_largest_error_with_its_sign():
    lesion = ellipsoid()
    half = lesion.copy()
    half[:, :20] = False
    missed = simulate_correction(lesion, half, (1, 1, 1), 1, np.random.default_rng(0))
    assert missed.positive
    assert missed.at[1] < 20
    assert lesion[tuple(int(v) for v in missed.at)]
    spill = lesion.copy()
    spill[:, 30:, 30:] = True
    too_much = simulate_correction(lesion, spill, (1, 1, 1), 2, np.random.default_rng(0))
    assert not too_much.positive
    assert too_much.round == 2
    assert not lesion[tuple(int(v) for v in too_much.at)]
    assert simulate_correction(lesion, lesion, (1, 1, 1), 3, np.random.default_rng(0)) is None


def test_a_volume_is_what_the_reader_made_of_the_file(tmp_path):
    path, _ = image_file(tmp_path, "LPS")
    assert isinstance(read_volume(path), Volume)
