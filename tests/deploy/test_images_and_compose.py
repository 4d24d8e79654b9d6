"""Images, their locks, and the development cluster."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
IMAGES = sorted((ROOT / "deploy/images").glob("*.Dockerfile"))
LOCKS = sorted((ROOT / "deploy/images").glob("*.lock"))
SCRIPTS = sorted(file for ending in ("*.sh", "*.sbatch") for file in (ROOT / "deploy").rglob(ending))
COMPOSE = ROOT / "deploy/compose/compose.yaml"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]


def versions_of_the_set():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {_normal(name): version for name, version in (line.split("==") for line in lines if "==" in line)}


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_linter_has_nothing_to_say_of_the_images():
    done = subprocess.run([BIN / "hadolint", *IMAGES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_does_complain(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && pip install torch\n")
    done = subprocess.run([BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


def test_the_linter_has_nothing_to_say_of_the_scripts():
    done = subprocess.run([BIN / "shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES, ids=lambda file: file.stem)
def test_an_image_is_built_in_two_stages_from_hashed_files_and_runs_as_nobody_special(image):
    text = image.read_text()
    final = text.rsplit("\nFROM ", 1)[1]
    assert text.count("\nFROM ${PYTHON_IMAGE}") == 2
    assert re.search(r"^USER 10001:10001$", final, re.M)
    installs = re.findall(r"pip install (.*?)(?: \\|$)", text, re.M)
    assert installs
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert not re.search(r"\b(curl|ADD|sudo)\b", text)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda file: file.stem)
def test_a_lock_is_the_tested_set_with_a_hash_for_every_file(lock):
    tested = versions_of_the_set()
    text = lock.read_text()
    packages = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==(\S+)(.*?)(?=^\S|\Z)", text, re.M | re.S)
    assert packages
    for name, version, rest in packages:
        assert "--hash=sha256:" in rest, name
        # CUDA's wheels are pulled in by torch itself, and the build's tools by nobody
        assert tested.get(_normal(name), version) == version
    assert "://" not in text


def test_the_locks_hold_all_that_their_extras_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def needed(*names):
        wanted = list(project["dependencies"])
        for name in names:
            for entry in extras[name]:
                inner = re.match(r"fedvox\[(.*)\]", entry)
                wanted += needed(*inner[1].split(",")) if inner else [entry]
        return {_normal(re.match(r"[A-Za-z0-9._-]+", entry)[0]) for entry in wanted}

    for lock, names in {"training": ("train", "s3", "benchmark", "forecast"), "federation": ("federation", "s3"),
                        "compliance": ("web", "pdf")}.items():  # fmt: skip
        text = (ROOT / f"deploy/images/{lock}.lock").read_text()
        held = {_normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==", text, re.M)}
        assert needed(*names) <= held, lock


def test_the_builder_is_sent_neither_data_nor_keys():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line[1:] for line in rules if line.startswith("!")}
    copied = {
        source
        for image in IMAGES
        for line in re.findall(r"^COPY (?!--from)(.*)$", image.read_text(), re.M)
        for source in line.split()[:-1]
    }
    assert {s for s in copied if not s.endswith(".lock")} == sent - {"deploy/images/*.lock"}


def test_the_compose_file_fits_the_specification():
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_specification_does_refuse(tmp_path):
    (tmp_path / "compose.yaml").write_text("services: {a: {image: x, comand: y}}")
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml"],
        capture_output=True,
    )
    assert done.returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened_and_open_to_this_machine_alone(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service.get("user") in (None, "0:0")
    assert service.get("cap_add", []) == (["CHOWN"] if "user" in service else [])
    assert set(service.get("depends_on", ())) <= set(SERVICES)


@pytest.mark.parametrize("name", ["ray-head", "ray-worker", "superlink", "supernode-nord", "supernode-sued"])
def test_every_service_is_started_with_options_that_exist(name, options_of):
    words = SERVICES[name]["command"]
    count = next(i for i, word in enumerate(words) if word.startswith("--"))
    known = options_of(*words[:count])
    if words[1] == "supernode":
        known = known | options_of("flower-supernode")
    assert {word.split("=")[0] for word in words[count:]} <= known


def test_the_clinics_files_of_the_development_cluster_are_read(tmp_path):
    from fedvox.config import load_config
    from fedvox_federation.config import ClinicConfig

    for name in ("nord", "sued"):
        assert load_config(ClinicConfig, ROOT / f"deploy/compose/{name}.yaml").name == name
    example = ROOT / "deploy/kubernetes/flower/supernode-example/clinic.yaml"
    assert load_config(ClinicConfig, example).budget_epsilon == 8
