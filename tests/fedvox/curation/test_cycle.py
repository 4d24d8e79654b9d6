"""Rounds on small bodies with networks that were never trained: what is done, and what a kill leaves."""

import json
import multiprocessing
import os
import signal
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest
import torch

from fedvox.config import validate
from fedvox.curation.cycle.collection import create_collection
from fedvox.curation.cycle.config import CurateConfig, GateSection
from fedvox.curation.cycle.datasets import fold_of
from fedvox.curation.cycle.export import export_round
from fedvox.curation.cycle.gate import judge
from fedvox.curation.cycle.mask_files import import_folder, read_mask_file
from fedvox.curation.cycle.rounds import Cycle
from fedvox.curation.simulation.reviewer import SimulatedReviewer
from fedvox.curation.store import LabelStore, Source
from fedvox.data.records import StoreMeta
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import ConfigError, DataError
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release

STRUCTURES = ("background", "left", "right")
SHAPE = (16, 16, 24)
NETWORK = {"features": [4, 4], "blocks": [1, 1], "decoder_convs": [1]}
AFFINE = ((0.0, 0.0, 1.0, -10.0), (0.0, 1.0, 0.0, 5.0), (2.0, 0.0, 0.0, 7.0), (0.0, 0.0, 0.0, 1.0))


