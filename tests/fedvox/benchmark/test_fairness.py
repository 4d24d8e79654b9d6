"""Every check passes where it should, and fails for each reason that it is there for."""

from __future__ import annotations

import numpy as np
import pytest

from fedvox.benchmark import fairness
from fedvox.benchmark.leakage import Leak
from fedvox.benchmark.submission import Submission


@pytest.fixture
def make(method_card):
    def submission(name, *, method=None, **options):
        values = {
            "name": name,
            "predictions": {"t": "x"},
            "method": {**method_card, **(method or {})},
            **options,
        }
        return Submission.model_validate(values)

    return submission


@pytest.fixture
def baseline(make):
    return make("resenc", role="baseline")


def p1(submission, *others):
    return fairness.check_confounders(submission, [submission, *others], 0.2)


# --- P1 -------------------------------------------------------------------------------------------------------


def test_a_claim_that_changes_only_what_it_claims_passes(make, baseline):
    ours = make(
        "mamba",
        method={"architecture": "U-Mamba", "family": "mamba"},
        claims=["architecture"],
        compares_to="resenc",
    )
    assert p1(ours, baseline).status == "pass"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"residual_encoder": False}, "residual_encoder"),
        ({"patch_size": [96, 96, 96]}, "patch_size"),
        ({"batch_size": 4}, "batch_size"),
        ({"epochs": 2000}, "epochs"),
        ({"extra_data": True}, "extra_data"),
        ({"training_cases": ["train_0"]}, "training_cases"),
        ({"pretrained": "SuPreM"}, "pretrained"),
        ({"ensemble_size": 5}, "ensemble_size"),
        ({"test_time_augmentation": True}, "test_time_augmentation"),
        ({"hardware": "RTX 2080"}, "hardware"),
        ({"augmentation": "more"}, "augmentation"),
    ],
)
def test_every_confounder_of_a_claimed_architecture_is_named(make, baseline, change, named):
    ours = make(
        "ours", method={"architecture": "new", **change}, claims=["architecture"], compares_to="resenc"
    )
    check = p1(ours, baseline)
    assert check.status == "fail"
    assert [d.split(":")[0] for d in check.details] == [named]


def test_what_is_claimed_may_differ(make, baseline):
    method = {"pretrained": "SuPreM", "extra_data": True, "loss": "focal"}
    ours = make("ours", method=method, claims=["pretraining", "training_data", "loss"], compares_to="resenc")
    assert p1(ours, baseline).status == "pass"


def test_a_little_more_of_a_size_is_no_confounder(make, baseline):
    ours = make("ours", method={"epochs": 1100, "loss": "x"}, claims=["loss"], compares_to="resenc")
    assert p1(ours, baseline).status == "pass"


def test_silence_is_no_evidence(make, baseline):
    ours = make("ours", method={"loss": "x", "patch_size": None}, claims=["loss"], compares_to="resenc")
    check = p1(ours, baseline)
    assert check.status == "fail"
    assert check.details == ("patch_size: not declared by ours",)


@pytest.mark.parametrize("compares_to", [None, "nobody", "ours"])
def test_a_claim_against_nobody_fails(make, baseline, compares_to):
    ours = make("ours", claims=["loss"], compares_to=compares_to)
    assert p1(ours, baseline).status == "fail"


def test_who_claims_nothing_is_not_asked(make, baseline):
    assert p1(make("ours"), baseline) is None


def test_a_waiver_shows_its_reason_and_what_was_found(make, baseline):
    options = {
        "claims": ["loss"],
        "compares_to": "resenc",
        "waivers": {"P1": "epochs were matched in wall time"},
    }
    check = p1(make("ours", method={"epochs": 3000}, **options), baseline)
    assert check.status == "waived"
    assert check.holds
    assert "wall time" in check.reason
    assert "1 unclaimed" in check.reason
    assert check.details


# --- P2 -------------------------------------------------------------------------------------------------------


def p2(submission, *others):
    return fairness.check_baseline(submission, [submission, *others], 0.2)


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ({}, "pass"),
        ({"vram_gib": 11.9, "gpu_hours": 10.1}, "pass"),
        ({"vram_gib": 13.0}, "fail"),
        ({"gpu_hours": 60.0}, "fail"),
        ({"gpu_hours": None}, "fail"),
    ],
)
def test_a_baseline_of_the_same_memory_and_time_is_needed(make, baseline, method, status):
    assert p2(make("ours", method=method), baseline).status == status


