"""Augmented patches are distributed as batchgeneratorsv2's are, and a wrong variant would be noticed.

Each side augments the same volume some hundred times with numbers of its own. A patch is boiled down to a dozen
summaries that between them feel every transform, and each summary's two samples meet in a Kolmogorov–Smirnov test.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from scipy import ndimage, stats

from fedvox.data.augment import AugmentConfig, Augmenter, draw, read_box

PATCH = (16, 16, 16)
SAMPLES = 250
ACCEPT, REJECT = 1e-3, 1e-6
NONE = {
    name: 0.0
    for name in AugmentConfig.model_fields
    if name.endswith("_probability") and not name.endswith("channel_probability")
}
TRANSFORMS = {  # name -> position in batchgeneratorsv2's list, what to switch on here, and a wrong variant
    "noise": (0, {"noise_probability": 1.0}, {"noise_std": (0.0, 0.1**0.5)}),
    "blur": (1, {"blur_probability": 1.0}, {"blur_sigma": (0.5, 1.5)}),
    "brightness": (2, {"brightness_probability": 1.0}, {"brightness": (0.75, 1.75)}),
    "contrast": (3, {"contrast_probability": 1.0}, {"contrast": (0.75, 1.75)}),
    "low resolution": (4, {"low_resolution_probability": 1.0}, {"low_resolution_channel_probability": 1.0}),
    "inverted gamma": (5, {"inverted_gamma_probability": 1}, {"inverted_gamma_probability": 0, "gamma_probability": 1}),
    "gamma": (6, {"gamma_probability": 1.0}, {"gamma": (0.7, 3.0)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    """batchgeneratorsv2's transforms as nnU-Net lists them, from the benchmark that races against them."""
    path = Path(__file__).parents[3] / "benchmarks" / "peers" / "nnunet_transforms.py"
    spec = importlib.util.spec_from_file_location("nnunet_transforms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scene():
    """A skewed, anisotropic image of two channels and a label map, larger than any sample needs."""
    rng = np.random.default_rng(0)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, 50, 50, 50)), (0, 1.5, 3, 6))
    fields /= fields.std((1, 2, 3), keepdims=True)
    ramp = np.linspace(-1, 1, 50)
    image = np.exp(0.6 * fields) - 1 + ramp[:, None, None] + 0.5 * ramp + 0.1 * rng.normal(size=fields.shape)
    label = np.digitize(fields[0] + 1.5 * ramp[:, None], (-0.7, 0.4, 1.2))
    return torch.from_numpy(image).float(), torch.from_numpy(label.astype(np.int16))


def summaries(image: torch.Tensor, label: torch.Tensor) -> np.ndarray:
    """Moments, quantiles, gradient energy and centre of mass of an image, and the label's share of each kind."""
    x = image.double().numpy()
    place = np.linspace(-1, 1, x.shape[1])
    numbers = [
        x.mean((1, 2, 3)), x.std((1, 2, 3)), x.min((1, 2, 3)), x.max((1, 2, 3)),
        *np.quantile(x, (0.05, 0.5, 0.95), axis=(1, 2, 3)),
        *[(np.diff(x, axis=axis) ** 2).mean((1, 2, 3)) for axis in (1, 2, 3)],
        np.einsum("cdhw,d->c", x, place), np.einsum("cdhw,h->c", x, place), np.einsum("cdhw,w->c", x, place),
    ]  # fmt: skip
    shares = [float((label == k).double().mean()) for k in range(4)]
    middle = [float((label[:8] == k).double().mean()) for k in range(2)]
    return np.concatenate([*numbers, shares, middle])


def centre(volume: torch.Tensor, size) -> torch.Tensor:
    starts = [(n - s) // 2 for n, s in zip(volume.shape[-3:], size, strict=True)]
    return volume[(..., *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))].contiguous()


def ours(scene, **config) -> np.ndarray:
    image, label = scene
    params = draw(AugmentConfig(**config), 11, range(SAMPLES), PATCH, 2)
    rows = []
    for k in range(SAMPLES):
        box = read_box(params.row(k), PATCH)
        x, y = Augmenter(PATCH)([centre(image, box)], [centre(label, box)], params.row(k))
        rows.append(summaries(x[0], y[0, 0]))
    return np.array(rows)


