"""Registration finds a known displacement and refuses another patient; links tell what happened."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from fedvox.errors import DataError
from fedvox.tracking.events import link
from fedvox.tracking.registration import (
    QualityGate,
    RegistrationConfig,
    register,
    require_same_patient,
)

RIGID = RegistrationConfig(stage="rigid", iterations=40)
LESIONS = {1: ((0, 8, -6), 7, 1.8), 2: ((9, -10, 6), 6, 0.3)}


def test_a_known_displacement_is_found_and_masks_are_carried_over_it(phantom, overlap):
    head = phantom()
    earlier, before = head.scan(LESIONS)
    later, after = head.scan(LESIONS, shift_mm=(6.0, -4.0, 5.0), gain=300, noise=3, seed=1)
    found = register(later, earlier, RIGID)
    carried = found.carry(before, later.geometry)
    for lesion in LESIONS:
        assert overlap(carried == lesion, after == lesion) > 0.85
        moved = np.argwhere(carried == lesion).mean(0) - np.argwhere(after == lesion).mean(0)
        assert np.linalg.norm(moved * head.spacing) < max(head.spacing)
    require_same_patient(found.quality, "later", "earlier")
    matched = found.carry_image(earlier.data[0], later.geometry)
    assert np.corrcoef(matched.reshape(-1), later.data[0].reshape(-1))[0, 1] > 0.97


def test_the_same_scans_give_the_same_transform_bit_for_bit(phantom):
    head = phantom()
    earlier, _ = head.scan(LESIONS)
    later, _ = head.scan(LESIONS, shift_mm=(3.0, 2.0, 0.0), seed=1)
    config = RegistrationConfig(iterations=10, deformable_iterations=3)
    a, b = (register(later, earlier, config) for _ in range(2))
    assert a.quality == b.quality
    for point in ((0.0, 0.0, 0.0), (10.0, -20.0, 30.0)):
        assert a.transform.TransformPoint(point) == b.transform.TransformPoint(point)


def test_a_scan_registered_to_itself_stays_where_it_is(phantom):
    earlier, before = phantom().scan(LESIONS)
    found = register(earlier, earlier, RIGID)
    assert (found.carry(before, earlier.geometry) != before).mean() < 0.003
    assert found.quality.overlap > 0.99
    assert found.quality.correlation > 0.97


def test_the_deformable_stage_undoes_a_bend_that_the_rigid_one_cannot(phantom, overlap):
    head = phantom()
    earlier, before = head.scan({1: ((0, 8, -6), 9, 1.8), 2: ((6, -12, 6), 8, 0.3)})
    bend = sitk.BSplineTransformInitializer(sitk.GetImageFromArray(earlier.data[0]), [2, 2, 2])
    rng = np.random.default_rng(0)
    bend.SetParameters((rng.normal(0, 2.2, len(bend.GetParameters()))).tolist())  # voxels

    def bent(array, interpolator):
        image = sitk.GetImageFromArray(array)
        return sitk.GetArrayFromImage(sitk.Resample(image, image, bend, interpolator))

    later = type(earlier)(bent(earlier.data[0], sitk.sitkLinear)[None], earlier.geometry, "later")
    after = bent(before, sitk.sitkNearestNeighbor)
    rigid = register(later, earlier, RIGID)
    full = register(later, earlier, RegistrationConfig(spacing_mm=3.0))
    means = [
        np.mean([overlap(r.carry(before, later.geometry) == i, after == i) for i in (1, 2)])
        for r in (rigid, full)
    ]
    assert means[1] > means[0] + 0.03
    assert full.quality.residual_mm > 0.5


def test_another_patient_and_another_part_of_the_body_are_refused_with_the_figures(phantom):
    earlier, _ = phantom().scan(LESIONS)
    larger, _ = phantom(seed=5, size=1.25).scan(LESIONS, seed=1)
    with pytest.raises(DataError) as caught:
        require_same_patient(register(larger, earlier, RIGID).quality, "later.nii.gz", "earlier.nii.gz")
    assert caught.value.code == "another_patient"
    assert "later.nii.gz does not fit earlier.nii.gz" in caught.value.message
    assert "--accept-poor-registration" in caught.value.remedy
    other = phantom(seed=7)
    bar, _ = other.scan({})
    bar.data[0][:, :, :] = 5.0
    bar.data[0][:, 16:22, 2:38] = 100.0
    with pytest.raises(DataError):
        require_same_patient(
            register(bar, earlier, RIGID).quality, "later", "earlier", QualityGate(overlap=0.8)
        )


def test_a_scan_without_contrast_is_refused_by_name(phantom):
    earlier, _ = phantom().scan(LESIONS, name="first.nii.gz")
    earlier.data[0][:] = 3
    with pytest.raises(DataError) as caught:
        register(earlier, earlier, RIGID)
    assert caught.value.code == "no_contrast"
    assert "first.nii.gz" in caught.value.message


# ---- events --------------------------------------------------------------------------------------------------

SPACING = (2.0, 1.0, 1.0)


def boxes(**places):
    """Instances as boxes along the last axis: id -> (start, stop)."""
    labels = np.zeros((8, 16, 60), np.uint16)
    for name, (start, stop) in places.items():
        labels[2:6, 4:12, start:stop] = int(name[1:])
    return labels


def events(expected, observed, **options):
    found = link(expected, observed, SPACING, next_id=50, **options)
    return found, [(e.kind, e.lesion, e.other) for e in found.events]


def test_a_lesion_that_moved_a_little_goes_on_and_one_that_moved_far_is_gone_and_new():
    found, told = events(boxes(_3=(10, 20)), boxes(_1=(12, 22)))
    assert found.ids == {1: 3}
    assert told == [("continued", 3, 0)]
    _, told = events(boxes(_3=(10, 20)), boxes(_1=(40, 50)))
    assert told == [("vanished", 3, 0), ("appeared", 50, 0)]


def test_a_split_keeps_the_id_with_the_larger_piece():
    found, told = events(boxes(_3=(10, 30)), boxes(_7=(9, 15), _2=(18, 31)))
    assert found.ids == {2: 3, 7: 50}
    assert told == [("continued", 3, 0), ("split", 50, 3)]


def test_a_merger_keeps_the_id_of_the_larger_lesion():
    found, told = events(boxes(_3=(10, 14), _4=(18, 32)), boxes(_1=(9, 33)))
    assert found.ids == {1: 4}
    assert told == [("merged", 3, 4), ("continued", 4, 0)]


def test_neighbours_that_touch_keep_apart():
    found, told = events(boxes(_3=(10, 20), _4=(20, 30)), boxes(_8=(9, 19), _9=(19, 31)))
    assert found.ids == {8: 3, 9: 4}
    assert {kind for kind, _, _ in told} == {"continued"}


def test_confidence_falls_with_overlap_with_size_and_with_the_registration():
    near, _ = events(boxes(_3=(10, 20)), boxes(_1=(11, 21)))
    far, _ = events(boxes(_3=(10, 20)), boxes(_1=(17, 27)))
    assert near.events[0].confidence > far.events[0].confidence > 0
    small, _ = events(boxes(_3=(10, 11)), boxes())
    large, _ = events(boxes(_3=(10, 40)), boxes())
    assert large.events[0].confidence > small.events[0].confidence
    poor, _ = events(boxes(_3=(10, 40)), boxes(), registration=0.5)
    assert poor.events[0].confidence == pytest.approx(large.events[0].confidence / 2)


def test_more_than_255_lesions_keep_their_ids():
    labels = np.zeros((4, 60, 60), np.uint16)
    number = 0
    for h in range(0, 60, 3):
        for w in range(0, 60, 3):
            number += 1
            labels[1:3, h : h + 2, w : w + 2] = number + 300
    found = link(labels, labels, (1, 1, 1), next_id=1000)
    assert found.ids == {i: i for i in range(301, 301 + number)}
