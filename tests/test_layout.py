"""The house: import roots, the standard library's `platform`, versions, arrows between packages."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedvox

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = ("platform", "federation", "compliance")
PRINT_STDLIB = "import platform; platform.system(); print(platform.__file__)"


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "jobs"])
def test_python_started_in_the_repository_sees_its_own_platform_module(cwd):
    assert Path(python("-c", PRINT_STDLIB, cwd=cwd)).parent == Path(subprocess.__file__).parent


def test_the_root_on_pythonpath_does_not_shadow_the_platform_module():
    assert Path(python("-c", PRINT_STDLIB, PYTHONPATH=str(ROOT))).parent == Path(subprocess.__file__).parent


def test_pytest_itself_runs_with_the_standard_platform_module():
    import platform

    assert Path(platform.__file__).parent == Path(subprocess.__file__).parent


def test_an_init_file_in_platform_would_be_noticed(tmp_path):
    """The guard can fail: with an `__init__.py` the standard module is gone."""
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    with pytest.raises(subprocess.CalledProcessError):
        python("-c", PRINT_STDLIB, cwd=tmp_path)


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_source_roots_hold_no_module_of_their_own(root):
    allowed = {"flower_entry.py"} if root == "federation" else set()
    assert {path.name for path in (ROOT / root).glob("*.py")} <= allowed


def test_no_test_folder_is_named_like_a_standard_module_or_is_a_package():
    folders = {path.name for path in (ROOT / "tests").rglob("*") if path.is_dir()}
    assert not folders & set(sys.stdlib_module_names)
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_version_is_written_alike_in_package_and_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fedvox.__version__ == project["version"]
    assert f"[{fedvox.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_reading_configurations_imports_neither_torch_nor_ray():
    heavy = python(
        "-c",
        "import sys, fedvox.config, fedvox.errors, fedvox.training.config, fedvox.cli;"
        "print([m for m in ('torch', 'ray', 'numpy', 'pyarrow') if m in sys.modules])",
    )
    assert heavy == "[]"


def test_modules_stay_readable():
    """400 lines a module, 80 a function; what is longer has grown a second reason to exist."""
    long_modules = {
        str(path.relative_to(ROOT)): lines
        for root in (*SOURCE_ROOTS, "jobs")
        for path in (ROOT / root).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long_modules


def test_every_link_between_pages_leads_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target
    ]
    assert links
    assert not [f"{page.name} -> {target}" for page, target in links if not (page.parent / target).exists()]
