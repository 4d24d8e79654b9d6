"""Training through the loop that all trainings share: resume, refusal, data from files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvox.config import load_config, validate
from fedvox.errors import CheckpointError, ConfigError, DataError, Preempted
from fedvox.forecasting import training
from fedvox.forecasting.config import ForecastConfig
from fedvox.forecasting.release import load_release
from fedvox.training import ray_shell
from fedvox.training.run_directory import RunDirectory
from fedvox.training.world import World

ROOT = Path(__file__).parents[3]


def config_of(values):
    return validate(ForecastConfig, values, source="test")


def losses(config):
    return [line["loss"] for line in RunDirectory.of(config).metrics() if line["kind"] == "train"]


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path, tiny_config):
    whole = config_of(tiny_config(tmp_path, "whole"))
    training.train(whole, World())

    class Stop:
        steps = 0

        def should_stop(self, _asked):
            self.steps += 1
            return self.steps == 2

    parts = config_of(tiny_config(tmp_path, "parts"))
    with pytest.raises(Preempted):
        training.train(parts, World(), watch=Stop())
    result = training.train(parts, World())
    assert result.step == 4
    assert losses(parts) == losses(whole)
    (first, told), (second, again) = (load_release(str(tmp_path / name)) for name in ("whole", "parts"))
    assert told.trust == again.trust
    first, second = first.state_dict(), second.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_refuses_to_go_on_with_other_data_or_another_flow(tmp_path, tiny_config):
    config = config_of(tiny_config(tmp_path, "run"))
    ray_shell.run(config, training)
    with pytest.raises(ConfigError, match="began with other settings"):
        ray_shell.run(config_of(tiny_config(tmp_path, "run", flow={"slots": 3})), training)
    outcome = ray_shell.run(config, training)
    assert outcome["step"] == 4
    assert (tmp_path / "run" / "figures" / "curves.png").is_file()
    RunDirectory.of(config).child("config.resolved.yaml").local_path.unlink()
    with pytest.raises(CheckpointError, match="another architecture"):
        ray_shell.run(config_of(tiny_config(tmp_path, "run", flow={"slots": 3})), training)


def test_patients_on_disk_are_learnt_from_and_the_held_out_fold_judges(tmp_path, patient, tiny_config):
    for name in ("p1", "p2", "p3", "p4"):
        patient(name=name)
    patient(name="single", days=(0,))
    data = {"folder": str(tmp_path / "cohort"), "size": [8, 8, 8], "folds": 4}
    config = config_of(tiny_config(tmp_path, "files", data=data, flow={"slots": 2}))
    outcome = ray_shell.run(config, training)
    assert outcome["relative_mse"] > 0
    info = json.loads((tmp_path / "files" / "final" / "model.json").read_text())
    assert (info["unit"], info["horizon"], info["size"]) == ("days", 90.0, [8, 8, 8])
    odd = config_of(tiny_config(tmp_path, "odd", data=data | {"size": [8, 8, 6]}))
    with pytest.raises(ConfigError, match="not divisible"):
        ray_shell.run(odd, training)
    patient(name="larger", shape=(9, 10, 12))
    mixed = config_of(tiny_config(tmp_path, "mixed", data={"folder": data["folder"]}))
    with pytest.raises(DataError, match=r"data\.size"):
        ray_shell.run(mixed, training)


def test_no_held_out_patient_is_learnt_from_nor_a_learnt_one_asked_for_trust(tmp_path, patient, tiny_config):
    for name in ("p1", "p2", "p3", "p4"):
        patient(name=name)
    data = {"folder": str(tmp_path / "cohort"), "size": [8, 8, 8], "folds": 4, "fold": 1}
    source = training.open_source(config_of(tiny_config(tmp_path, "files", data=data)))
    learnt, held = ({s.patient for s in part} for part in (source.training, source.validation))
    assert learnt.isdisjoint(held)
    assert learnt | held == {"p1", "p2", "p3", "p4"}
    scans = [{v.tobytes() for s in part for v in s.volumes} for part in (source.training, source.validation)]
    for own, batches in zip(scans, ([source.examples(range(40))], source.held_out(20)), strict=True):
        targets = {target.numpy().tobytes() for found in batches for target in found.target}
        assert targets <= own


@pytest.mark.parametrize(
    ("flow", "simulated", "only"),
    [
        ({}, {"target": "any"}, False), ({}, {"target": "after"}, True), ({}, {"schedule": "regular"}, True),
        ({"method": "tfm"}, {"target": "any"}, True),
    ],
)  # fmt: skip
def test_trust_looks_back_where_training_asked_for_what_came_before(
    tmp_path, tiny_config, flow, simulated, only
):
    config = config_of(tiny_config(tmp_path, "x", flow=flow, data={"simulated": simulated}))
    assert training.looks_back_only(config) == only


def test_held_out_simulated_patients_come_in_batches_and_are_none_of_training(tmp_path, tiny_config):
    source = training.open_source(config_of(tiny_config(tmp_path, "x")))
    batches = source.held_out(20)
    assert [len(batch) for batch in batches] == [16, 4]
    assert torch.equal(batches[0].target[:3], source.held_out(3)[0].target)
    learnt = source.examples(range(20)).target
    together = torch.cat([batch.target for batch in batches])
    assert not any(torch.equal(one, other) for one in learnt for other in together)


def test_the_latest_time_of_regular_visits_is_the_end_of_the_history(tmp_path, tiny_config):
    for schedule, end in (("regular", 1.0), ("irregular", 0.85)):
        source = training.open_source(
            config_of(tiny_config(tmp_path, "x", data={"simulated": {"schedule": schedule, "size": 8}}))
        )
        assert source.horizon == pytest.approx(end)
        assert float(source.examples(range(60)).target_time.max()) <= end + 1e-6


@pytest.mark.parametrize("name", ["acdc", "isles", "lumiere"])
def test_the_configurations_of_the_public_sets_train_on_files_of_their_layout(tmp_path, save_nifti, name):
    rng, sets = np.random.default_rng(0), tmp_path / "sets"
    for number in (1, 2):
        cine = rng.random((8, 9, 4, 10))
        if name == "acdc":
            folder = sets / f"patient00{number}"
            save_nifti(folder / f"{folder.name}_4d.nii.gz", cine, unit="unknown")
            (folder / "Info.cfg").write_text("ED: 1\nES: 4\nGroup: NOR\n")
        elif name == "isles":
            save_nifti(sets / f"sub-{number}" / "ses-1" / f"sub-{number}_ctp.nii.gz", cine, seconds=1.0)
        else:
            for week in (0, 12, 30):
                folder = sets / f"Patient-00{number}" / f"week-{week:03d}"
                save_nifti(folder / "CT1.nii.gz", cine[..., week % 10])
                save_nifti(folder / "HD-GLIO" / "segmentation_CT1_origspace.nii.gz", cine[..., 0] > 0.5)
    changes = [
        f"data.folder={sets}", "data.size=[4,8,8]", f"storage={tmp_path}", "steps=1", "optimizer.warmup_steps=0",
        "global_batch_size=2",
        "network.widths=[8,8,8]", "network.embedding=8", "validation.examples=1", "validation.trust_examples=2",
        "compute.num_workers=0", "compute.use_gpu='no'",
    ]  # fmt: skip
    config = load_config(ForecastConfig, ROOT / "jobs" / "configs" / f"forecast_{name}.yaml", changes)
    training.check(config, RunDirectory.of(config))
    assert training.train(config, World()).step == 1
    unit = {"acdc": "cycle", "isles": "seconds", "lumiere": "weeks"}[name]
    assert load_release(str(tmp_path / f"forecast-{name}"))[1].unit == unit
    assert (training.open_source(config).examples([0]).roi is not None) == (name == "lumiere")


def test_a_pretrained_backbone_keeps_its_encoder_and_starts_at_no_change(tmp_path, tiny_config):
    from fedvox.models.registry import build_model
    from fedvox.storage import locate
    from fedvox.training.release import ModelInfo, write_release

    backbone = build_model("resenc-unet-tiny", in_channels=1, classes=2, deep_supervision=False)
    info = ModelInfo("resenc-unet-tiny", {"deep_supervision": False}, ("background", "x"), ("T1",), (16, 16, 16),
                     None, "zscore", None)  # fmt: skip
    write_release(backbone, info, locate(str(tmp_path / "weights")))
    network = {"backbone": "resenc-unet-tiny", "init_from": str(tmp_path / "weights")}
    config = config_of(tiny_config(tmp_path, "b", network=network, data={"simulated": {"size": 16}}))
    net = training.new_network(config, training.open_source(config))
    before = backbone.state_dict()
    same = [
        n for n, value in net.body.backbone.state_dict().items() if n in before and n.startswith("encoder")
    ]
    assert len(same) > 10
    assert all(torch.equal(net.body.backbone.state_dict()[n], before[n]) for n in same)
    assert all(not p.any() for p in net.body.backbone.heads[0].parameters())


def test_a_recurrent_model_has_no_flow(tmp_path, tiny_config):
    with pytest.raises(ConfigError, match="regression"):
        config_of(tiny_config(tmp_path, "x", flow={"method": "convlstm"}))
