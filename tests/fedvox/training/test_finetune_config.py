"""Schedules as phases: what is trained when, at which rate, and which configurations are refused."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox.config import load_config, validate
from fedvox.errors import ConfigError
from fedvox.training.config import PretrainConfig
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.optimizer import learning_rate
from fedvox.training.phases import PARTS, describe_phases, phase_at


def config(**values):
    return validate(FinetuneConfig, {"init_from": "weights", **values}, source="test")


def rates(found):
    phases = found.phases()
    return [
        learning_rate(phase, step - phase.start, phase.steps)
        for step in range(found.steps)
        for phase in [phase_at(phases, step)]
    ]


@given(
    kind=st.sampled_from(["full", "unfreeze", "decoder", "layerwise"]),
    steps=st.integers(2, 500),
    warmup=st.integers(0, 100),
    frozen=st.integers(1, 300),
)
def test_phases_follow_one_another_from_the_first_step_to_the_last(kind, steps, warmup, frozen):
    schedule = {"kind": kind, **({"frozen_steps": frozen} if kind == "unfreeze" else {})}
    start = frozen if kind == "unfreeze" else 0
    values = {"steps": steps, "optimizer": {"warmup_steps": warmup}, "schedule": schedule}
    if start + warmup >= steps:
        with pytest.raises(ConfigError):
            config(**values)
        return
    phases = config(**values).phases()
    assert phases[0].start == 0
    assert all(one.start + one.steps == two.start for one, two in itertools.pairwise(phases))
    assert phases[-1].start + phases[-1].steps == steps
    assert all(
        phase_at(phases, p.start) is p and phase_at(phases, p.start + p.steps - 1) is p for p in phases
    )


def test_unfreezing_warms_up_twice_and_decays_once():
    found = config(
        steps=30,
        optimizer={"lr": 1.0, "warmup_steps": 5, "power": 1.0},
        schedule={"kind": "unfreeze", "frozen_steps": 10, "frozen_lr": 2.0, "frozen_warmup_steps": 4},
    )
    assert rates(found) == pytest.approx(
        [0.5, 1.0, 1.5, *[2.0] * 7, 0.2, 0.4, 0.6, 0.8, 1.0, *[1 - n / 15 for n in range(15)]]
    )
    first, second = found.phases()
    assert (first.parts, first.frozen) == (("decoder", "heads"), ("stem", "encoder"))
    assert (second.parts, second.frozen) == (PARTS, ())


def test_by_default_the_frozen_phase_is_one_long_warm_up():
    found = config(
        steps=20, optimizer={"lr": 1.0, "warmup_steps": 0}, schedule={"kind": "unfreeze", "frozen_steps": 10}
    )
    assert rates(found)[:11] == pytest.approx([*[(n + 1) / 10 for n in range(10)], 1.0])


def test_the_full_schedule_is_that_of_pretraining():
    optimizer = {"lr": 0.5, "warmup_steps": 3}
    assert (
        config(steps=9, optimizer=optimizer).phases() == PretrainConfig(steps=9, optimizer=optimizer).phases()
    )


def test_the_decoder_schedule_never_trains_the_encoder():
    assert config(schedule={"kind": "decoder"}).never_trained == ("stem", "encoder")
    assert config(schedule={"kind": "decoder", "train_stem": True}).never_trained == ("encoder",)
    assert config(schedule={"kind": "unfreeze"}).never_trained == ()


def test_layer_decay_is_a_property_of_the_schedule():
    assert config().layer_decay == 1.0
    assert config(schedule={"kind": "layerwise"}).layer_decay == 0.8
    assert config(schedule={"kind": "unfreeze", "layer_decay": 0.9}).layer_decay == 0.9
    assert PretrainConfig().layer_decay == 1.0


def test_phases_are_told_in_words():
    text = describe_phases(config(schedule={"kind": "unfreeze", "frozen_steps": 500}).phases())
    assert text[0] == "steps 0 to 500: decoder, heads; warm-up of 500 to lr 0.001, then constant"
    assert "(1 - progress)^0.9" in text[1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"init_from": None}, "names no weights"),
        ({"schedule": {"kind": "frozen"}}, "unfreeze"),
        ({"schedule": {"kind": "layerwise", "layer_decay": 1.5}}, "layer_decay"),
        ({"schedule": {"kind": "full", "frozen_steps": 3}}, "frozen_steps"),
        ({"schedule": {"kind": "unfreeze", "frozen_steps": 3, "frozen_warmup_steps": 4}}, "larger than"),
        ({"schedule": {"kind": "unfreeze", "frozen_steps": 80_000}}, "must be more than"),
        ({"transfer": {"heads": "old"}}, "by_name"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(values, words):
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_the_demo_configuration_leaves_backbone_and_patch_to_the_weights():
    path = Path(__file__).parents[3] / "jobs" / "configs" / "finetune_demo.yaml"
    found = load_config(FinetuneConfig, path)
    assert "model" not in found.model_fields_set
    assert "patch_size" not in found.data.model_fields_set


def test_reading_a_configuration_imports_neither_torch_nor_ray():
    code = (
        "import sys, fedvox.training.finetune_config, fedvox.commands.finetune;"
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
