"""What the server refuses, and why."""

import dataclasses
import math

import numpy as np
import pytest

from fedvox_federation.client.clinic import plan_noise
from fedvox_federation.privacy.noise_policy import UNATTESTED, Standing
from fedvox_federation.protocol import ClinicReply, Refusal, arrays_sha256
from fedvox_federation.server.checks import Fault, Remembered, ReplyChecker, Verdict
from fedvox_federation.server.standings import Judged

FULL = Standing(1.0, 4, eligible=True, attested=True)


def judged(fed, number=1, checker=None, config=None, **changes):
    order = fed.order(config=config)
    return (checker or fed.checker(config)).check(
        fed.honest(order, fed.arrays, number, **changes), order, fed.arrays, node_id=number
    )


def replaced(fed, **arrays):
    order = fed.order()
    return {**fed.honest(order, fed.arrays).arrays, **arrays}


def test_an_honest_update_is_accepted_with_its_length_and_contribution(fed):
    found = judged(fed)
    assert (found.verdict, found.reason) == (Verdict.ACCEPTED, "")
    moved = np.concatenate([(found.arrays[k] - fed.arrays[k]).ravel() for k in fed.arrays])
    assert found.norm == pytest.approx(float(np.linalg.norm(moved)), rel=1e-6)
    assert (found.contribution.patients, found.contribution.expected_batch_size) == (20, 2.0)
    assert found.contribution.score == 1.0


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        (Fault.OTHER_RUN, {"run": "another"}),
        (Fault.OTHER_ROUND, {"round_number": 2}),
        (Fault.UNREADABLE, {"clinic": ""}),
        (Fault.UNREADABLE, {"clinic": "a\x1b[2J"}),
        (Fault.HASH, {"update_sha256": "0" * 64}),
        (Fault.PATIENTS, {"patients": 0}),
        (Fault.SAMPLE_RATE, {"patients": 10**9, "sample_rate": 0.1}),
        (Fault.SAMPLE_RATE, {"sample_rate": 0.01}),
        (Fault.STEPS, {"steps": 0}),
        (Fault.STEPS, {"steps": 11}),
        (Fault.NUMBERS, {"noise_multiplier": math.nan}),
        (Fault.NUMBERS, {"noise_multiplier": math.inf}),
        (Fault.NUMBERS, {"epsilon_spent": math.nan}),
        (Fault.NUMBERS, {"epsilon_spent": -1.0}),
        (Fault.NUMBERS, {"delta": 1.0}),
        (Fault.NUMBERS, {"delta": 2e-3}),  # an ε at a larger δ than the study's
        (Fault.NOISE, {"noise": 0.2}),
        (Fault.NOISE, {"noise": 0.0}),
        (Fault.NOT_ELIGIBLE, {"clinic": "no hospital of this simulation"}),
    ],
)
def test_what_a_reply_says_of_itself_is_doubted(fed, fault, changes):
    found = judged(fed, **changes)
    assert (found.verdict, found.reason) == (Verdict.REJECTED, fault.value)
    assert not found.arrays


@pytest.mark.parametrize(
    ("fault", "arrays"),
    [
        (Fault.NOT_FINITE, {"b": np.float32([1, np.nan, 1])}),
        (Fault.NOT_FINITE, {"b": np.float32([1, -np.inf, 1])}),
        (Fault.SHAPE, {"b": np.zeros(4, np.float32)}),
        (Fault.SHAPE, {"w": np.zeros((5, 4), np.float32)}),
        (Fault.DTYPE, {"b": np.zeros(3, np.float64)}),
        (Fault.DTYPE, {"b": np.zeros(3, "<U9")}),
        (Fault.NAMES, {"c": np.zeros(3, np.float32)}),
        (Fault.TOO_LONG, {"b": np.float32([1e30, 0, 0])}),
        (Fault.TOO_LONG, {"b": np.float32([100, 0, 0])}),
    ],
)
def test_arrays_that_no_training_makes_are_refused(fed, fault, arrays):
    found = judged(fed, arrays=replaced(fed, **arrays))
    assert (found.verdict, found.reason) == (Verdict.REJECTED, fault.value)


def test_a_missing_array_is_refused(fed):
    found = judged(fed, arrays={"w": fed.arrays["w"] + np.float32(0.01)})
    assert found.reason == Fault.NAMES


def test_the_servers_own_model_sent_back_is_no_update(fed):
    assert judged(fed, arrays=fed.arrays).reason == Fault.UNCHANGED


def test_a_code_of_the_clinic_is_passed_on_and_is_no_fault(fed):
    found = judged(fed, refusal=Refusal.BUDGET_EXHAUSTED, arrays={})
    assert (found.verdict, found.reason) == (Verdict.DECLINED, "budget-exhausted")


