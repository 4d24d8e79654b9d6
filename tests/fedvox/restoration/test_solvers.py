"""Operators and solvers against closed forms, against deepinv, and against a posterior that is known."""

import numpy as np
import pytest
import torch

from fedvox.errors import ConfigError
from fedvox.restoration import baselines, physics
from fedvox.restoration.deepinv_loader import deepinv
from fedvox.restoration.solvers import DEFAULTS, SolverOptions, Task, anneal, diffpir_levels, solve

SIZE = (20, 24)


def dense(operator, shape):
    """The matrix of an operator on images of a shape."""
    basis = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    return torch.stack([operator.A(b[None]).flatten() for b in basis], dim=1)


OPERATORS = {
    "one coil": lambda: physics.mri(physics.cartesian_mask(SIZE, 4), noise=0.1),
    "one coil, odd mask": lambda: physics.mri(physics.cartesian_mask(SIZE, 3, symmetric=False, seed=5), noise=0.1),
    "coils and phase": lambda: physics.mri(
        physics.cartesian_mask(SIZE, 4), coil_maps=physics.simulated_coils(SIZE, 3),
        phase=torch.polar(torch.ones(SIZE), torch.linspace(0, 3, 24).expand(SIZE)), noise=0.1,
    ),
    "larger voxels": lambda: physics.BlockAverage((2, 4), deepinv.physics.GaussianNoise(0.1)),
    "larger voxels in 3D": lambda: physics.BlockAverage((2, 1, 3)),
    "MRI in 3D": lambda: physics.mri(physics.cartesian_mask((6, 8), 2).expand(4, 6, 8)),
}  # fmt: skip
SHAPES = {"larger voxels in 3D": (1, 4, 3, 6), "MRI in 3D": (1, 4, 6, 8)}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_proximal_step_and_pseudo_inverse_are_those_of_the_matrix(name):
    torch.manual_seed(0)
    operator, shape = OPERATORS[name](), SHAPES.get(name, (1, *SIZE))
    matrix = dense(operator, shape).double()
    x = torch.randn(1, *shape)
    y = operator.A(x) + 0.1 * torch.randn_like(operator.A(x))
    flat_y, z, gamma = y.flatten().double(), torch.randn(1, *shape), 3.0
    torch.testing.assert_close(
        operator.A_adjoint(y).flatten().double(), matrix.T @ flat_y, atol=1e-4, rtol=1e-4
    )
    left = gamma * matrix.T @ matrix + torch.eye(len(matrix.T), dtype=torch.float64)
    expected = torch.linalg.solve(left, gamma * matrix.T @ flat_y + z.flatten().double())
    torch.testing.assert_close(
        operator.prox_l2(z, y, gamma).flatten().double(), expected, atol=2e-3, rtol=1e-3
    )
    if name != "coils and phase":  # there it is iterative and not of smallest norm to this precision
        inverse = torch.linalg.pinv(matrix, rtol=1e-4) @ flat_y
        torch.testing.assert_close(operator.A_dagger(y).flatten().double(), inverse, atol=2e-3, rtol=1e-3)


