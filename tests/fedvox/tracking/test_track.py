"""Segmenters find what is marked; tracks keep identities through growth, loss, return, split and correction."""

import numpy as np
import pytest

from fedvox.errors import ConfigError, DataError
from fedvox.tracking.observers import given, prompted
from fedvox.tracking.prompts import Box, Mask, Point
from fedvox.tracking.registration import QualityGate, RegistrationConfig
from fedvox.tracking.segmenters import SEGMENTERS, Request, build_segmenter, unprompted
from fedvox.tracking.track import Anchor, Tracker, correct, step, track

RIGID = RegistrationConfig(stage="rigid", iterations=25)
GATE = QualityGate(overlap=0.9)
PLACES = {1: (0.0, 9.0, -8.0), 2: (9.0, -12.0, 8.0), 3: (-10.0, 10.0, 10.0)}


def tracker(observe):
    return Tracker(observe, registration=RIGID, gate=GATE)


def series(head, *radii, shifts=None, levels=(1.9, 0.25, 1.7)):
    """Scans with lesions of the given radii (None: not there), and their true labels."""
    scans, truth = [], []
    for index, row in enumerate(radii):
        lesions = {
            i: (PLACES[i], r, level)
            for i, r, level in zip(PLACES, row, levels, strict=False)
            if r is not None
        }
        shift = (shifts or [(0, 0, 0)] * len(radii))[index]
        scan, labels = head.scan(lesions, shift_mm=shift, seed=index, name=f"scan {index}")
        scans.append(scan)
        truth.append(labels)
    return scans, truth


@pytest.mark.parametrize("name", ["region-growing", "random-walker"])
@pytest.mark.parametrize("kind", ["point", "box", "mask"])
def test_classical_segmenters_find_a_marked_lesion(phantom, overlap, name, kind):
    scan, labels = phantom().scan({1: (PLACES[1], 8, 1.9), 2: (PLACES[2], 7, 0.25)})
    for lesion in (1, 2):
        truth = labels == lesion
        voxels = np.argwhere(truth)
        prompt = {
            "point": Point(tuple(voxels.mean(0))),
            "box": Box(tuple((voxels.min(0) - 1).tolist()), tuple((voxels.max(0) + 2).tolist())),
            "mask": Mask(np.roll(truth, 1, axis=2)),
        }[kind]
        found = build_segmenter(name)(Request(scan.data[0], scan.geometry.spacing_mm, (prompt,)))
        assert overlap(found, truth) > 0.75


@pytest.mark.parametrize("name", ["region-growing", "random-walker"])
def test_a_carried_mask_over_healthy_tissue_finds_nothing_but_a_click_is_taken_at_its_word(phantom, name):
    head = phantom()  # whose tissue is even at the second place; at the first there is a landmark
    scan, _ = head.scan({})
    _, labels = head.scan({1: (PLACES[2], 8, 1.9)})
    segment = build_segmenter(name)
    request = Request(scan.data[0], scan.geometry.spacing_mm, (Mask(labels == 1),))
    assert not segment(request).any()
    assert build_segmenter("carried")(request).sum() == (labels == 1).sum()
    middle = tuple(np.argwhere(labels == 1).mean(0))
    assert segment(Request(scan.data[0], scan.geometry.spacing_mm, (Point(middle),))).any()


def test_a_negative_click_keeps_its_place_out(phantom):
    scan, labels = phantom().scan({1: (PLACES[1], 8, 1.9)})
    middle = np.argwhere(labels == 1).mean(0)
    no = middle + np.array([0, 0, 3])
    prompts = (Point(tuple(middle - [0, 0, 1])), Point(tuple(no), positive=False))
    for name in ("region-growing", "random-walker"):
        found = build_segmenter(name)(Request(scan.data[0], scan.geometry.spacing_mm, prompts))
        assert not found[tuple(np.rint(no).astype(int))]


