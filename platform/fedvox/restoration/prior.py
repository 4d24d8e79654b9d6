"""The diffusion prior: a denoiser with the preconditioning of Karras et al. 2022 (EDM, table 1).

    D(x; σ) = c_skip x + c_out F(c_in x; ln σ / 4),     c_skip = s²/(σ²+s²),  c_out = σ s/√(σ²+s²),  c_in = 1/√(σ²+s²)

with `s` the standard deviation of the training images. All images are `(B, 1, D, H, W)`, scaled to [0, 1] or so. A
2D network sees the D slices of a patch as channels; a 3D network sees them as space.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedvox.restoration.config import NoiseSection, PriorNetworkSection, Size3
from fedvox.restoration.unet import NoiseUNet


class DiffusionPrior(nn.Module):
    """Denoises patches.

    Args:
        network: what the network is made of.
        noise: the noise levels that it knows.
        patch_size: (D, H, W) in training; with 2D convolutions D slices are denoised together.
    """

    def __init__(self, network: PriorNetworkSection, noise: NoiseSection, patch_size: Size3) -> None:
        super().__init__()
        self.patch_size, self.noise = patch_size, noise
        self.flat = network.convolutions == "2d"
        self.positions = network.positions
        axes = 2 if self.flat else 3
        slices = patch_size[0] if self.flat else 1
        self.network = NoiseUNet(
            slices + (axes if network.positions else 0), slices, dims=axes, widths=network.widths,
            blocks=network.blocks, unshuffle=network.unshuffle, embedding=network.embedding,
        )  # fmt: skip
        self.sigma_data: Tensor
        self.register_buffer("sigma_data", torch.tensor(0.3))

    @property
    def divisor(self) -> Size3:
        """What the edges of a patch must be multiples of; with 2D convolutions it has exactly D slices."""
        edge = self.network.divisor
        return (self.patch_size[0] if self.flat else edge, edge, edge)

    @property
    def reach(self) -> Size3:
        """How far the context of a voxel extends along each axis."""
        edge = self.network.reach
        return (0 if self.flat else edge, edge, edge)

    def forward(self, x: Tensor, sigma: Tensor, where: Tensor | None = None) -> Tensor:
        """Denoises patches.

        Args:
            x: `(B, 1, D, H, W)`, edges divisible by `divisor`.
            sigma: `(B,)`, standard deviation of the noise.
            where: `(B, 3, 2)`, coordinates of the first and the last voxel of each axis (see `patch_positions`); for
                a prior with position channels.

        Returns:
            The expected image, of the shape of `x`.
        """
        variance, data = sigma.square().view(-1, 1, 1, 1, 1), self.sigma_data.square()
        total = variance + data
        flat = x[:, 0] if self.flat else x
        scaled = flat * total.rsqrt().view(-1, *[1] * (flat.ndim - 1))
        if self.positions:
            if where is None:
                raise ValueError("this prior has position channels: it needs to know where its patches are")
            scaled = torch.cat([scaled, position_channels(where, flat.shape, self.flat)], dim=1)
        out = self.network(scaled, sigma.clamp_min(1e-6).log() / 4).float()
        out = out[:, None] if self.flat else out
        denoised: Tensor = x * (data / total) + out * (variance * data / total).sqrt()
        return denoised

    def loss(self, clean: Tensor, noise: Tensor, sigma: Tensor, where: Tensor | None = None) -> Tensor:
        """The weighted squared error of each patch `(B,)`, about one for an untrained network.

        Args:
            clean: `(B, 1, D, H, W)`.
            noise: standard normal, of the same shape.
            sigma: `(B,)`.
            where: see `forward`.
        """
        denoised = self(clean + sigma.view(-1, 1, 1, 1, 1) * noise, sigma, where)
        weight = (sigma.square() + self.sigma_data.square()) / (sigma * self.sigma_data).square()
        losses: Tensor = weight * (denoised - clean).square().flatten(1).mean(dim=1)
        return losses


class AveragedPrior(nn.Module):
    """A prior in training with the moving average of its weights; the average is what is used.

    Args:
        prior: freshly initialised.
    """

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.online = prior
        self.average = copy.deepcopy(prior).requires_grad_(False)

    def forward(self, clean: Tensor, noise: Tensor, sigma: Tensor, where: Tensor | None = None) -> Tensor:
        """The loss of the weights in training; see `DiffusionPrior.loss`."""
        return self.online.loss(clean, noise, sigma, where)

    @torch.no_grad()
    def follow(self, decay: float, step: int) -> None:
        """Moves the average towards the weights after a step; early steps are forgotten faster."""
        share = 1 - min(decay, (1 + step) / (10 + step))
        for mean, now in zip(self.average.parameters(), self.online.parameters(), strict=True):
            mean.lerp_(now, share)


def patch_positions(starts: Tensor, patch: Sequence[int], size: Sequence[int]) -> Tensor:
    """Coordinates of patches `(B, 3, 2)`: of their first and last voxels, -1 and 1 being those of the image.

    Args:
        starts: `(B, 3)`, first voxel of each patch in the image; may be negative in padding.
        patch: (D, H, W).
        size: (D, H, W) of the image.
    """
    first = starts.float()
    last = first + torch.tensor(patch, dtype=torch.float32, device=starts.device) - 1
    extent = (torch.tensor(size, dtype=torch.float32, device=starts.device) - 1).clamp_min(1)
    return 2 * torch.stack([first, last], dim=-1) / extent[:, None] - 1


def position_channels(where: Tensor, shape: Sequence[int], flat: bool) -> Tensor:
    """`(B, axes, *spatial)` coordinates for the input of a network; in 2D those of rows and columns."""
    batch, spatial = shape[0], shape[2:]
    channels = []
    for axis, length in enumerate(spatial):
        ends = where[:, axis + (1 if flat else 0)]
        ramp = torch.linspace(0, 1, length, device=where.device)
        line = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * ramp
        view = [batch, *(length if a == axis else 1 for a in range(len(spatial)))]
        channels.append(line.view(view).expand(batch, *spatial))
    return torch.stack(channels, dim=1)
