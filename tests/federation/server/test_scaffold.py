"""SCAFFOLD on quadratics, where both what it does and what FedAvg does instead can be written down."""

import math
from itertools import pairwise

import numpy as np
import pytest

from fedvox.errors import ConfigError
from fedvox.storage import locate
from fedvox_federation.protocol import split_correction
from fedvox_federation.server.checks import Fault, Remembered, Verdict
from fedvox_federation.server.journal import Journal
from fedvox_federation.server.rounds import Federation
from fedvox_federation.server.scaffold import ControlVariates
from fedvox_federation.server.snapshot import Snapshot, load_snapshot
from fedvox_federation.server.strategies import build_aggregator

STEPS, LR = 10, 0.05
CURVATURE = {1: 1.0, 2: 4.0, 3: 0.5}
CENTRE = {1: np.array([0.0, 1.0]), 2: np.array([3.0, -2.0]), 3: np.array([-5.0, 4.0])}
SGD = {"optimizer": "sgd", "steps": STEPS, "lr": LR}


def quadratic(fed, number, *, patients=20, gradients=None):
    """A clinic whose loss is a/2 |w - b|²; notes its own gradients, without the correction."""

    def clinic(order, arrays):
        start, correction = split_correction(arrays)
        w = start["w"].astype(np.float64)
        for _ in range(STEPS):
            gradient = CURVATURE[number] * (w - CENTRE[number])
            w = w - LR * (gradient + correction.get("w", 0.0))
            if gradients is not None:
                gradients.setdefault((order.round_number, number), []).append(gradient)
        return fed.honest(
            order, start, number, arrays={"w": w.astype(np.float32)}, noise=0.0, epsilon_spent=math.inf,
            patients=patients,
        )  # fmt: skip

    return clinic


@pytest.fixture
def run(fed, tmp_path):
    """Serves a federation of functions, or goes on with the one in the folder; gives (federation, its grid)."""

    def serve(clinics, strategy="scaffold", *, rounds=1, folder="run", names=None, **server):
        config = fed.config(
            rounds=rounds, training=SGD, strategy={"name": strategy}, privacy={"policy": fed.no_noise},
            server={"norm_over_median": None, **server},
        )  # fmt: skip
        journal = Journal(locate(tmp_path / folder))
        start = load_snapshot(journal.state) or Snapshot(0, {"w": np.zeros(2, np.float32)})
        journal.begin(config, after_round=start.round_number)
        checker = fed.checker(
            config, remembered=Remembered.from_plain(start.memory) if start.memory else None
        )
        grid = fed.grid(clinics, names)
        aggregator = build_aggregator(strategy, {}, weighting="size")
        return Federation(config, grid, aggregator, checker, journal, start, base_sha256="base"), grid

    return serve


def weighted_mean(weights):
    return sum(weights[n] * CENTRE[n] for n in CENTRE) / sum(weights.values())


@pytest.mark.parametrize("patients", [{1: 20, 2: 20, 3: 20}, {1: 20, 2: 40, 3: 60}])
def test_fedavg_settles_at_the_wrong_point_and_scaffold_at_the_optimum(fed, run, patients):
    clinics = {n: quadratic(fed, n, patients=patients[n]) for n in CENTRE}
    fedavg = run(clinics, "fedavg", rounds=20, folder="fedavg")[0].run()["w"]
    scaffold = run(clinics, "scaffold", rounds=20)[0].run()["w"]
    # K steps from w lead to w + (1 - (1 - lr a)^K) (b - w): FedAvg rests where these cancel, not the gradients.
    shares = {n: patients[n] * (1 - (1 - LR * CURVATURE[n]) ** STEPS) for n in CENTRE}
    optimum = weighted_mean(CURVATURE)
    assert fedavg == pytest.approx(weighted_mean(shares), abs=1e-3)
    assert scaffold == pytest.approx(optimum, abs=1e-3)
    assert np.linalg.norm(fedavg - optimum) > 0.5