def test_an_unknown_segmenter_and_a_carried_one_without_a_mask_are_refused(phantom):
    with pytest.raises(ConfigError, match="random-walker"):
        build_segmenter("guess")
    scan, _ = phantom().scan({})
    with pytest.raises(ConfigError, match="no mask"):
        SEGMENTERS["carried"](Request(scan.data[0], scan.geometry.spacing_mm, (Point((1, 1, 1)),)))


def test_blobs_are_found_without_a_prompt(phantom):
    scan, labels = phantom().scan({1: (PLACES[1], 8, 2.2), 2: (PLACES[2], 7, 0.1)})
    found = unprompted(scan.data[0], scan.geometry.spacing_mm)
    assert all((found[labels == i] > 0).mean() > 0.5 for i in (1, 2))
    empty = unprompted(np.zeros((8, 8, 8)), (1, 1, 1))
    assert not empty.any()


def test_identities_are_kept_through_growth_and_displacement(phantom, overlap):
    scans, truth = series(
        phantom(),
        (6, 7, 6),
        (7, 6, 6.5),
        (8, 5, 7),
        shifts=[(0, 0, 0), (5, -4, 3), (-4, 4, 0)],
    )
    states = track(scans, {0: Anchor(truth[0])}, tracker(prompted(build_segmenter("region-growing"))))
    for state, labels in zip(states, truth, strict=True):
        assert state.ids == [1, 2, 3]
        assert all(overlap(state.lesions == i, labels == i) > 0.7 for i in (1, 2, 3))
    assert all(e.kind == "continued" for s in states for e in s.events)


def test_a_lesion_that_vanishes_is_remembered_and_returns_under_its_id(phantom):
    scans, truth = series(phantom(), (7, 7), (7, None), (7, None), (7, 6))
    states = track(scans, {0: Anchor(truth[0])}, tracker(prompted(build_segmenter("region-growing"))))
    assert [s.ids for s in states] == [[1, 2], [1], [1], [1, 2]]
    kinds = [[(e.kind, e.lesion) for e in s.events] for s in states]
    assert ("vanished", 2) in kinds[1]
    assert all(lesion != 2 for _, lesion in kinds[2])
    assert ("returned", 2) in kinds[3]


def test_a_lesion_that_appears_gets_a_new_id_when_something_looks_for_it(phantom):
    scans, truth = series(phantom(), (7, 7), (7, 7, 7))
    observe = prompted(
        build_segmenter("region-growing"), detect=lambda image, _: (image > 150).astype(np.uint16) * 4
    )
    states = track(
        scans, {0: Anchor(np.where(truth[0] == 2, 2, 0))}, tracker(prompted(build_segmenter("carried")))
    )
    assert states[1].ids == [2]
    labels = {s.path: t for s, t in zip(scans, truth, strict=True)}
    states = track(scans, {0: Anchor(truth[0])}, tracker(given(labels)))
    assert states[1].ids == [1, 2, 3]
    assert [(e.kind, e.lesion) for e in states[1].events if e.kind != "continued"] == [("appeared", 3)]
    assert observe(scans[0], truth[0]).max() == 2  # what touches a known lesion is not new


def test_lesions_are_followed_backward_from_the_scan_on_which_they_were_marked(phantom, overlap):
    scans, truth = series(phantom(), (6, 6), (6.5, 6), (7, 6))
    states = track(scans, {2: Anchor(truth[2])}, tracker(prompted(build_segmenter("region-growing"))))
    assert [s.direction for s in states] == ["backward", "backward", "marked"]
    assert all(overlap(states[0].lesions == i, truth[0] == i) > 0.7 for i in (1, 2))


