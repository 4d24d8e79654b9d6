"""Flower's strategies by name, and what stands around them."""

import numpy as np
import pytest

from fedvox.errors import ConfigError, RunError
from fedvox_federation.privacy.federation import Contribution
from fedvox_federation.server.strategies import (
    NOT_OFFERED,
    OFFERED,
    Update,
    build_aggregator,
    strategy_options,
)

BASE = {"w": np.zeros((2, 3), np.float32), "b": np.float32([1.0, -1.0]), "scale": np.array(2.0, np.float32)}


def moved(by, patients=10, noise=1.0, score=1.0, batch=2.0):
    arrays = {name: (value + np.float32(by)).astype(np.float32) for name, value in BASE.items()}
    return Update(arrays, Contribution(patients, batch, noise, score))


def combined(name, updates, *, weighting="size", rounds=1, start=BASE, **options):
    aggregator = build_aggregator(name, options, weighting=weighting)
    arrays = start
    for number in range(1, rounds + 1):
        aggregator.begin_round(number, arrays)
        arrays = aggregator.aggregate(number, arrays, updates)
    return arrays


def seven(by=1.0):
    return {f"c{i}": moved(by + 0.01 * i) for i in range(7)}


@pytest.mark.parametrize("name", OFFERED)
def test_every_strategy_keeps_names_shapes_and_types(name):
    result = combined(name, seven())
    assert {k: (v.shape, v.dtype) for k, v in result.items()} == {
        k: (v.shape, v.dtype) for k, v in BASE.items()
    }
    assert all(np.isfinite(value).all() for value in result.values())


def test_fedavg_is_the_mean_weighted_by_size():
    result = combined("fedavg", {"a": moved(1.0, patients=30), "b": moved(2.0, patients=10)})
    assert result["w"] == pytest.approx(np.full((2, 3), 1.25))
    assert result["scale"] == pytest.approx(3.25)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("equal", 1.5),
        ("size", (30 * 1 + 10 * 2) / 40),
        ("score", (0.25 * 1 + 0.75 * 2) / 1),
        ("inverse-noise", (1 / 4 * 1 + 1 * 2) / 1.25),  # (batch / noise)²: 1/4 and 1
    ],
)
def test_the_weighting_reaches_flowers_mean(weighting, expected):
    updates = {
        "a": moved(1.0, patients=30, noise=2.0, score=0.25, batch=1.0),
        "b": moved(2.0, patients=10, noise=1.0, score=0.75, batch=1.0),
    }
    assert combined("FedAvg", updates, weighting=weighting)["w"] == pytest.approx(np.full((2, 3), expected))


def test_fedadam_is_reddis_formula_over_two_rounds():
    eta, beta_1, beta_2, tau = 0.1, 0.9, 0.99, 1e-3
    updates = {"a": moved(0.5), "b": moved(1.5)}
    result = combined("FedAdam", updates, rounds=2, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
    x, m, v, target = 0.0, 0.0, 0.0, 1.0
    for number in (1, 2):
        delta = target - x
        m, v = beta_1 * m + (1 - beta_1) * delta, beta_2 * v + (1 - beta_2) * delta**2
        rate = eta * np.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
        x += rate * m / (np.sqrt(v) + tau)
    assert result["w"] == pytest.approx(np.full((2, 3), x), rel=1e-5)


def test_a_median_ignores_one_wild_clinic_and_a_mean_does_not():
    updates = {**{f"c{i}": moved(1.0) for i in range(4)}, "wild": moved(1e6)}
    assert combined("FedMedian", updates)["w"] == pytest.approx(np.ones((2, 3)))
    assert combined("FedTrimmedAvg", updates, beta=0.2)["w"] == pytest.approx(np.ones((2, 3)))
    assert combined("FedAvg", updates)["w"][0, 0] > 1e5


def test_krum_finds_the_crowd_although_the_updates_are_small_beside_the_parameters():
    """||x||² + ||y||² - 2xy in float32 loses distances of 1e-3 between parameters of 1e3."""
    large = {"w": np.full(1000, 1000.0, np.float32)}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shifts = {**{f"c{i}": 0.01 for i in range(5)}, "d": 0.1, "e": -0.1}
        updates = {
            name: Update(
                {"w": (large["w"] + by + rng.normal(0, 1e-3, 1000)).astype(np.float32)},
                Contribution(10, 1, 1, 1),
            )
            for name, by in shifts.items()
        }
        result = combined("Krum", updates, start=large, num_malicious_nodes=2)
        assert abs(float(np.mean(result["w"] - large["w"])) - 0.01) < 2e-3


@pytest.mark.parametrize(("name", "least"), [("Krum", 5), ("MultiKrum", 5), ("Bulyan", 7)])
def test_too_few_updates_for_the_proof_of_krum_and_bulyan_are_refused(name, least):
    aggregator = build_aggregator(name, {"num_malicious_nodes": 1})
    assert aggregator.least_updates == least
    aggregator.begin_round(1, BASE)
    with pytest.raises(RunError, match=f"needs {least}"):
        aggregator.aggregate(1, BASE, {f"c{i}": moved(1.0) for i in range(least - 1)})


def test_fedprox_tells_the_clinics_its_mu():
    assert build_aggregator("FedProx", {"proximal_mu": 0.3}).begin_round(1, BASE) == {"proximal-mu": 0.3}
    assert build_aggregator("FedAvg").begin_round(1, BASE) == {}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FedAdam", {}),
        ("FedYogi", {}),
        ("FedAdagrad", {}),
        ("FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 0.5}),
    ],
)
def test_a_strategy_continues_from_its_saved_state_bit_for_bit(name, options):
    whole = combined(name, seven(), rounds=4, **options)
    first = build_aggregator(name, options)
    arrays = BASE
    for number in (1, 2):
        first.begin_round(number, arrays)
        arrays = first.aggregate(number, arrays, seven())
    second = build_aggregator(name, options)
    second.restore({key: value.copy() for key, value in first.state().items()})
    for number in (3, 4):
        second.begin_round(number, arrays)
        arrays = second.aggregate(number, arrays, seven())
    assert all((arrays[key] == whole[key]).all() for key in whole)


