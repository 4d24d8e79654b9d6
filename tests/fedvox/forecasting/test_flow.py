"""The flow against its formulas, and what must hold before any training."""

import numpy as np
import pytest
import torch

from fedvox.errors import ConfigError
from fedvox.forecasting.config import FlowSection, NetworkSection, SolverSection
from fedvox.forecasting.examples import Examples, fill_forward, keep_valid
from fedvox.forecasting.flow import Forecaster, flow_loss, interpolate, path_point, slots_of
from fedvox.forecasting.release import build_network
from fedvox.forecasting.solvers import integrate
from fedvox.forecasting.time_encoding import TimeEncoder, carried_times
from fedvox.forecasting.trust import Trust
from fedvox.forecasting.velocity import VelocityNetwork

SMALL = NetworkSection(widths=(8, 16), embedding=8)
SOLVERS = [
    SolverSection(name="euler", steps=3, aggregate="last"),
    SolverSection(name="midpoint", steps=2, aggregate="last"),
    SolverSection(name="adaptive", aggregate="last"),
]


def batch(patients=3, visits=4, size=8, seed=0, valid=None, channels=1):
    random = torch.Generator().manual_seed(seed)
    scans = torch.rand(patients, visits, channels, size, size, size, generator=random)
    times = torch.rand(patients, visits, generator=random).sort(dim=1).values
    there = (
        torch.ones(patients, visits, dtype=torch.bool) if valid is None else torch.tensor([valid] * patients)
    )
    target = torch.rand(patients, channels, size, size, size, generator=random)
    return Examples(scans, times, there, target, times[:, -1] + 0.3)


def given(examples):
    return examples.scans, examples.times, examples.valid, examples.target_time


def last_valid(examples):
    rows = [int(np.flatnonzero(v.numpy())[-1]) for v in examples.valid]
    return torch.stack([examples.scans[i, row] for i, row in enumerate(rows)])