def test_a_scan_done_again_by_itself_gives_what_it_gave_in_the_series(phantom):
    scans, truth = series(phantom(), (6, 7), (7, 6), (8, None), shifts=[(0, 0, 0), (3, 2, 0), (0, -3, 2)])
    how = tracker(prompted(build_segmenter("random-walker")))
    states = track(scans, {0: Anchor(truth[0])}, how)
    again = step(states[1], scans[1], scans[2], how)
    np.testing.assert_array_equal(again.lesions, states[2].lesions)
    np.testing.assert_array_equal(again.dormant, states[2].dormant)
    assert (again.events, again.next_id, again.quality) == (
        states[2].events,
        states[2].next_id,
        states[2].quality,
    )


def test_a_correction_rules_over_what_was_computed_and_what_follows_comes_from_it(phantom, overlap):
    scans, truth = series(phantom(), (6, 6), (6, 6), (6, 6))
    how = tracker(prompted(build_segmenter("carried")))
    wrong = np.where(truth[0] == 1, 1, 0) + 2 * np.roll(truth[0] == 2, 6, axis=2)
    states = track(scans, {0: Anchor(wrong)}, how)
    assert overlap(states[2].lesions == 2, truth[2] == 2) < 0.3
    mended = correct(scans, states, 1, Anchor(np.where(truth[1] == 2, 2, 0)), how)
    assert overlap(mended[2].lesions == 2, truth[2] == 2) > 0.9
    np.testing.assert_array_equal(mended[0].lesions, states[0].lesions)
    np.testing.assert_array_equal(mended[1].lesions == 1, states[1].lesions == 1)
    whole = track(scans, {0: Anchor(wrong), 1: Anchor(np.where(truth[1] == 2, 2, 0))}, how)
    np.testing.assert_array_equal(whole[2].lesions, mended[2].lesions)
    gone = correct(scans, states, 1, Anchor(truth[1] * 0, absent=frozenset({1})), how)
    assert gone[1].ids == [2]
    assert (gone[1].dormant == 1).any()


def test_a_lesion_first_marked_later_is_followed_back_too(phantom, overlap):
    scans, truth = series(phantom(), (6, 6), (6, 6), (6, 6))
    anchors = {0: Anchor(np.where(truth[0] == 1, 1, 0)), 2: Anchor(np.where(truth[2] == 2, 9, 0))}
    states = track(scans, anchors, tracker(prompted(build_segmenter("region-growing"))))
    assert [s.ids for s in states] == [[1, 9]] * 3
    assert overlap(states[0].lesions == 9, truth[0] == 2) > 0.7


def test_two_lesions_that_grow_together_become_one_and_a_split_gets_a_new_id(phantom):
    scans, truth = series(phantom(), (6, 6), (6, 6))
    one = {scans[0].path: truth[0], scans[1].path: (truth[1] > 0).astype(np.uint16)}
    both = track(scans, {0: Anchor(truth[0])}, tracker(given(one)))[1]
    assert [e.kind for e in both.events] in (["merged", "continued"], ["continued", "merged"])
    assert len(both.ids) == 1
    single = track(
        scans, {0: Anchor((truth[0] > 0).astype(np.uint16))}, tracker(given({**one, scans[1].path: truth[1]}))
    )
    assert ("split", 2, 1) in [(e.kind, e.lesion, e.other) for e in single[1].events]


def test_a_series_with_another_patient_or_without_marks_is_refused(phantom):
    scans, truth = series(phantom(), (6, 6), (6, 6))
    other, _ = phantom(seed=3, size=0.75).scan({}, name="stranger.nii.gz")
    how = tracker(prompted(build_segmenter("carried")))
    with pytest.raises(DataError) as caught:
        track([scans[0], other], {0: Anchor(truth[0])}, how)
    assert caught.value.code == "another_patient"
    assert "stranger.nii.gz" in caught.value.message
    for anchors, code in (
        ({}, "no_prompt"),
        ({0: Anchor(truth[0] * 0)}, "empty_prompt"),
        ({0: Anchor(truth[0][1:])}, "shape_mismatch"),
        ({5: Anchor(truth[0])}, "no_scan"),
    ):
        with pytest.raises(DataError) as caught:
            track(scans, anchors, how)
        assert caught.value.code == code
