"""What the augmentation does to voxels, against batchgeneratorsv2, scipy and by hand, parameter by parameter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from fedvox.data import augment_intensity as intensity
from fedvox.data.augment import AugmentConfig, Augmenter, AugmentParameters, draw, read_box
from fedvox.data.augment_spatial import resample

PATCH = (24, 20, 28)
OFF = AugmentConfig(enabled=False)
GOLDEN_NOISE_SEED = 9675953446384503379
GOLDEN_NOISE_STD = 0.03166304519803055
GOLDEN_MATRIX = [
    0.793071877694179, 0.3722943601586102, 0.48211399710516617,
    -0.3839047343189744, 0.9199945646532867, -0.0789123309495236,
    -0.4729208726395006, -0.12250269549075447, 0.8725473842831647,
]  # fmt: skip
relaxed = settings(deadline=None, max_examples=60)


def neutral(samples: int = 1, channels: int = 1) -> AugmentParameters:
    """Parameters that leave everything alone."""
    return draw(OFF, 0, range(samples), PATCH, channels)


def volume(size, channels=1, seed=0) -> torch.Tensor:
    """Smooth structure with noise on it, of order one."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(channels, *size)), (0, 2, 2, 2)) * 8
    return torch.from_numpy(smooth + 0.2 * rng.normal(size=smooth.shape)).float()


def regions(size, labels=6, seed=0) -> torch.Tensor:
    """A label map of irregular regions, many of which meet in threes."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(labels, *size)), (0, 3, 3, 3))
    return torch.from_numpy(fields.argmax(0).astype(np.uint8))


def rotation(degrees) -> np.ndarray:
    """Turns about the axes 0, 1 and 2, in this order, by scipy's own convention on (z, y, x) as (x, y, z)."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def spatial(matrix, mirror=(False, False, False)) -> AugmentParameters:
    return replace(neutral(), spatial=np.array([True]), matrix=matrix[None], mirror=np.array([mirror]))


def origin(matrix, box, patch=PATCH) -> np.ndarray:
    return (np.array(box) - 1) / 2 - matrix @ ((np.array(patch) - 1) / 2)


# Rotation, scaling, mirroring

MATRICES = [
    rotation((25, 0, 0)),
    rotation((-20, 15, 28)) * 1.3,
    rotation((5, -29, 11)) * 0.75,
    rotation((150, 0, 0)) @ np.diag([1, 1.2, 1.2]),
    np.eye(3) * 1.4,
]


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
def test_images_are_interpolated_linearly_as_scipy_does(matrix, planar):
    box = read_box(spatial(matrix), PATCH)
    image, label = volume(box, channels=2), regions(box)
    out, out_label = torch.empty(2, *PATCH), torch.empty(PATCH, dtype=torch.int16)
    resample(image, label, matrix, out, out_label, planar=planar)
    expected = [
        ndimage.affine_transform(c.double().numpy(), matrix, origin(matrix, box), PATCH, order=1)
        for c in image
    ]
    np.testing.assert_allclose(out, np.stack(expected), atol=3e-4 if planar else 3e-5)


@pytest.mark.parametrize("matrix", MATRICES)
def test_labels_are_the_vote_that_batchgenerators_takes(matrix):
    """The label with the highest linearly interpolated indicator; scores within its half precision are ties."""
    box = read_box(spatial(matrix), PATCH)
    label = regions(box)
    _, out = Augmenter(PATCH)([volume(box)], [label], spatial(matrix))
    scores = np.stack(
        [
            ndimage.affine_transform(
                (label == k).double().numpy(), matrix, origin(matrix, box), PATCH, order=1
            )
            for k in range(6)
        ]
    )
    chosen = np.take_along_axis(scores, out[0].numpy().astype(int), axis=0)[0]
    assert (scores.max(0) - chosen).max() < 1e-3
    nearest = ndimage.affine_transform(label.numpy(), matrix, origin(matrix, box), PATCH, order=0)
    assert np.mean(out[0, 0].numpy() != nearest) > 0.002  # nearest neighbours would be another thing


