"""What `pip install .` costs a clinic's office PC."""

import subprocess
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPS_OWN = ("pip", "setuptools", "_distutils_hack", "distutils-precedence", "pkg_resources")

pytestmark = pytest.mark.slow  # needs a package index


def test_the_base_takes_less_than_a_minute_and_sixty_megabytes(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    began = time.monotonic()
    subprocess.run(
        [tmp_path / "venv/bin/pip", "install", "--quiet", "--no-cache-dir", "-c", "constraints.txt", "."],
        cwd=ROOT, check=True,
    )  # fmt: skip
    took = time.monotonic() - began
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    files = [file for file in packages.rglob("*") if file.is_file()]
    size = sum(f.stat().st_size for f in files if not f.relative_to(packages).parts[0].startswith(PIPS_OWN))
    assert (took < 60, size < 60e6) == (True, True), f"{took:.1f} s, {size / 1e6:.1f} MB"
    for program in ("fedvox", "fedvox-compliance", "fedvox-federation"):
        subprocess.run([tmp_path / "venv/bin" / program, "--help"], check=True, capture_output=True)
