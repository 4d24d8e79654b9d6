"""Measurements of real images `(B, 1, …)`, as deepinv's operators, from 2D slices to volumes.

deepinv measures complex images in two channels. Here an image is a magnitude; its phase, where it has one, is known
or estimated from the centre of k-space (`smooth_phase`) and belongs to the operator, as in phase-constrained
reconstruction. What deepinv has in 2D only has its counterpart in 3D here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fedvox.restoration.deepinv_loader import deepinv

LinearPhysics: Any = deepinv.physics.LinearPhysics


class RealImageMRI(LinearPhysics):  # type: ignore[misc]  # deepinv is untyped
    """MRI, single or multi-coil, 2D or 3D, of an image that is real once its phase is taken off.

    Args:
        inner: deepinv's `MRI` or `MultiCoilMRI`, which measures complex images `(B, 2, …)`.
        phase: complex `(…)` of modulus one, or None where the image is real.
    """

    def __init__(self, inner: Any, phase: Tensor | None = None) -> None:
        super().__init__(noise_model=inner.noise_model)
        self.inner = inner
        self.phase: Tensor | None
        self.register_buffer("phase", phase)

    @property
    def spatial(self) -> tuple[int, ...]:
        """Axes of an image: the last two, or three."""
        return (-3, -2, -1) if self.inner.three_d else (-2, -1)

    def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
        """K-space of images `(B, 1, …)`."""
        if self.phase is None:
            return cast(Tensor, self.inner.A(torch.cat([x, torch.zeros_like(x)], dim=1)))
        image = x[:, 0] * self.phase
        return cast(Tensor, self.inner.A(torch.stack([image.real, image.imag], dim=1)))

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
        """The adjoint: the real part of the coil-combined image, its phase taken off."""
        image = self.inner.A_adjoint(y)
        if self.phase is None:
            return cast(Tensor, image[:, :1])
        return (torch.complex(image[:, 0], image[:, 1]) * self.phase.conj()).real[:, None]

    @property
    def _symmetric_mask(self) -> Tensor | None:
        """Weights (…) of AᵀA in k-space, where it is diagonal there: one coil and no phase."""
        if self.phase is not None or not isinstance(self.inner, deepinv.physics.MRI):
            return None
        mask = self.inner.mask[0, 0]
        centred = torch.fft.ifftshift(mask, dim=self.spatial)
        mirrored = torch.roll(centred.flip(self.spatial), [1] * len(self.spatial), self.spatial)
        weights: Tensor = (centred + mirrored) / 2
        return weights

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor, **options: Any) -> Tensor:
        """The image that minimises `γ/2 ‖Ax - y‖² + 1/2 ‖x - z‖²`: exactly where AᵀA is diagonal in k-space."""
        mask = self._symmetric_mask
        if mask is None:
            options = {"solver": "CG", "max_iter": 20, "tol": 1e-5} | options
            return cast(Tensor, super().prox_l2(z, y, gamma, **options))
        right = gamma * self.A_adjoint(y) + z
        spectrum = torch.fft.fftn(right, dim=self.spatial) / (gamma * mask + 1)
        image: Tensor = torch.fft.ifftn(spectrum, dim=self.spatial).real
        return image

    def A_dagger(self, y: Tensor, **options: Any) -> Tensor:  # noqa: N802 - deepinv's name
        """The least-squares image of smallest norm."""
        mask = self._symmetric_mask
        if mask is None:
            return cast(Tensor, super().A_dagger(y, **options))
        spectrum = torch.fft.fftn(self.A_adjoint(y), dim=self.spatial)
        inverse = torch.where(mask > 0, 1 / mask.clamp_min(1e-6), torch.zeros_like(mask))
        image: Tensor = torch.fft.ifftn(spectrum * inverse, dim=self.spatial).real
        return image

    def noise(self, x: Tensor, **options: Any) -> Tensor:
        """Noise where k-space is sampled."""
        return cast(Tensor, self.inner.noise(x, **options))


class BlockAverage(LinearPhysics):  # type: ignore[misc]  # deepinv is untyped
    """Larger voxels, each the mean of those that it covers: thick slices, or low resolution along any axes.

    deepinv's `Downsampling` is 2D and square; in 2D with a box filter it is the same operator.

    Args:
        factors: per spatial axis of the image, (H, W) or (D, H, W).
        noise_model: deepinv's.
    """

    def __init__(self, factors: Sequence[int], noise_model: Any = None) -> None:
        super().__init__(**({} if noise_model is None else {"noise_model": noise_model}))
        self.factors = tuple(int(f) for f in factors)

    @property
    def voxels(self) -> int:
        """Of the image in one voxel of the measurement."""
        return math.prod(self.factors)

    def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
        """Means of blocks; edges must be divisible by the factors."""
        shape, axes = list(x.shape[:2]), []
        for length, factor in zip(x.shape[2:], self.factors, strict=True):
            axes.append(len(shape) + 1)
            shape += [length // factor, factor]
        return x.reshape(shape).mean(dim=axes)

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
        """Each value spread over its block."""
        out = y
        for axis, factor in enumerate(self.factors, start=2):
            out = out.repeat_interleave(factor, dim=axis)
        return out / self.voxels

    def A_dagger(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
        """Nearest-neighbour enlargement: A Aᵀ is the identity divided by the block's voxels."""
        return self.A_adjoint(y) * self.voxels

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor, **_: Any) -> Tensor:
        """See `RealImageMRI.prox_l2`; exact, by the Woodbury identity."""
        return z + self.A_adjoint(y - self.A(z)) * gamma / (1 + gamma / self.voxels)


