"""A submitted command really runs, and really cannot reach the references: tried from inside, by every way we know."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedvox.benchmark import sandbox
from fedvox.benchmark.runner import plan_shards, run_shard
from fedvox.benchmark.sandbox import landlock_version, run_sandboxed
from fedvox.errors import ConfigError, RunError

pytestmark = pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")

SECRET = "the-answer-is-42"


@pytest.fixture
def rooms(tmp_path):
    for name in ("images", "output", "scratch", "references"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.txt").write_text("an image")
    (tmp_path / "references" / "a.txt").write_text(SECRET)
    return tmp_path


def run(rooms, code, **options):
    arguments = {"read": [rooms / "images"], "write": [rooms / "output"], "hidden": [rooms / "references"]}
    arguments |= {"scratch": rooms / "scratch", "timeout_s": 60, **options}
    return run_sandboxed([sys.executable, "-c", code], **arguments)


def test_the_command_reads_images_and_writes_output_and_scratch(rooms):
    ended = run(
        rooms,
        f"""
text = open({str(rooms / "images" / "a.txt")!r}).read()
open({str(rooms / "output" / "b.txt")!r}, "w").write(text.upper())
import tempfile, os
assert tempfile.gettempdir() == os.environ["HOME"] == os.getcwd()
tempfile.TemporaryFile()
""",
    )
    assert ended.returncode == 0, ended.log
    assert (rooms / "output" / "b.txt").read_text() == "AN IMAGE"
    assert ended.seconds > 0
    assert ended.peak_mib > 1


WAYS = {
    "open": "print(open({secret!r}).read())",
    "list": "import os; print(os.listdir({folder!r})); print(open({secret!r}).read())",
    "relative path": "import os; print(open(os.path.relpath({secret!r})).read())",
    "link in output": "import os; os.symlink({secret!r}, {link!r}); print(open({link!r}).read())",
    "hard link": "import os; os.link({secret!r}, {link!r}); print(open({link!r}).read())",
    "shell": "import subprocess; subprocess.run(['cat', {secret!r}], check=True)",
    "double fork": """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(open({secret!r}).read(), flush=True)
        os._exit(0)
os._exit(os.wait()[1] >> 8)
""",
    "parent's root": "print(open('/proc/{parent}/root' + {secret!r}).read())",
    "parent's directory": "print(open('/proc/{parent}/cwd/' + {from_cwd!r}).read())",
    "parent's environment": "print(open('/proc/{parent}/environ').read())",
    "parent's command line": "print(open('/proc/{parent}/cmdline').read())",
    "parent's memory": "open('/proc/{parent}/mem', 'rb').seek(4096)",
    "inherited descriptors": """
import os
held = [f'/proc/self/fd/{{n}}' for n in os.listdir('/proc/self/fd') if int(n) > 2]
assert any({folder!r} in os.readlink(f) for f in held if os.path.lexists(f))
""",
    "loosening again": "import ctypes; ctypes.CDLL(None).syscall(446, 0, 0); print(open({secret!r}).read())",
}
REFUSALS = ("denied", "not permitted", "PermissionError", "AssertionError", "cross-device")


def attempt(rooms, way):
    secret = rooms / "references" / "a.txt"
    return WAYS[way].format(
        secret=str(secret),
        folder=str(secret.parent),
        link=str(rooms / "output" / "link"),
        parent=os.getpid(),
        from_cwd=os.path.relpath(secret),
    )


@pytest.mark.parametrize("way", WAYS)
def test_references_cannot_be_reached(rooms, way, monkeypatch):
    monkeypatch.setenv("FEDVOX_TOKEN", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with (rooms / "references" / "a.txt").open():  # even while this process has the file open
        ended = run(rooms, attempt(rooms, way))
    assert ended.returncode != 0, ended.log
    assert SECRET not in ended.log
    assert any(word in ended.log for word in REFUSALS), ended.log


@pytest.mark.parametrize(
    "way", ["open", "list", "relative path", "link in output", "shell", "double fork", "parent's root"]
)
def test_the_same_way_succeeds_without_the_sandbox(rooms, way):
    """The test above could pass for the wrong reason."""
    done = subprocess.run([sys.executable, "-c", attempt(rooms, way)], capture_output=True, text=True)
    assert SECRET in done.stdout, done.stderr


def test_the_environment_carries_no_secret(rooms, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("RAY_ADDRESS", "secret-host:1")
    ended = run(rooms, "import os, json; print(json.dumps(dict(os.environ)))")
    kept = json.loads(ended.log)
    assert SECRET not in ended.log
    assert set(kept) <= {*sandbox._KEPT_VARIABLES, "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "LC_CTYPE"}


@pytest.mark.skipif(landlock_version() < 4, reason="network rules came with version 4")
def test_no_connection_leaves_the_sandbox(rooms):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)"
        ended = run(rooms, code)
        assert ended.returncode != 0
        assert "PermissionError" in ended.log


def test_images_cannot_be_changed(rooms):
    assert run(rooms, f"open({str(rooms / 'images' / 'a.txt')!r}, 'w')").returncode != 0
    assert (rooms / "images" / "a.txt").read_text() == "an image"


def test_a_command_that_does_not_end_is_killed_with_its_children(rooms):
    mark = rooms / "output" / "alive"
    ended = run(
        rooms,
        f"import os, time\nif os.fork() == 0:\n  time.sleep(3); open({str(mark)!r}, 'w')\ntime.sleep(600)",
        timeout_s=1.5,
    )
    assert ended.timed_out
    assert ended.returncode == -9
    assert ended.seconds < 30
    time.sleep(3)
    assert not mark.exists()


@pytest.mark.parametrize("inside", ["images/references", "output/references"])
def test_references_inside_an_allowed_folder_are_refused_before_anything_runs(rooms, inside):
    (rooms / inside).mkdir()
    with pytest.raises(ConfigError, match="inside"):
        run(rooms, f"open({str(rooms / 'output' / 'ran')!r}, 'w')", hidden=[rooms / inside])
    assert not (rooms / "output" / "ran").exists()


def test_without_the_kernels_help_nothing_runs(rooms, monkeypatch):
    monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
    with pytest.raises(RunError, match="Landlock"):
        run(rooms, "print(1)")


# --- runs over a test set -------------------------------------------------------------------------------------

THRESHOLD = """
import sys, pathlib, nibabel as nib, numpy as np
images, output = map(pathlib.Path, sys.argv[1:3])
for path in sorted(images.iterdir()):
    image = nib.load(path)
    labels = (np.asarray(image.dataobj) > 50).astype("uint8")
    nib.save(nib.Nifti1Image(labels, image.affine), output / path.name.replace("_0000", ""))
    print(path.name)