def test_momentum_meets_its_own_parameter_whatever_the_order_of_the_names():
    sorted_start = dict(sorted(BASE.items()))
    options = {"server_momentum": 0.9, "server_learning_rate": 0.5}
    first = combined("FedAvgM", seven(), rounds=3, **options)
    other = combined("FedAvgM", seven(), rounds=3, start=sorted_start, **options)
    assert all((first[key] == other[key]).all() for key in BASE)


def test_the_order_in_which_replies_arrive_changes_no_bit():
    rng = np.random.default_rng(1)
    updates = {f"c{i}": moved(rng.normal()) for i in range(9)}
    backwards = dict(reversed(updates.items()))
    first, second = combined("FedAvg", updates), combined("FedAvg", backwards)
    assert all((first[key] == second[key]).all() for key in BASE)


@pytest.mark.parametrize("name", ["SecAgg+", "secaggplus", "QFedAvg", "FedXgbBagging"])
def test_what_is_not_offered_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match="is not offered: ") as refused:
        build_aggregator(name)
    assert any(reason in refused.value.message for reason in NOT_OFFERED.values())


def test_flowers_central_noise_is_not_taken_for_protection_of_patients():
    with pytest.raises(ConfigError, match="account for nothing"):
        build_aggregator("DifferentialPrivacyServerSideFixedClipping")


def test_misspelt_names_and_options_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'FedAdam'"):
        build_aggregator("FedAdem")
    with pytest.raises(ConfigError, match="'beta_1'"):
        build_aggregator("FedAdam", {"beta1": 0.9})
    with pytest.raises(ConfigError, match="has no option 'min_train_nodes'"):
        build_aggregator("FedAvg", {"min_train_nodes": 3})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("FedAdam", "eta", 0.0),
        ("FedAdam", "beta_1", 1.0),
        ("FedAdam", "tau", float("nan")),
        ("FedProx", "proximal_mu", -1.0),
        ("FedTrimmedAvg", "beta", 0.5),
        ("Krum", "num_malicious_nodes", 0.5),
        ("MultiKrum", "num_nodes_to_select", 0),
        ("FedAvgM", "server_momentum", "much"),
    ],
)
def test_values_without_a_meaning_are_refused_before_the_first_round(name, option, value):
    with pytest.raises(ConfigError, match=option):
        build_aggregator(name, {option: value})


def test_what_weights_and_noise_mean_for_a_strategy_is_said():
    krum = build_aggregator("Krum", weighting="size")
    assert any("weighting by size changes nothing" in note for note in krum.notes(private=False))
    assert any("least noised" in note for note in krum.notes(private=True))
    assert build_aggregator("FedAvg").notes(private=True) == ()
    assert any("eta" in note for note in build_aggregator("FedYogi").notes(private=True))
    scaffold = build_aggregator("scaffold", weighting="size").notes(private=True)
    assert [word in note for note, word in zip(scaffold, ("counts alike", "noise"), strict=True)] == [
        True
    ] * 2


def test_every_strategy_of_flower_is_offered_or_refused_with_a_reason():
    from flwr.serverapp import strategy as flower

    for name in dir(flower):
        if name[0].isupper() and name not in ("Result", "Strategy"):
            refused = any(name.startswith(prefix) for prefix in NOT_OFFERED)
            assert (name in OFFERED) != refused, name
    assert all(isinstance(strategy_options(name), dict) for name in OFFERED)
