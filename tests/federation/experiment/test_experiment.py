"""The experiment as a whole: runs that resume, tables, figures, the command."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from fedvox.errors import ConfigError, DataError
from fedvox_federation.experiment.report import as_markdown, summarise
from fedvox_federation.experiment.runs import (
    ExperimentPlan,
    Run,
    RunResult,
    SiteResult,
    execute,
    load,
    save,
)
from fedvox_federation.experiment.tabular import tabular_problem


def result(arm, seed, scores, epsilon=3.0, spent=3.0):
    sites = {f"c{n}": SiteResult(score, 10, 20, n < 1, True, 1.0, spent) for n, score in enumerate(scores)}
    return RunResult(Run("digits", "labels", seed, epsilon, arm), sites, ((3, 0.5),), spent, 1.0)


def test_runs_are_listed_seed_by_seed_and_arms_without_a_promise_once():
    plan = ExperimentPlan(tasks=("digits",), seeds=2, epsilons=(1.0, 8.0), arms=("tiers", "no-dp"))
    runs = list(plan.runs())
    assert len(runs) == len(set(runs)) == 2 * 2 * 3
    assert [run.seed for run in runs] == [0] * 6 + [1] * 6
    assert len({run.path for run in runs}) == len(runs)


@pytest.mark.parametrize("wrong", [{"tasks": ("x",)}, {"arms": ("x",)}, {"seeds": 0}, {"epsilons": (0.0,)}])
def test_a_plan_without_meaning_is_refused(wrong):
    with pytest.raises(ConfigError):
        ExperimentPlan(**wrong)


def test_a_result_comes_back_as_it_was_and_damage_is_named(tmp_path):
    made = result("tiers", 0, [0.9, 0.5], spent=None)
    save(made, tmp_path)
    assert load(made.run, tmp_path) == made
    assert load(dataclasses.replace(made.run, seed=1), tmp_path) is None
    (tmp_path / made.run.path).write_text("{}")
    with pytest.raises(DataError, match=r"seed000\.json"):
        load(made.run, tmp_path)


def test_measures_by_hand():
    made = result("tiers", 0, [0.9, 0.5, 0.1])
    assert made.score == pytest.approx(0.5)
    assert (made.worst, made.gap) == (0.1, pytest.approx(0.8))
    assert made.of_group(compliant=True) == pytest.approx(0.9)
    assert made.of_group(compliant=False) == pytest.approx(0.3)


def test_differences_are_taken_within_seeds_that_both_arms_have():
    results = [result("tiers", seed, [0.8 + 0.01 * seed, 0.6]) for seed in range(6)]
    results += [result("compliant-only", seed, [0.8 + 0.01 * seed, 0.4]) for seed in range(1, 6)]
    (section,) = summarise(results)
    (found,) = section.comparisons
    assert (found.a, found.b, found.seeds) == ("tiers", "compliant-only", 5)
    assert found.difference.mean == pytest.approx(0.1)
    assert found.p == pytest.approx(2 / 2**5)
    assert not found.significant
    assert section.inclusion[3.0]["worst clinic"].mean == pytest.approx(0.2)
    text = as_markdown(section)
    assert "| tiers - compliant-only | 3 | +0.100" in text
    assert "5 to 6 seeds" in text


def test_what_is_no_guarantee_is_called_so():
    (section,) = summarise(
        [result("published-2025", 0, [0.5, 0.5], 0.0, 1e22), result("no-dp", 0, [0.5] * 2, 0.0, None)]
    )
    assert as_markdown(section).count("no guarantee") == 2


@pytest.mark.parametrize(("task", "scenario"), [("breast-cancer", "alike"), ("digits", "labels")])
def test_patients_are_dealt_once_and_the_same_for_a_seed(task, scenario, clinics):
    first, again = (tabular_problem(task, scenario, 3, clinics) for _ in range(2))
    total = 0
    for name, site in first.sites.items():
        total += len(site.patients) + len(site.tests)
        for mine, other in zip(site.tests, again.sites[name].tests, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
    assert total == {"breast-cancer": 569, "digits": 800}[task]


def test_scanners_change_the_images_of_worn_ones_most(clinics):
    seen, plain = (tabular_problem("digits", kind, 3, clinics) for kind in ("scanners", "alike"))
    change = {
        clinic.profile.name: np.mean(
            [
                float((a[0] - b[0]).abs().mean())
                for a, b in zip(seen.sites[name].tests, plain.sites[name].tests, strict=True)
            ]
        )
        for name, clinic in clinics.items()
    }
    assert change["under-resourced"] > 1.3 * change["district"] > 1.5 * change["university"] > 0
    with pytest.raises(ConfigError, match="no images"):
        tabular_problem("breast-cancer", "scanners", 0, clinics)


def test_a_run_judges_every_clinic_and_counts_only_those_who_take_part(clinics):
    problem = tabular_problem("breast-cancer", "labels", 0, clinics)
    short = dataclasses.replace(problem, training=dataclasses.replace(problem.training, rounds=3))
    made = execute(Run("breast-cancer", "labels", 0, 3.0, "compliant-only"), short, clinics, 1e-4)
    parts = [site.takes_part for site in made.sites.values()]
    assert parts == [True] * 3 + [False] * 5
    assert made.epsilon == max(site.epsilon for site in made.sites.values())
    assert 2.9 < made.epsilon <= 3.0
    assert [site.epsilon for site in made.sites.values()][3:] == [0.0] * 5
    assert [number for number, _ in made.curve] == [3]
    assert all(0 <= site.score <= 1 for site in made.sites.values())
    open_ = execute(Run("breast-cancer", "labels", 0, 0.0, "central"), short, clinics, 1e-4)
    assert open_.epsilon is None
    assert open_.score > made.score - 0.1


def test_the_command_runs_resumes_and_reports(federation_command, tmp_path, clinic_folder):
    shutil.copytree(clinic_folder, tmp_path / "clinics")
    few = [
        "--task",
        "breast-cancer",
        "--seeds",
        1,
        "--epsilon",
        3,
        "--arm",
        "tiers",
        "--arm",
        "compliant-only",
    ]
    assert federation_command("experiment", tmp_path, *few, "--dry-run").out == "4 runs, 0 of them done\n"
    first = federation_command("experiment", tmp_path, *few, "--json")
    assert first.code == 0
    kept = {path: path.read_bytes() for path in tmp_path.glob("runs/**/*.json")}
    assert len(kept) == 4
    next(iter(kept)).unlink()
    again = federation_command("experiment", tmp_path, *few, "--json")
    assert again.code == 0
    assert sum(path.read_bytes() == data for path, data in kept.items()) >= 3
    assert [s["scenario"] for s in again.json["sections"]] == ["alike", "labels"]
    more = federation_command("experiment", tmp_path, "--task", "breast-cancer", "--report-only", "--json")
    assert more.json == again.json
    assert (tmp_path / "breast-cancer-labels.png").read_bytes().startswith(b"\x89PNG")
    assert "tiers - compliant-only" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == again.json


def test_arms_without_a_promise_must_be_asked_for(federation_command, tmp_path):
    found = federation_command("experiment", tmp_path, "--arm", "no-dp", "--dry-run")
    assert found.code == 2
    assert "--allow-no-dp" in found.err
    assert federation_command("experiment", tmp_path, "--task", "x", "--dry-run").code == 2
    assert not list(tmp_path.iterdir())