@pytest.mark.parametrize("degrees", [(25, 0, 0), (0, 25, 0), (0, 0, 25), (17, -23, 29)])
def test_angles_turn_the_way_they_do_in_batchgenerators(degrees):
    """Same angles and scale, same large volume: equal images and equal labels, but for ties."""
    image, label = volume((64, 64, 64)), regions((64, 64, 64))
    reference = SpatialTransform(
        PATCH, 0, False, p_rotation=1, rotation=lambda *_, dim, **__: np.deg2rad(degrees[dim]),
        p_scaling=1, scaling=(1.1, 1.1), p_synchronize_scaling_across_axes=1,
    )  # fmt: skip
    expected = reference(image=image.clone(), segmentation=label[None].clone().to(torch.int16))
    config = AugmentConfig(rotation_probability=1, scaling_probability=1, scaling=(1.1, 1.1))
    drawn = draw(config, 0, [0], PATCH, 1)
    params = replace(neutral(), spatial=drawn.spatial, matrix=rotation(degrees)[None] * 1.1)
    image_out, label_out = Augmenter(PATCH)(
        [crop(image, read_box(params, PATCH))], [crop(label, read_box(params, PATCH))], params
    )
    np.testing.assert_allclose(image_out[0], expected["image"], atol=1e-3)
    assert torch.mean((label_out[0] != expected["segmentation"]).float()) < 1e-3


def crop(volume: torch.Tensor, size) -> torch.Tensor:
    """The box of some size about the centre."""
    starts = [(n - s) // 2 for n, s in zip(volume.shape[-3:], size, strict=True)]
    return volume[(..., *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))].contiguous()


def test_drawn_matrices_are_rotations_about_three_axes_times_one_factor():
    config = AugmentConfig(rotation_probability=1, scaling_probability=1)
    params = draw(config, 3, range(400), PATCH, 1)
    factor = np.linalg.norm(params.matrix, axis=1)
    assert factor.min() > 0.7
    assert factor.max() < 1.4
    np.testing.assert_allclose(factor, factor[:, :1].repeat(3, axis=1), atol=1e-12)
    turns = params.matrix / factor[:, None, :]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (400, 1, 1)), atol=1e-12)
    angles = Rotation.from_matrix(turns).as_euler("xyz", degrees=True)
    assert np.abs(angles).max() < 30
    assert np.all(np.abs(angles).max(0) > 29)
    np.testing.assert_allclose(turns, [rotation(a) for a in angles], atol=1e-9)


def test_anisotropic_patches_turn_within_their_planes_only():
    patch = (8, 40, 40)
    config = AugmentConfig(rotation_probability=1, scaling_probability=1, low_resolution_probability=1)
    params = draw(config, 0, range(300), patch, 2)
    np.testing.assert_array_equal(params.matrix[:, 0], [[1, 0, 0]] * 300)
    np.testing.assert_array_equal(params.matrix[:, :, 0], [[1, 0, 0]] * 300)
    angles = np.rad2deg(np.arctan2(params.matrix[:, 2, 1], params.matrix[:, 1, 1]))
    assert angles.min() < -170
    assert angles.max() > 170
    assert np.all(params.low_resolution[..., 0] == 1)
    assert np.any(params.low_resolution[..., 1] < 0.6)
    assert draw(config, 0, [0], (13, 40, 40), 1).matrix[0, 0, 1] == 0  # 40 / 13 = 3.1
    assert draw(config, 0, [0], (14, 40, 40), 1).matrix[0, 0, 1] != 0  # 40 / 14 = 2.9


def test_rotating_in_plane_moves_nothing_between_planes():
    planes = torch.arange(PATCH[0] + 2.0)[:, None, None]
    matrix = rotation((73, 0, 0))
    box = read_box(spatial(matrix), PATCH)
    image = planes.expand(box)[None].contiguous()
    out, label = Augmenter(PATCH)([image], [planes.expand(box).to(torch.uint8).contiguous()], spatial(matrix))
    expected = torch.arange(1.0, PATCH[0] + 1)[:, None, None].expand(PATCH)
    np.testing.assert_allclose(out[0, 0], expected, atol=1e-4)
    assert torch.equal(label[0, 0], expected.to(torch.int16))


@pytest.mark.parametrize("mirror", [(True, False, False), (False, True, True), (True, True, True)])
def test_mirroring_within_the_resampling_equals_mirroring_after_it(mirror):
    matrix = MATRICES[1]
    box = read_box(spatial(matrix), PATCH)
    image, label = volume(box), regions(box)
    plain = Augmenter(PATCH)([image], [label], spatial(matrix))
    fused = Augmenter(PATCH)([image], [label], spatial(matrix, mirror))
    axes = [axis - 3 for axis in range(3) if mirror[axis]]
    np.testing.assert_allclose(fused[0], plain[0].flip(axes), atol=3e-4)
    assert torch.mean((fused[1] != plain[1].flip(axes)).float()) < 1e-3


