"""nnU-Net's training transforms, of batchgeneratorsv2's own classes: what `benchmarks/loader.py` races against."""

from __future__ import annotations

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

Size3 = tuple[int, int, int]

_ANGLE = 30 / 360 * 2 * np.pi


def nnunet_transforms(patch_size: Size3, *, time_blur: bool = True) -> ComposeTransforms:
    """The list of nnU-Net v2.8's trainer for isotropic 3D patches, without its deep-supervision targets.

    Args:
        patch_size: (D, H, W).
        time_blur: let the blur time FFT against direct convolution where it meets a new size, as nnU-Net does.
    """
    transforms = [
        spatial(patch_size),
        *intensity(time_blur),
        MirrorTransform((0, 1, 2)),
        RemoveLabelTansform(-1, 0),
    ]
    return ComposeTransforms(transforms)


def spatial(patch_size: Size3, probability: float = 0.2) -> SpatialTransform:
    """Rotation and scaling."""
    return SpatialTransform(
        patch_size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=probability,
        rotation=(-_ANGLE, _ANGLE),
        p_scaling=probability,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )


def intensity(time_blur: bool) -> list[BasicTransform]:
    """What lies between the spatial transform and mirroring, in order."""
    return [
        RandomTransform(GaussianNoiseTransform((0, 0.1), 1, synchronize_channels=True), 0.1),
        RandomTransform(GaussianBlurTransform((0.5, 1.0), False, False, 0.5, benchmark=time_blur), 0.2),
        RandomTransform(MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), False, 1), 0.15),
        RandomTransform(ContrastTransform(BGContrast((0.75, 1.25)), True, False, 1), 0.15),
        RandomTransform(SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5), 0.25),
        RandomTransform(GammaTransform(BGContrast((0.7, 1.5)), 1, False, 1, 1), 0.1),
        RandomTransform(GammaTransform(BGContrast((0.7, 1.5)), 0, False, 1, 1), 0.3),
    ]


def initial_patch_size(patch_size: Size3, *, smallest_scale: float = 0.85) -> Size3:
    """What nnU-Net reads for each patch, so that most of what rotation and scaling need is there.

    The patch, turned by 30° about one axis at a time, must fit; then all is divided by the smallest scale that
    nnU-Net reckons with.
    """
    size = np.asarray(patch_size, float)
    widest = size.copy()
    for a, b in ((1, 2), (0, 2), (0, 1)):
        turned = size.copy()
        turned[a] = np.cos(_ANGLE) * size[a] + np.sin(_ANGLE) * size[b]
        turned[b] = np.sin(_ANGLE) * size[a] + np.cos(_ANGLE) * size[b]
        widest = np.maximum(widest, turned)
    d, h, w = (widest / smallest_scale).astype(int)
    return (int(d), int(h), int(w))
