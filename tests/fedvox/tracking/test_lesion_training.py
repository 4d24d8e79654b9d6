"""Training over pooled lesions: through the shared loop, through the propagation, from stores and from simulation."""

import json

import numpy as np
import pytest
import torch

from fedvox.commands.lesion import pretrain
from fedvox.config import validate
from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import CheckpointError, ConfigError, DataError, Preempted
from fedvox.tracking import lesion_training
from fedvox.tracking.config import LesionConfig, PromptSection
from fedvox.tracking.examples import ArraySource, Example, Later, TrainingScan
from fedvox.tracking.network import load_segmenter, promptable
from fedvox.tracking.patches import Patch, PatchPlan
from fedvox.tracking.pool import open_pool
from fedvox.tracking.prompts import Point
from fedvox.tracking.training import (
    follow_up_loss,
    follow_up_of,
    propagated,
    propagation,
    with_mask,
)
from fedvox.training import ray_shell
from fedvox.training.loss import DiceCrossEntropy
from fedvox.training.run_directory import RunDirectory
from fedvox.training.world import World

NAME = "mednext-v2-nano"


def values(tmp_path, name, **changes):
    found = {
        "name": name, "storage": str(tmp_path), "steps": 4, "global_batch_size": 2, "log_every": 1,
        "patch_size": [16, 16, 16], "spacing_mm": [4, 4, 4], "model": {"name": NAME, "deep_supervision": False},
        "data": {"synthetic": {}}, "prompts": {"empty_share": 0.2, "corrected_share": 1.0, "follow_up_share": 0.5},
        "validation": {"every_steps": 2, "lesions": 2}, "checkpoint": {"every_steps": 1},
        "compute": {"num_workers": 0},
    }  # fmt: skip
    return {**found, **changes}


def config_of(tmp_path, name, **changes):
    return validate(LesionConfig, values(tmp_path, name, **changes), source="test")


@pytest.fixture(scope="module")
def scans(phantom):
    found = []
    for seed in range(2):
        head = phantom(seed=seed)
        volume, labels = head.scan({1: ((0.0, 9.0, -8.0), 8, 1.9), 2: ((9.0, -12.0, 8.0), 7, 0.2)}, seed=seed)
        found.append(TrainingScan(volume.data[0], labels, volume.geometry.spacing_mm))
    return found


def with_later(scan, lesion):
    """The same scan two days later: the lesion is where it was."""
    return Example(scan, lesion, Later(scan, np.asarray(scan.lesions == lesion)))


class Pairs(ArraySource):
    """Lesions that stay as they are."""

    def example(self, index):
        found = super().example(index)
        return with_later(found.scan, found.lesion)


def losses(config):
    return [line["loss"] for line in RunDirectory.of(config).metrics() if line["kind"] == "train"]


def test_what_is_propagated_lands_where_it_belongs(scans):
    plan = PatchPlan((16, 16, 16), (4.0, 4.0, 4.0))
    example = with_later(scans[0], 1)
    for seed in range(4):
        sample = follow_up_of(example, PromptSection(kinds=("point",)), plan, np.random.default_rng(seed))
        assert sample is not None
        there, here = (
            torch.from_numpy(s.patch.mask(s.target).astype(np.float32)) for s in (sample.first, sample.later)
        )
        matrix = torch.from_numpy(propagation(sample))[None]
        moved = propagated(there[None, None], matrix)[0, 0]
        assert sample.first.patch.start != sample.later.patch.start
        assert 2 * (moved * here).sum() / (moved.sum() + here.sum()) > 0.75


def test_the_gradient_of_the_later_scan_reaches_the_first_answer(scans):
    plan = PatchPlan((16, 16, 16), (4.0, 4.0, 4.0))
    sample = follow_up_of(with_later(scans[0], 1), PromptSection(), plan, np.random.default_rng(0))
    probability = torch.full((1, 1, 16, 16, 16), 0.7, requires_grad=True)
    seen = torch.zeros(1, 9, 16, 16, 16)
    mask = with_mask(seen, propagated(probability, torch.from_numpy(propagation(sample))[None]))[:, 7]
    assert set(mask.detach().unique().tolist()) <= {0.0, 1.0}
    mask.sum().backward()
    assert probability.grad is not None
    assert float(probability.grad.sum()) > 100
    torch.manual_seed(0)
    network = promptable(NAME, deep_supervision=False)
    loss = follow_up_loss(network, [sample], DiceCrossEntropy())
    loss.backward()
    assert torch.isfinite(loss)


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path, scans):
    source = Pairs(scans)
    whole = config_of(tmp_path, "whole")
    lesion_training.train(whole, World(), source=source)

    class Stop:
        steps = 0

        def should_stop(self, _asked):
            self.steps += 1
            return self.steps == 2

    parts = config_of(tmp_path, "parts")
    with pytest.raises(Preempted):
        lesion_training.train(parts, World(), watch=Stop(), source=source)
    assert lesion_training.train(parts, World(), source=source).step == 4
    assert losses(parts) == losses(whole)
    first, second = (
        load_segmenter(str(tmp_path / n / "final")).network.state_dict() for n in ("whole", "parts")
    )
    assert all(torch.equal(first[n], second[n]) for n in first)
    with pytest.raises(CheckpointError, match="another cases"):
        lesion_training.train(parts, World(), source=ArraySource(scans[:1]))


