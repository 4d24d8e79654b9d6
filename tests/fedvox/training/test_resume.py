"""What an interrupted run must not lose, and what it must not believe: in this process, without Ray."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedvox.config import validate
from fedvox.data.records import StoreMeta
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import CheckpointError, ConfigError, DataError, Preempted
from fedvox.training.config import PretrainConfig, require_lasting
from fedvox.training.loop import train
from fedvox.training.ray_shell import anchored
from fedvox.training.run_directory import MetricsLog, RunDirectory
from fedvox.training.session import open_data
from fedvox.training.world import World


@pytest.fixture(scope="module")
def store(shapes_store):
    return shapes_store()


def configured(store, folder, **changes):
    values = {
        "name": "run",
        "storage": str(folder),
        "steps": 6,
        "global_batch_size": 1,
        "log_every": 1,
        "data": {"store": store, "patch_size": (16, 16, 16), "validation_cases": ["c0"]},
        "model": {"name": "mednext-v2-nano"},
        "validation": {"every_steps": 2, "overlays": 0},
        "checkpoint": {"every_steps": 2},
        "compute": {"num_workers": 0, "use_gpu": "no"},
    }
    return validate(PretrainConfig, {**values, **changes}, source="test")


class Killed(BaseException):
    pass


def averages(config):
    return {
        line["step"]: line["ema_dice"]
        for line in RunDirectory.of(config).metrics()
        if line["kind"] == "validation"
    }


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory):
    config = configured(store, tmp_path_factory.mktemp("whole"))
    train(config, World())
    return averages(config)


def test_a_run_stopped_where_a_validation_is_due_makes_it_when_it_resumes(
    store, tmp_path, uninterrupted, stop_at
):
    config = configured(store, tmp_path)
    with pytest.raises(Preempted, match="a checkpoint was written"):
        train(config, World(), watch=stop_at(2))
    assert averages(config) == {}
    train(config, World())
    assert averages(config) == uninterrupted
    assert sorted(uninterrupted) == [2, 4, 6]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_moving_average_survives_a_kill_around_a_validation(
    store, tmp_path, uninterrupted, monkeypatch, moment
):
    from fedvox.training import loop

    real = loop.validate

    def killed(*arguments, **options):
        if moment == "after":
            real(*arguments, **options)
        raise Killed

    config = configured(store, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", killed)
        with pytest.raises(Killed):
            train(config, World())
    train(config, World())
    assert averages(config) == uninterrupted


def test_a_finished_run_that_is_started_again_changes_nothing(store, tmp_path, uninterrupted):
    config = configured(store, tmp_path)
    first = train(config, World())
    again = train(config, World())
    assert averages(config) == uninterrupted
    assert np.array_equal(first.dice.dice, again.dice.dice, equal_nan=True)


def test_a_stop_without_room_for_a_checkpoint_does_not_claim_one(store, tmp_path, monkeypatch, stop_at):
    from fedvox.training.checkpoint import CheckpointStore

    monkeypatch.setattr(
        CheckpointStore, "_commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(Preempted, match="NOT written"):
        train(configured(store, tmp_path), World(), watch=stop_at(1))


def test_any_seed_that_is_accepted_trains(store, tmp_path):
    assert train(configured(store, tmp_path, seed=2**63 - 1, steps=1), World()).step == 1
    with pytest.raises(ConfigError, match="seed"):
        configured(store, tmp_path, seed=2**63)


def test_weights_of_another_architecture_are_refused_by_name(store, tmp_path):
    train(configured(store, tmp_path, steps=1), World())
    other = configured(
        store, tmp_path, name="other", steps=1, init_from=str(tmp_path / "run" / "final"),
        model={"name": "mednext-v2-nano", "options": {"kernel": 5}},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"init_from: .*run/final .*another architecture"):
        train(other, World())


def test_a_store_that_has_got_other_cases_is_not_resumed_on(tmp_path, shapes_store):
    """Sample i would be another one, and nobody would notice."""
    folder = shapes_store()
    config = configured(folder, tmp_path, steps=2)
    train(config, World())
    writer = StoreWriter.create(folder, BrickStore.open(folder).meta)
    writer.finish(BrickStore.open(folder).meta)  # the same cases, written again
    train(config.model_copy(update={"steps": 3}), World())
    writer.finish(BrickStore.open(folder).meta, case_ids=["c0", "c1", "c3"])
    with pytest.raises(CheckpointError, match="holds other cases"):
        train(config.model_copy(update={"steps": 4}), World())


def test_cases_without_labels_are_never_held_out(tmp_path):
    meta = StoreMeta(
        name="mixed", channel_names=("c",), modality="MR", structures=("background", "a"),
        label_sets={"all": (0, 1), "unlabelled": (0,)}, normalization="zscore",
    )  # fmt: skip
    writer = StoreWriter.create(str(tmp_path / "store"), meta)
    image = np.random.default_rng(0).normal(0, 9, (1, 16, 16, 16)).astype(np.int16)
    for k in range(12):
        label = None if k % 2 else np.ones((16, 16, 16), np.uint8)
        writer.add_case(
            f"c{k}",
            image,
            label,
            source="s",
            label_set="unlabelled" if k % 2 else "all",
            spacing_mm=(1.0, 1.0, 1.0),
        )
    writer.finish()
    data = {"store": str(tmp_path / "store"), "validation_fraction": 0.9}
    store, split = open_data(validate(PretrainConfig, {"data": data}, source="test").data)
    store, _ = open_data(
        validate(PretrainConfig, {"data": {**data, "validation_cases": ["c0"]}}, source="test").data
    )
    assert all(store.annotated(int(row))[1] for row in split.validation)
    with pytest.raises(ConfigError, match="'c1' has no label"):
        open_data(
            validate(PretrainConfig, {"data": {**data, "validation_cases": ["c0", "c1"]}}, source="test").data
        )


def test_a_variable_that_is_not_set_is_no_folder_name(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    for uri in ("$NOWHERE/runs", "s3://${NOWHERE}/runs"):
        with pytest.raises(ConfigError, match=r"storage: .*NOWHERE is not set"):
            require_lasting(uri, "storage")


def test_results_are_not_left_in_a_folder_that_ray_deletes(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="Ray deletes"):
        require_lasting("runs", "storage")
    for lasting in ("/runs", "s3://bucket/runs", "~/runs", "$HOME/runs"):
        require_lasting(lasting, "storage")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    require_lasting("runs", "storage")


def test_workers_are_given_absolute_paths(monkeypatch, tmp_path):
    """Ray starts them in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    found = anchored(configured("stores/a", "runs", init_from="old/final"))
    assert (found.storage, found.data.store, found.init_from) == (
        str(tmp_path / "runs"), str(tmp_path / "stores/a"), str(tmp_path / "old/final"),
    )  # fmt: skip
    kept = configured("s3://b/store", "$FEDVOX_HOME/runs")
    assert anchored(kept) == kept


