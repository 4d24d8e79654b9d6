"""A clinic's part of a round: what leaves, what is booked, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fedvox_federation.client import clinic as clinics
from fedvox_federation.client.clinic import Budget, plan_noise, take_part
from fedvox_federation.client.corrections import add_proximal_term
from fedvox_federation.privacy.accountant import epsilon
from fedvox_federation.privacy.ledger import verify
from fedvox_federation.privacy.noise_policy import NO_PRIVACY, UNATTESTED, Standing
from fedvox_federation.protocol import Refusal, arrays_sha256

FULL = Standing(1.0, 4, True, True)


def test_a_round_sends_the_trained_parameters_and_books_what_it_cost(open_hospital):
    site = open_hospital()
    reply = take_part(site.arrays, site.order, site.clinic)
    assert reply.refusal is None
    assert set(reply.arrays) == set(site.clinic.task.model.shared)
    assert any((reply.arrays[name] != site.arrays[name]).any() for name in site.arrays)
    account = site.clinic.ledger().account()
    (booked,) = account.reservations.values()
    assert booked.update_sha256 == reply.update_sha256 == arrays_sha256(reply.arrays)
    assert (booked.committed_steps, booked.phase.noise_multiplier) == (2, reply.noise_multiplier)
    assert reply.epsilon_spent == account.epsilon == pytest.approx(
        epsilon(reply.noise_multiplier, reply.sample_rate, 2, 1e-3), rel=1e-6
    )  # fmt: skip
    verify(site.clinic.folder / "ledger")


def test_all_rounds_together_spend_what_was_promised_and_no_more(open_hospital):
    spent = [open_hospital(number).take_part().epsilon_spent for number in (1, 2)]
    assert 0 < spent[0] < spent[1] <= 8.0
    assert spent[1] == pytest.approx(8.0, rel=0.01)


def test_the_same_order_gets_the_same_answer_and_is_counted_once(open_hospital):
    site = open_hospital()
    first = take_part(site.arrays, site.order, site.clinic)
    again = open_hospital()
    second = take_part(site.arrays, site.order, again.clinic)
    assert second.replayed
    assert not first.replayed
    assert second.update_sha256 == first.update_sha256
    assert all((second.arrays[name] == first.arrays[name]).all() for name in first.arrays)
    assert len(again.clinic.ledger().account().reservations) == 1
    assert second.epsilon_spent == first.epsilon_spent


def test_a_round_that_was_answered_is_not_trained_from_other_parameters(open_hospital):
    site = open_hospital()
    take_part(site.arrays, site.order, site.clinic)
    again = open_hospital()
    other = {name: value + 1 for name, value in site.arrays.items()}
    reply = take_part(other, site.order, again.clinic)
    assert reply.refusal is Refusal.ALREADY_ANSWERED
    assert not reply.arrays
    assert len(again.clinic.ledger().account().reservations) == 1


def test_what_a_crash_left_uncommitted_stays_counted(open_hospital, monkeypatch):
    site = open_hospital()

    def die(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(clinics.ReplyCache, "save", die)
        with pytest.raises(KeyboardInterrupt):
            take_part(site.arrays, site.order, site.clinic)
    (left,) = site.clinic.ledger().account().left_open
    assert left.phase.steps == 2
    open_again = open_hospital()
    reply = take_part(site.arrays, site.order, open_again.clinic)
    assert reply.refusal is None
    assert len(open_again.clinic.ledger().account().reservations) == 2


def test_an_exhausted_budget_ends_in_a_code_before_anything_is_trained(open_hospital):
    site = open_hospital()
    poor = dataclasses.replace(site.clinic, budget=Budget(1.0, 1e-3))
    before = site.clinic.task.model.arrays()
    reply = take_part(site.arrays, site.order, poor)
    assert reply.refusal is Refusal.BUDGET_EXHAUSTED
    assert not reply.arrays
    assert poor.ledger().account().reservations == {}
    assert all((before[name] == value).all() for name, value in site.clinic.task.model.arrays().items())


@pytest.mark.parametrize(
    ("standing", "admit", "refusal"),
    [
        (UNATTESTED, False, Refusal.NOT_ADMITTED),
        (Standing(0.9, 3, False, True), True, Refusal.NOT_ADMITTED),
        (UNATTESTED, True, None),
    ],
)
def test_who_may_not_take_part_does_not(open_hospital, standing, admit, refusal):
    site = open_hospital(privacy={"admit_unattested": admit})
    reply = take_part(site.arrays, site.order, dataclasses.replace(site.clinic, standing=standing))
    assert reply.refusal is refusal


def test_lower_standing_adds_noise(make_config):
    low, high = (
        plan_noise(make_config(), 4, standing, simulation=False)
        for standing in (Standing(0.0, 0, True, True), FULL)
    )
    assert low.noise.noise_multiplier == pytest.approx(2.5 * high.noise.noise_multiplier)


@pytest.mark.parametrize("name", ["published-2025", "linear-2026"])
def test_a_policy_without_a_promise_runs_in_a_simulation_alone(open_hospital, name):
    site = open_hospital(privacy={"policy": {"name": name}})
    simulated = take_part(site.arrays, site.order, site.clinic)
    assert simulated.refusal is None
    assert simulated.epsilon_spent > 8
    real = dataclasses.replace(site.clinic, simulation=False)
    assert take_part(site.arrays, site.order, real).refusal is Refusal.NO_PROMISE


def test_without_noise_epsilon_is_infinite_and_no_ledger_is_opened(open_hospital):
    policy = {"name": "none", "options": {"acknowledge": NO_PRIVACY}}
    site = open_hospital(privacy={"policy": policy})
    reply = take_part(site.arrays, site.order, site.clinic)
    assert reply.refusal is None
    assert reply.epsilon_spent == math.inf
    assert not (site.clinic.folder / "ledger").exists()


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"run": "another"}, Refusal.OTHER_CONFIG),
        ({"config_sha256": "0" * 64}, Refusal.OTHER_CONFIG),
        ({"base_sha256": "0" * 64}, Refusal.OTHER_WEIGHTS),
        ({"proximal_mu": 0.5}, Refusal.BAD_ORDER),
    ],
)
def test_an_order_for_something_else_is_refused(open_hospital, fields, refusal):
    site = open_hospital()
    order = dataclasses.replace(site.order, **fields)
    assert take_part(site.arrays, order, site.clinic).refusal is refusal


def test_arrays_that_do_not_fit_are_refused(open_hospital):
    site = open_hospital()
    name = next(iter(site.arrays))
    bad = [
        {k: v for k, v in site.arrays.items() if k != name},
        {**site.arrays, "more": np.zeros(1, np.float32)},
        {**site.arrays, name: site.arrays[name].astype(np.float64)},
        {**site.arrays, name: np.full_like(site.arrays[name], np.nan)},
        {**site.arrays, name: site.arrays[name][:1]},
    ]
    assert [take_part(arrays, site.order, site.clinic).refusal for arrays in bad] == [Refusal.BAD_ORDER] * 5
    assert site.clinic.ledger().account().reservations == {}


def test_an_unsafe_model_is_refused_before_the_first_step(open_hospital):
    site = open_hospital()
    site.clinic.task.model.network.stem.add_module("norm", torch.nn.BatchNorm3d(1))
    reply = take_part(site.arrays, site.order, site.clinic)
    assert reply.refusal is Refusal.UNSAFE_MODEL
    assert site.clinic.ledger().account().reservations == {}


def test_an_unexpected_error_leaves_as_a_code_and_stays_in_the_log(open_hospital, caplog, monkeypatch):
    site = open_hospital()

    def fail(_round_number):
        raise RuntimeError("/data/Smith_John.nii.gz")

    monkeypatch.setattr(site.clinic.task, "patients", fail)
    reply = take_part(site.arrays, site.order, site.clinic)
    assert reply.refusal is Refusal.FAILED
    assert "Smith" not in repr(reply)
    assert "Smith" in caplog.text


def test_scores_leave_only_where_the_clinic_shares_them(open_hospital):
    site = open_hospital(training={"steps": 2, "evaluate": "every-round", "device": "cpu"})
    shared = take_part(site.arrays, site.order, site.clinic)
    assert 0 <= shared.dice_before <= 1
    assert 0 <= shared.dice_after <= 1
    kept = open_hospital(number=1, training={"steps": 2, "evaluate": "every-round", "device": "cpu"})
    silent = dataclasses.replace(kept.clinic, share_scores=False)
    reply = take_part(kept.arrays, kept.order, silent)
    assert reply.refusal is None
    assert all(math.isnan(value) for value in (reply.dice_before, reply.dice_after, reply.loss))


def test_the_training_seed_does_not_reach_the_noise(open_hospital):
    site = open_hospital()
    torch.manual_seed(0)
    first = take_part(site.arrays, site.order, site.clinic)
    other = open_hospital(name="balls-again")
    order = dataclasses.replace(site.order, run="balls-again", config_sha256=other.order.config_sha256)
    clinic = dataclasses.replace(other.clinic, folder=other.clinic.folder / "elsewhere")
    torch.manual_seed(0)
    second = take_part(site.arrays, order, clinic)
    assert second.refusal is None
    assert any((first.arrays[name] != second.arrays[name]).any() for name in first.arrays)


def test_local_norms_are_trained_kept_and_never_sent(open_hospital):
    training = {"steps": 2, "lr": 0.05, "device": "cpu", "evaluate": "never", "local_norms": True}
    site = open_hospital(training=training)
    model = site.clinic.task.model
    norms = model.local_arrays()
    assert norms
    assert not set(norms) & set(model.shared)
    reply = take_part(site.arrays, site.order, site.clinic)
    assert set(reply.arrays) == set(model.shared)
    after = model.local_arrays()
    assert any((after[name] != norms[name]).any() for name in norms)
    later = open_hospital(2, training=training)
    take_part(reply.arrays, dataclasses.replace(later.order), later.clinic)
    assert any((later.clinic.task.model.local_arrays()[name] != after[name]).any() for name in norms)
    started_from = (later.clinic.run_folder / "local.npz").is_file()
    assert started_from


def test_the_proximal_term_is_added_after_the_noise():
    """With gradients of zero, SGD on μ (w - w₀) alone shrinks the distance by (1 - lr·μ) a step."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    add_proximal_term(optimizer, 0.5)
    with torch.no_grad():
        weight += 1.0
    for _ in range(3):
        weight.grad = torch.zeros(2)
        optimizer.step()
    expected = torch.tensor([1.0, -2.0]) + 1.0 * (1 - 0.05) ** 3
    assert torch.allclose(weight.detach(), expected)