def mri(
    mask: Tensor, *, coil_maps: Tensor | None = None, phase: Tensor | None = None, noise: float = 0.0
) -> RealImageMRI:
    """The operator of a scan.

    Args:
        mask: `(H, W)` or `(D, H, W)`, 1 where k-space was sampled, its centre in the middle.
        coil_maps: complex `(N, …)`, or None for one coil that sees everything alike.
        phase: complex `(…)`, see `RealImageMRI`.
        noise: standard deviation of the noise of each real and imaginary part in k-space.
    """
    three_d = mask.ndim == 3
    model = deepinv.physics.GaussianNoise(noise)
    if coil_maps is None:
        lifted = mask.expand(1, 2, *mask.shape).clone()
        return RealImageMRI(deepinv.physics.MRI(mask=lifted, three_d=three_d, noise_model=model), phase)
    lifted = mask.expand(1, 2, *mask.shape).clone()
    inner = deepinv.physics.MultiCoilMRI(
        mask=lifted, coil_maps=coil_maps[None], three_d=three_d, noise_model=model, img_size=tuple(mask.shape)
    )
    return RealImageMRI(inner, phase)


def denoising(noise: float) -> Any:
    """Deepinv's operator of an image that is only noisy."""
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(noise))


def inpainting(mask: Tensor, noise: float) -> Any:
    """Deepinv's operator of an image with holes; `mask` `(1, …)` is 1 where it is known."""
    return deepinv.physics.Inpainting(
        img_size=tuple(mask.shape), mask=mask, noise_model=deepinv.physics.GaussianNoise(noise)
    )


def cartesian_mask(
    size: tuple[int, int], acceleration: float, *, centre: float = 0.08, seed: int = 0, symmetric: bool = True
) -> Tensor:
    """A mask of whole columns `(H, W)`, fully sampled in the centre and at random elsewhere.

    Args:
        size: (H, W).
        acceleration: columns in all divided by columns sampled.
        centre: share of the columns that is always sampled; halved at more than sixfold acceleration.
        seed: of the choice.
        symmetric: sample columns in pairs about the centre. The spectrum of a real image is symmetric, so that a column
            tells its mirror image: with single columns a real image would be measured nearly twice.
    """
    width = size[1]
    column = torch.arange(width)
    distance = torch.minimum(
        column, (width - column) % width
    )  # from the zero frequency, which is column 0 here
    share = centre if acceleration <= 6 else centre / 2
    sampled: Tensor = distance < max(1, round(share * width / 2))
    wanted = round(width / acceleration)
    order = torch.randperm(
        width // 2 + 1 if symmetric else width, generator=torch.Generator().manual_seed(seed)
    )
    for one in order.tolist():
        if int(sampled.sum()) >= wanted:
            break
        sampled |= (distance if symmetric else column) == one
    mask: Tensor = torch.fft.fftshift(sampled).float().expand(size).clone()
    return mask


def smooth_phase(image: Tensor, share: float = 0.08) -> Tensor:
    """The phase of the lowest frequencies of a complex image `(…)`: modulus one, complex.

    Args:
        image: 2D or 3D.
        share: of the frequencies along each axis that are kept, by a Gaussian.
    """
    axes = tuple(range(image.ndim))
    spectrum = torch.fft.fftn(image, dim=axes)
    for axis, length in enumerate(image.shape):
        frequency = torch.fft.fftfreq(length, device=image.device)
        line = torch.exp(-0.5 * (frequency / (share / 2)) ** 2)
        spectrum = spectrum * line.view([-1 if a == axis else 1 for a in axes])
    low = torch.fft.ifftn(spectrum, dim=axes)
    size = low.abs()
    return torch.where(size > 1e-6 * size.max(), low / size.clamp_min(1e-12), torch.ones_like(low))


def simulated_coils(size: Sequence[int], coils: int) -> Tensor:
    """Smooth maps `(N, …)` complex64 of coils on a circle about the image, normalised: Σ|s|² = 1 at each voxel."""
    axes = [torch.linspace(-1, 1, n) for n in size]
    grid = torch.meshgrid(*axes, indexing="ij")
    y, x = grid[-2], grid[-1]
    maps = []
    for n in range(coils):
        angle = 2 * math.pi * n / coils
        away = (y - 1.2 * math.sin(angle)) ** 2 + (x - 1.2 * math.cos(angle)) ** 2
        maps.append(
            torch.polar(torch.exp(-away / 1.5), angle + 0.5 * (x * math.cos(angle) + y * math.sin(angle)))
        )
    stacked = torch.stack(maps)
    return (stacked / stacked.abs().square().sum(dim=0, keepdim=True).sqrt()).to(torch.complex64)