def body(number):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:12, 4 : 10 + number % 3, 3:10] = 1
    mask[4:12, 4 : 10 + number % 3, 14:21] = 2
    return mask


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Images with right labels."""
    folder = tmp_path_factory.mktemp("bodies")
    meta = StoreMeta("bodies", ("CT",), "CT", STRUCTURES, {"all": (0, 1, 2)}, "zscore")
    writer = StoreWriter.create(str(folder / "truth"), meta)
    for number in range(12):
        noise = np.random.default_rng(number).normal(0, 5, SHAPE)
        image = (50 * body(number) + noise).astype(np.int16)[None]
        writer.add_case(
            f"b{number:02d}", image, body(number), source="site", label_set="all", spacing_mm=(2.0, 1.0, 1.0),
            affine=AFFINE,
        )  # fmt: skip
    writer.finish()
    return BrickStore.open(str(folder / "truth"))


def untrained(config):
    """Stands in for a training: released weights as they are drawn."""
    torch.manual_seed(config.seed)
    options = {"deep_supervision": False, **{k: tuple(v) for k, v in NETWORK.items()}}
    model = build_model("resenc-unet-tiny", in_channels=1, classes=3, **options)
    info = ModelInfo(
        "resenc-unet-tiny", options, STRUCTURES, ("CT",), SHAPE, None, "zscore", [], provenance={"step": 0}
    )
    write_release(model.eval(), info, locate(config.storage).child(config.name, "final"))
    return {}


@pytest.fixture
def collection(truth, tmp_path):
    """A label store of the bodies; in one label, left and right are exchanged."""
    store = create_collection(
        tmp_path / "curation", truth.location.uri, gold=("b09", "b10", "b11"), actor="test"
    )
    swapped = np.array([0, 2, 1], np.uint8)[body(4)]
    store.add_version("b04", swapped, Source("import", "careless"), round=0, actor="test", move_head=True)
    yield store
    store.close()


def settings(store, rules, **changes):
    return validate(
        CurateConfig,
        {
            "store": store.location.uri,
            "rules": str(rules),
            "queue": {"budget": 0.5, "audit_share": 0.25, "double_share": 0.3, "blind_share": 0.2},
            "training": {
                "steps": 2, "global_batch_size": 1, "data": {"patch_size": SHAPE},
                "model": {"name": "resenc-unet-tiny", "deep_supervision": False, "options": NETWORK},
                "compute": {"num_workers": 0},
            },
            "retrain": {"steps": 2, "lr": 1e-3, "warmup_steps": 0},
            "stop": {"max_rounds": 2},
            "pictures": 2,
            **changes,
        },
        source="test",
    )  # fmt: skip


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        "all: [{kind: volume, robust_z: 6}]\nstructures:\n  left: [{kind: order, axis: x, below: right}]\n"
    )
    return path


def test_two_rounds_from_wrong_labels_to_the_stop(collection, truth, rules):
    cycle = Cycle(settings(collection, rules), collection, untrained)
    first = cycle.advance()
    assert (first.round, first.state) == (1, "waiting")
    assert cycle.advance() == first
    top = collection.queue.items()[0]
    found = [finding for finding in collection.findings.of(round=1) if finding.rule == "order"]
    assert [(one.case_id, one.structure) for one in found] == [("b04", "left")]
    assert top.case_id == "b04"
    assert (collection.location.local_path / found[0].picture).read_bytes().startswith(b"\x89PNG")
    for name in ("ann", "bob"):
        SimulatedReviewer(collection, truth, name).answer_all()
    np.testing.assert_array_equal(
        collection.read_mask(collection.version("b04", collection.case("b04").head)), body(4)
    )
    assert cycle.advance().state == "closed"
    report = json.loads((collection.location.local_path / "rounds/001/report.json").read_text())
    assert report["reviewed"] == 4
    assert report["detection"]["queued"]["hits"] == 1
    assert report["double_reading"]["pairs"] >= 1
    assert report["gate"]["passed"] in (True, False)
    assert cycle.advance().round == 2
    for name in ("ann", "bob"):
        SimulatedReviewer(collection, truth, name).answer_all()
    last = cycle.advance()
    assert last.state == "stopped"
    assert "max_rounds" in last.reason
    assert cycle.advance().state == "stopped"
    assert collection.rounds.current == 2
    assert collection.audit.verify()


def _run_and_die(uri, truth_uri, config, step, after):
    """Advances the cycle and kills its own process at a step, or after some masks or answers."""
    torch.set_num_threads(1)
    store = LabelStore.open(uri)
    written = [0]

    def tell(text):
        if step is not None and text.endswith(step):
            os.kill(os.getpid(), signal.SIGKILL)

    record = store.record_versions

    def recorded(*args, **kwargs):
        written[0] += 1
        if step == "proposing" and written[0] > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return record(*args, **kwargs)

    store.record_versions = recorded

    def train(found):
        if step == "training" and found.name.endswith("-1"):
            os.kill(os.getpid(), signal.SIGKILL)
        return untrained(found)

    cycle = Cycle(config, store, train, tell=tell)
    if cycle.advance().state != "waiting":
        return
    reviewer = SimulatedReviewer(store, BrickStore.open(truth_uri), "ann")
    answered = 0
    while (item := store.queue.next("ann")) is not None:
        reviewer.answer(item)
        answered += 1
        if step == "answering" and answered > after:
            os.kill(os.getpid(), signal.SIGKILL)
    cycle.advance()


def _told(store):
    """All that must not depend on how often a round was killed."""
    told = {"heads": store.heads(), "rules": [finding.rule for finding in store.findings.of(round=1)]}
    told["reviews"] = sorted((review.case_id, review.decision, review.result) for review in store.reviews())
    for case in store.cases():
        for version in store.versions(case.case_id):
            told[case.case_id, version.number] = {k: v for k, v in asdict(version).items() if k != "created"}
    return told


@pytest.mark.integration
def test_a_round_killed_at_every_step_ends_like_one_that_never_was(collection, truth, rules, tmp_path):
    import shutil

    config = settings(
        collection, rules, queue={"budget": 0.5, "double_share": 0, "blind_share": 0}, pictures=0
    )
    collection.close()
    folder = collection.location.local_path
    twin = tmp_path / "twin"
    shutil.copytree(folder, twin)
    process = multiprocessing.get_context("fork")
    kills = [
        ("models", 0), ("training", 0), ("proposing", 1), ("check", 0), ("queue", 0), ("answering", 0), ("retrain", 0),
        ("training", 0), ("gate", 0), ("report", 0),
    ]  # fmt: skip
    ends = []
    for step, after in [*kills, (None, 0)]:
        child = process.Process(
            target=_run_and_die, args=(str(folder), truth.location.uri, config, step, after)
        )
        child.start()
        child.join(60)
        ends.append(child.exitcode)
    assert ends[-1] == 0
    assert ends[:-1].count(-signal.SIGKILL) == len(kills)
    calm = process.Process(
        target=_run_and_die,
        args=(str(twin), truth.location.uri, config.model_copy(update={"store": str(twin)}), None, 0),
    )
    calm.start()
    calm.join(60)
    killed, whole = LabelStore.open(folder), LabelStore.open(twin)
    after_kills, without = _told(killed), _told(whole)
    for name in after_kills:
        assert after_kills[name] == without[name]
    assert killed.missing_masks() == []
    assert killed.audit.verify()
    assert killed.rounds.all()[0].closed


def test_one_proposer_alone_is_refused(collection, rules, tmp_path):
    config = settings(collection, rules)
    untrained(config.training.model_copy(update={"storage": str(tmp_path), "name": "one"}))
    alone = config.model_copy(
        update={"propose": config.propose.model_copy(update={"models": (f"{tmp_path}/one",)})}
    )
    with pytest.raises(ConfigError, match="one alone agrees with itself"):
        Cycle(alone, collection, untrained).advance()


def test_masks_of_other_tools_propose_without_any_model(collection, rules, tmp_path):
    z, y, x = np.array(AFFINE)[:3, 0], np.array(AFFINE)[:3, 1], np.array(AFFINE)[:3, 2]
    affine = np.eye(4)
    affine[:3] = np.stack([x, y, z, np.array(AFFINE)[:3, 3]], axis=1)
    for tool in ("tool a", "tool b"):
        (tmp_path / tool).mkdir()
        for number in range(9):
            image = nib.Nifti1Image(body(number).transpose(2, 1, 0), affine)
            turn = nib.orientations.axcodes2ornt("LPS")  # files come in any orientation
            image = image.as_reoriented(
                nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
            )
            nib.save(image, tmp_path / tool / f"b{number:02d}.nii.gz")
        assert import_folder(collection, tmp_path / tool, tool)["added"] == 9
    config = settings(collection, rules, propose={"imported": ["tool a", "tool b"]})
    assert Cycle(config, collection, untrained).advance().state == "waiting"
    assert collection.queue.items()[0].case_id == "b04"
    consensus = [version for version in collection.versions("b04") if version.source.kind == "consensus"]
    np.testing.assert_array_equal(collection.read_mask(consensus[0]), body(4))


def test_a_mask_file_that_lies_elsewhere_is_refused(collection, tmp_path):
    image = nib.Nifti1Image(body(0).transpose(2, 1, 0), np.diag([1.0, 1.0, 2.0, 1.0]))
    nib.save(image, tmp_path / "b00.nii.gz")
    with pytest.raises(DataError) as caught:
        read_mask_file(tmp_path / "b00.nii.gz", collection.case("b00"))
    assert caught.value.code == "other_geometry"


def test_a_round_is_exported_as_it_was(collection, tmp_path):
    written = export_round(collection, tmp_path / "Dataset001_Bodies", 0)
    assert written["cases"] == 12
    folder = tmp_path / "Dataset001_Bodies"
    label = nib.load(folder / "labelsTr" / "b04.nii.gz")
    image = nib.load(folder / "imagesTr" / "b04_0000.nii.gz")
    np.testing.assert_allclose(label.affine, image.affine)
    np.testing.assert_allclose(label.affine @ [0, 0, 0, 1], [-10, 5, 7, 1])
    np.testing.assert_allclose(label.header.get_zooms(), (1, 1, 2))
    swapped = np.array([0, 2, 1])[body(4)]
    np.testing.assert_array_equal(np.asarray(label.dataobj).transpose(2, 1, 0), swapped)
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "left": 1, "right": 2}
    provenance = json.loads((folder / "provenance.json").read_text())["cases"]
    assert provenance["b04"]["source"]["name"] == "careless"
    with pytest.raises(DataError, match="exists already"):
        export_round(collection, folder, 0)


def test_the_gate_refuses_a_loss_beyond_chance_and_tolerates_one_within():
    rng = np.random.default_rng(0)
    before = np.concatenate([np.full((20, 1), np.nan), rng.uniform(0.7, 0.9, (20, 3))], axis=1)
    after = before.copy()
    after[:, 1] -= rng.uniform(0.02, 0.06, 20)
    after[:, 2] += rng.normal(0, 0.05, 20)
    after[:5, 3] = np.nan
    found = {
        one.structure: one
        for one in judge(before, after, ("background", "lost", "noisy", "same"), GateSection(), 0)
    }
    assert not found["lost"].passes
    assert found["lost"].high < 0
    assert found["noisy"].passes
    assert (found["same"].low, found["same"].high) == (0, 0)
    lenient = judge(before, after, ("background", "lost", "noisy", "same"), GateSection(tolerance=0.1), 0)
    assert all(one.passes for one in lenient)


def test_the_gold_set_is_named_by_cases_that_exist(truth, tmp_path):
    with pytest.raises(ConfigError, match="'nobody' is not in"):
        create_collection(tmp_path / "c", truth.location.uri, gold=("nobody",), actor="test")


def test_folds_depend_on_names_alone():
    folds = [fold_of(f"case_{n}", 4) for n in range(4000)]
    assert min(np.bincount(folds)) > 850