@pytest.mark.parametrize("mirror", [(False, False, False), (True, False, True)])
def test_without_rotation_and_scaling_voxels_are_copied_bit_for_bit(mirror):
    params = replace(neutral(channels=2), mirror=np.array([mirror]))
    assert read_box(params, PATCH) == PATCH
    image, label = volume(PATCH, channels=2), regions(PATCH)
    out, out_label = Augmenter(PATCH)([image], [label], params)
    axes = [axis - 3 for axis in range(3) if mirror[axis]]
    assert torch.equal(out[0], image.flip(axes))
    assert torch.equal(out_label[0, 0], label.flip(axes).to(torch.int16))


@pytest.mark.parametrize("patch", [(70, 33, 40), (1, 65, 64), (2, 3, 100)])
def test_patches_of_any_size_are_tiled_without_seams(patch):
    matrix = rotation((20, 0, 0)) if patch[0] == 1 else MATRICES[1]
    box = read_box(spatial(matrix), patch)
    z, y, x = torch.meshgrid(*[torch.arange(float(n)) for n in box], indexing="ij")
    image = torch.stack([z, y, x])
    out, label = torch.empty(3, *patch), torch.empty(patch, dtype=torch.int16)
    resample(image, (z + y + x).to(torch.int16), matrix, out, label)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in patch], indexing="ij"))
    expected = np.einsum("ab,b...->a...", matrix, grid) + origin(matrix, box, patch)[:, None, None, None]
    np.testing.assert_allclose(out, expected, atol=0.02)  # of coordinates up to 140: float32 row numbers
    assert np.abs(label.numpy() - expected.sum(0)).max() <= 1.5 + 1e-3


# Which voxels are read


@relaxed
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    factor=st.floats(0.3, 2.5),
    patch=st.tuples(*[st.integers(1, 200)] * 3),
)
def test_the_box_to_read_holds_every_point_and_its_neighbours_and_no_more(degrees, factor, patch):
    matrix = rotation(degrees) * factor
    box = np.array(read_box(spatial(matrix), patch))
    assert np.all((box - patch) % 2 == 0)
    ends = np.stack(np.meshgrid(*[[0, n - 1] for n in patch], indexing="ij")).reshape(3, -1)
    points = matrix @ ends + origin(matrix, box, patch)[:, None]
    assert points.min() > 1 - 1e-4
    assert np.all(points.max(1) < box - 2 + 1e-4)
    assert np.all(points.min(1) < 2 + 1e-4)  # two voxels less would not do


def test_a_box_that_is_too_small_is_refused():
    image, label = volume(PATCH), regions(PATCH)
    with pytest.raises(ValueError, match="box"):
        Augmenter(PATCH)([image], [label], spatial(MATRICES[0]))
    with pytest.raises(ValueError, match="box"):
        resample(image, label, MATRICES[0], torch.empty(1, *PATCH), torch.empty(PATCH, dtype=torch.int16))


# Intensities: the same numbers as batchgeneratorsv2 for the same parameters


def each(transform, image: torch.Tensor, **params) -> torch.Tensor:
    return transform(image=image.clone(), **params)["image"]


@pytest.mark.parametrize("sigma", [0.5, 0.58, 0.59, 0.75, 0.91, 0.92, 1.0])
def test_blur_equals_batchgenerators(sigma):
    image = volume(PATCH, channels=2)
    expected = each(GaussianBlurTransform((sigma, sigma), False, False, 1.0), image)
    rows = image.clone()
    intensity.blur(rows, np.full((2, 3), sigma))
    np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_each_axis_and_channel_is_blurred_by_its_own_width():
    sigma = np.array([[0.5, 0.8, 1.0], [0.9, 0.6, 0.7]])
    image = volume(PATCH, channels=2)
    transform = GaussianBlurTransform(0, False, False, 1.0)
    expected = transform._apply_to_image(
        image.clone(), apply_to_channel=torch.ones(2, dtype=torch.bool), sigmas=sigma.tolist()
    )
    intensity.blur(image, sigma)
    np.testing.assert_allclose(image, expected, atol=2e-6)