def test_the_longest_honest_updates_are_within_reach(fed):
    """Adam on a gradient that never turns, and SGD on noise alone."""
    import torch

    steps, lr = 10, 0.01
    parameter = torch.nn.Parameter(torch.zeros(23))
    adam = torch.optim.AdamW([parameter], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        parameter.grad = torch.ones(23)
        adam.step()
    long = parameter.detach().numpy()
    arrays = {
        "w": fed.arrays["w"] + long[:20].reshape(4, 5).astype(np.float32),
        "b": fed.arrays["b"] + long[20:].astype(np.float32),
    }
    assert judged(fed, arrays=arrays).verdict is Verdict.ACCEPTED

    config = fed.config(training={"optimizer": "sgd", "lr": 1.0, "steps": 10})
    rng = np.random.default_rng(0)
    walk = [rng.normal(0, 3.0 / 2.0, 23).astype(np.float32) for _ in range(steps)]  # σ C / expected batch
    total = np.sum(walk, axis=0)
    noisy = {
        "w": fed.arrays["w"] + total[:20].reshape(4, 5).astype(np.float32),
        "b": fed.arrays["b"] + total[20:].astype(np.float32),
    }
    assert judged(fed, config=config, arrays=noisy).verdict is Verdict.ACCEPTED


def test_claiming_more_noise_than_any_clinic_is_given_makes_no_update_longer(fed):
    config = fed.config(training={"optimizer": "sgd", "lr": 0.1})
    far = {name: value + np.float32(1e4) for name, value in fed.arrays.items()}
    for noise in (9.0, 1e6, 1e300):
        assert judged(fed, config=config, arrays=far, noise=noise).reason == Fault.TOO_LONG


def test_longer_updates_than_allowed_are_cut_to_the_length_and_keep_their_direction(fed):
    found = judged(fed, config=fed.config(server={"largest_update_norm": 0.01}))
    whole = judged(fed)
    cut = np.concatenate([(found.arrays[k] - fed.arrays[k]).ravel() for k in ("b", "w")])
    full = np.concatenate([(whole.arrays[k] - fed.arrays[k]).ravel() for k in ("b", "w")])
    assert np.linalg.norm(cut) == pytest.approx(0.01, rel=1e-4)
    assert cut @ full == pytest.approx(np.linalg.norm(cut) * np.linalg.norm(full), rel=1e-4)
    assert found.norm == pytest.approx(whole.norm)


def test_an_update_that_was_accepted_before_is_refused_in_another_round_and_from_another_clinic(fed):
    checker = fed.checker()
    first = judged(fed, checker=checker)
    checker.remembered.accept(first.reply)
    later = dataclasses.replace(first.reply, round_number=2)
    assert checker.check(later, fed.order(2), fed.arrays, node_id=1).reason == Fault.REPLAYED
    thief = dataclasses.replace(first.reply, clinic="hospital_02")
    assert checker.check(thief, fed.order(), fed.arrays, node_id=2).reason == Fault.REPLAYED
    again = checker.check(first.reply, fed.order(), fed.arrays, node_id=1)
    assert again.verdict is Verdict.ACCEPTED  # the same round once more, after a restart of the server


def test_what_is_remembered_survives_json(fed):
    import json

    remembered = Remembered()
    remembered.accept(judged(fed).reply)
    assert Remembered.from_plain(json.loads(json.dumps(remembered.to_plain()))) == remembered


def test_patients_do_not_change_and_epsilon_does_not_fall_within_a_run(fed):
    checker = fed.checker()
    checker.remembered.accept(judged(fed, checker=checker).reply)
    order = fed.order(2)
    fewer = fed.honest(order, fed.arrays, patients=10, noise=9.0)
    assert checker.check(fewer, order, fed.arrays, node_id=1).reason == Fault.PATIENTS
    cheaper = fed.honest(order, fed.arrays, epsilon_spent=0.1)
    assert checker.check(cheaper, order, fed.arrays, node_id=1).reason == Fault.EPSILON_FELL


def test_two_nodes_do_not_speak_for_one_clinic_nor_one_node_for_two(fed):
    checker, order = fed.checker(), fed.order()
    reply = fed.honest(order, fed.arrays, 1)
    assert checker.check(reply, order, fed.arrays, node_id=1).verdict is Verdict.ACCEPTED
    assert checker.check(reply, order, fed.arrays, node_id=2).reason == Fault.OTHER_NAME
    other = fed.honest(order, fed.arrays, 3)
    assert checker.check(other, order, fed.arrays, node_id=1).reason == Fault.OTHER_NAME
    checker.keep_nodes([2])  # node 1 is gone; its clinic came back as node 2
    assert checker.check(reply, order, fed.arrays, node_id=4).reason == ""


class Papers:
    """Knows a clinic by its node's key."""

    def __init__(self, **keys):
        self.keys = keys

    def judge(self, reply, node_key):
        return Judged(FULL if self.keys.get(reply.clinic) == node_key else UNATTESTED)


def in_earnest(fed, registry, **privacy):
    config = fed.config(privacy={"admit_unattested": True, **privacy})
    return ReplyChecker(config, registry, simulation=False), fed.order(config=config)


def test_a_name_belongs_to_who_can_prove_it_and_not_to_who_said_it_first(fed):
    checker, order = in_earnest(fed, Papers(Nord=b"nord"))
    reply = fed.honest(order, fed.arrays, 1, clinic="Nord", noise=9.0)
    thief = fed.honest(order, fed.arrays, 2, clinic="Nord", noise=9.0)
    assert checker.check(thief, order, fed.arrays, node_id=2, node_key=b"other").verdict is Verdict.ACCEPTED
    assert checker.check(reply, order, fed.arrays, node_id=1, node_key=b"nord").verdict is Verdict.ACCEPTED
    found = checker.check(thief, order, fed.arrays, node_id=2, node_key=b"other")
    assert (found.reason, found.clinic) == (Fault.OTHER_NAME, "node 2")
    again = fed.order(2, fed.config())
    for node, key, wrong in ((2, b"other", "other-name"), (1, b"nord", None)):
        heard = checker.introduce(ClinicReply("Nord", again.run, 2), again, node, key)
        assert (heard.reason if heard else None) == wrong


def test_what_is_said_under_anothers_name_stands_under_the_nodes_number(fed):
    """Else anybody could fill another clinic's row, up to the federation's ε."""
    checker, order = fed.checker(), fed.order()
    checker.check(fed.honest(order, fed.arrays, 1), order, fed.arrays, node_id=1)
    dear = fed.honest(order, fed.arrays, 1, epsilon_spent=1e9)
    refusal = dataclasses.replace(dear, refusal=Refusal.FAILED, arrays={})
    ugly = dataclasses.replace(dear, clinic="x\x1b[2J")
    for reply in (dear, refusal, ugly):
        found = checker.check(reply, order, fed.arrays, node_id=2)
        assert (found.clinic, found.reply) == ("node 2", None)
    # A clinic that could not even read its own name may find it again.
    lost = dataclasses.replace(refusal, clinic="partition 2")
    assert checker.check(lost, order, fed.arrays, node_id=3).clinic == "partition 2"
    assert checker.check(fed.honest(order, fed.arrays, 3), order, fed.arrays, node_id=3).reason == ""


@pytest.mark.parametrize(("patients", "fault"), [(999, ""), (1000, "patients"), (2**62, "patients")])
def test_no_clinic_takes_the_model_over_by_claiming_more_patients_than_delta_protects(fed, patients, fault):
    checker, order = in_earnest(fed, Papers())
    rate = 2.0 / patients
    reply = fed.honest(order, fed.arrays, noise=9.0, patients=patients, sample_rate=rate)
    assert checker.check(reply, order, fed.arrays).reason == fault


def test_a_round_counts_no_clinic_and_no_update_twice(fed):
    checker = fed.checker()
    one, two = judged(fed, 1, checker), judged(fed, 2, checker)
    twice = dataclasses.replace(one, node_id=9)
    copied = dataclasses.replace(two, reply=dataclasses.replace(one.reply, clinic="hospital_05"))
    reasons = [found.reason for found in checker.compare([one, two, twice, copied])]
    assert reasons == ["", "", Fault.ANSWERED_TWICE, Fault.REPLAYED]


def test_an_update_far_longer_than_its_neighbours_is_refused(fed):
    checker = fed.checker()
    found = [judged(fed, number, checker) for number in range(1, 6)]
    found[2] = dataclasses.replace(found[2], norm=found[2].norm * 50)
    assert [one.reason for one in checker.compare(found)] == ["", "", Fault.TOO_LONG, "", ""]
    off = fed.checker(fed.config(server={"norm_over_median": None}))
    assert {one.reason for one in off.compare(found)} == {""}


@pytest.mark.parametrize("tier", [0, 2, 4])
def test_the_noise_that_a_clinic_plans_is_the_noise_that_the_server_demands(fed, tier):
    config = fed.config(clinics={"profiles": [{"score": tier / 4, "tier": tier}]})
    standing = Standing(tier / 4, tier, eligible=True, attested=True)
    planned = plan_noise(config, 20, standing, simulation=False)
    enough = planned.noise.noise_multiplier
    exact = judged(fed, config=config, noise=enough, sample_rate=planned.sample_rate)
    assert exact.verdict is Verdict.ACCEPTED
    less = judged(fed, config=config, noise=enough * 0.999, sample_rate=planned.sample_rate)
    assert less.reason == Fault.NOISE


def test_a_claimed_score_buys_nothing(fed):
    """The clinic says tier 4 and adds the noise of tier 4; the server knows tier 0."""
    config = fed.config(clinics={"profiles": [{"score": 0.0, "tier": 0}]})
    best = plan_noise(config, 20, Standing(1.0, 4, eligible=True, attested=True), simulation=False)
    found = judged(fed, config=config, noise=best.noise.noise_multiplier, score=1.0, tier=4)
    assert (found.reason, found.standing.tier) == (Fault.NOISE, 0)


def test_an_ineligible_clinic_is_refused_whatever_its_noise(fed):
    config = fed.config(clinics={"profiles": [{"eligible": False}]})
    assert judged(fed, config=config, noise=99.0).reason == Fault.NOT_ELIGIBLE


def test_hashes_are_those_of_the_ledger(fed):
    import torch

    from fedvox_federation.dp_sgd.local_round import hash_of

    tensors = {name: torch.from_numpy(value) for name, value in fed.arrays.items()}
    assert arrays_sha256(fed.arrays) == hash_of(tensors)