def test_several_cases_of_a_patient_are_one_unit(open_hospital):
    site = open_hospital()
    cohort = site.clinic.task._cohort
    assert all(len(rows) == 2 for rows in {**cohort.training, **cohort.held_out}.values())
    patients = site.clinic.task.patients(1)
    assert len(patients) == len(cohort.training) == 2
    image, label, annotated = patients[0]()
    assert image.shape == (2, 1, 16, 16, 16)
    assert label.shape == (2, 1, 16, 16, 16)
    assert annotated.all()


def test_patches_differ_from_visit_to_visit_and_from_round_to_round(open_hospital):
    task = open_hospital().clinic.task
    first, second, later = task.patients(1)[0], task.patients(1)[0], task.patients(2)[0]
    a, b = first()[0], first()[0]
    assert not torch.equal(a, b)
    assert torch.equal(a, second()[0])
    assert not torch.equal(a, later()[0])


@pytest.mark.parametrize("mode", ["loop", "hooks"])
@pytest.mark.parametrize("scope", ["full", "decoder", "norm+head", "lora"])
def test_every_scope_trains_what_it_sends_in_both_modes(open_hospital, scope, mode):
    training = {"scope": scope, "mode": mode, "lora_rank": 1, "patches_at_once": 4}
    site = open_hospital(training=training)
    frozen = {
        name: value.clone()
        for name, value in site.clinic.task.model.network.state_dict().items()
        if name not in site.clinic.task.model.shared
    }
    reply = take_part(site.arrays, site.order, site.clinic)
    assert reply.refusal is None
    assert all((reply.arrays[name] != site.arrays[name]).any() for name in site.arrays)
    after = site.clinic.task.model.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_a_clinic_that_accounts_at_a_larger_delta_than_the_studys_takes_no_part(open_hospital):
    site = open_hospital()
    clinic = dataclasses.replace(site.clinic, budget=Budget(epsilon=8.0, delta=1e-2))
    assert take_part(site.arrays, site.order, clinic).refusal is Refusal.NO_PROMISE
    assert not (clinic.folder / "ledger").exists()