def test_blur_keeps_what_is_constant_and_single_planes():
    flat = torch.full((1, 9, 1, 9), 3.0)
    intensity.blur(flat, np.array([[0.7, 1.0, 0.9]]))
    np.testing.assert_allclose(flat, torch.full((1, 9, 1, 9), 3.0), atol=1e-6)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_brightness_and_contrast_equal_batchgenerators(factor):
    image = volume(PATCH, channels=2)
    bright, contrast = image.clone(), image.clone()
    intensity.scale_brightness(bright, np.full(2, factor))
    intensity.scale_contrast(contrast, np.full(2, factor))
    same = (factor, factor)
    np.testing.assert_allclose(
        bright, each(MultiplicativeBrightnessTransform(same, False, 1), image), atol=1e-6
    )
    np.testing.assert_allclose(contrast, each(ContrastTransform(same, True, False, 1), image), atol=2e-6)


@pytest.mark.parametrize("scale", [0.5, 0.63, 0.87, 0.99, 1.0])
def test_low_resolution_equals_batchgenerators(scale):
    image = volume(PATCH, channels=2)
    rows = image.clone()
    intensity.reduce_resolution(rows, np.full((2, 3), scale))
    expected = each(SimulateLowResolutionTransform((scale, scale), False, True, None, None, 1), image)
    np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_low_resolution_leaves_axes_of_scale_one_alone():
    image = volume(PATCH)
    rows = image.clone()
    intensity.reduce_resolution(rows, np.array([[1, 0.6, 0.6]]))
    expected = each(SimulateLowResolutionTransform((0.6, 0.6), False, True, (0,), None, 1), image)
    np.testing.assert_allclose(rows, expected, atol=2e-6)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_gamma_equals_batchgenerators(gamma, inverted, offset):
    image = volume(PATCH, channels=2) + offset
    rows = image.clone()
    intensity.gamma_correct(rows, np.full(2, gamma), inverted=inverted)
    expected = each(GammaTransform((gamma, gamma), float(inverted), False, 1, 1), image)
    np.testing.assert_allclose(rows, expected, atol=1e-5 * (1 + offset))


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_mean_and_deviation_and_survives_a_constant_image(inverted):
    rows = torch.cat([volume(PATCH), torch.full((1, *PATCH), -2.0)])
    before = rows.mean((1, 2, 3)), rows.std((1, 2, 3))
    intensity.gamma_correct(rows, np.array([1.4, 1.4]), inverted=inverted)
    np.testing.assert_allclose(rows.mean((1, 2, 3)), before[0], atol=1e-5)
    np.testing.assert_allclose(rows.std((1, 2, 3)), before[1], atol=1e-5)