def test_larger_voxels_are_deepinvs_downsampling_with_a_box_filter():
    x = torch.rand(1, 1, *SIZE)
    theirs = deepinv.physics.Downsampling(
        img_size=(1, *SIZE), factor=2, filter=torch.ones(1, 1, 2, 2) / 4, padding="circular"
    )
    torch.testing.assert_close(physics.BlockAverage((2, 2)).A(x), theirs.A(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("acceleration", "size"), [(4, (16, 160)), (8, (16, 160)), (4, (16, 161))])
def test_a_symmetric_mask_gains_nothing_from_a_real_image(acceleration, size):
    mask = physics.cartesian_mask(size, acceleration, seed=3)
    assert float(mask.mean()) == pytest.approx(1 / acceleration, rel=0.1)
    centred = torch.fft.ifftshift(mask, dim=(-2, -1))
    assert torch.equal(centred, torch.roll(centred.flip(-1), 1, -1))
    assert mask[0, size[1] // 2] == 1


def blur(x, sigma, **_):
    """A denoiser that is no network: shrinks towards the mean of neighbours, more at larger noise."""
    share = torch.as_tensor(sigma).reshape(-1)[0] / (1 + torch.as_tensor(sigma).reshape(-1)[0])
    around = (torch.roll(x, 1, -1) + torch.roll(x, -1, -1) + torch.roll(x, 1, -2) + torch.roll(x, -1, -2)) / 4
    return x + share * (around - x)


class Blur(torch.nn.Module):
    def forward(self, x, sigma, *_, **__):
        return blur(x, sigma)


def problem(noise=0.05):
    torch.manual_seed(2)
    operator = deepinv.physics.Inpainting(
        img_size=(1, *SIZE),
        mask=(torch.rand(1, *SIZE) > 0.4).float(),
        noise_model=deepinv.physics.GaussianNoise(noise),
    )
    return operator, operator(torch.rand(1, 1, *SIZE))


@pytest.mark.parametrize("name", ["pgd", "fista", "admm", "red"])
def test_optimisers_give_what_deepinv_gives_with_the_same_denoiser(name):
    operator, y = problem()
    options = SolverOptions(steps=7, largest=0.2, smallest=0.05, weight=0.5)
    ours = solve(name, blur, operator, y, options=options)
    sigmas = torch.tensor(
        [((0.2 ** (1 / 7)) + k / 6 * (0.05 ** (1 / 7) - 0.2 ** (1 / 7))) ** 7 for k in range(7)]
    )
    algorithm = {"pgd": "PGD", "fista": "FISTA", "admm": "ADMM", "red": "GD"}[name]
    prior = deepinv.optim.RED(Blur()) if name == "red" else deepinv.optim.PnP(Blur())
    more = {"lambda_reg": 0.5} if name == "red" else {}
    step = {"admm": 10.0, "red": 1 / 1.5}.get(name, 1.0)
    model = getattr(deepinv.optim, algorithm)(
        data_fidelity=deepinv.optim.L2(),
        prior=prior,
        stepsize=step,
        g_param=sigmas.tolist(),
        max_iter=7,
        **more,
    )
    start = operator.A_dagger(y)
    theirs = model(y, operator, init=(start, start) if name in ("fista", "admm") else start)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_ddrm_is_deepinvs():
    operator, y = problem()
    ours = solve("ddrm", blur, operator, y, options=SolverOptions(steps=6), seed=4)
    levels = np.asarray([(1 + k / 5 * (0.01 ** (1 / 7) - 1)) ** 7 for k in range(6)])
    theirs = deepinv.sampling.DDRM(Blur(), sigmas=levels.tolist())(y, operator, seed=5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_diffpir_on_deepinvs_own_schedule_gives_deepinvs_result(monkeypatch):
    """Theirs keeps images in [-1, 1] and variance-preserving units; ours is the same recursion on noise levels."""
    operator, y = problem(noise=0.02)
    steps, zeta, lambda_ = 8, 0.4, 7.0
    model = deepinv.sampling.DiffPIR(
        model=Blur(), data_fidelity=deepinv.optim.L2(), sigma=0.02, max_iter=steps, zeta=zeta, lambda_=lambda_
    )
    levels = (
        torch.stack([model.sigmas[i] for i in model.seq])[:-1] / 2
    )  # their last step neither denoises nor fits
    drawn = [torch.randn(1, 1, *SIZE) for _ in range(steps)]
    calls = iter(drawn)
    monkeypatch.setattr(torch, "randn_like", lambda _x: next(calls))
    theirs = model(y, operator)
    monkeypatch.undo()

    task = Task(
        lambda x, s: blur(x, s).clamp(0, 1),
        operator,
        y,
        SolverOptions(weight=2 / lambda_, renew=zeta),
        torch.Generator(),
    )
    mine = iter(drawn[1:])
    monkeypatch.setattr(Task, "normal", lambda _self, _like: next(mine))
    last = float(model.sigmas[model.seq[-1]]) / 2
    start_sigma = (float(model.sigmas[model.seq[0]]) ** 2 - 4 * 0.02**2) ** 0.5 / 2
    first_alpha = 1 / float(model.sqrt_recip_alphas_cumprod[-1])
    scaled = (operator.A_adjoint(y) * 2 - 1 + 2 * start_sigma * drawn[0]) * first_alpha
    nearest = float(model.sqrt_alphas_cumprod[model.find_nearest(model.reduced_alpha_cumprod, 2 * levels[0])])
    start = scaled / nearest / 2 + 0.5
    _, agree = diffpir_levels(task)
    # One more level, at which nothing is done but adding the noise: where theirs ends.
    ended = anneal(
        task, torch.cat([levels, torch.tensor([last])]), lambda x, s: x if s == last else agree(x, s), start
    )
    alpha = float(model.sqrt_alphas_cumprod[model.find_nearest(model.reduced_alpha_cumprod, 2 * last)])
    torch.testing.assert_close(ended, ((theirs - 0.5) * 2 / alpha) / 2 + 0.5, atol=2e-3, rtol=2e-3)


# ---- a posterior that is known --------------------------------------------------------------------------------

CHAINS = 4000


def gaussian_toy():
    """Eight voxels with a known mean and covariance, of which five are measured with noise 0.1."""
    torch.manual_seed(0)
    root = torch.randn(8, 8) * 0.25
    mean, covariance = torch.linspace(0.2, 0.8, 8), root @ root.T + 0.02 * torch.eye(8)
    known = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 0])
    operator = deepinv.physics.Inpainting(
        img_size=(1, 1, 8), mask=known.view(1, 1, 8), noise_model=deepinv.physics.GaussianNoise(0.1)
    )
    y = known * torch.tensor([0.5, 0.1, 0, 0.6, 0, 0.4, 0.9, 0])
    a = torch.diag(known)[known > 0]
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + 0.01 * torch.eye(5))
    expected_mean = mean + gain @ (y[known > 0] - a @ mean)
    expected = covariance - gain @ a @ covariance

    def denoiser(x, sigma, **_):
        s = float(torch.as_tensor(sigma).flatten()[0])
        shrink = covariance @ torch.linalg.inv(covariance + s**2 * torch.eye(8))
        return mean + (x - mean) @ shrink.T

    return operator, y.expand(CHAINS, 1, 1, 8), denoiser, expected_mean, expected