"""


@pytest.fixture
def program(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "predict.py").write_text(THRESHOLD)
    return folder


def shards_of(site, program, work, **options):
    command = [sys.executable, str(program / "predict.py"), "{images}", "{output}"]
    hidden = [site.folder / "inside" / "labels"]
    return plan_shards(
        site.folder / "inside" / "images", command, work, hidden=hidden, read_paths=[program], **options
    )


def test_a_command_predicts_cases_that_it_knows_by_no_name(make_site, program, tmp_path):
    site = make_site(images=True)
    shards = shards_of(site, program, tmp_path / "work", cases_per_shard=4)
    assert [len(s.cases) for s in shards] == [4, 2]
    results = [run_shard(s) for s in shards]
    assert [(r.returncode, r.predicted) for r in results] == [(0, 4), (0, 2)], results[0].log
    predicted = tmp_path / "work" / "predictions"
    assert sorted(p.name for p in predicted.iterdir()) == [f"{c}.nii.gz" for c in site.cases["inside"]]
    for i, case in enumerate(site.cases["inside"]):
        found = np.asarray(nib.load(predicted / f"{case}.nii.gz").dataobj).transpose(2, 1, 0)
        reference = site.reference("inside", i) > 0
        assert 2 * (found.astype(bool) & reference).sum() / (found.sum() + reference.sum()) > 0.95
    for log in (r.log for r in results):
        assert not any(case in log for case in site.cases["inside"])


def test_a_resumed_run_repeats_no_shard_and_keeps_its_names(make_site, program, tmp_path):
    site = make_site(images=True)
    first = [run_shard(s) for s in shards_of(site, program, tmp_path / "work", cases_per_shard=4)[:1]]
    (program / "predict.py").write_text("raise SystemExit('must not run again')")
    again = shards_of(site, program, tmp_path / "work", cases_per_shard=4)
    assert run_shard(again[0]) == first[0]
    assert run_shard(again[1]).returncode != 0
    (site.folder / "inside" / "images" / "in_00_0000.nii.gz").unlink()
    with pytest.raises(ConfigError, match="other cases"):
        shards_of(site, program, tmp_path / "work")


def test_a_failing_command_loses_its_shard_and_leaves_the_reason(make_site, program, tmp_path):
    site = make_site(images=True)
    (program / "predict.py").write_text(THRESHOLD + "    raise RuntimeError('out of memory')\n")
    result = run_shard(shards_of(site, program, tmp_path / "work")[0])
    assert (result.returncode, result.predicted) == (1, 1)
    assert "out of memory" in result.log


def test_a_link_in_the_output_is_not_followed(make_site, program, tmp_path):
    """Collecting runs outside of the sandbox: a link to a reference would be copied as the prediction."""
    site = make_site(images=True)
    target = site.folder / "inside" / "labels" / "in_00.nii.gz"
    (program / "predict.py").write_text(
        "import sys, os, pathlib\n"
        "for p in pathlib.Path(sys.argv[1]).iterdir():\n"
        f"    os.symlink({str(target)!r}, os.path.join(sys.argv[2], p.name.replace('_0000', '')))\n"
    )
    result = run_shard(shards_of(site, program, tmp_path / "work")[0])
    assert (result.returncode, result.predicted) == (0, 0)


def test_a_missing_weights_folder_is_told(make_site, program, tmp_path):
    site = make_site(images=True)
    with pytest.raises(ConfigError, match="read_paths"):
        plan_shards(
            site.folder / "inside" / "images",
            ["x"],
            tmp_path / "w",
            hidden=[],
            read_paths=[Path("/nowhere/weights")],
        )