@pytest.mark.parametrize("method", ["tfm", "cronos"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
@pytest.mark.parametrize(
    "valid",
    [
        (True, True, True, True),
        (False, True, True, True),
        (True, False, True, False),
        (False, False, True, False),
    ],
)
def test_an_untrained_model_forecasts_the_last_scan_to_the_last_bit(method, solver, valid):
    flow = FlowSection(method=method)
    examples = batch(valid=valid)
    forecast = Forecaster(VelocityNetwork(flow, SMALL), flow, solver)(*given(examples))
    assert torch.equal(forecast, last_valid(examples))


@pytest.mark.parametrize("backbone", ["resenc-unet-tiny", "mednext-v2-nano"])
def test_an_untrained_model_on_a_registered_backbone_forecasts_the_last_scan_too(backbone):
    flow, network = FlowSection(), NetworkSection(backbone=backbone)
    net = VelocityNetwork(flow, network).eval()
    examples = batch(patients=1, size=2 * max(net.divisor))
    assert torch.equal(Forecaster(net, flow, SOLVERS[0])(*given(examples)), last_valid(examples))


def test_the_mean_of_the_slots_is_not_the_last_scan():
    flow, examples = FlowSection(), batch()
    mean = Forecaster(VelocityNetwork(flow, SMALL), flow, SolverSection(aggregate="mean"))(*given(examples))
    assert torch.allclose(mean, examples.scans.mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_the_true_velocity_leads_from_every_context_image_to_the_target(solver):
    examples = batch()
    target = examples.target[:, None]
    arrived = integrate(lambda state, t: target - examples.scans, examples.scans, solver)
    assert torch.allclose(
        arrived, target.expand_as(arrived), atol=3e-5 if solver.name == "adaptive" else 1e-6
    )


def test_solvers_agree_with_the_exponential():
    start = torch.ones(1, 1, dtype=torch.float64)
    errors = {
        solver.name: abs(float(integrate(lambda state, t: state, start, solver)) - np.e)
        for solver in (
            SolverSection(name="euler", steps=10),
            SolverSection(name="midpoint", steps=10),
            SOLVERS[2],
        )
    }
    assert errors["adaptive"] < 1e-4 < errors["midpoint"] < 0.01 < errors["euler"] < 0.15


def test_path_and_velocity_are_those_of_the_formula():
    flow, examples = FlowSection(sigma=0.0), batch()
    point = path_point(flow, examples, torch.Generator().manual_seed(1))
    t = point.t[:, None, None, None, None, None]
    x, y = examples.scans, examples.target[:, None]
    assert torch.allclose(point.state, (1 - t) * x + t * y)
    assert torch.equal(point.velocity, y - x)
    assert torch.equal(interpolate(x, y, torch.zeros(3)), x)
    assert torch.allclose(interpolate(x, y, torch.ones(3)), y.expand_as(x))


def test_the_noise_of_the_path_has_the_width_that_was_asked_for():
    examples = batch(patients=2, size=16)
    noisy = path_point(FlowSection(sigma=0.05), examples, torch.Generator().manual_seed(1))
    mean = interpolate(examples.scans, examples.target[:, None], noisy.t)
    assert float((noisy.state - mean).std()) == pytest.approx(0.05, rel=0.05)


def test_what_a_patient_is_shown_does_not_depend_on_the_number_of_workers():
    examples, flow = batch(patients=5), FlowSection(sigma=0.1)
    alone = path_point(flow, examples, torch.Generator().manual_seed(1), total=5)
    for rank in (0, 1):
        mine = torch.arange(rank, 5, 2)
        point = path_point(
            flow, examples.take(mine), torch.Generator().manual_seed(1), rank=rank, workers=2, total=5
        )
        assert torch.equal(point.t, alone.t[mine])
        assert torch.equal(point.state, alone.state[mine])


def test_slots_reach_the_time_of_the_target_as_the_flow_does():
    times, target = torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([10.0])
    assert carried_times(times, target, torch.zeros(1)).tolist() == [[0.0, 1.0, 4.0]]
    assert carried_times(times, target, torch.ones(1)).tolist() == [[10.0, 10.0, 10.0]]
    assert carried_times(times, target, torch.tensor([0.5])).tolist() == [[5.0, 5.5, 7.0]]


def test_histories_of_one_mean_look_different_but_not_to_the_published_pooling_of_waves():
    torch.manual_seed(0)
    clock = TimeEncoder("clock", 3, 16)
    target, t = torch.tensor([1.0]), torch.tensor([0.3])
    first, second = torch.tensor([[0.0, 0.1, 1.0]]), torch.tensor([[0.1, 0.0, 1.0]])
    assert not torch.allclose(clock(first, target, t), clock(second, target, t))
    pooled = TimeEncoder("pooled", 3, 16)
    assert torch.allclose(pooled(first, target, t), pooled(second, target, t), atol=1e-6)


def test_missing_scans_are_filled_forward_and_leading_ones_backward():
    scans = torch.arange(4.0).reshape(1, 4, 1, 1, 1, 1)
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    filled = fill_forward(scans, times, torch.tensor([[False, True, False, True]]), 4)
    assert filled.images.flatten().tolist() == [1, 1, 1, 3]
    assert filled.times.tolist() == [[1, 1, 1, 3]]


def test_only_scans_that_there_are_enter_and_the_last_is_repeated():
    scans = torch.arange(5.0).reshape(1, 5, 1, 1, 1, 1)
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    few = keep_valid(scans, times, torch.tensor([[False, True, False, True, False]]), 4)
    assert few.images.flatten().tolist() == [1, 3, 3, 3]
    many = keep_valid(scans, times, torch.ones(1, 5, dtype=torch.bool), 3)
    assert many.times.tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("method", ["tfm", "cronos", "convlstm"])
def test_company_in_a_batch_changes_no_patients_result(method):
    torch.manual_seed(0)
    flow = FlowSection(method=method, objective="regression" if method == "convlstm" else "flow")
    net = build_network(flow, SMALL, 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    examples, order = batch(patients=4), torch.tensor([2, 0, 3, 1])
    forecaster = Forecaster(net, flow, SolverSection(), Trust(1e-3, past_only=False))
    together, shuffled = forecaster(*given(examples)), forecaster(*given(examples.take(order)))
    assert torch.allclose(together[order], shuffled, atol=1e-5)
    alone = forecaster(*given(examples.take(torch.tensor([1]))))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_the_steps_of_an_adaptive_solver_are_those_of_each_patient():
    torch.manual_seed(0)
    flow, solver = FlowSection(), SolverSection(name="adaptive", tolerance=1e-3)
    net = build_network(flow, SMALL, 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net.velocity_scale.fill_(5)
    examples = batch(patients=3)
    forecaster = Forecaster(net, flow, solver)
    alone = forecaster(*given(examples.take(torch.tensor([1]))))
    assert torch.allclose(forecaster(*given(examples))[1:2], alone, atol=2e-5)


def test_a_shuffled_batch_has_the_same_losses_because_pairs_stay_together():
    torch.manual_seed(0)
    flow = FlowSection(objective="regression")  # no random times, so that the batch alone can matter
    net = VelocityNetwork(flow, SMALL)
    torch.nn.init.normal_(net.body.exit.weight, std=0.1)
    examples, order = batch(patients=4), torch.tensor([2, 0, 3, 1])

    def losses(found):
        point = path_point(flow, found, torch.Generator())
        out = net(point.state, point.slots.images, point.slots.times, found.target_time, point.t)
        return flow_loss(flow, out, point, found, torch.tensor(0.1))

    assert torch.allclose(losses(examples)[order], losses(examples.take(order)), rtol=1e-4)


def test_the_loss_of_no_change_is_one_at_the_right_scale():
    flow, examples = FlowSection(), batch()
    point = path_point(flow, examples, torch.Generator().manual_seed(0))
    scale = point.velocity.square().mean().sqrt()
    loss = flow_loss(flow, torch.zeros_like(point.state), point, examples, scale).mean()
    assert float(loss) == pytest.approx(1.0, rel=1e-5)


def test_the_region_of_interest_weighs_more_and_filled_slots_may_weigh_nothing():
    from dataclasses import replace

    roi = torch.zeros(3, 1, 8, 8, 8, dtype=torch.bool)
    roi[:, :, :4] = True
    examples = replace(batch(valid=(True, False, True, True)), roi=roi)
    point = path_point(FlowSection(method="tfm"), examples, torch.Generator().manual_seed(0))
    wrong_inside = point.velocity + roi[:, None].float()
    plain = flow_loss(FlowSection(method="tfm"), wrong_inside, point, examples, torch.tensor(1.0))
    weighted = flow_loss(
        FlowSection(method="tfm", roi_weight=2.0), wrong_inside, point, examples, torch.tensor(1.0)
    )
    assert torch.allclose(plain, torch.full((3,), 0.5))
    assert torch.allclose(weighted, 3 * plain)
    wrong_filled = point.velocity.clone()
    wrong_filled[:, 1] += 1
    masked = flow_loss(
        FlowSection(method="tfm", mask_missing=True), wrong_filled, point, examples, torch.tensor(1.0)
    )
    assert torch.allclose(masked, torch.zeros(3))


def test_draws_of_the_stochastic_flow_differ_and_are_repeatable():
    flow, examples = FlowSection(), batch()
    net = VelocityNetwork(flow, SMALL)
    torch.nn.init.normal_(net.body.exit.weight, std=0.1)
    forecaster = Forecaster(net, flow, SolverSection())
    first = forecaster.draws(*given(examples), count=3, seed=1)
    again = forecaster.draws(*given(examples), count=3, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_without_noise_a_draw_is_the_forecast():
    torch.manual_seed(0)
    flow, examples = FlowSection(sigma=0.0), batch()
    net = VelocityNetwork(flow, SMALL)
    torch.nn.init.normal_(net.body.exit.weight, std=0.1)
    forecaster = Forecaster(net, flow, SolverSection())
    assert torch.equal(forecaster.draws(*given(examples), count=1, seed=3)[0], forecaster(*given(examples)))


def test_grid_times_do_not_see_what_lies_between_the_grid_points():
    torch.manual_seed(0)
    examples = batch()
    moved = Examples(
        examples.scans, examples.times, examples.valid, examples.target, examples.target_time + 0.004
    )
    for times, same in (("grid", True), ("continuous", False)):
        flow = FlowSection(times=times, grid_step=0.1)
        net = VelocityNetwork(flow, SMALL)
        torch.nn.init.normal_(net.body.exit.weight, std=0.1)
        forecaster = Forecaster(net, flow, SolverSection())
        at = examples.target_time.mul(10).round().div(10)
        first = forecaster(examples.scans, examples.times, examples.valid, at)
        second = forecaster(moved.scans, moved.times, moved.valid, at + 0.004)
        assert torch.equal(first, second) == same


def test_volumes_that_the_network_cannot_take_are_refused_with_the_size_that_fits():
    flow, examples = FlowSection(), batch(size=6)
    with pytest.raises(ConfigError, match="not divisible"):
        Forecaster(VelocityNetwork(flow, SMALL), flow, SolverSection())(*given(examples))


def test_regression_takes_one_step_from_the_context():
    flow, examples = FlowSection(objective="regression"), batch()
    point = path_point(flow, examples, torch.Generator())
    assert torch.equal(point.state, slots_of(flow, *given(examples)[:3]).images)
    assert Forecaster(VelocityNetwork(flow, SMALL), flow, SolverSection(steps=9)).solver.steps == 1
