"""The command line: help, exit codes, one clear error for each kind of wrong input."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedvox import __version__
from fedvox.cli import COMMANDS
from fedvox.commands import CommandGroup
from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.storage import lease, locate

ROOT = Path(__file__).resolve().parents[2]


def fedvox(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "fedvox", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    meta = StoreMeta(
        name="small", channel_names=("T1",), modality="MR", structures=("background", "cube"),
        label_sets={"all": (0, 1)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    writer = StoreWriter.create(str(folder), meta)
    rng = np.random.default_rng(0)
    for i in range(3):
        label = np.zeros((24, 24, 24), np.uint8)
        label[8:16, 8:16, 8:16] = 1
        image = (rng.normal(0, 30, (1, 24, 24, 24)) + 200 * label).astype(np.int16)
        writer.add_case(f"c{i}", image, label, source="a", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
    writer.finish()
    return folder


@pytest.fixture
def config(tmp_path, store):
    """Writes a small run's configuration with some values changed; gives its path."""

    def write(**values):
        found = {
            "name": "run", "storage": str(tmp_path / "runs"), "steps": 3,
            "data": {"store": str(store), "patch_size": [16, 16, 16], "validation_cases": ["c2"]},
            "model": {"name": "mednext-v2-nano"}, "compute": {"num_workers": 0, "torch_threads": 1},
        }  # fmt: skip
        for dotted, value in values.items():
            *path, last = dotted.split("__")
            node = found
            for key in path:
                node = node[key]
            node[last] = value
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(found))
        return path

    return write


def test_help_is_quick_and_imports_nothing_heavy():
    began = time.perf_counter()
    fedvox("--help")
    took = time.perf_counter() - began
    assert took < 5  # torch alone takes that long on a busy machine
    code = (
        "import sys; sys.argv = ['fedvox', '--help']\n"
        "try:\n from fedvox.cli import main; main()\n"
        "finally:\n print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_that_can_be_copied(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = fedvox(command, "--help").stdout
    assert "--debug" in text
    assert "\\[" not in text
    example = text.split("Example", 1)[1].splitlines()[1].strip()
    found = getattr(importlib.import_module(f"fedvox.commands.{command}"), command)
    assert example in (found.help if isinstance(found, CommandGroup) else found.__doc__)


def test_the_version_is_told():
    assert fedvox("--version").stdout == f"fedvox {__version__}\n"


def test_every_command_is_in_the_readme_or_the_docs():
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert not [command for command in COMMANDS if f"fedvox {command}" not in pages]


def test_a_dry_run_prints_the_plan_and_starts_nothing(config, tmp_path):
    text = fedvox("pretrain", "--config", config(), "--dry-run").stdout
    assert "3 of 2 patches of 16×16×16" in text
    assert "mednext-v2-nano" in text
    assert not (tmp_path / "runs").exists()
    plan = json.loads(fedvox("pretrain", "--config", config(), "--dry-run", "--json").stdout)
    assert plan["schema"] == "fedvox.plan/1"
    assert (plan["cases_training"], plan["cases_validation"], plan["steps"]) == (2, 1, 3)


def test_the_status_of_what_is_no_run_is_one_clear_error(tmp_path):
    for text in ("{", '{"a": 1}', "[]"):
        (tmp_path / "status.json").write_text(text)
        error = fedvox("status", tmp_path, expect=2).stderr
        assert "status.json" in error
        assert "Traceback" not in error


def test_a_run_resumes_only_as_it_was_told(config, tmp_path):
    path = config()
    assert (
        "has no committed checkpoint"
        in fedvox("pretrain", "--config", path, "--resume", "must", expect=2).stderr
    )
    fedvox("pretrain", "--config", path)
    assert (
        "has checkpoints up to step 3"
        in fedvox("pretrain", "--config", path, "--resume", "never", expect=2).stderr
    )
    done = fedvox("pretrain", "--config", path, "--set", "steps=5", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 5
    status = fedvox("status", tmp_path / "runs" / "run", "--json").stdout
    assert json.loads(status)["phase"] == "finished"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__store": "/nowhere"}, "/nowhere"),
        ({"data__validation_cases": ["c9"]}, "'c9' is not in the store"),
        ({"data__patch_size": [15, 16, 16]}, "not divisible"),
        ({"model__name": "mednext-v9"}, "mednext-v9"),
        ({"model__options": {"kernal": 5}}, "kernal"),
        ({"init_from": "/nowhere"}, "holds no released model"),
        ({"storage": "/proc/forbidden"}, "/proc/forbidden"),
        ({"steps": "many"}, "steps"),
    ],
)
def test_wrong_input_is_one_error_with_a_remedy_and_exit_code_2(config, values, words):
    done = fedvox("pretrain", "--config", config(**values), expect=2)
    assert words in done.stderr
    assert "->" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_checkpoint_of_another_architecture_is_refused_by_field(config, tmp_path):
    fedvox("pretrain", "--config", config())
    (
        tmp_path / "runs" / "run" / "config.resolved.yaml"
    ).unlink()  # only the checkpoint itself is left to tell
    done = fedvox("pretrain", "--config", config(model__name="mednext-v2-tiny"), expect=2)
    assert "another architecture" in done.stderr
    assert "name: 'mednext-v2-nano' -> 'mednext-v2-tiny'" in done.stderr


def test_an_unknown_command_and_an_unknown_option_exit_with_2():
    assert "No such command" in fedvox("pretrian", expect=2).stderr
    assert "No such option" in fedvox("pretrain", "--confg", "x", expect=2).stderr


def test_debug_shows_the_traceback(config):
    assert (
        "Traceback"
        in fedvox("pretrain", "--config", config(data__store="/nowhere"), "--debug", expect=1).stderr
    )


def test_a_run_whose_loss_is_never_finite_ends_with_what_to_do(config, tmp_path):
    path = config(steps=50, optimizer={"lr": 1e30, "grad_clip": 1e30}, max_nonfinite_steps=3)
    done = fedvox("pretrain", "--config", path, expect=1)
    assert "3 steps in a row had a non-finite gradient" in done.stderr
    assert "optimizer.lr" in done.stderr
    told = fedvox("status", tmp_path / "runs" / "run").stdout
    assert told.startswith("failed: step ")
    assert "3 steps in a row had a non-finite gradient" in told


def test_a_run_that_is_being_driven_takes_no_second_driver(config, tmp_path):
    path = config()
    held = tmp_path / "runs" / "run" / "control" / "driver.json"
    with lease(locate(held), lambda by: None, beat_s=0.5):
        done = fedvox("pretrain", "--config", path, expect=1)
        assert "is being driven by process" in done.stderr
        assert "--set name=" in done.stderr
        assert [file for file in held.parents[1].rglob("*") if file.is_file()] == [held]
    fedvox("pretrain", "--config", path)


def test_the_doctor_reports_a_storage_that_cannot_be_written():
    done = fedvox("doctor", "--storage", "/proc/forbidden", "--json", expect=1)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert not checks["storage"]["ok"]
    assert checks["torch"]["ok"]


def test_models_lists_published_counts():
    rows = json.loads(fedvox("models", "--classes", "3", "--json").stdout)["parameters"]
    assert rows["mednext-v2-base"] == 61_972_399  # with deep supervision
