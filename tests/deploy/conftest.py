"""What the deployment's files are checked with: Kubernetes' own schemas, KubeRay's fields, and the commands' help."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
BASE = "https://kubernetes.io/api/"
OLDEST, NEWEST = "1.30", "1.37"


def _kuberay_schema(fields, known):
    """The JSON schema of a node of `kuberay_fields.yaml`; every field that is not written there is refused."""
    if isinstance(fields, list):
        return {"enum": fields}
    if isinstance(fields, str):
        return _kuberay_schema(known[fields], known) if fields in known else {"type": fields}
    if "definition" in fields:
        return {"$ref": f"{BASE}{fields['definition'].replace('-', '/')}"}
    if "map" in fields:
        return {"type": "object", "additionalProperties": {"type": fields["map"]}}
    if "items" in fields:
        return {"type": "array", "items": {"$ref": f"{BASE}{fields['items'].replace('-', '/')}"}}
    if "each" in fields:
        return {"type": "array", "items": _kuberay_schema(fields["each"], known)}
    properties = {k: _kuberay_schema(v, known) for k, v in fields.items() if k != "required"}
    return {
        "type": "object", "properties": properties, "additionalProperties": False,
        "required": fields.get("required", []),
    }  # fmt: skip


@pytest.fixture(scope="session")
def kuberay_errors():
    """Checks a RayCluster or RayJob; gives what is wrong with it."""
    folder = SCHEMAS / f"v{NEWEST}.0-local-strict"
    names = ("podtemplatespec", "resourcerequirements", "securitycontext", "volumemount", "envvarsource")
    files = [folder / "_definitions.json", *(folder / f"{name}-v1.json" for name in names)]
    documents = [json.loads(file.read_text()) for file in files]
    registry = Registry().with_resources(
        (document.get("$id", f"{BASE}_definitions.json"), Resource.from_contents(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}))
        for document in documents
    )  # fmt: skip
    known = yaml.safe_load((ROOT / "tests/deploy/schemas/kuberay_fields.yaml").read_text())

    def errors(document):
        schema = _kuberay_schema(known[document["kind"]], known)
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        return [f"{e.json_path}: {e.message}" for e in validator.iter_errors(document["spec"])]

    return errors


@pytest.fixture(scope="session")
def options_of():
    """The options that a program's help names."""
    found = {}

    def options(*program):
        if program not in found:
            environment = {**os.environ, "COLUMNS": "200", "RAY_USAGE_STATS_ENABLED": "0"}
            executable = shutil.which(program[0], path=str(Path(sys.executable).parent))
            assert executable, f"{program[0]} is not installed"
            done = subprocess.run(
                [executable, *program[1:], "--help"], capture_output=True, text=True, env=environment, timeout=120
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            found[program] = set(done.stdout.replace(",", " ").replace("|", " ").split())
        return found[program]

    return options
