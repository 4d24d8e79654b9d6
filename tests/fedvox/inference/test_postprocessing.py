"""The largest component against nnU-Net's and scipy's, and taken only where it helps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fedvox.errors import ConfigError
from fedvox.inference.postprocessing import Postprocessing, keep_largest
from fedvox.inference.selection import Counts, choose_postprocessing, mean_dice, try_postprocessing
from fedvox.storage import locate

NAMES = ("background", "a", "b")


def blobs(seed: int, shape=(9, 10, 11), labels=3, share=0.25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.integers(1, labels, shape), 0).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([(1,), (2,), (1, 2), (3,)]), st.floats(0, 0.5))
def test_the_largest_component_is_scipys(seed, structures, share):
    labels = blobs(seed, share=share)
    mask = np.isin(labels, structures)
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, components, range(1, count + 1)) if count else np.array([])
    kept = np.isin(components, np.flatnonzero(sizes == sizes.max()) + 1) if count else mask
    expected = np.where(mask & ~kept, 0, labels)
    before = labels.copy()
    np.testing.assert_array_equal(keep_largest(labels, structures), expected)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.filterwarnings("ignore")
def test_it_is_nnunets_own():
    module = pytest.importorskip("nnunetv2.postprocessing.remove_connected_components")
    for seed, structures in enumerate([1, 2, (1, 2)]):
        labels = blobs(seed)
        theirs = module.remove_all_but_largest_component_from_segmentation(
            labels, [structures] if isinstance(structures, int) else list(structures)
        )
        ours = keep_largest(labels, (structures,) if isinstance(structures, int) else structures)
        np.testing.assert_array_equal(ours, theirs)


# ---- choosing ----------------------------------------------------------------------------------------------


def scene(*boxes: tuple[int, slice, slice]) -> np.ndarray:
    labels = np.zeros((4, 30, 30), np.uint8)
    for value, rows, columns in boxes:
        labels[:, rows, columns] = value
    return labels


ORGAN = (1, slice(2, 12), slice(2, 12))
PAIR = (2, slice(18, 26), slice(2, 8))
OTHER_OF_PAIR = (2, slice(18, 26), slice(20, 26))
SPECK = (1, slice(27, 29), slice(14, 16))


def chosen(reference, prediction) -> Postprocessing:
    annotated = np.ones(3, bool)
    return choose_postprocessing([try_postprocessing(reference, prediction, 3, annotated)], NAMES)


def test_a_speck_is_removed_and_a_pair_of_organs_stays():
    reference = scene(ORGAN, PAIR, OTHER_OF_PAIR)
    prediction = scene(ORGAN, PAIR, OTHER_OF_PAIR, SPECK)
    found = chosen(reference, prediction)
    assert found.steps == ((1,),)
    np.testing.assert_array_equal(found.apply(prediction), reference)


def test_the_union_is_taken_where_all_structures_gain():
    reference = scene(ORGAN, (2, slice(12, 16), slice(2, 12)))
    prediction = scene(ORGAN, (2, slice(12, 16), slice(2, 12)), SPECK, (2, slice(20, 22), slice(20, 22)))
    assert chosen(reference, prediction).steps[0] == (1, 2)
    np.testing.assert_array_equal(chosen(reference, prediction).apply(prediction), reference)


def test_nothing_is_done_where_nothing_gains():
    perfect = scene(ORGAN, PAIR, OTHER_OF_PAIR)
    assert chosen(perfect, perfect).steps == ()


def test_a_structure_that_gains_in_one_case_and_loses_more_in_another_is_left():
    speck = try_postprocessing(scene(ORGAN), scene(ORGAN, SPECK), 3, np.ones(3, bool))
    split = scene(ORGAN, (1, slice(16, 25), slice(16, 25)))
    loses = try_postprocessing(split, split, 3, np.ones(3, bool))
    assert choose_postprocessing([speck], NAMES).steps == ((1, 2),)  # alone it helps
    assert choose_postprocessing([speck, loses], NAMES).steps == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**16), min_size=1, max_size=4))
def test_the_dice_of_no_structure_falls_on_the_cases_it_was_chosen_on(seeds):
    cases = [(blobs(seed, share=0.3), blobs(seed + 1, share=0.1)) for seed in seeds]
    annotated = np.ones(3, bool)
    found = choose_postprocessing([try_postprocessing(r, p, 3, annotated) for r, p in cases], NAMES)
    before = mean_dice([Counts.of(r, p, 3).dice() for r, p in cases])
    after = mean_dice([Counts.of(r, found.apply(p), 3).dice() for r, p in cases])
    assert (after[1:] >= before[1:] - 1e-12)[~np.isnan(before[1:])].all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["speck", "union", "nothing"])
def test_the_choice_is_nnunets_own(tmp_path, kind):
    """nnU-Net's determine_postprocessing on the same folder of label maps (it starts a pool for every step)."""
    nib = pytest.importorskip("nibabel")
    module = pytest.importorskip("nnunetv2.postprocessing.remove_connected_components")
    reference, prediction = {
        "speck": (scene(ORGAN, PAIR, OTHER_OF_PAIR), scene(ORGAN, PAIR, OTHER_OF_PAIR, SPECK)),
        "union": (
            scene(ORGAN, (2, slice(12, 16), slice(2, 12))),
            scene(ORGAN, (2, slice(12, 16), slice(2, 12)), SPECK, (2, slice(20, 22), slice(20, 22))),
        ),
        "nothing": (scene(ORGAN, PAIR, OTHER_OF_PAIR),) * 2,
    }[kind]
    for folder, labels in (("reference", reference), ("prediction", prediction)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), np.eye(4)), tmp_path / folder / "a.nii.gz")
    plans = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}
    dataset = {"labels": {name: index for index, name in enumerate(NAMES)}, "file_ending": ".nii.gz"}
    _, arguments = module.determine_postprocessing(
        str(tmp_path / "prediction"), str(tmp_path / "reference"), plans, dataset, num_processes=1
    )
    theirs = [a["labels_or_regions"] for a in arguments]
    assert [
        step if len(step) > 1 else step[0] for step in map(list, chosen(reference, prediction).steps)
    ] == theirs


# ---- files -------------------------------------------------------------------------------------------------


def test_steps_are_stored_by_name_and_found_in_another_order(tmp_path):
    location = locate(tmp_path / "postprocessing.json")
    Postprocessing(NAMES, ((1, 2), (2,))).write(location)
    assert json.loads((tmp_path / "postprocessing.json").read_text())["steps"] == [["a", "b"], ["b"]]
    assert Postprocessing.read(location.uri, ("background", "x", "b", "a")).steps == ((3, 2), (2,))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "no postprocessing"),
        ('{"steps": [["liver"]]}', "does not have: liver"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, content, match):
    path = tmp_path / "postprocessing.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=match):
        Postprocessing.read(str(path), NAMES)