def test_noise_is_normal_with_its_deviation_independent_of_place_and_the_seed_s_alone():
    rows = torch.zeros(2, 48, 48, 48)
    intensity.add_noise(rows, 0.07, seed=2**64 - 1)
    again = torch.zeros(2, 48, 48, 48)
    intensity.add_noise(again, 0.07, seed=2**64 - 1)
    other = torch.zeros(2, 48, 48, 48)
    intensity.add_noise(other, 0.07, seed=1)
    assert torch.equal(rows, again)
    assert stats.kstest(rows.ravel() / 0.07, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(rows[..., 1:].ravel(), rows[..., :-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(rows[0].ravel(), rows[1].ravel())[0, 1]) < 0.01


def test_row_functions_treat_rows_together_as_they_treat_them_alone():
    """On GPUs the rows of a batch come together, on CPUs one by one."""
    rows = volume(PATCH, channels=3)
    steps = [
        (intensity.blur, np.array([[0.5, 0.9, 1.0], [0.6, 0.6, 0.6], [1.0, 0.5, 0.7]])),
        (intensity.scale_brightness, np.array([0.8, 1.1, 1.2])),
        (intensity.scale_contrast, np.array([0.8, 1.1, 1.2])),
        (intensity.reduce_resolution, np.array([[0.5] * 3, [0.8] * 3, [0.6] * 3])),
        (lambda x, g: intensity.gamma_correct(x, g, inverted=True), np.array([0.8, 1.1, 1.4])),
        (lambda x, g: intensity.gamma_correct(x, g, inverted=False), np.array([0.8, 1.1, 1.4])),
    ]
    for transform, values in steps:
        together = rows.clone()
        transform(together, values)
        for row in range(3):
            alone = rows[row : row + 1].clone()
            transform(alone, values[row : row + 1])
            np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-6)


# Drawing


@relaxed
@given(seed=st.integers(0, 2**63), indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_a_sample_s_parameters_depend_on_its_own_index_alone(seed, indices):
    together = draw(AugmentConfig(), seed, indices, PATCH, 2)
    for position, index in enumerate(indices):
        alone, row = draw(AugmentConfig(), seed, [index], PATCH, 2), together.row(position)
        for name in vars(alone):
            np.testing.assert_array_equal(getattr(alone, name), getattr(row, name))


def test_another_channel_or_another_probability_changes_no_other_number():
    plain = draw(AugmentConfig(), 0, range(200), PATCH, 1)
    more = draw(AugmentConfig(noise_probability=1.0, gamma=(0.5, 2.0)), 0, range(200), PATCH, 3)
    np.testing.assert_array_equal(plain.matrix, more.matrix)
    np.testing.assert_array_equal(plain.mirror, more.mirror)
    np.testing.assert_array_equal(plain.blur_sigma, more.blur_sigma[:, :1])
    np.testing.assert_array_equal(plain.contrast, more.contrast[:, :1])
    np.testing.assert_array_equal(plain.noise_seed, more.noise_seed)


def test_the_parameters_of_a_known_sample_never_change():
    params = draw(AugmentConfig(rotation_probability=1, noise_probability=1), 2024, [77], PATCH, 1)
    assert int(params.noise_seed[0]) == GOLDEN_NOISE_SEED
    assert params.matrix[0].ravel().tolist() == pytest.approx(GOLDEN_MATRIX, abs=1e-12)
    assert params.noise_std[0] == pytest.approx(GOLDEN_NOISE_STD, abs=1e-15)


def test_nothing_is_drawn_when_augmentation_is_off():
    params = draw(OFF, 0, range(50), PATCH, 2)
    images = [volume(PATCH, channels=2, seed=i) for i in range(3)]
    labels = [regions(PATCH, seed=i) for i in range(3)]
    image, label = Augmenter(PATCH)(images, labels, neutral(3, 2))
    assert torch.equal(image, torch.stack(images))
    assert torch.equal(label[:, 0], torch.stack(labels).to(torch.int16))
    assert not params.spatial.any()
    assert not params.mirror.any()


def test_a_sample_looks_the_same_in_every_batch_bit_for_bit():
    config = AugmentConfig(
        rotation_probability=0.5, noise_probability=0.5, blur_probability=0.6, brightness_probability=0.5,
        contrast_probability=0.5, low_resolution_probability=0.6, inverted_gamma_probability=0.5,
    )  # fmt: skip
    source, labels = volume((80, 80, 80), channels=2), regions((80, 80, 80))

    def augmented(indices):
        params = draw(config, 5, indices, PATCH, 2)
        boxes = [read_box(params.row(k), PATCH) for k in range(len(indices))]
        return Augmenter(PATCH)([crop(source, b) for b in boxes], [crop(labels, b) for b in boxes], params)

    together = augmented(list(range(8)))
    for index in range(8):
        alone = augmented([index])
        assert torch.equal(alone[0][0], together[0][index])
        assert torch.equal(alone[1][0], together[1][index])


# Configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotation_probability", 1.5),
        ("scaling", (1.4, 0.7)),
        ("scaling", (0.0, 1.0)),
        ("noise_std", (-0.1, 0.1)),
        ("low_resolution_scale", (0.5, 1.1)),
        ("gamma", (0.5, 0.9)),
        ("mirror_axes", (0, 3)),
        ("rotation_probabilty", 0.2),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValidationError, match=field):
        AugmentConfig(**{field: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_what_the_cpu_gives_but_for_the_noise():
    config = AugmentConfig(
        rotation_probability=0.6, noise_probability=0, blur_probability=0.6, brightness_probability=0.5,
        contrast_probability=0.5, low_resolution_probability=0.6, inverted_gamma_probability=0.5,
    )  # fmt: skip
    source, labels = volume((80, 80, 80), channels=2), regions((80, 80, 80))
    params = draw(config, 5, range(12), PATCH, 2)
    boxes = [read_box(params.row(k), PATCH) for k in range(12)]
    images, segmentations = [crop(source, b) for b in boxes], [crop(labels, b) for b in boxes]
    cpu = Augmenter(PATCH)(images, segmentations, params)
    gpu = Augmenter(PATCH)([i.cuda() for i in images], [s.cuda() for s in segmentations], params)
    np.testing.assert_allclose(gpu[0].cpu(), cpu[0], atol=2e-3)
    assert torch.mean((gpu[1].cpu() != cpu[1]).float()) < 1e-3
