"""Containers: what the engine is told, that references are never mounted, and how its failures are told apart.

The engine is a program of ours on PATH, which records what it was told and then does what the container would do: it
finds the host's folders in the mounts of its own command line, and knows nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import yaml

from fedvox.benchmark.container import Container, Mounts, find_engine, run_container
from fedvox.benchmark.manifest import load_benchmark
from fedvox.benchmark.protocol import run_benchmark
from fedvox.benchmark.submission import load_submission
from fedvox.errors import ConfigError, RunError

ENGINE = """#!{python}
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
with open({record!r}, "a") as stream:
    stream.write(json.dumps({{"arguments": arguments, "environment": dict(os.environ)}}) + "\\n")
if arguments[0] != "run":
    sys.exit(0)
behaviour = {behaviour!r}
if behaviour == "daemon is down":
    print("Error: cannot connect to the daemon", file=sys.stderr)
    sys.exit(125)
if behaviour == "hangs":
    time.sleep(600)
if behaviour == "crashes":
    sys.exit("the network exploded")
flags = ("--volume", "--bind")
mounts = dict(reversed(v.split(":")[:2]) for f, v in zip(arguments, arguments[1:]) if f in flags)
images, output = (pathlib.Path(mounts[f]) for f in ("/images", "/output"))
import nibabel as nib, numpy as np
for path in sorted(images.iterdir()):
    image = nib.load(path)
    values = np.asarray(image.dataobj).astype(float)
    labels = np.clip(np.rint((values - 500 * (np.median(values) > 250)) / 100), 0, 2).astype("uint8")
    nib.save(nib.Nifti1Image(labels, image.affine), output / path.name.replace("_0000", ""))
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Puts a recording engine on PATH, alone; returns what it was told so far."""
    folder, record = tmp_path / "bin", tmp_path / "record.jsonl"
    folder.mkdir()

    def install(name="docker", behaviour="predicts"):
        program = folder / name
        program.write_text(ENGINE.format(python=sys.executable, record=str(record), behaviour=behaviour))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return lambda: [json.loads(line) for line in record.read_text().splitlines()]

    return install


@pytest.fixture
def rooms(tmp_path):
    for name in ("images", "output", "scratch", "references", "weights"):
        (tmp_path / name).mkdir()
    nib.save(
        nib.Nifti1Image(np.full((4, 4, 4), 100, np.int16), np.eye(4)), tmp_path / "images" / "x_0000.nii.gz"
    )
    return tmp_path


def start(rooms, container=None, **options):
    mounts = Mounts(rooms / "images", rooms / "output", options.pop("read", (rooms / "weights",)))
    values = {"hidden": [rooms / "references"], "scratch": rooms / "scratch", "timeout_s": 30, **options}
    return run_container(container or Container(image="team/method:1"), mounts, **values)


def volumes(arguments, flag="--volume"):
    return [b for a, b in itertools.pairwise(arguments) if a == flag]


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_the_engine_is_told_to_give_no_network_no_rights_and_nothing_but_the_mounts(engine, rooms, name):
    told = engine(name)
    ended = start(rooms)
    assert ended.returncode == 0, ended.log
    assert ended.peak_mib is None  # what the client uses is not what the container uses
    (call,) = told()
    words = " ".join(call["arguments"])
    for wanted in (
        "run --rm --name fedvox-", "--network none", "--read-only", "--pull never", "--cap-drop ALL",
        "--security-opt no-new-privileges", f"--user {os.getuid()}:{os.getgid()}",
    ):  # fmt: skip
        assert wanted in words
    assert ("--userns keep-id" in words) == (name == "podman")
    assert words.endswith("team/method:1 /images /output")
    assert volumes(call["arguments"]) == [
        f"{rooms / 'images'}:/images:ro",
        f"{rooms / 'output'}:/output:rw",
        f"{rooms / 'weights'}:{rooms / 'weights'}:ro",
    ]
    assert (rooms / "output" / "x.nii.gz").is_file()


def test_apptainer_is_spoken_to_in_its_own_words(engine, rooms):
    told = engine("apptainer")
    container = Container(
        image="method.sif", arguments=("predict", "--in={images}", "--out={output}"), gpus=True
    )
    assert start(rooms, container).returncode == 0
    (call,) = told()
    words = " ".join(call["arguments"])
    assert words.startswith("run --containall --no-home --cleanenv --net --network none")
    assert "--nv" in call["arguments"]
    assert words.endswith("method.sif predict --in=/images --out=/output")
    assert volumes(call["arguments"], "--bind")[0] == f"{rooms / 'images'}:/images:ro"


def test_gpus_and_limits_are_asked_for(engine, rooms):
    told = engine()
    start(rooms, Container(image="m", gpus=True, memory_gib=12, shared_memory_gib=0.5))
    words = " ".join(told()[0]["arguments"])
    assert "--gpus all" in words
    assert "--memory 12288m" in words
    assert "--shm-size 512m" in words


def test_the_client_gets_no_secret_of_ours(engine, rooms, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-answer")
    told = engine()
    start(rooms)
    assert "the-answer" not in json.dumps(told()[0])


@pytest.mark.parametrize("where", ["weights/references", "weights"])
def test_a_mount_that_holds_references_or_lies_among_them_is_refused_before_anything_runs(
    engine, rooms, where
):
    told = engine()
    (rooms / "weights" / "references").mkdir()
    hidden = [rooms / where]
    read = (rooms / "weights",) if where != "weights" else (rooms / "weights" / "references",)
    with pytest.raises(ConfigError, match="references"):
        start(rooms, hidden=hidden, read=read)
    with pytest.raises(FileNotFoundError):
        told()


def test_a_link_to_the_references_is_seen_through(engine, rooms):
    engine()
    (rooms / "harmless").symlink_to(rooms / "references")
    with pytest.raises(ConfigError, match="references"):
        start(rooms, read=(rooms / "harmless",))


def test_without_an_engine_that_is_said_with_what_to_do(monkeypatch, tmp_path, rooms):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="docker and podman and apptainer are not on PATH") as caught:
        start(rooms)
    assert "Install" in caught.value.remedy
    with pytest.raises(RunError, match="podman is not on PATH"):
        start(rooms, Container(image="m", engine="podman"))


def test_a_sif_file_is_for_apptainer_even_where_docker_is(engine):
    engine("docker")
    with pytest.raises(RunError, match="apptainer is not on PATH"):
        find_engine(Container(image="/models/method.sif"))


def test_an_engine_that_cannot_start_is_no_fault_of_the_submission(engine, rooms):
    engine(behaviour="daemon is down")
    with pytest.raises(RunError, match="cannot connect to the daemon") as caught:
        start(rooms)
    assert "docker image inspect team/method:1" in caught.value.remedy


def test_a_program_that_fails_inside_leaves_its_reason(engine, rooms):
    engine(behaviour="crashes")
    ended = start(rooms)
    assert ended.returncode == 1
    assert "the network exploded" in ended.log


def test_at_the_time_limit_the_container_is_removed_by_its_name(engine, rooms):
    told = engine(behaviour="hangs")
    begin = time.monotonic()
    ended = start(rooms, timeout_s=1.5)
    assert ended.timed_out
    assert time.monotonic() - begin < 20
    started, stopped = (call["arguments"] for call in told())
    assert stopped == ["rm", "--force", started[started.index("--name") + 1]]


def container_submission(site, **container):
    home = site.folder / "submissions" / "boxed"
    home.mkdir(parents=True)
    (home / "submission.yaml").write_text(yaml.safe_dump({"name": "boxed", "container": container}))
    return home


def test_a_container_goes_through_the_whole_protocol_and_never_sees_a_reference(engine, make_site):
    told = engine()
    site = make_site(4, images=True)
    home = container_submission(site, image="team/method:1")
    result = run_benchmark(
        load_benchmark(site.folder), [load_submission(home)], site.folder / "out", cases_per_shard=3
    )
    assert result.analysis.test_sets[0].coverage["boxed"] == 1
    assert result.analysis.test_sets[0].ranking.scores[0] > 0.9  # images are the labels with noise
    calls = told()
    assert len(calls) == 4  # two test sets in two shards
    for call in calls:
        sources = [v.split(":")[0] for v in volumes(call["arguments"])]
        assert len(sources) == 2
        assert not any(str(site.folder) in source for source in sources)
        assert not any(case in json.dumps(call) for cases in site.cases.values() for case in cases)
    page = (site.folder / "out" / "report.html").read_text()
    assert "run by the third party in a container" in page
    assert "None MiB" not in page


def test_a_second_run_starts_no_container_again(engine, make_site):
    told = engine()
    site = make_site(2, images=True)
    home = container_submission(site, image="team/method:1")
    for _ in range(2):
        run_benchmark(load_benchmark(site.folder), [load_submission(home)], site.folder / "out")
    assert len(told()) == 2
