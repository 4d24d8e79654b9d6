"""A comparison from the configuration to the report, in this process and with real training."""

import csv
import io
import json

import pytest
import torch

from fedvox.backbone_benchmark import benchmark as module
from fedvox.backbone_benchmark.benchmark import all_trials, check, counted_profile, read_facts, run_benchmark
from fedvox.backbone_benchmark.config import Budget
from fedvox.backbone_benchmark.dry_run import describe, plan
from fedvox.backbone_benchmark.profile import StepSpec, count, profile
from fedvox.backbone_benchmark.report import markdown, write_report
from fedvox.backbone_benchmark.trials import steps_within
from fedvox.commands.backbones import _with_pretrained
from fedvox.errors import CheckpointError, ConfigError, NonFiniteLoss, RunError


class Events:
    """What a comparison told of its tasks."""

    def __init__(self):
        self.started = []

    def __call__(self, name, event):
        if event == "started":
            self.started.append(name)

    def of(self, phase):
        return [name for name in self.started if f"-{phase}-" in name]


def spec(**changes):
    values = {
        "name": "mednext-v2-nano", "options": {}, "in_channels": 1, "classes": 2, "patch_size": (16, 16, 16),
        "batch_size": 1, "bf16": False, "threads": 1, "steps": 1,
    }  # fmt: skip
    return StepSpec(**{**values, **changes})


# ---- budgets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "amount", "steps"), [("steps", 7, 7), ("tflop", 1.0, 50), ("seconds", 6, 12)]
)
def test_a_budget_buys_steps_at_their_price(unit, amount, steps):
    assert steps_within(Budget(unit=unit, amount=amount), tflop_per_step=0.02, seconds_per_step=0.5) == steps


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(ConfigError, match="does not pay for one step"):
        steps_within(Budget(amount=0.01), tflop_per_step=0.02, seconds_per_step=0.5)


def test_counted_operations_of_a_batch_are_those_of_its_patches():
    parameters, one, memory = count(spec())
    _, four, of_four = count(spec(batch_size=4))
    assert parameters == pytest.approx(19_000, rel=0.1)
    assert four == pytest.approx(4 * one)
    assert of_four == pytest.approx(4 * memory)


def test_measured_memory_grows_with_the_patch_by_about_what_is_counted():
    small, large = (profile(spec(patch_size=(edge,) * 3, options={"width": 16})) for edge in (16, 64))
    counted = large.activation_gib - small.activation_gib
    assert 0 < small.peak_gib < large.peak_gib
    assert 0.7 * counted < large.peak_gib - small.peak_gib < 3 * counted
    assert large.seconds_per_step > small.seconds_per_step


def test_equal_budgets_in_operations_give_the_larger_network_fewer_steps(comparison):
    config = comparison(budget={"unit": "tflop", "amount": 0.01})
    specs = check(config, read_facts(config))
    first, _ = all_trials(config, {title: counted_profile(found) for title, found in specs.items()})
    steps = {trial.label: trial.config.steps for trial in first}
    assert steps["wide"] < steps["mednext-v2-nano"] == steps["no-grn"]
    assert all(abs(trial.tflop - 0.01) < 0.01 / trial.config.steps for trial in first)


# ---- trials --------------------------------------------------------------------------------------------------


def test_changed_settings_are_other_trials_and_unchanged_ones_the_same(comparison):
    def names(config):
        specs = check(config, read_facts(config))
        first, second = all_trials(config, {title: counted_profile(found) for title, found in specs.items()})
        return {trial.trial_id for trial in [*first, *second]}

    before = names(comparison())
    assert len(before) == 3 * (2 + 1 + 2)
    assert before == names(comparison(compute={"concurrent": 4, "profile_steps": 1}))
    assert before.isdisjoint(names(comparison(budget={"unit": "steps", "amount": 5})))


def test_primus_is_told_the_patch(comparison):
    config = comparison(backbones=[{"name": "primus-v2-tiny"}])
    assert check(config, read_facts(config))["primus-v2-tiny"].options["patch_size"] == [16, 16, 16]


def test_a_dry_run_lists_every_trial_and_writes_nothing(comparison, tmp_path):
    found = plan(comparison(), "cpu-core")
    text = describe(found)
    assert len(found.trials) == 15
    assert all(trial.name in text for trial in found.trials)
    assert found.hours == pytest.approx(sum(trial.hours for trial in found.trials))
    assert found.hours > 0
    json.dumps(found.to_dict(), allow_nan=False)
    assert list(tmp_path.iterdir()) == []


# ---- the whole -----------------------------------------------------------------------------------------------


def test_a_comparison_measures_trains_pretrains_finetunes_and_reports(comparison):
    config, events = comparison(seeds=[0]), Events()
    found = run_benchmark(config, events)
    assert [len(events.of(phase)) for phase in ("scratch", "pretrain", "finetune")] == [3, 3, 3]
    assert found.error() is None
    assert {row.label for row in found.standings} == {"mednext-v2-nano", "no-grn", "wide"}
    assert len(found.gains) == 3
    assert found.correlation.backbones == 3
    assert all(cost.seconds_per_step > 0 and cost.peak_gib >= 0 for cost in found.profiles.values())
    started = found.results["finetune"]["wide"][0]["pretrained_share"]
    assert started["encoder"] == started["decoder"] == 1

    folder = write_report(found)
    text = markdown(found)
    assert "Spearman" in text
    assert "What pretraining adds" in text
    written = module.storage.read_bytes
    rows = list(csv.DictReader(io.StringIO(written(folder.child("cases.csv")).decode())))
    assert len(rows) == 9 * 3 - 3 * 2  # a pretraining holds one case out, the others three
    assert json.loads(written(folder.child("results.json")))["schema"] == "fedvox.backbones/1"
    assert b"data:image/png" in written(folder.child("report.html"))
    assert written(folder.child("figures", "pretraining.png")).startswith(b"\x89PNG")

    again = Events()
    repeated = run_benchmark(config, again)
    assert again.started == []
    assert repr(repeated.standings) == repr(found.standings)  # NaN, the deviation of one seed, equals nothing