def test_a_short_training_beats_what_it_began_with(tmp_path, scans):
    config = config_of(
        tmp_path, "learns", steps=40, optimizer={"lr": 5e-3},
        prompts={"corrected_share": 0.0, "empty_share": 0.0, "follow_up_share": 0.0, "kinds": ["mask"],
                 "prior": 0.0},
        validation={"every_steps": 40, "lesions": 4, "at_start": True}, checkpoint={"every_steps": 100},
    )  # fmt: skip
    lesion_training.train(config, World(), source=ArraySource(scans))
    dice = [line["dice"] for line in RunDirectory.of(config).metrics() if line["kind"] == "validation"]
    assert dice[1] > dice[0] + 0.2


def store_of(folder, scans):
    meta = StoreMeta("toy", ("T1",), "MR", ("background", "cyst", "tumour"), {"all": (0, 1, 2)}, "zscore")
    writer = StoreWriter.create(str(folder), meta)
    for number, scan in enumerate(scans):
        writer.add_case(
            f"case_{number}", np.asarray(scan.image, np.float32)[None], scan.lesions.astype(np.uint8), source="s",
            label_set="all", spacing_mm=scan.spacing_mm,
        )  # fmt: skip
    writer.finish(meta)
    return str(folder)


def test_lesions_of_a_store_are_found_one_by_one_and_read_alone(tmp_path, scans):
    uri = store_of(tmp_path / "store", scans)
    both = config_of(tmp_path, "both", data={"stores": [{"uri": uri, "validation_fraction": 0}]})
    pool = open_pool(both)
    assert pool.lesions == 4
    true = {int((s.lesions == i).sum()) for s in scans for i in (1, 2)}
    found = [pool.example(i) for i in range(12)]
    assert {int((e.scan.lesions == e.lesion).sum()) for e in found} == true
    again = pool.example(5)
    np.testing.assert_array_equal(again.scan.image, found[5].scan.image)
    assert all(e.later is not None for e in found)
    assert json.loads((tmp_path / "both" / "lesions" / "store_0.json").read_text())[3]["row"] == 1
    one = {"uri": uri, "structures": ["tumour"], "instances": "values", "validation_fraction": 0}
    assert open_pool(config_of(tmp_path, "one", data={"stores": [one], "follow_ups": False})).lesions == 2
    with pytest.raises(ConfigError, match="no structure 'metastasis'"):
        open_pool(config_of(tmp_path, "no", data={"stores": [{"uri": uri, "structures": ["metastasis"]}]}))


def test_a_store_without_a_lesion_is_refused(tmp_path, scans):
    empty = [TrainingScan(scans[0].image, scans[0].lesions * 0, scans[0].spacing_mm)]
    uri = store_of(tmp_path / "empty", empty)
    with pytest.raises(DataError, match="no lesion to learn from"):
        open_pool(config_of(tmp_path, "x", data={"stores": [{"uri": uri}]}))


def test_simulated_lesions_are_a_function_of_seed_and_index(tmp_path):
    section = {"synthetic": {"heads": 1, "kinds": ["ring"], "distinct": 3}}
    first, second = (open_pool(config_of(tmp_path, "s", data=section)) for _ in range(2))
    for index in (0, 7):
        a, b = first.example(index), second.example(index)
        np.testing.assert_array_equal(a.scan.image, b.scan.image)
        np.testing.assert_array_equal(a.later.lesion, b.later.lesion)
        assert (a.scan.lesions == a.lesion).any()
    assert len({first.example(i).scan.image.tobytes() for i in range(12)}) == 3
    assert first.lesions == 3


def test_the_command_plans_trains_and_tells(tmp_path, scans, capsys):
    uri = store_of(tmp_path / "store", scans)
    data = {"stores": [{"uri": uri, "validation_fraction": 0}], "follow_ups": False}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(values(tmp_path, "run", steps=2, data=data)))
    pretrain(config=path, dry_run=True)
    assert "lesions               4" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints").exists()
    pretrain(config=path, as_json=True)
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["step"] == 2
    assert 0 <= outcome["dice"] <= 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["phase"], status["step"]) == ("finished", 2)
    assert (tmp_path / "run" / "figures" / "curves.png").is_file()
    with pytest.raises(ConfigError, match="not divisible"):
        pretrain(config=path, set_=["name=odd", "patch_size=[18, 16, 16]"])


def test_a_promptable_network_begins_with_the_weights_of_another(tmp_path, scans):
    config = config_of(tmp_path, "first", steps=1)
    lesion_training.train(config, World(), source=ArraySource(scans))
    warm = config_of(tmp_path, "warm", init_from=str(tmp_path / "first"))
    network = lesion_training.new_network(warm)
    before = load_segmenter(str(tmp_path / "first" / "final")).network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_without_dense_prompts_a_network_knows_only_where_its_patch_is(scans):
    config = validate(LesionConfig, values("/x", "n", prompts={"dense": False}), source="test")
    plan = lesion_training.plan_of(config)
    patch = Patch.around((Point((14, 24, 16)),), scans[0].image.shape, scans[0].spacing_mm, plan)
    assert not patch.seen(scans[0].image, (Point((14, 24, 16)),))[1:].any()


def test_a_config_needs_a_source_of_lesions(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.stores"):
        config_of(tmp_path, "x", data={})
    with pytest.raises(ConfigError):
        ray_shell.run(config_of(tmp_path, "x", model={"name": "no-such-model"}), lesion_training)
