"""A small prior, written as a release, and small scans on disk."""

import numpy as np
import pytest
import torch

WIDTHS = (8, 12)


def small_prior(*, patch=(1, 16, 16), positions=False, seed=0):
    from fedvox.restoration.config import NoiseSection, PriorNetworkSection
    from fedvox.restoration.prior import DiffusionPrior

    torch.manual_seed(seed)
    network = PriorNetworkSection(
        convolutions="2d" if patch[0] < 8 else "3d",
        widths=WIDTHS,
        blocks=1,
        positions=positions,
        embedding=16,
    )
    prior = DiffusionPrior(network, NoiseSection(), patch).eval()
    torch.nn.init.normal_(prior.network.exit.weight, std=0.1)
    return prior


@pytest.fixture
def make_prior():
    return small_prior


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """The folder of a released prior of patches of 16."""
    from fedvox import storage
    from fedvox.restoration.config import NoiseSection, PriorNetworkSection
    from fedvox.restoration.release import PriorInfo, write_release

    folder = tmp_path_factory.mktemp("prior")
    network = PriorNetworkSection(widths=WIDTHS, blocks=1, embedding=16)
    info = PriorInfo(network.model_dump(mode="json"), NoiseSection().model_dump(mode="json"), (1, 16, 16))
    prior = small_prior()
    torch.nn.init.zeros_(prior.network.exit.weight)
    write_release(prior, info, storage.locate(str(folder)))
    return str(folder)


@pytest.fixture
def phantom():
    """Two slices `(2, 32, 40)` of smooth blobs between 0 and 1."""
    y, x = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 40), indexing="ij")
    blobs = [np.exp(-4 * ((y - s) ** 2 + x**2)) * (y**2 + x**2 < 0.8) for s in (0.0, 0.3)]
    return np.stack(blobs).astype(np.float32)


def centred_fft(image):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=axes), norm="ortho"), axes=axes)


@pytest.fixture
def kspace_of():
    """The k-space of images `(…, H, W)`, centred, by numpy."""
    return centred_fft
