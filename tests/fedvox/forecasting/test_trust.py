"""Trust in predicted changes: against least squares, and on models that are right, wrong, or never contradicted."""

import numpy as np
import pytest
import torch

from fedvox.forecasting.config import FlowSection, NetworkSection, SolverSection
from fedvox.forecasting.flow import Forecaster
from fedvox.forecasting.trust import Evidence, Held, Trust, evidence, fit_prior
from fedvox.forecasting.velocity import VelocityNetwork

TIMES = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
THERE = torch.ones(1, 4, dtype=torch.bool)


def last(scans, times, valid):
    row = int(valid[0].nonzero().flatten()[-1])
    return scans[:, row], times[0, row]


def grows(rate):
    """A model that predicts growth at a rate per unit of time from the last scan."""

    def change(scans, times, valid, target_time):
        base, since = last(scans, times, valid)
        return base, torch.full_like(base, rate * float(target_time[0] - since))

    return change


def told(change, scans):
    return evidence(change, scans, TIMES, THERE, past_only=True)


def growing(rate):
    return (TIMES * rate)[:, :, None, None, None, None].expand(1, 4, 1, 2, 2, 2).clone()


def test_a_model_that_is_right_is_trusted_in_full():
    assert told(grows(0.3), growing(0.3)).weight(1e-9).item() == pytest.approx(1)


def test_a_model_that_sees_change_where_there_is_none_is_not_trusted():
    assert told(grows(0.3), growing(0.0)).weight(1e-9).item() == pytest.approx(0, abs=1e-6)


def test_a_model_that_predicts_twice_the_change_is_believed_by_half():
    assert told(grows(0.6), growing(0.3)).weight(1e-9).item() == pytest.approx(0.5)


def test_change_in_the_other_direction_is_no_reason_to_turn_the_forecast_round():
    assert told(grows(0.3), growing(-0.3)).weight(1e-9).item() == 0


def test_without_prior_trust_is_the_slope_of_least_squares():
    random = torch.Generator().manual_seed(0)
    scans = torch.rand(1, 4, 1, 3, 3, 3, generator=random)
    found = told(grows(0.2), scans)
    observed = (scans[0, 1:] - scans[0, :-1]).numpy().reshape(3, -1)
    predicted = np.full_like(observed, 0.2)
    slope = np.linalg.lstsq(predicted.reshape(-1, 1), observed.reshape(-1), rcond=None)[0][0]
    assert float(found.agreement / found.predicted) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("valid", [(False, False, True, False), (True, False, False, False)])
def test_one_scan_can_contradict_nothing(valid):
    found = evidence(grows(0.3), growing(0.0), TIMES, torch.tensor([valid]), past_only=False)
    assert found.weight(1e-3).item() == 1


def test_missing_scans_are_neither_predicted_nor_predicted_from():
    scans = growing(0.3)
    scans[:, 1] = float("nan")
    found = evidence(grows(0.3), scans, TIMES, torch.tensor([[True, False, True, True]]), past_only=True)
    assert found.weight(1e-9).item() == pytest.approx(1)


def test_tiles_together_say_what_the_whole_volume_says():
    random = torch.Generator().manual_seed(0)
    scans = torch.rand(1, 4, 1, 4, 4, 4, generator=random)
    whole = told(grows(0.2), scans)
    halves = [told(grows(0.2), scans[..., part]) for part in (slice(2), slice(2, 4))]
    assert (halves[0] + halves[1]).over(2).weight(0.01).item() == pytest.approx(whole.weight(0.01).item())


def held(truth_changes, predicted=1.0):
    """Patients of whom the context tells exactly whether they change."""
    found = Evidence(predicted * torch.tensor(truth_changes), torch.full((len(truth_changes),), predicted))
    change = torch.full((len(truth_changes), 1, 2, 2, 2), predicted)
    target = change * torch.tensor(truth_changes).reshape(-1, 1, 1, 1, 1)
    return Held(torch.zeros_like(change), change, target, found)


def test_the_prior_is_small_where_the_context_tells_who_changes():
    assert fit_prior([held([1.0, 0.0, 1.0, 0.0])], scale=1.0) == pytest.approx(2.0**-10)


def test_there_is_no_prior_where_the_context_misleads():
    misled = held([1.0, 1.0])
    misled = Held(misled.base, misled.change, misled.target, Evidence(torch.zeros(2), torch.ones(2)))
    assert fit_prior([misled], scale=0.01) is None


def test_forecasts_that_are_no_numbers_count_as_the_worst():
    broken = held([1.0, 0.0])
    broken = Held(broken.base, broken.change * float("nan"), broken.target, broken.found)
    assert fit_prior([broken], scale=1.0) == pytest.approx(2.0**-10)


@pytest.mark.parametrize("method", ["tfm", "cronos"])
def test_an_untrained_model_with_a_prior_is_still_the_last_scan_to_the_last_bit(method):
    flow = FlowSection(method=method)
    network = VelocityNetwork(flow, NetworkSection(widths=(8, 16), embedding=8))
    scans = torch.rand(2, 4, 1, 8, 8, 8)
    given = scans, TIMES.expand(2, 4), THERE.expand(2, 4), torch.full((2,), 4.0)
    forecast = Forecaster(network, flow, SolverSection(aggregate="last"), Trust(1e-4, past_only=True))(*given)
    assert torch.equal(forecast, scans[:, -1])


def test_a_model_that_looks_back_is_asked_for_the_first_scan_too():
    asked = []

    def change(scans, times, valid, target_time):
        asked.append(float(target_time[0]))
        return scans[:, 0], torch.zeros_like(scans[:, 0])

    evidence(change, growing(0.3), TIMES, THERE, past_only=False)
    evidence(change, growing(0.3), TIMES, THERE, past_only=True)
    assert asked == [0, 1, 2, 3, 1, 2, 3]