def test_a_baseline_that_declares_no_compute_matches_nobody(make):
    silent = make("resenc", role="baseline", method={"gpu_hours": None})
    assert p2(make("ours"), silent).status == "fail"
    assert p2(make("ours")).status == "fail"


def test_one_of_several_baselines_is_enough_and_baselines_need_none(make, baseline):
    large = make("resenc-l", role="baseline", method={"vram_gib": 24, "gpu_hours": 35})
    assert p2(make("ours", method={"vram_gib": 23, "gpu_hours": 36}), baseline, large).status == "pass"
    assert p2(large, baseline) is None


# --- P3 -------------------------------------------------------------------------------------------------------


def test_a_test_set_on_which_methods_differ_more_than_seeds_do_passes():
    runs = {"a": [0.80, 0.81, 0.79], "b": [0.90], "c": [0.70]}
    check = fairness.check_discrimination("t", runs, 1.0)
    between, within = np.std([0.8, 0.9, 0.7], ddof=1), np.std([0.80, 0.81, 0.79], ddof=1)
    assert check.status == "pass"
    assert f"ratio {between / within:.2f}" in check.reason


def test_a_test_set_on_which_seeds_differ_as_much_fails():
    runs = {"a": [0.80, 0.85, 0.75], "b": [0.81], "c": [0.79]}
    assert fairness.check_discrimination("t", runs, 1.0).status == "fail"


def test_published_spreads_reproduce_the_published_verdict():
    """BTCV separates 16 methods by a standard deviation of 1.53 points, folds of one by 2.35; KiTS by 3.14 and 1.93."""
    rng = np.random.default_rng(0)

    def spread(count, sd):
        values = rng.normal(size=count)
        return (values - values.mean()) / values.std(ddof=1) * sd

    for between, within, status in ((1.53, 2.35, "fail"), (3.14, 1.93, "pass")):
        methods = spread(16, between)
        runs = {f"m{i}": [v] for i, v in enumerate(methods)}
        folds = spread(5, within)
        runs["m0"] = list(folds - folds[0] + methods[0])
        assert fairness.check_discrimination("t", runs, 1.0).status == status


@pytest.mark.parametrize("runs", [{}, {"a": [0.8, 0.9, 0.7]}, {"a": [0.8, 0.9], "b": [0.7]}])
def test_without_replicates_nothing_is_known(runs):
    check = fairness.check_discrimination("t", runs, 1.0)
    assert check.status == "fail"
    assert "not known" in check.reason


# --- P4 and leakage -------------------------------------------------------------------------------------------


def test_complete_reporting_passes_and_every_gap_is_named(make):
    assert fairness.check_reporting(make("m"), {"a": 1.0, "b": 1.0}, ["a", "b"]).status == "pass"
    check = fairness.check_reporting(make("m", method={"seeds": None}), {"a": 0.88}, ["a", "b"])
    assert check.status == "fail"
    assert check.details == (
        "test set b: not submitted",
        "test set a: 88.0% of the cases",
        "method.seeds: not declared",
    )


def test_leaks_are_named_and_unknown_is_not_clean():
    assert fairness.check_leakage("t", []).status == "pass"
    check = fairness.check_leakage(
        "t", [Leak("c1", "train_3", "exact", 1.0), Leak("c2", "train_5", "near", 0.991)]
    )
    assert check.status == "fail"
    assert check.reason.startswith("1 exact and 1 near")
    assert "c2 is like train_5" in check.details[1]
    assert fairness.check_leakage("t", None).status == "fail"


def test_declared_training_cases_must_not_be_test_cases(make):
    tests = {"t": ["c1", "c2"]}
    assert fairness.check_training_cases(make("m"), tests).status == "pass"
    check = fairness.check_training_cases(make("m", method={"training_cases": ["c2", "x"]}), tests)
    assert (check.status, check.details) == ("fail", ("c2 of t",))
    assert fairness.check_training_cases(make("m", method={"training_cases": None}), tests).status == "fail"
