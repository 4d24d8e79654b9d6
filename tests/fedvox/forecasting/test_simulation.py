"""Simulated patients against what their formulas promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedvox.forecasting.baselines import BASELINES, last_context_image, linear, mean_context, spline
from fedvox.forecasting.metrics import changing_region, mean_squared_error, nrmse, psnr, scores, ssim
from fedvox.forecasting.simulation import SIMULATIONS, TEST, Schedule, Simulated
from fedvox.forecasting.simulation.heart import contraction
from fedvox.forecasting.simulation.shapes import grid, inside

ALL = pytest.mark.parametrize("name", sorted(SIMULATIONS))


def simulated(name, **changes):
    return Simulated(SIMULATIONS[name], Schedule(**changes), seed=3)


@ALL
def test_a_sample_depends_on_its_own_number_alone(name):
    source = simulated(name)
    both, alone = source.examples([5, 9]), source.examples([9])
    assert torch.allclose(both.scans[1], alone.scans[0], atol=1e-6)
    assert both.target_time[1] == alone.target_time[0]


@ALL
def test_patients_who_do_not_change_look_the_same_at_all_times(name):
    still = replace(simulated(name), static=1.0).examples(range(4))
    assert torch.allclose(still.scans_truth, still.truth[:, None].expand_as(still.scans_truth), atol=1e-5)
    moving = replace(simulated(name), static=0.0).examples(range(4))
    assert float((moving.scans_truth - moving.truth[:, None]).abs().max()) > 0.1


@ALL
def test_images_lie_in_the_range_that_metrics_assume_and_noise_has_its_width(name):
    found = simulated(name).examples(range(8))
    assert float(found.truth.min()) >= -0.01
    assert float(found.truth.max()) <= 1.01
    assert float((found.target - found.truth).std()) == pytest.approx(0.01, rel=0.05)


@ALL
@pytest.mark.parametrize("target", ["between", "after", "beyond"])
def test_targets_lie_where_the_schedule_says(name, target):
    source = simulated(name, target=target)
    found = source.examples(range(TEST, TEST + 30))
    scale = source.simulation.duration
    for times, valid, asked in zip(found.times, found.valid, found.target_time, strict=True):
        first, last = float(times[valid][0]), float(times[valid][-1])
        low, high = {
            "between": (first, last),
            "after": (last, 0.85 * scale),
            "beyond": (0.85 * scale, scale),
        }[target]
        assert low - 1e-4 <= float(asked) <= high + 1e-4


def test_a_regular_schedule_asks_for_the_next_point_of_its_grid():
    found = simulated("heart", kind="regular").examples(range(10))
    steps = torch.cat([found.times, found.target_time[:, None]], dim=1).diff(dim=1)
    assert torch.allclose(steps, torch.full_like(steps, 0.1), atol=1e-6)


def test_an_ellipsoid_has_its_volume():
    axes = torch.tensor([5.0, 6.0, 7.0])
    shape = inside(grid(24), torch.zeros(3), axes, edge=0.3)
    radius = 210 ** (1 / 3)
    softness = 1 + (math.pi * 0.3 / radius) ** 2  # what a logistic edge adds to a ball
    assert float(shape.sum()) == pytest.approx(4 / 3 * math.pi * 210 * softness, rel=0.01)


def test_a_lesion_grows_as_its_exponent_says():
    source = SIMULATIONS["brain"]
    subject = torch.full((1, source.parameters + 1), 0.5)
    subject[:, 0], subject[:, -1], subject[:, 10] = 1.0, 1.0, 0.0  # fastest growth, no atrophy
    volume = source.volume(source.render(subject, torch.tensor([[0.0, 12.0]]), 64))[0]
    assert float(volume[1] / volume[0]) == pytest.approx(math.exp(3 * 0.55), rel=0.15)


def test_the_heart_is_smallest_at_systole_and_periodic():
    systole = torch.tensor(0.35)
    assert float(contraction(torch.tensor(0.0), systole)) == 0
    assert float(contraction(systole, systole)) == pytest.approx(1)
    assert float(contraction(torch.tensor(1.2), systole)) == pytest.approx(
        float(contraction(torch.tensor(0.2), systole)), abs=1e-6
    )


def test_without_noise_nothing_is_lost_by_the_baselines_that_fit_exactly():
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    ramp = 0.1 * times[:, :, None, None, None, None].expand(1, 4, 1, 2, 2, 2)
    valid, target = torch.ones(1, 4, dtype=torch.bool), torch.tensor([5.0])
    assert torch.allclose(linear(ramp, times, valid, target), torch.full((1, 1, 2, 2, 2), 0.5))
    assert torch.allclose(spline(ramp, times, valid, target), torch.full((1, 1, 2, 2, 2), 0.5), atol=1e-6)
    assert torch.allclose(mean_context(ramp, times, valid, target), torch.full((1, 1, 2, 2, 2), 0.15))


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_with_one_scan_every_baseline_is_the_last_scan(name):
    scans = torch.rand(2, 3, 1, 4, 4, 4)
    scans[:, 1:] = torch.nan
    valid = torch.tensor([[True, False, False]] * 2)
    forecast = BASELINES[name](scans, torch.tensor([[0.0, 1, 2]] * 2), valid, torch.tensor([5.0, 5.0]))
    assert torch.equal(forecast, scans[:, 0])


def test_metrics_are_those_of_the_formulas_and_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    truth = rng.random((1, 1, 12, 13, 14), dtype=np.float32)
    forecast = truth + 0.1 * rng.standard_normal(truth.shape, dtype=np.float32)
    a, b = torch.from_numpy(forecast), torch.from_numpy(truth)
    mse = mean_squared_error(a, b)
    assert float(mse) == pytest.approx(float(((forecast - truth) ** 2).mean()), rel=1e-5)
    assert float(psnr(mse)) == pytest.approx(
        metrics.peak_signal_noise_ratio(truth, forecast, data_range=1), rel=1e-5
    )
    assert float(nrmse(mse)) == pytest.approx(math.sqrt(float(mse)), rel=1e-6)
    expected = metrics.structural_similarity(truth[0, 0], forecast[0, 0], data_range=1.0)
    assert float(ssim(a, b)) == pytest.approx(expected, rel=1e-3)
    _, local = metrics.structural_similarity(truth[0, 0], forecast[0, 0], data_range=1.0, full=True)
    region = np.zeros(truth.shape, bool)
    region[..., 2:7, 5:9, 4:11] = True  # beyond the border of 3 voxels on one side
    inside = local[3:7, 5:9, 4:11].mean()
    assert float(scores(a, b, region=torch.from_numpy(region))["region_ssim"]) == pytest.approx(
        inside, rel=1e-3
    )


def test_errors_in_a_region_see_only_that_region_and_an_empty_region_has_none():
    truth = torch.zeros(2, 1, 4, 4, 4)
    forecast = truth.clone()
    forecast[:, :, :2] = 1.0
    mask = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    mask[0, :, :2] = True
    found = mean_squared_error(forecast, truth, mask)
    assert float(found[0]) == 1.0
    assert math.isnan(float(found[1]))


def test_the_changing_region_is_where_any_scan_differs():
    scans, truth = torch.zeros(1, 2, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)
    scans[0, 0, 0, 0, 0, 0] = 0.2
    assert int(changing_region(scans, truth).sum()) == 1
    assert torch.equal(
        last_context_image(scans, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), truth), truth
    )