def test_the_first_round_is_that_of_fedavg_in_every_bit(fed, run):
    clinics = {n: quadratic(fed, n) for n in CENTRE}
    scaffold, grid = run(clinics)
    fedavg, _ = run(clinics, "fedavg", folder="fedavg")
    assert (scaffold.run()["w"] == fedavg.run()["w"]).all()
    assert all(set(arrays) == {"w"} for _, arrays, _ in grid.sent)
    assert grid.introduced == []


def test_a_control_variate_is_the_mean_of_a_clinics_own_gradients_and_corrections_cancel(fed, run):
    gradients = {}
    federation, grid = run({n: quadratic(fed, n, gradients=gradients) for n in CENTRE}, rounds=3)
    federation.run()
    for number in (2, 3):
        sent = [
            split_correction(arrays)[1]["w"] for order, arrays, _ in grid.sent if order.round_number == number
        ]
        means = [np.mean(gradients[number - 1, n], axis=0) for n in CENTRE]
        assert np.array(sent) == pytest.approx(np.mean(means, axis=0) - np.array(means), abs=1e-4)
        assert np.sum(sent, axis=0) == pytest.approx(np.zeros(2), abs=1e-5)


def test_a_clinic_that_misses_a_round_keeps_its_variate_and_c_is_the_mean_of_all(fed, run):
    clinic = quadratic(fed, 3)
    absent = {3: lambda order, arrays: None if order.round_number == 2 else clinic(order, arrays)}
    federation, grid = run({n: quadratic(fed, n) for n in (1, 2)} | absent, rounds=3)
    federation.run()
    corrections = {
        (order.round_number, place % 3): split_correction(arrays)[1].get("w")
        for place, (order, arrays, _) in enumerate(grid.sent)
    }
    for number in (2, 3):
        assert np.sum([corrections[number, n] for n in range(3)], axis=0) == pytest.approx(
            np.zeros(2), abs=1e-5
        )
    moved = {n: corrections[3, n] - corrections[2, n] for n in range(3)}
    # c - c_3 moves with c alone, which is a third of what the others' variates moved by.
    others = sum(moved[2] - moved[n] for n in (0, 1))
    assert moved[2] == pytest.approx(others / 3, abs=1e-5)


def test_a_clinic_that_joins_later_trains_without_a_correction_once(fed, run):
    federation, grid = run({n: quadratic(fed, n) for n in (1, 2)}, rounds=3)
    late, first = quadratic(fed, 3), grid.clinics[1]

    def invites(order, arrays):
        grid.clinics[3] = late
        return first(order, arrays)

    grid.clinics[1] = invites
    federation.run()
    third = [(order.round_number, split_correction(arrays)[1]) for order, arrays, _ in grid.sent][4::3]
    assert [(number, bool(correction)) for number, correction in third] == [(2, False), (3, True)]
    assert grid.introduced == [3]


def test_a_resumed_server_meets_its_clinics_under_other_nodes_and_goes_on_with_the_same_bits(fed, run):
    whole_run, whole_grid = run({n: quadratic(fed, n) for n in CENTRE}, rounds=4, folder="whole")
    whole = whole_run.run()["w"]

    class Killed(BaseException):
        pass

    def dies(order, arrays):
        if order.round_number == 3:
            raise Killed
        return quadratic(fed, 3)(order, arrays)

    with pytest.raises(Killed):
        run({1: quadratic(fed, 1), 2: quadratic(fed, 2), 3: dies}, rounds=4)[0].run()
    names = {20 - n: f"hospital_{n:02d}" for n in CENTRE}
    federation, grid = run({20 - n: quadratic(fed, n) for n in CENTRE}, rounds=4, names=names)
    assert (federation.run()["w"] == whole).all()
    assert sorted(grid.introduced) == sorted(names)
    bits = [{(o.round_number, a["scaffold-correction/w"].tobytes()) for o, a, _ in g.sent if o.round_number > 2}
            for g in (grid, whole_grid)]  # fmt: skip
    assert bits[0] == bits[1]


