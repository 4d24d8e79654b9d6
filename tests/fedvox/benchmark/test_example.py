"""The worked example runs from nothing to its report, and its committed pages are whole and small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedvox.benchmark.sandbox import landlock_version

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs" / "examples" / "mni152_benchmark"
METHODS = {"resenc", "mednext-v2", "segresnet", "swinunetr", "unetr", "nnunet"}


def test_the_committed_report_names_every_network_and_needs_nothing_from_elsewhere():
    files = [p for p in DOCS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 1_500_000
    assert {p.stem for p in (DOCS / "submissions").iterdir()} == METHODS
    for page in DOCS.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text), page.name
        assert "/tmp/" not in text
        for target in re.findall(r'href="((?!data:)[^"#]+)"', text):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
    results = json.loads((DOCS / "results.json").read_text())
    assert {c["id"] for c in results["checks"]} == {"P1", "P2", "P3", "P4", "leakage"}
    for test_set in results["test_sets"]:
        assert {m["name"] for m in test_set["methods"]} == METHODS
        assert all(share == 1 for share in test_set["coverage"].values())


@pytest.mark.slow
@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_the_example_runs_from_nothing_to_its_report(tmp_path):
    for module in ("nilearn", "monai", "einops", "nnunetv2"):
        pytest.importorskip(module)
    script = ROOT / "examples" / "mni152_benchmark" / "run.py"
    options = ["--steps", "4", "--training", "2", "--tested", "3"]
    done = subprocess.run(
        [sys.executable, str(script), "-o", str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    for test_set in results["test_sets"]:
        assert {m["name"] for m in test_set["methods"]} == METHODS
    shards = [s for runs in results["runs"].values() for found in runs.values() for s in found]
    assert all(s["returncode"] == 0 and s["predicted"] == s["cases"] for s in shards)