def theirs(scene, transform, *, cropped: bool) -> np.ndarray:
    image, label = (centre(part, PATCH) for part in scene) if cropped else scene
    np.random.seed(7)
    torch.manual_seed(7)
    rows = []
    for _ in range(SAMPLES):
        out = transform(image=image.clone(), segmentation=label[None].clone())
        rows.append(summaries(out["image"], out["segmentation"][0]))
    return np.array(rows)


def disagreement(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest p-value over all summaries, times their number (Bonferroni)."""
    varies = (a.std(0) > 1e-6) | (b.std(0) > 1e-6)
    assert varies.any()
    # Rounded, because both sides leave some samples as they were, and sums differ in their last bits.
    pairs = zip(np.round(a.T[varies], 5), np.round(b.T[varies], 5), strict=True)
    p = [stats.ks_2samp(x, y, method="asymp").pvalue for x, y in pairs]
    return min(p) * len(p)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_has_the_reference_s_distribution(name, reference, scene):
    position, switched_on, wrong = TRANSFORMS[name]
    transform = reference.intensity(time_blur=False)[position].transform
    expected = theirs(scene, transform, cropped=True)
    assert disagreement(ours(scene, **{**NONE, **switched_on}), expected) > ACCEPT
    assert disagreement(ours(scene, **{**NONE, **switched_on, **wrong}), expected) < REJECT


def test_rotation_and_scaling_have_the_reference_s_distribution(reference, scene):
    expected = theirs(scene, reference.spatial(PATCH, probability=1.0), cropped=False)
    both = {**NONE, "rotation_probability": 1.0, "scaling_probability": 1.0}
    assert disagreement(ours(scene, **both), expected) > ACCEPT
    assert disagreement(ours(scene, **both, scaling=(0.7, 1.1)), expected) < REJECT
    assert disagreement(ours(scene, **both, rotation_degrees=(-10, 10)), expected) < REJECT


def test_mirroring_has_the_reference_s_distribution(reference, scene):
    expected = theirs(scene, MirrorTransform((0, 1, 2)), cropped=True)
    mirrored = {**NONE, "mirror_probability": 0.5}
    assert disagreement(ours(scene, **mirrored), expected) > ACCEPT
    assert disagreement(ours(scene, **mirrored, mirror_axes=(0, 1)), expected) < REJECT


def test_the_whole_list_has_the_reference_s_distribution(reference, scene):
    expected = theirs(scene, reference.nnunet_transforms(PATCH, time_blur=False), cropped=False)
    assert disagreement(ours(scene), expected) > ACCEPT
    assert (
        disagreement(
            ours(scene, gamma_probability=1.0, brightness_probability=1.0, noise_probability=0.5), expected
        )
        < REJECT
    )


PUBLISHED = {  # nnU-Net's trainer; the probability that a transform touches a channel
    "spatial": 1 - 0.8 * 0.8, "noise_std": 0.1, "blur_sigma": 0.2 * 0.5, "brightness": 0.15, "contrast": 0.15,
    "low_resolution": 0.25 * 0.5, "inverted_gamma": 0.1, "gamma": 0.3, "mirror": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_transforms_happen_as_often_as_nnunet_s_trainer_lets_them(name):
    params = draw(AugmentConfig(), 0, range(8000), PATCH, 1)
    neutral = {"spatial": False, "mirror": False, "noise_std": 0, "blur_sigma": 0}.get(name, 1)
    happened = getattr(params, name).reshape(8000, -1)[:, 0] != neutral
    assert stats.binomtest(int(happened.sum()), 8000, PUBLISHED[name]).pvalue > 1e-3


def test_transforms_happen_independently_of_one_another():
    params = draw(AugmentConfig(), 0, range(8000), PATCH, 2)
    happened = np.stack(
        [
            params.spatial, params.noise_std > 0, params.brightness[:, 0] != 1, params.contrast[:, 0] != 1,
            params.inverted_gamma[:, 0] != 1, params.gamma[:, 0] != 1, *params.mirror.T,
        ]
    )  # fmt: skip
    correlation = np.corrcoef(happened)
    assert np.abs(correlation[~np.eye(len(happened), dtype=bool)]).max() < 5 / 8000**0.5
