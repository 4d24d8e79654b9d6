"""docs/metrics.md: its examples run and print what it says, and every family of metrics is in it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedvox.evaluation.metric_ids import FAMILIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "metrics.md").read_text()


def test_examples_print_what_the_page_says():
    printed, said, names = io.StringIO(), [], {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        said += re.findall(r"^# (.*)$", block, re.MULTILINE)
    assert printed.getvalue().splitlines() == said


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_documented(family):
    assert re.search(rf"`{family}[@/`]", PAGE)


@pytest.mark.integration
def test_the_benchmark_agrees_with_the_peers_and_is_faster(tmp_path):
    options = ["--size", "128", "--repeat", "5", "--skip", "monai", "--json", str(tmp_path / "result.json")]
    script = str(ROOT / "benchmarks" / "metrics.py")
    subprocess.run([sys.executable, script, *options], check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["time_ratio"] < 1  # 0.5 on a busy machine at this size, 0.2 at 256³
    assert result["memory_ratio"] < 1.3  # at this size mostly what is imported
