"""The denoiser: EDM's preconditioning, locality, and images denoised by patches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.errors import ConfigError, DataError
from fedvox.restoration.memory import fit_budget, network_bytes
from fedvox.restoration.prior import patch_positions
from fedvox.restoration.tiling import Coverage, TiledPrior


def test_an_untrained_prior_is_the_best_linear_denoiser_of_its_variance(make_prior):
    prior = make_prior()
    torch.nn.init.zeros_(prior.network.exit.weight)
    x, sigma = torch.randn(2, 1, 1, 16, 16), torch.tensor([0.1, 2.0])
    data = float(prior.sigma_data) ** 2
    expected = x * (data / (data + sigma**2)).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(prior(x, sigma), expected)


def test_the_loss_of_an_untrained_prior_is_one_for_images_of_its_variance(make_prior):
    prior = make_prior()
    torch.nn.init.zeros_(prior.network.exit.weight)
    clean = torch.randn(400, 1, 1, 16, 16) * prior.sigma_data
    for level in (0.01, 0.3, 2.0):
        loss = prior.loss(clean, torch.randn_like(clean), torch.full((400,), level))
        assert float(loss.mean()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("patch", [(1, 16, 16), (3, 16, 16), (8, 8, 8)])
def test_nothing_farther_away_than_its_reach_changes_a_voxel(make_prior, patch):
    prior = make_prior(patch=patch)
    reach = prior.reach[1]
    edge = 64
    depth = patch[0] if prior.flat else edge
    x = torch.randn(1, 1, depth, edge, edge, requires_grad=True)
    out = prior(x, torch.tensor([0.1]))
    middle = [edge // 2 + k for k in range(4)]
    farthest = 0
    for m in middle:
        z = 0 if prior.flat else m
        (gradient,) = torch.autograd.grad(out[0, 0, z, m, m], x, retain_graph=True)
        touched = gradient[0, 0].abs().sum(dim=0).nonzero()
        farthest = max(farthest, int((touched - m).abs().max()))
    assert farthest == reach


def test_patches_with_a_margin_of_the_reach_are_denoised_as_inside_the_whole_image(make_prior):
    prior = make_prior(positions=True)
    x, reach = torch.rand(1, 1, 100, 100), prior.reach[1]
    with torch.no_grad():
        whole = TiledPrior(prior, Coverage("whole"))(x, 0.1)
        tiled = TiledPrior(prior, Coverage("tiles", (1, 16, 16), halo=reach, batch=7))(x, 0.1)
        bare = TiledPrior(prior, Coverage("tiles", (1, 16, 16), batch=7))(x, 0.1)
    inner = (..., slice(reach, -reach), slice(reach, -reach))
    torch.testing.assert_close(tiled[inner], whole[inner], atol=1e-5, rtol=0)
    assert (bare - whole)[inner].abs().max() > 1e-3


class _Identity(torch.nn.Module):
    """What a prior would be that changes nothing."""

    flat, positions, patch_size, divisor = False, False, (4, 8, 8), (4, 4, 4)

    def __init__(self):
        super().__init__()
        from fedvox.restoration.config import NoiseSection

        self.noise = NoiseSection()

    def forward(self, x, sigma, where=None):
        return x


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["whole", "tiles", "random", "overlap"]),
    st.tuples(*[st.integers(1, 21)] * 3), st.integers(0, 5), st.integers(1, 5),
)  # fmt: skip
def test_every_voxel_is_covered_exactly_once_or_with_weights_that_sum_to_one(mode, size, halo, batch):
    x = torch.randn(2, 1, *size)
    found = TiledPrior(_Identity(), Coverage(mode, halo=halo, batch=batch))(x, 0.2)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_the_grid_moves_at_every_call_only_where_it_should(make_prior):
    x = torch.rand(1, 1, 40, 40)
    with torch.no_grad():
        for mode, same in (("random", False), ("tiles", True), ("overlap", True), ("whole", True)):
            tiled = TiledPrior(make_prior(), Coverage(mode))
            assert torch.equal(tiled(x, 0.1), tiled(x, 0.1)) is same


def test_gradients_pass_through_patches_as_through_the_whole(make_prior):
    prior, weights = make_prior().requires_grad_(False), torch.randn(1, 1, 60, 60)
    inner = (..., slice(25, 35), slice(25, 35))
    gradients = []
    for coverage in (Coverage("whole"), Coverage("tiles", halo=prior.reach[1])):
        x = torch.linspace(0, 1, 3600).reshape(1, 1, 60, 60).requires_grad_()
        (TiledPrior(prior, coverage)(x, 0.1)[inner] * weights[inner]).sum().backward()
        gradients.append(x.grad[inner])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_positions_run_from_minus_one_to_one_over_the_image():
    where = patch_positions(torch.tensor([[0, 0, 0], [5, -10, 10]]), (1, 11, 11), (6, 21, 21))
    assert where[0].tolist() == [[-1, -1], [-1, 0], [-1, 0]]
    assert where[1].tolist() == [[1, 1], [-2, -1], [0, 1]]


def test_several_slices_are_refused_where_there_are_fewer(make_prior):
    with pytest.raises(DataError, match="3 slices together, the image has 1"):
        TiledPrior(make_prior(patch=(3, 16, 16)))(torch.rand(1, 1, 20, 20), 0.1)


def test_a_smaller_budget_gives_a_smaller_batch_then_a_smaller_patch_then_a_refusal(make_prior):
    prior = make_prior(patch=(1, 64, 64))
    size, wanted = (1, 100, 100), Coverage("random")
    one = network_bytes(prior, (1, 64, 64)) / 2**20
    images = 8 * 4 * 10_000 / 2**20
    fit = fit_budget(prior, size, wanted, images + 3.5 * one)
    assert (fit.coverage.patch_size, fit.coverage.batch) == ((1, 64, 64), 3)
    smaller = fit_budget(prior, size, wanted, images + 0.6 * one).coverage
    assert smaller.patch_size[1] < 64
    with pytest.raises(ConfigError, match="holds no patch"):
        fit_budget(prior, size, wanted, images)