@pytest.mark.parametrize("file", ["reply.json", "arrays.npz"])
def test_an_answer_that_is_damaged_on_disk_is_not_sent_and_not_trained_again(open_hospital, file):
    site = open_hospital()
    take_part(site.arrays, site.order, site.clinic)
    (site.clinic.run_folder / "round-00001" / file).write_bytes(b"PK\x03\x04 torn")
    again = open_hospital()
    assert take_part(site.arrays, site.order, again.clinic).refusal is Refusal.ALREADY_ANSWERED
    assert len(again.clinic.ledger().account().reservations) == 1


def test_an_answer_that_is_sent_again_carries_the_attestation_of_today(open_hospital):
    site = open_hospital()
    first = take_part(site.arrays, site.order, dataclasses.replace(site.clinic, attestation="old"))
    renewed = dataclasses.replace(open_hospital().clinic, attestation="renewed")
    again = take_part(site.arrays, site.order, renewed)
    assert (again.replayed, again.update_sha256) == (True, first.update_sha256)
    assert again.attestation == "renewed"


def test_local_norms_that_are_damaged_on_disk_are_named_and_nothing_is_booked(open_hospital, caplog):
    site = open_hospital(training={"local_norms": True})
    site.clinic.run_folder.mkdir(parents=True)
    (site.clinic.run_folder / "local.npz").write_bytes(b"torn")
    assert take_part(site.arrays, site.order, site.clinic).refusal is Refusal.DATA
    assert "local.npz" in caplog.text
    assert site.clinic.ledger().account().epsilon == 0
