"""Which code a clinic answers to."""

import shutil

import pytest

from fedvox.errors import ConfigError, DataError
from fedvox_federation.bundle import approve, bundle_sha256, is_approved, read_approvals


@pytest.fixture
def app(tmp_path):
    root = tmp_path / "app"
    (root / "federation" / "fedvox_federation").mkdir(parents=True)
    (root / "federation" / "flower_entry.py").write_text("client = 1\n")
    (root / "federation" / "fedvox_federation" / "a.py").write_text("x = 1\n")
    (root / "README.md").write_text("read me\n")
    return root


def test_code_changes_the_hash_and_what_cannot_run_does_not(app):
    before = bundle_sha256(app)
    (app / "README.md").write_text("read me again\n")
    (app / "federation" / "__pycache__").mkdir()
    (app / "federation" / "__pycache__" / "b.py").write_text("")
    assert bundle_sha256(app) == before
    (app / "federation" / "fedvox_federation" / "a.py").write_text("x = 2\n")
    assert bundle_sha256(app) != before


def test_a_file_more_or_under_another_name_is_another_bundle(app):
    before = bundle_sha256(app)
    shutil.move(app / "federation/fedvox_federation/a.py", app / "federation/fedvox_federation/b.py")
    moved = bundle_sha256(app)
    (app / "federation" / "fedvox_federation" / "a.py").write_text("x = 1\n")
    assert len({before, moved, bundle_sha256(app)}) == 3


def test_nothing_is_approved_until_somebody_approves_it(app, tmp_path):
    path = tmp_path / "approved.json"
    assert not is_approved(path, bundle_sha256(app))
    approved = approve(path, app, by="Dr. No", note="read on Monday")
    assert is_approved(path, approved.sha256)
    (app / "federation" / "fedvox_federation" / "a.py").write_text("x = 2\n")
    assert not is_approved(path, bundle_sha256(app))
    approve(path, app, by="Dr. No")
    assert len(read_approvals(path)) == 2


def test_a_damaged_list_approves_nothing(app, tmp_path):
    path = tmp_path / "approved.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="approved"):
        is_approved(path, bundle_sha256(app))


def test_a_folder_without_the_app_has_no_hash(tmp_path):
    with pytest.raises(ConfigError, match="no app"):
        bundle_sha256(tmp_path)


def test_the_commands_print_and_approve_the_hash(app, tmp_path, federation_command):
    found = federation_command("bundle", "hash", app, "--json")
    assert found.json["sha256"] == bundle_sha256(app)
    done = federation_command("bundle", "approve", app, "--list", tmp_path / "l.json", "--by", "Dr. No")
    assert done.code == 0
    assert is_approved(tmp_path / "l.json", bundle_sha256(app))
