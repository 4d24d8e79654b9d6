"""What a guarded SuperNode opens, and what it does not."""

import io
import zipfile
from types import SimpleNamespace

import pytest

from fedvox.errors import ConfigError
from fedvox_federation.bundle import approve
from fedvox_federation.guard import install, objection, run_supernode

PYPROJECT = """
[tool.flwr.app.components]
serverapp = "federation.flower_entry:server"
clientapp = "federation.flower_entry:client"
"""
FILES = {
    "pyproject.toml": PYPROJECT,
    ".info/CONTENT": "",
    "federation/flower_entry.py": "client = 1\n",
    "platform/fedvox/a.py": "x = 1\n",
    "jobs/configs/study.yaml": "rounds: 1\n",
}


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def approvals(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    approve(tmp_path / "approved.json", tmp_path / "app", by="Dr. No")
    return tmp_path / "approved.json"


def test_an_approved_app_may_be_opened(approvals):
    assert objection(archive(FILES), approvals) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"platform/fedvox/a.py": "x = 2\n"}, "this clinic approved"),
        ({"jobs/configs/study.yaml": "rounds: 99\n"}, "this clinic approved"),
        ({"platform/fedvox/b.py": ""}, "this clinic approved"),
        ({"torch.py": "steal()\n"}, "no hash is over, such as 'torch.py'"),
        ({"platform/fedvox/a.so": "\x7fELF"}, "no hash is over"),
        ({"platform/fedvox/__pycache__/a.cpython-311.pyc": ""}, "no hash is over"),
        ({"../../.ssh/authorized_keys": ""}, "leads out of"),
        ({"Platform/fedvox/a.py": "x = 3\n"}, "a name twice"),
        ({"pyproject.toml": PYPROJECT.replace("flower_entry:client", "other:client")}, "something else"),
        ({"pyproject.toml": "["}, "no app"),
    ],
)
def test_an_app_with_anything_else_in_it_is_not(approvals, changes, why):
    assert why in objection(archive({**FILES, **changes}), approvals)


def test_what_is_no_archive_is_no_app(approvals):
    assert "no app" in objection(b"#!/bin/sh\n", approvals)


def test_without_a_list_nothing_is_opened(tmp_path):
    assert "approved none" in objection(archive(FILES), tmp_path / "nowhere.json")


def test_flower_has_the_place_where_the_guard_stands_and_asks_it(approvals, caplog):
    import flwr.supernode.start_client_internal as real
    from flwr.supercore.fab import Fab

    internals = SimpleNamespace(
        _pull_and_store_message=real._pull_and_store_message, _verify_fab=real._verify_fab
    )
    install(internals, approvals)
    good, bad = (Fab("", archive(files), {}) for files in (FILES, {**FILES, "torch.py": ""}))
    assert internals._verify_fab(good, {})
    assert not internals._verify_fab(bad, {})
    assert "torch.py" in caplog.text


@pytest.mark.parametrize("change", ["renamed", "reordered"])
def test_a_flower_that_verifies_in_another_way_is_refused(approvals, change):
    def other(get_fab, trusted_entities):
        """state.store_fab(fab) before _verify_fab(fab, trusted_entities)."""

    internals = SimpleNamespace(_verify_fab=None)
    if change == "reordered":
        internals._pull_and_store_message = other
    with pytest.raises(ConfigError, match="another way"):
        install(internals, approvals)


@pytest.mark.parametrize("option", ["--allow-runtime-dependency-installation", "--allow-runtime"])
def test_a_guarded_supernode_installs_nothing_that_an_app_names(approvals, option):
    with pytest.raises(ConfigError, match="no part of what was approved"):
        run_supernode(approvals, ["--insecure", option])