def test_who_does_not_say_its_name_or_says_anothers_is_not_asked(fed, run):
    clinics = {n: quadratic(fed, n) for n in CENTRE}
    federation, grid = run(clinics, rounds=2)
    federation._controls.learn({"w": np.zeros(2, np.float32)}, {"hospital_01": {"w": np.ones(2, np.float32)}})
    grid.clinics |= {4: clinics[1], 5: clinics[1]}
    grid.names = {4: None, 5: "hospital_01"}
    federation.run()
    rows = {row["clinic"]: (row["verdict"], row["reason"]) for row in federation._journal.clinics}
    assert rows["node 4"] == ("late", "")
    assert rows["node 5"] == ("rejected", "other-name")
    assert {node for _, node in grid.asked} == set(CENTRE)


def test_a_correction_lengthens_what_is_within_reach_by_its_own_way(fed):
    config = fed.config(training=SGD, strategy={"name": "scaffold"})
    correction = {"w": np.full((4, 5), 500, np.float32), "b": np.zeros(3, np.float32)}
    order = fed.order(config=config)
    moved = {name: fed.arrays[name] - np.float32(STEPS * LR) * value for name, value in correction.items()}
    reply = fed.honest(order, fed.arrays, arrays=moved)
    found = fed.checker(config).check(reply, order, fed.arrays, node_id=1, correction=correction)
    assert found.verdict is Verdict.ACCEPTED
    assert fed.checker(config).check(reply, order, fed.arrays, node_id=1).reason == Fault.TOO_LONG
    farther = {
        name: fed.arrays[name] - np.float32(2 * STEPS * LR) * value for name, value in correction.items()
    }
    reply = fed.honest(order, fed.arrays, arrays=farther)
    found = fed.checker(config).check(reply, order, fed.arrays, node_id=1, correction=correction)
    assert found.reason == Fault.TOO_LONG


def test_an_update_that_is_cut_has_a_variate_that_is_cut_alike():
    """|c_i| K lr is at most the longest update, however far the clinic went, and keeps its direction."""
    controls = ControlVariates(LR, STEPS, longest_update=1.0)
    start = {"w": np.zeros(2, np.float32)}
    lengths = []
    for _ in range(3):
        updates = {"a": {"w": np.float32([30, 40])}, "b": {"w": np.float32([0, 0.25])}}
        controls.learn(start, updates)
        lengths.append(np.linalg.norm(controls.state()["control/a/w"]) * LR * STEPS)
    assert lengths == pytest.approx([1.0] * 3)
    first = ControlVariates(LR, STEPS, longest_update=1.0)
    first.learn(start, {"a": {"w": np.float32([30, 40])}, "b": {"w": np.float32([0, 0.25])}})
    assert first.state()["control/a/w"] == pytest.approx(np.array([-0.6, -0.8]) / (LR * STEPS))
    assert first.state()["control/b/w"] == pytest.approx(np.array([0, -0.25]) / (LR * STEPS))


def test_state_survives_names_with_slashes_and_several_parameters():
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=3).astype(np.float32) for name in ("a.w", "a/b")}
    controls = ControlVariates(LR, STEPS)
    for _ in range(2):
        updates = {
            clinic: {name: rng.normal(size=3).astype(np.float32) for name in start}
            for clinic in ("Klinik Nord/Süd", "ärzte %2F")
        }
        controls.learn(start, updates)
    other = ControlVariates(LR, STEPS)
    other.restore(dict(reversed(controls.state().items())))
    assert other.clinics == controls.clinics
    for clinic in controls.clinics:
        mine, theirs = controls.correction(clinic), other.correction(clinic)
        assert all((mine[name] == theirs[name]).all() for name in start)
    assert all(one < two for one, two in pairwise(controls.clinics))


@pytest.mark.parametrize("training", [{"optimizer": "adamw"}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_anything_but_plain_sgd_is_refused(fed, training):
    with pytest.raises(ConfigError, match=r"training\.optimizer=sgd"):
        fed.config(training={**SGD, **training}, strategy={"name": "scaffold"})