def test_posterior_samples_have_the_mean_and_the_covariance_of_the_known_posterior():
    operator, y, denoiser, mean, covariance = gaussian_toy()
    options = SolverOptions(steps=60, largest=1.0, smallest=0.05, inner=30)
    samples = solve("pnpdm", denoiser, operator, y, options=options, seed=1)[:, 0, 0]
    sd = covariance.diagonal().sqrt()
    assert ((samples.mean(dim=0) - mean).abs() / sd).max() < 0.1
    assert (samples.std(dim=0) / sd - 1).abs().max() < 0.1
    correlation = torch.corrcoef(samples.T) - covariance / (sd[:, None] * sd)
    assert correlation.abs().max() < 0.1


@pytest.mark.parametrize("name", ["diffpir", "ddnm", "dps"])
def test_annealing_solvers_find_the_posterior_mean_but_understate_or_overstate_its_spread(name):
    operator, y, denoiser, mean, covariance = gaussian_toy()
    options = SolverOptions(steps=100, largest=2.0, smallest=0.01)
    samples = solve(name, denoiser, operator, y, options=options, seed=1)[:, 0, 0]
    sd = covariance.diagonal().sqrt()
    assert ((samples.mean(dim=0) - mean).abs() / sd).max() < 0.6
    ratio = samples.std(dim=0) / sd
    assert (ratio - 1).abs().max() > 0.1, "calibrated after all: say so in the docs"


@pytest.mark.parametrize("name", [n for n in DEFAULTS if n != "ddrm"])
def test_every_solver_repeats_itself_and_comes_closer_to_the_truth_than_zero_filling(name):
    torch.manual_seed(0)
    line = torch.fft.fftfreq(32) * 32
    power = 1 / (1 + (line[:, None] ** 2 + line**2) / 4) ** 2  # images are Gaussian with this spectrum

    def wiener(x, sigma, **_):
        level = torch.as_tensor(sigma).flatten()[0]
        return torch.fft.ifft2(torch.fft.fft2(x) * power / (power + level**2)).real

    truth = torch.fft.ifft2(torch.fft.fft2(torch.randn(1, 1, 32, 32)) * power.sqrt()).real
    operator = physics.inpainting((torch.rand(1, 32, 32) > 0.5).float(), 0.01)
    y = operator(truth)
    first = solve(name, wiener, operator, y, seed=3)
    assert torch.equal(first, solve(name, wiener, operator, y, seed=3))
    assert (first - truth).norm() < 0.5 * (baselines.zero_filled(operator, y) - truth).norm()


def test_unknown_solvers_and_operators_that_cannot_be_decomposed_are_refused():
    operator = physics.mri(physics.cartesian_mask(SIZE, 4))
    y = operator(torch.rand(1, 1, *SIZE))
    with pytest.raises(ConfigError, match="'magic' does not exist"):
        solve("magic", blur, operator, y)
    with pytest.raises(ConfigError, match="decompose"):
        solve("ddrm", blur, operator, y)


@pytest.mark.parametrize("name", ["tv", "wavelet"])
def test_baselines_without_training_beat_zero_filling_on_a_piecewise_constant_image(name):
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 8:24, 10:20] = 1.0
    operator = physics.mri(physics.cartesian_mask((32, 32), 2), noise=0.01)
    y = operator(truth)
    found = baselines.BASELINES[name](operator, y)
    assert (found - truth).norm() < 0.9 * (baselines.zero_filled(operator, y) - truth).norm()
