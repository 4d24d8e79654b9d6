"""The MNI152 brain, a lesion that grows or shrinks in it, and a ventricle that widens: atrophy.

The head is a piece of the real template, differently turned, scaled and placed for each patient. The deformation that
widens the ventricle and the lesion's growth are formulas, so that the brain at any time is known exactly.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvox.data.demo import load_brain
from fedvox.forecasting.simulation.shapes import grid, inside
from fedvox.forecasting.simulation.subjects import Simulation, between, bright_volume

VOXEL_MM = 4.5
"""Of volumes of 16³, which show 72 mm of the head; larger volumes show the same with finer voxels."""
_LESION = 1.0


def render(subjects: Tensor, moments: Tensor, size: int) -> Tensor:
    """Volumes `(B, N, size, size, size)` of patients `(B, 20)` at months `(B, N)`."""
    scale, p = size / 16, subjects[:, None, :]
    points, changes = grid(size), p[..., -1]
    years = moments / 12
    growth = between(p[..., 0], -0.25, 0.55) * changes  # of the radius, per year, as an exponent
    centre = between(p[..., 1:4], -3.0, 3.0) * scale
    axes = between(p[..., 4:7], 1.5, 2.4) * scale * torch.exp(growth * years)[..., None]
    ventricle = between(p[..., 7:10], -2.0, 2.0) * scale
    widening = between(p[..., 10], 0.0, 0.12) * changes * years
    where = pulled(points, ventricle, widening, 5.0 * scale)
    image = 0.62 * _template(where * (VOXEL_MM / scale), p[..., 11:19])
    lesion = inside(points, centre, axes)
    return image + (_LESION - image) * lesion


def pulled(points: Tensor, centre: Tensor, widening: Tensor, reach: float) -> Tensor:
    """Where each voxel's tissue was before the ventricle widened, `(…, D, H, W, 3)` in voxels.

    Args:
        points: `(D, H, W, 3)`.
        centre: `(…, 3)` of the ventricle.
        widening: `(…,)`, relative growth at the centre.
        reach: voxels over which it fades (Gaussian).
    """
    offset = points - centre[..., None, None, None, :]
    fade = torch.exp(-offset.square().sum(dim=-1, keepdim=True) / (2 * reach**2))
    return points - offset * (
        fade * widening[..., None, None, None, None] / (1 + widening[..., None, None, None, None])
    )


def _template(millimetres: Tensor, pose: Tensor) -> Tensor:
    """The template at points around a patient's own place in it: `(B, N, D, H, W, 3)` to `(B, N, D, H, W)`."""
    volume, spacing = _brain()
    batch = len(millimetres)
    turn = _rotation(between(pose[:, 0, :3], -0.3, 0.3))
    turned = torch.einsum("bnzyxk,bjk->bnzyxj", millimetres, turn)
    turned = turned * between(pose[..., 3:6], 0.9, 1.1)[:, :, None, None, None, :]
    offset = torch.stack(
        [between(pose[..., 6], -6, 14), between(pose[..., 7], -25, 25), torch.zeros_like(pose[..., 0])],
        dim=-1,
    )
    extent = torch.tensor(volume.shape[2:], dtype=torch.float32) * spacing / 2
    normalised = (turned + offset[:, :, None, None, None, :]) / extent
    flat = normalised.reshape(batch, -1, 1, 1, 3).flip(-1)  # grid_sample wants (x, y, z)
    sampled = F.grid_sample(
        volume.expand(batch, -1, -1, -1, -1), flat, padding_mode="border", align_corners=False
    )
    return sampled.reshape(millimetres.shape[:-1])


def _rotation(angles: Tensor) -> Tensor:
    """Rotation matrices `(B, 3, 3)` around the three axes, one after the other."""
    s, c = angles.sin(), angles.cos()
    zero, one = torch.zeros_like(s[:, 0]), torch.ones_like(s[:, 0])
    a = torch.stack([one, zero, zero, zero, c[:, 0], -s[:, 0], zero, s[:, 0], c[:, 0]], 1).view(-1, 3, 3)
    b = torch.stack([c[:, 1], zero, s[:, 1], zero, one, zero, -s[:, 1], zero, c[:, 1]], 1).view(-1, 3, 3)
    g = torch.stack([c[:, 2], -s[:, 2], zero, s[:, 2], c[:, 2], zero, zero, zero, one], 1).view(-1, 3, 3)
    return a @ b @ g


@cache
def _brain() -> tuple[Tensor, float]:
    """The template (1, 1, D, H, W), averaged over cubes of 3 mm so that coarse volumes do not alias, and its voxel."""
    whole = torch.from_numpy(load_brain().t1)[None, None]
    return F.avg_pool3d(whole, 3), 3.0


BRAIN = Simulation("brain", "months", 36.0, 19, render, bright_volume(0.7, 1.0))
