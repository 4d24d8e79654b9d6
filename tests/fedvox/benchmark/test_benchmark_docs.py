"""docs/benchmark.md is followed as written: its files are used, its commands are run, its promises are looked for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedvox.benchmark.adapters.launch import ADAPTERS
from fedvox.benchmark.container import Container, Mounts, command_line
from fedvox.benchmark.submission import load_submission

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "benchmark.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def yaml_block(first_key):
    return next(b for b in blocks("yaml") if re.search(rf"^{first_key}:", b, re.MULTILINE))


def commands(program):
    return [line for b in blocks("sh") for line in b.splitlines() if line.startswith(program)]


def call(line, folder):
    words = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def desk(make_site):
    """A user's folder with the data that the page talks about, and nothing that it tells the user to write."""
    site = make_site(6, images=True)
    home, abdomen = site.folder.parent / "desk", site.folder.parent / "desk" / "abdomen"
    for mine, theirs in (("a", "inside"), ("b", "outside")):
        shutil.copytree(site.folder / theirs, abdomen / mine)
    (abdomen / "a" / "cases.csv").write_text(
        "case,patient,sex,age,manufacturer\n"
        + "\n".join(f"{c},{c},{'FM'[i % 2]},{40 + i},X" for i, c in enumerate(site.cases["inside"]))
    )
    shutil.copytree(site.folder / "outside" / "images", abdomen / "train" / "imagesTr")
    for name, error in (("resenc", 0.4), ("ours", 0.1)):
        written = site.submission(name, error)
        for theirs, test_set in (("inside", "internal"), ("outside", "hospital-b")):
            shutil.copytree(written / theirs, home / "submissions" / name / test_set)
    return home


@pytest.mark.integration
def test_a_new_user_gets_from_the_page_to_a_report(desk):
    shutil.copytree(desk / "abdomen" / "a" / "labels", desk / "labelsTs")
    shutil.copytree(desk / "submissions" / "ours" / "internal", desk / "predictions")
    (desk / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "kidney": 2}}))
    (line,) = commands("fedvox evaluate")
    call(line, desk)
    for name in ("report.html", "scores.csv", "scores.parquet", "problems.csv", "evaluation.json"):
        assert f"`{name}`" in PAGE
        assert (desk / "results" / name).is_file()
    shutil.rmtree(desk / "results")

    (desk / "abdomen" / "benchmark.yaml").write_text(yaml_block("test_sets"))
    text = yaml_block("compares_to")
    (desk / "submissions" / "ours" / "submission.yaml").write_text(text)
    baseline = text.replace("name: ours", "name: resenc\nrole: baseline").replace("compares_to: resenc", "")
    (desk / "submissions" / "resenc" / "submission.yaml").write_text(
        baseline.replace("claims: [architecture]", "")
    )
    (line,) = commands("fedvox benchmark")
    said = call(line, desk)
    assert "internal: ours ranks first" in said
    assert "hospital-b" in said
    for name in ("report.html", "site/index.html", "results.json", "pairwise.csv"):
        assert (desk / "results" / name).is_file(), name
    found = json.loads((desk / "results" / "results.json").read_text())
    failed = {(c["id"], c["subject"]) for c in found["checks"] if c["status"] == "fail"}
    assert ("leakage", "hospital-b") in failed  # its images were trained on
    assert ("P4", "ours") in failed  # what is left out is not declared


def test_every_way_to_submit_can_be_pasted_and_every_adapter_is_shown(tmp_path):
    kinds = set()
    for block in blocks("yaml"):
        values = yaml.safe_load(block)
        if not set(values) & {"command", "container", "adapter"}:
            continue
        (tmp_path / "submission.yaml").write_text(f"name: pasted\n{block}")
        found = load_submission(tmp_path)
        assert found.is_run
        kinds |= {found.adapter.kind} if found.adapter else {next(iter(values))}
    assert kinds == {"command", "container", *ADAPTERS}


def test_the_container_is_started_as_the_page_says():
    said = " ".join(next(b for b in blocks("sh") if b.startswith("docker run")).split())
    mounts = Mounts(Path("COPIES"), Path("EMPTY"))
    words = command_line(
        Container(image="team/method:1"), mounts, engine="docker", program="docker", name="fedvox-…"
    )
    told = re.sub(r"--user \d+:\d+", "--user UID:GID", " ".join(words))
    assert told == said
