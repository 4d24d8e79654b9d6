"""`measure` against surface-distance and MONAI, run on the same masks here and now."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fedvox.evaluation.metrics import measure
from fedvox.evaluation.surfels import CORNERS, surfel_areas

# What the peers themselves do with deprecated names is not ours to fix.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),
]

surface_distance = pytest.importorskip("surface_distance")
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (5.0, 1.0, 1.0), (0.7, 1.3, 2.9)]


def by_surface_distance(reference, prediction, spacing, tolerance):
    found = surface_distance.compute_surface_distances(reference, prediction, spacing)
    return {
        "nsd": surface_distance.compute_surface_dice_at_tolerance(found, tolerance),
        "hd": surface_distance.compute_robust_hausdorff(found, 100),
        "hd95": surface_distance.compute_robust_hausdorff(found, 95),
        "assd": float(np.mean(surface_distance.compute_average_surface_distance(found))),
    }


def by_monai(reference, prediction, spacing, tolerance):
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    a, b = (torch.from_numpy(m)[None, None] for m in (reference, prediction))
    options = {"include_background": True, "spacing": spacing}
    return {
        "nsd": compute_surface_dice(b, a, [tolerance], **options).item(),
        "hd": compute_hausdorff_distance(b, a, **options).item(),
        "hd95": compute_hausdorff_distance(b, a, percentile=95, **options).item(),
        "assd": compute_average_surface_distance(b, a, symmetric=True, **options).item(),
    }


def ours(reference, prediction, spacing, tolerance, surface):
    scores = measure(reference, prediction, spacing, tolerance_mm=tolerance, surface=surface)
    return {m.split("/")[0].split("@")[0]: v for m, v in scores.items() if m.endswith(surface)}


def blobs(seed, shape=(14, 19, 23)):
    """Two overlapping masks with holes, specks and parts at the border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    other = field + 0.4 * ndimage.gaussian_filter(rng.standard_normal(shape), 1)
    return field > 0.04, other > 0.06


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surfel_areas_of_all_neighbourhoods_equal_those_of_surface_distance(spacing):
    from surface_distance import lookup_tables

    kernel = np.asarray(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    code = [sum(int(kernel[c]) for bit, c in enumerate(CORNERS) if own >> bit & 1) for own in range(256)]
    np.testing.assert_allclose(surfel_areas(spacing), theirs[code], rtol=1e-12, atol=1e-12)


def test_surfel_metrics_of_every_recipe_equal_surface_distance(recipe):
    reference, prediction, spacing = recipe
    expected = by_surface_distance(reference, prediction, spacing, 1.0)
    found = ours(reference, prediction, spacing, 1.0, "surfel")
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spacing=st.sampled_from(SPACINGS),
    tolerance=st.sampled_from([0.33, 1.07, 2.9]),
)
def test_surfel_metrics_of_ragged_masks_equal_surface_distance(seed, spacing, tolerance):
    reference, prediction = blobs(seed)
    expected = by_surface_distance(reference, prediction, spacing, tolerance)
    found = ours(reference, prediction, spacing, tolerance, "surfel")
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_voxel_metrics_of_ragged_masks_equal_monai(seed, spacing):
    pytest.importorskip("monai")
    reference, prediction = blobs(seed)
    expected = by_monai(reference, prediction, spacing, 1.07)
    found = ours(reference, prediction, spacing, 1.07, "voxel")
    for name, value in expected.items():  # MONAI works in float32, and interpolates percentiles in it
        assert found[name] == pytest.approx(value, rel=1e-4 if name == "hd95" else 1e-6), name