@pytest.mark.parametrize("name", ["outcome.json", "config.resolved.yaml"])
def test_a_damaged_file_of_a_run_is_named(store, tmp_path, name):
    config = configured(store, tmp_path)
    run = RunDirectory.of(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{a: ]")
    with pytest.raises(DataError, match=rf"{name}: is damaged"):
        run.outcome() if name == "outcome.json" else run.check_resumable(config)


def test_the_log_of_a_long_run_is_rewritten_less_and_less_often(tmp_path, monkeypatch):
    """Written whole each time, it would otherwise cost bytes that grow with the square of the run's length."""
    written = []
    clock = [0.0]
    log = MetricsLog(RunDirectory.of(configured("s", tmp_path)), 0)
    monkeypatch.setattr(log._events, "add_scalar", lambda *_: None)
    monkeypatch.setattr("fedvox.storage.write_atomic", lambda _to, data, **_: written.append(len(data)))
    ticking = SimpleNamespace(monotonic=lambda: clock[0], time=time.time)
    monkeypatch.setattr("fedvox.training.run_directory.time", ticking)
    for step in range(5_000):
        clock[0] += 0.25
        log.write(
            "train", step, {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "data_wait_s": 0.1, "step_s": 1.0}
        )
    assert sum(written) / clock[0] < 2**19  # bytes a second; without pauses three times as many
    assert len(written) < 2_500
    monkeypatch.undo()
    log.close()


def test_json_is_all_that_stdout_holds(store, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(configured(store, tmp_path, steps=1).model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "fedvox", "pretrain", "--config", str(path), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["run_directory"] == str(Path(tmp_path) / "run")
    assert "run directory: " in done.stderr
