"""The audit on the real trainer: it finds what is broken, and nothing where nothing is."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedvox.errors import ConfigError
from fedvox_federation.audit.canaries import Canaries, flat_weights, loss_with_canaries
from fedvox_federation.audit.report import as_text, draw, require_sound
from fedvox_federation.audit.run import AuditPlan, audit
from fedvox_federation.audit.scores import log_likelihood_ratio
from fedvox_federation.audit.targets import build_target
from fedvox_federation.dp_sgd.training import PrivacySettings, PrivateTrainer
from fedvox_federation.errors import AuditFailed
from fedvox_federation.privacy.ledger import PrivacyLedger

SMALL = AuditPlan(epsilon=1.0, canaries=200, rounds=6, sample_rate=0.5)


@pytest.fixture(scope="module", params=["digits", "segmentation"])
def audited(request, tmp_path_factory):
    """Every control of a target."""
    folder = tmp_path_factory.mktemp(request.param)
    return {
        control: audit(
            build_target(request.param), dataclasses.replace(SMALL, control=control), folder / control
        )
        for control in ("none", "no-noise", "no-clipping", "placebo")
    }


def test_training_stays_below_its_ledger(audited):
    assert audited["none"].bound.epsilon <= audited["none"].ledger_epsilon <= 1.001
    assert not audited["none"].refuted


@pytest.mark.parametrize("broken", ["no-noise", "no-clipping"])
def test_a_broken_training_is_caught_by_a_wide_margin(audited, broken):
    assert audited[broken].bound.epsilon > 2 * audited[broken].ledger_epsilon


def test_nothing_is_found_where_no_canary_took_part(audited):
    assert audited["placebo"].bound.epsilon < 0.3


def test_the_verdicts_say_so(audited, tmp_path):
    require_sound(list(audited.values()))
    told = as_text(list(audited.values()))
    assert told.count("caught, as it must be") == 2
    assert told.count("within the ledger") == 2
    draw(list(audited.values()), tmp_path / "audit.png")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_a_leak_and_a_blind_audit_are_refused(audited):
    leaking = dataclasses.replace(audited["no-noise"], plan=SMALL)
    with pytest.raises(AuditFailed, match=r"at least ε = .* was spent") as told:
        require_sound([leaking])
    assert told.value.exit_code == 5
    blind = dataclasses.replace(audited["placebo"], plan=audited["no-noise"].plan)
    with pytest.raises(AuditFailed, match="was not caught"):
        require_sound([blind])


def test_the_ledger_is_the_real_one(tmp_path):
    result = audit(build_target("digits"), SMALL, tmp_path / "ledger")
    account = PrivacyLedger(tmp_path / "ledger").account()
    assert len(account.reservations) == SMALL.rounds
    assert account.epsilon == result.ledger_epsilon
    assert not account.left_open


def test_a_canary_is_clipped_to_the_norm_in_its_own_weight_and_nowhere_else():
    target = build_target("segmentation")
    trained = [p for p in target.model.parameters() if p.requires_grad]
    canaries = Canaries(
        np.array([0, 7, 300, sum(p.numel() for p in trained) - 1]), np.array([1, 0, 1, 1], bool)
    )
    trainer = PrivateTrainer(
        target.model,
        torch.optim.SGD(trained, lr=1.0),
        loss_with_canaries(target.loss, trained, 0.5),
        PrivacySettings(0.0, 0.5, 1.0, len(canaries.weights)),
    )
    before = flat_weights(trained)
    assert trainer.step(canaries.patients()).clipped == 3
    change = (before - flat_weights(trained)) * len(canaries.weights)
    moved = change.nonzero().flatten().tolist()
    assert moved == [0, 300, int(canaries.weights[3])]
    assert change[moved].tolist() == pytest.approx([0.5, 0.5, 0.5], abs=1e-5)


def test_the_score_is_the_ratio_of_the_two_likelihoods():
    # Two steps, drawn in each with probability 0.3: a mixture of three Gaussians against one.
    seen, sigma = np.linspace(-4, 6, 21), 1.5
    spread = sigma * np.sqrt(2)
    mixture = sum(w * norm.pdf(seen, n, spread) for n, w in enumerate([0.49, 0.42, 0.09]))
    expected = np.log(mixture / norm.pdf(seen, 0, spread))
    found = log_likelihood_ratio(seen, noise_multiplier=sigma, sample_rate=0.3, steps=2)
    assert found == pytest.approx(expected)
    assert np.array_equal(log_likelihood_ratio(seen, noise_multiplier=0.0, sample_rate=0.3, steps=2), seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"control": "x"}, "no control 'x'"), ({"rounds": 0}, "rounds"), ({"canaries": 3}, "prove nothing")],
)
def test_a_plan_without_meaning_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AuditPlan(**changes)


def test_more_canaries_than_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="as many trained weights"):
        audit(build_target("digits"), AuditPlan(canaries=10**6), tmp_path / "ledger")


def test_the_command_reports_and_leaves_with_0(federation_command, tmp_path):
    found = federation_command(
        "audit", "--canaries", 200, "--rounds", 6, "--sample-rate", 0.5, "--epsilon", 1,
        "--control", "none", "--control", "no-noise", "--json", "--figure", tmp_path / "a.png",
    )  # fmt: skip
    assert found.code == 0
    private, open_ = found.json["audits"]
    assert private["epsilon_lower_bound"] <= private["ledger_epsilon"] < open_["epsilon_lower_bound"]
    assert (tmp_path / "a.png").exists()


def test_a_dry_run_trains_nothing(federation_command):
    found = federation_command("audit", "--dry-run", "--epsilon", "1", "--epsilon", "2")
    assert (found.code, found.out) == (0, "8 trainings of digits, each of 20 steps with 1000 canaries\n")


def test_wrong_input_leaves_with_2(federation_command):
    assert federation_command("audit", "--target", "x", "--control", "none").code == 2
    assert federation_command("audit", "--control", "x").code == 2


def test_a_figure_that_cannot_be_written_does_not_lose_the_table(federation_command, tmp_path):
    (tmp_path / "file").write_text("")
    found = federation_command(
        "audit",
        "--canaries",
        100,
        "--rounds",
        3,
        "--control",
        "placebo",
        "--figure",
        tmp_path / "file" / "a.png",
    )
    assert found.code == 2
    assert "placebo" in found.out
    assert "file" in found.err
