"""A small collection: simulated abdomens in a brick store, with labels, two models, a consensus, and a queue."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

STRUCTURES = ("background", "liver", "spleen", "left kidney")
SHAPE, SPACING = (18, 24, 30), (3.0, 2.0, 1.5)
AFFINE = ((0.0, 0.0, 1.5, -20.0), (0.0, 2.0, 0.0, -30.0), (3.0, 0.0, 0.0, 400.0), (0.0, 0.0, 0.0, 1.0))
"""Voxel (D, H, W, 1) -> RAS+ mm."""


def ball(middle, radius_mm):
    """Voxels within a distance of a voxel, (D, H, W) bool."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return np.linalg.norm((grid - middle) * np.asarray(SPACING), axis=-1) <= radius_mm


def organs(shift=0):
    """A right label map; `shift` moves the liver along x, voxels."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[ball((9, 12, 21 - shift), 10)] = 1
    mask[ball((10, 8, 6), 6)] = 2
    mask[ball((4, 16, 7), 5)] = 3
    return mask


def wrong():
    """The label that the collection begins with: the spleen is missing."""
    return np.where(ball((10, 8, 6), 6), 0, organs()).astype(np.uint8)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """The collection, made once; its masks are written and synced one by one."""
    from fedvox.curation.store import Finding, LabelStore, NewCase, NewItem, Source
    from fedvox.data.records import StoreMeta
    from fedvox.data.store_writer import StoreWriter

    folder = tmp_path_factory.mktemp("template")
    meta = StoreMeta("toy", ("CT",), "CT", STRUCTURES, {"all": (0, 1, 2, 3)}, "ct", SPACING)
    writer = StoreWriter.create(str(folder / "images"), meta)
    names = ("case_1", "case_2", "case_3")
    for seed, name in enumerate(names):
        noise = np.random.default_rng(seed).normal(0, 12, SHAPE)
        image = np.rint(60.0 * organs() + noise - 100).astype(np.int16)[None]
        writer.add_case(name, image, None, source="toy", label_set="all", spacing_mm=SPACING, affine=AFFINE)
    writer.finish()
    store = LabelStore.create(
        folder / "curation", name="Toy abdomens", structures=STRUCTURES, images=str(folder / "images")
    )
    store.add_cases([NewCase(name, SHAPE, SPACING, AFFINE, "toy") for name in names], actor="test")
    for name in names:
        store.add_version(name, wrong(), Source("import", "atlas"), round=0, actor="test", move_head=True)
    number = store.rounds.open({}, actor="test")
    for name in names:
        for source, mask in (
            (Source("model", "resenc", "a" * 64), organs()),
            (Source("model", "mednext", "b" * 64), organs(shift=2)),
            (Source("consensus", "staple"), organs(shift=1)),
        ):
            store.add_version(name, mask, source, round=number, actor="test")
    found = [
        Finding(name, 1, number, "spleen", "missing", 0.9, {"volume_mm3": 0.0, "expected_mm3": 870.0})
        for name in names
    ]
    found.append(Finding("case_1", 1, number, "left kidney", "touches_border", 0.2, {"place": [4, 16, 7]}))
    store.findings.replace(number, found, actor="test")
    items = [NewItem(name, "queue", 10.0 - place, 870.0, 2.0) for place, name in enumerate(names)]
    store.queue.replace(number, items, actor="test")
    store.close()
    return folder / "curation"


@pytest.fixture
def collection(template, tmp_path):
    """A label store of three cases in round 1: version 1 is the label, 2 and 3 are proposals, 4 is their consensus."""
    from fedvox.curation.store import LabelStore

    folder = shutil.copytree(template, tmp_path / "curation")
    store = LabelStore.open(folder)
    yield SimpleNamespace(store=store, folder=folder, organs=organs, ball=ball, wrong=wrong())
    store.close()
