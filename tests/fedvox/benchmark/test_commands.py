"""`fedvox evaluate`, `fedvox benchmark` and the job: the same work from a shell, with the promised exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.integration


def call(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_evaluate_prints_means_and_names_what_is_missing(site, tmp_path):
    home = site.submission("m", 0.3, test_sets=("inside",), skip={"in_02"})
    references = site.folder / "inside" / "labels"
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1, "organs": [1, 2], "ignore": 7}})
    )
    common = ["-m", "fedvox", "evaluate", "-r", references, "-p", home / "inside", "-o", tmp_path / "out"]
    text = call(*common, "--dataset", tmp_path / "dataset.json", "-m", "dice", "-m", "nsd@1mm/voxel").stdout
    assert re.search(r"missing +1, counted as empty: in_02", text)
    assert re.search(r"^liver +0\.\d+ +0\.\d+$", text, re.MULTILINE)
    assert "organs" in text
    found = json.loads(call(*common, "-s", "liver=1", "-s", "kidney=2", "--json").stdout)
    assert (found["cases"], found["missing"]) == (6, 1)
    assert "did you mean" in call(*common, "-s", "liver=1", "-m", "dise", expect=2).stderr
    assert "NAME=LABEL" in call(*common, "-s", "liver", expect=2).stderr
    assert "nowhere" in call(*common[:4], "nowhere", *common[5:], "-s", "liver=1", expect=2).stderr


def test_the_job_runs_a_benchmark_and_goes_on_where_it_stopped(site, tmp_path):
    homes = [site.submission(n, e) for n, e in (("a", 0.1), ("b", 0.6))]
    command = [ROOT / "jobs" / "benchmark.py", "-b", site.folder, "-o", tmp_path / "out"]
    command += [part for home in homes for part in ("-s", home)]
    text = call(*command).stdout
    assert "inside: a ranks first" in text
    assert (tmp_path / "out" / "site" / "index.html").is_file()
    again = json.loads(call(*command, "--json").stdout)
    assert [m["rank"] for m in again["test_sets"][0]["methods"]] == [1, 2]
    site.change(metrics=["dice", "nsd"])
    assert "nsd@2mm/surfel" in call(*command, expect=2).stderr