def test_after_an_interruption_only_what_is_missing_is_run(comparison, assumed_times, monkeypatch):
    config = comparison(pretrain=None, seeds=[0])
    run = module.run_trial

    def killed(trial):
        if trial.label == "wide":
            raise KeyboardInterrupt
        return run(trial)

    monkeypatch.setattr(module, "run_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(config, Events())
    monkeypatch.setattr(module, "run_trial", run)
    events = Events()
    found = run_benchmark(config, events)
    assert [name.rsplit("-", 1)[0] for name in events.started] == ["wide-scratch-0"]
    assert len(found.standings) == 3


def test_a_backbone_that_fails_is_told_and_the_others_are_compared(comparison, assumed_times, monkeypatch):
    run = module.run_trial

    def fragile(trial):
        if trial.label == "no-grn":
            raise NonFiniteLoss("diverged", "lower the learning rate")
        return run(trial)

    monkeypatch.setattr(module, "run_trial", fragile)
    found = run_benchmark(comparison(pretrain=None, seeds=[0]), Events())
    assert [row.label for row in found.standings if row.label == "no-grn"] == []
    assert len(found.standings) == 2
    assert isinstance(found.error(), RunError)
    assert "diverged" in str(found.error())
    assert "Failed: no-grn-scratch-0" in markdown(found)


def test_given_weights_are_finetuned_as_pretrained_ones_are(comparison, assumed_times):
    one = {"seeds": [0], "backbones": [{"name": "mednext-v2-nano"}]}
    released = run_benchmark(comparison(**one), Events())
    trials = module.storage.list_files(module.root_of(released.config).child("trials"))
    described = next(f.path for f in trials if "-pretrain-" in f.path and f.path.endswith("final/model.json"))
    given = [f"mednext-v2-nano={described.removesuffix('/model.json')}"]
    config = _with_pretrained(comparison(name="given", pretrain=None, **one), given)
    events = Events()
    found = run_benchmark(config, events)
    assert events.of("pretrain") == []
    assert found.gains == released.gains


# ---- bad input -----------------------------------------------------------------------------------------------


def test_weights_of_another_network_fail_that_backbone_and_say_what_differs(
    comparison, assumed_times, tmp_path
):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"encoder.foo": torch.zeros(3)}}, path)
    two = comparison(seeds=[0], pretrain=None).backbones[1:]
    config = _with_pretrained(comparison(seeds=[0], pretrain=None, backbones=two), [f"wide={path}"])
    found = run_benchmark(config, Events())
    assert len(found.standings) == 2
    assert [type(error) for error in found.failures.values()] == [CheckpointError]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"backbones": [{"name": "mednext-v2-nanno"}]}, "mednext-v2-nano"),
        ({"backbones": [{"name": "mednext-v2-nano"}] * 2}, "occurs more than once"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"budget": {"amount": -1}}, "budget.amount"),
        ({"backbones": [{"name": "mednext-v2-nano", "options": {"widht": 3}}]}, "width"),
    ],
)
def test_wrong_configurations_are_refused_with_a_remedy(comparison, changes, told):
    def checked():
        config = comparison(**changes)
        check(config, read_facts(config))

    with pytest.raises(ConfigError, match=told):
        checked()


def test_fields_that_the_comparison_sets_are_refused_in_the_recipe(comparison):
    recipe = {**comparison().recipe, "steps": 5}
    with pytest.raises(ConfigError, match="steps cannot be in the recipe"):
        comparison(recipe=recipe)


def test_a_patch_that_a_backbone_cannot_halve_is_refused_before_anything_runs(comparison):
    recipe = comparison().recipe
    recipe = {**recipe, "data": {**recipe["data"], "patch_size": [16, 16, 18]}}
    config = comparison(recipe=recipe)
    with pytest.raises(ConfigError, match="not divisible"):
        check(config, read_facts(config))


def test_too_few_held_out_cases_are_refused(comparison):
    recipe = comparison().recipe
    recipe = {**recipe, "data": {**recipe["data"], "validation_cases": ["c3"]}}
    with pytest.raises(ConfigError, match="too few for an interval"):
        read_facts(comparison(recipe=recipe))


def test_weights_that_do_not_exist_are_refused_before_anything_runs(comparison):
    config = _with_pretrained(comparison(pretrain=None), ["wide=nowhere/final"])
    with pytest.raises(CheckpointError, match="nowhere/final does not exist"):
        plan(config, "cpu-core")


def test_weights_for_an_unknown_backbone_are_refused(comparison):
    with pytest.raises(ConfigError, match="no backbone of the comparison: lung"):
        _with_pretrained(comparison(), ["lung=somewhere"])
    with pytest.raises(ConfigError, match="LABEL=PATH"):
        _with_pretrained(comparison(), ["wide"])
