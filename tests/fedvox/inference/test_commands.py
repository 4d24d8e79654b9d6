"""`fedvox predict` and `fedvox crossval` as a user types them."""

from __future__ import annotations

import json
import sys

import pytest

from fedvox.cli import main
from fedvox.inference.selection import Candidate, Selection, write_selection
from fedvox.storage import locate


@pytest.fixture
def fedvox(monkeypatch, capsys):
    """Runs the command line; returns exit code, stdout and stderr."""
    monkeypatch.setenv("FEDVOX_PROGRESS", "0")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedvox", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


@pytest.fixture
def scan(small_brain, saved):
    """A folder with one image."""
    return str(saved(small_brain, "scan_0000").parent)


def test_a_dry_run_lists_windows_and_memory_and_writes_nothing(fedvox, scan, release, tmp_path):
    code, out, _ = fedvox("predict", "-i", scan, "-o", str(tmp_path / "out"), "-m", release(), "--dry-run")
    assert code == 0
    assert "scan: 40×52×48 voxels of 2×2×2 mm" in out
    assert "evaluations" in out
    assert not (tmp_path / "out").exists()


def test_a_prediction_is_told_as_json(fedvox, scan, release, tmp_path):
    arguments = ["predict", "-i", scan, "-o", str(tmp_path / "out"), "-m", release(), "--no-mirror", "--json"]
    code, out, _ = fedvox(*arguments, "--device", "cpu", "--batch-size", "2")
    assert code == 0
    assert [case["status"] for case in json.loads(out)["cases"]] == ["done"]
    assert (tmp_path / "out" / "scan.nii.gz").exists()
    code, out, _ = fedvox(*arguments, "--device", "cpu")
    assert [case["status"] for case in json.loads(out)["cases"]] == ["skipped"]


def test_a_selection_brings_its_models(fedvox, scan, release, tmp_path):
    models = (release("f0"), release("f1", seed=1))
    write_selection(Selection("x", models, (Candidate("x", models, 0.9, {}),), 4), locate(tmp_path))
    code, out, _ = fedvox(
        "predict", "-i", scan, "-o", str(tmp_path / "out"), "--selection", str(tmp_path / "selection.json"),
        "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0
    plan = json.loads(out)
    assert plan["config"]["models"] == list(models)
    assert plan["cases"][0]["evaluations"] == plan["cases"][0]["windows"] * 2 * 8  # folds, flips


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--patch-size", "21,16,16"], "not divisible"),
        (["--patch-size", "a"], "is not a size"),
        (["--workers", "many"], "is not a number"),
        (["--set", "overlapp=0.3"], "did you mean 'overlap'"),
        (["--tolerate", "everything"], "cannot tolerate everything"),
        (["-m", "/nowhere"], "holds no released model"),
        (["--postprocessing", "/nowhere.json"], "does not exist"),
    ],
)
def test_wrong_input_leaves_with_2_and_a_remedy(
    fedvox, scan, release, tmp_path, monkeypatch, arguments, told
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = fedvox("predict", "-i", scan, "-o", str(tmp_path / "out"), "-m", release(), *arguments)
    assert code == 2
    assert told in err
    assert "->" in err


def test_a_case_at_fault_leaves_with_2_after_the_others_are_done(
    fedvox, scan, release, tmp_path, small_brain, saved
):
    broken = saved(small_brain, "zz_0000")
    broken.write_bytes(broken.read_bytes()[:-3000])
    code, out, err = fedvox(
        "predict", "-i", scan, "-o", str(tmp_path / "out"), "-m", release(), "--no-mirror", "--device", "cpu"
    )
    assert code == 2
    assert "predicted  1 of 2 cases" in out
    assert "zz_0000.nii.gz" in err
    assert (tmp_path / "out" / "scan.nii.gz").exists()


def test_crossval_asks_for_named_folds(fedvox, tmp_path):
    code, _, err = fedvox("crossval", "--data", str(tmp_path), "-o", str(tmp_path / "cv"), "-c", "runs/fold0")
    assert code == 2
    assert "NAME=RUN0,RUN1" in err


def test_help_imports_neither_torch_nor_ray():
    import subprocess

    script = (
        "import sys; sys.argv = ['fedvox', 'predict', '--help']\n"
        "from fedvox.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"
