import json
import math
from pathlib import Path

import pytest

from fedvox.config import to_yaml
from fedvox.errors import ConfigError, NonFiniteLoss, RunError
from fedvox.storage import locate
from fedvox.training.config import PretrainConfig
from fedvox.training.run_directory import MetricsLog, RunDirectory, environment


@pytest.fixture
def run(tmp_path):
    return RunDirectory(locate(tmp_path / "run"))


def log_steps(run, attempt, steps, value):
    log = MetricsLog(run, attempt)
    for step in steps:
        log.write("train", step, {"loss": value + step})
    log.close()


def test_steps_run_twice_count_as_the_last_attempt_ran_them(run):
    log_steps(run, 0, range(1, 7), value=100.0)
    log_steps(run, 1, range(5, 9), value=200.0)
    assert [line["loss"] for line in run.metrics()] == [101, 102, 103, 104, 205, 206, 207, 208]


def test_attempts_count_up_even_if_one_never_logged(run):
    assert run.next_attempt() == 0
    MetricsLog(run, 0)  # killed at once: never closed
    assert run.next_attempt() == 1


def test_a_log_that_cannot_be_stored_stays_in_memory_until_it_can(tmp_path, caplog):
    run = RunDirectory(locate(tmp_path / "run"))
    log = MetricsLog(run, 0)
    folder = tmp_path / "run" / "metrics"
    moved = tmp_path / "aside"
    folder.rename(moved)
    folder.write_text("a file where the folder was")
    log.write("train", 1, {"loss": 1.0})
    log.flush()
    assert "stay in memory" in caplog.text
    folder.unlink()
    moved.rename(folder)
    log.write("train", 2, {"loss": 2.0})
    log.close()
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_what_is_not_finite_is_null_in_the_files_and_nan_when_read(run):
    def strict(text):
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    log_steps(run, 0, [1], value=float("nan"))
    (file,) = Path(run.child("metrics").path).iterdir()
    assert strict(file.read_text())["loss"] is None
    assert math.isnan(run.metrics()[0]["loss"])
    run.write_json({"a": [float("inf"), 1.5], "b": {"c": float("nan")}}, "x.json")
    assert strict(Path(run.child("x.json").path).read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_tensorboard_reads_the_events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(run, 0, range(1, 4), value=0.5)
    events = EventAccumulator(run.child("tensorboard", "attempt-0000").path)
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.5), (2, 2.5), (3, 3.5)]


def test_a_stop_request_is_seen_and_forgotten(run):
    assert not run.stop_requested()
    run.request_stop()
    assert run.stop_requested()
    run.clear_stop()
    assert not run.stop_requested()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"global_batch_size": 4}, "global_batch_size"),
        ({"model": {"name": "mednext-v1-s"}}, "model.name"),
        ({"data": {"patch_size": (64, 64, 64)}}, "data.patch_size"),
        ({"optimizer": {"lr": 1.0}}, "optimizer.lr"),
        ({"augment": {"enabled": False}}, "augment.enabled"),
    ],
)
def test_resuming_with_what_decides_the_result_changed_is_refused(run, changed, named):
    write_config(run, PretrainConfig())
    with pytest.raises(ConfigError) as caught:
        run.check_resumable(PretrainConfig(**changed))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 500_000},
        {"compute": {"num_workers": 2}},
        {"data": {"loader_threads": 7}},
        {"data": {"cache": {}}},
        {"validation": {"every_steps": 7}},
        {"checkpoint": {"keep": 1}},
    ],
)
def test_what_does_not_decide_the_result_may_change(run, changed):
    write_config(run, PretrainConfig())
    run.check_resumable(PretrainConfig(**changed))


def write_config(run, config):
    from fedvox import storage

    storage.write_atomic(run.child("config.resolved.yaml"), to_yaml(config).encode())


def test_the_workers_own_error_reaches_the_driver(run):
    run.fail(NonFiniteLoss("20 steps in a row", "Lower optimizer.lr"))
    with pytest.raises(NonFiniteLoss, match="20 steps in a row") as caught:
        run.outcome()
    assert caught.value.remedy == "Lower optimizer.lr"


def test_a_run_without_an_outcome_is_an_error_not_a_success(run):
    with pytest.raises(RunError, match="without an outcome"):
        run.outcome()


def test_the_environment_says_which_code_ran(run):
    import fedvox

    found = json.loads(json.dumps(environment("cpu")))
    assert found["fedvox_file"] == fedvox.__file__
    assert found["packages"]["torch"].startswith("2.")
