"""The command `fedvox-federation`, as a process of its own or within this one."""

import json
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def federation_command(monkeypatch, capsys):
    """Runs the command in this process; answers with code, stdout, stderr, and stdout read as JSON if it is."""
    from fedvox_federation.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedvox-federation", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        value = json.loads(out) if out.startswith(("{", "[")) else None
        return SimpleNamespace(code=left.value.code, out=out, err=err, json=value)

    return run
