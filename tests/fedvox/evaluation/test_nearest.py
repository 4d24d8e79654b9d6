"""Distances between point sets, against a k-d tree, on every path that the search can take."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from fedvox.evaluation import boundaries, nearest
from fedvox.evaluation.metrics import measure

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 2.0, 1.0), (5.0, 0.7, 0.7)]


def points(rng, low, high, count):
    return np.stack([rng.integers(a, b, count) for a, b in zip(low, high, strict=True)]).astype(np.int32)


def by_tree(a, b, spacing):
    scale = np.array(spacing)[:, None]
    return cKDTree((b * scale).T).query((a * scale).T)[0]


def assert_exact(a, b, spacing):
    to_b, to_a = nearest.surface_distances(a, b, spacing)
    np.testing.assert_allclose(to_b, by_tree(a, b, spacing), rtol=1e-12)
    np.testing.assert_allclose(to_a, by_tree(b, a, spacing), rtol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_neighbouring_surfaces(spacing, seed):
    rng = np.random.default_rng(seed)
    assert_exact(
        points(rng, (0, 0, 0), (20, 30, 25), 400), points(rng, (0, 0, 0), (20, 30, 25), 300), spacing
    )


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surfaces_beyond_the_near_search(spacing):
    rng = np.random.default_rng(1)
    assert_exact(points(rng, (0, 0, 0), (5, 6, 7), 50), points(rng, (30, 40, 35), (36, 44, 40), 60), spacing)


@pytest.mark.parametrize("path", ["rings", "tree", "transform"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_far_points_are_exact_on_every_path(monkeypatch, path, spacing):
    monkeypatch.setattr(nearest, "_FAR_OFFERS_PER_TARGET", 10**9 if path == "rings" else 0)
    monkeypatch.setattr(nearest, "_TREE_QUERIES_PER_VOXEL", 10**9 if path == "tree" else 0)
    rng = np.random.default_rng(2)
    assert_exact(points(rng, (0, 0, 0), (5, 6, 30), 70), points(rng, (15, 20, 10), (26, 44, 40), 60), spacing)


def test_far_points_are_left_to_a_tree_where_they_are_few_and_to_a_transform_where_they_are_many(monkeypatch):
    calls = []

    def counted(name, function):
        return lambda *args, **options: calls.append(name) or function(*args, **options)

    monkeypatch.setattr(
        nearest.ndimage, "distance_transform_edt", counted("edt", nearest.ndimage.distance_transform_edt)
    )
    monkeypatch.setattr(nearest, "cKDTree", counted("tree", nearest.cKDTree))
    rng, iso = np.random.default_rng(3), (1.0, 1.0, 1.0)
    plate = points(rng, (0, 0, 0), (9, 50, 50), 3000)
    assert_exact(plate, points(rng, (1, 0, 0), (10, 50, 50), 3000), iso)
    assert calls == []
    specks = points(rng, (60, 0, 0), (120, 50, 50), 100)
    assert_exact(plate, np.concatenate([plate, specks], axis=1), iso)
    assert calls == ["tree"]
    assert_exact(points(rng, (0, 0, 0), (2, 20, 20), 700), points(rng, (20, 30, 30), (22, 50, 50), 700), iso)
    assert calls == ["tree", "edt", "edt"]


@pytest.mark.parametrize("axis", range(3))
def test_columns_longer_than_a_byte_counts(axis):
    a, b = np.zeros((3, 1), np.int32), np.zeros((3, 1), np.int32)
    b[axis] = 700
    to_b, to_a = nearest.surface_distances(a, b, (1.0, 1.0, 1.0))
    assert to_b[0] == to_a[0] == 700.0


def test_scores_do_not_depend_on_how_the_volume_is_cut_into_slabs(monkeypatch):
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 17, 11, 13)) < 0.3
    whole = measure(a, b, (2.0, 1.0, 0.5), surface=("voxel", "surfel"))
    for slab in (1, 400, 1000):
        monkeypatch.setattr(boundaries, "_SLAB_VOXELS", slab)
        assert dict(measure(a, b, (2.0, 1.0, 0.5), surface=("voxel", "surfel"))) == dict(whole)
