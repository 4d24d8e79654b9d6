"""No line of ours runs what a file says: pickles, YAML objects, evaluated text, shells."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    file
    for folder in ("platform", "federation", "compliance", "jobs")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}


def dangers(tree):
    """Calls and imports which run code that a file or a text brings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [name.name for name in node.names]
            )
            yield from (f"import {module}" for module in modules if module.split(".")[0] in UNPICKLES)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name.endswith("torch.load") and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if name.endswith("yaml.load") and "Loader" not in given.get("Loader", ""):
                yield "yaml.load without a safe loader"
            if name in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen"):
                yield name
            if given.get("shell", "False") != "False":
                yield "a shell"
            if given.get("allow_pickle", "False") != "False":
                yield "allow_pickle"
            if name.endswith((".extractall", "unpack_archive")):
                yield "an archive unpacked whole"


# `pickle` for the name of the error that torch raises when it refuses one.
ALLOWED = {"platform/fedvox/models/upstream.py": {"import pickle"}}


def test_no_module_runs_what_a_file_brings():
    found = {str(file.relative_to(ROOT)): set(dangers(ast.parse(file.read_text()))) for file in SOURCES}
    assert len(found) > 400
    assert {name: what for name, what in found.items() if what} == ALLOWED


def test_pickle_is_there_for_the_name_of_an_error_alone():
    tree = ast.parse((ROOT / "platform/fedvox/models/upstream.py").read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.UnpicklingError"}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text, yaml.Unsafe)", "eval(text)",
        "from joblib import load", "subprocess.run(text, shell=True)", "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)", "yaml.load(text, Loader=evil)", "import pickle as p",
    ],
)  # fmt: skip
def test_the_scan_does_find(line):
    assert list(dangers(ast.parse(line)))


def test_every_yaml_loader_is_a_safe_one():
    import yaml

    import fedvox.config
    import fedvox_compliance.catalogue
    import fedvox_compliance.exchange_yaml
    import fedvox_compliance.messages

    modules = (
        fedvox.config,
        fedvox_compliance.catalogue,
        fedvox_compliance.exchange_yaml,
        fedvox_compliance.messages,
    )
    for module in modules:
        assert issubclass(module._Loader, yaml.SafeLoader | yaml.CSafeLoader)
