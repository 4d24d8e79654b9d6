"""Consensus, attention and confident learning, against SimpleITK, arithmetic and cleanlab."""

import math

import numpy as np
import pytest

from fedvox.curation.propose.attention import attention
from fedvox.curation.propose.confident import confident_joint, label_evidence, thresholds
from fedvox.curation.propose.consensus import consensus


def maps(*values):
    """Label maps of one row of voxels each."""
    return np.array(values, np.uint8)[:, None, None, :]


def test_the_majority_wins_and_the_first_proposer_breaks_ties():
    masks = maps([1, 1, 0, 2, 0], [1, 0, 2, 1, 0], [2, 1, 1, 0, 0])
    assert consensus(masks, 3).ravel().tolist() == [1, 1, 0, 2, 0]


def test_voxels_that_nobody_judged_do_not_vote():
    masks = maps([255, 255], [1, 255], [255, 255])
    assert consensus(masks, 3).ravel()[0] == 1


def test_staple_ignores_a_proposer_who_is_mostly_wrong():
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[3:9, 3:9, 3:9] = 1
    good = [np.where(rng.random(truth.shape) < 0.05, 1 - truth, truth) for _ in range(2)]
    bad = [np.roll(truth, 4, axis=2)] * 2  # two that agree with each other in what is wrong
    masks = np.stack([*good, truth, *bad]).astype(np.uint8)
    found = consensus(masks, 2, "staple")
    assert np.mean(found != truth) < 0.01


def test_maps_are_in_mm3_and_do_not_depend_on_how_finely_a_case_is_cut():
    coarse = np.zeros((3, 8, 8, 8), np.uint8)
    coarse[:, 2:6, 2:6, 2:6] = 1
    coarse[2, 2:6, 2:6, 5] = 2
    fine = coarse.repeat(2, 1).repeat(2, 2).repeat(2, 3)
    found = [
        attention(masks, consensus(masks, 3), 3).volumes(consensus(masks, 3), 3, voxel)
        for masks, voxel in ((coarse, 8.0), (fine, 1.0))
    ]
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)
    # 16 voxels of 8 mm³, on which one of three proposers says another structure
    np.testing.assert_allclose(found[0]["disagreement"][1], 16 * 8 / 3, rtol=1e-5)
    np.testing.assert_allclose(found[0]["overlap"][1], 16 * 8 / 2, rtol=1e-5)
    entropy = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)) / math.log(3)
    np.testing.assert_allclose(found[0]["entropy"][1], 16 * 8 * entropy, rtol=1e-5)


def test_proposers_who_agree_leave_all_maps_empty():
    masks = np.repeat(np.random.default_rng(0).integers(0, 4, (1, 4, 4, 4)), 3, axis=0).astype(np.uint8)
    found = attention(masks, consensus(masks, 4), 4)
    assert not found.encoded().any()


def test_an_empty_case_has_no_nan():
    masks = np.zeros((2, 4, 4, 4), np.uint8)
    assert not attention(masks, masks[0], 3).encoded().any()


@pytest.fixture
def noisy():
    """Labels of which some are wrong, and probabilities that know better."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 6000)
    given = np.where(rng.random(6000) < 0.1, (truth + 1) % 3, truth)
    logits = rng.normal(0, 0.7, (3, 6000))
    logits[truth, np.arange(6000)] += 3
    probability = np.exp(logits) / np.exp(logits).sum(0)
    return given, probability


def test_the_confident_joint_is_cleanlabs(noisy):
    count = pytest.importorskip("cleanlab.count")
    given, probability = noisy
    expected = count.compute_confident_joint(given, probability.T, calibrate=False)
    parts = [label_evidence(given[n::4], probability[:, n::4], 1.0) for n in range(4)]
    joint = sum(confident_joint(part, thresholds(parts)) for part in parts)
    # A voxel whose probability passes the threshold within one of 256 bins may fall on either side.
    np.testing.assert_allclose(joint, expected, atol=0.01 * len(given))
    off = ~np.eye(3, dtype=bool)
    assert abs(joint[off].sum() - expected[off].sum()) <= 0.02 * expected[off].sum() + 3


def test_confident_learning_counts_in_mm3_and_leaves_unjudged_voxels_out(noisy):
    given, probability = noisy
    given = given.copy()
    given[:1000] = 255
    whole = label_evidence(given, probability, 2.0)
    threshold = thresholds([whole])
    kept = label_evidence(given[1000:], probability[:, 1000:], 1.0)
    np.testing.assert_allclose(confident_joint(whole, threshold), 2 * confident_joint(kept, threshold))


def test_a_structure_that_no_case_has_is_never_believed(noisy):
    given, probability = noisy
    widened = np.concatenate([probability, np.zeros((1, len(given)))])
    evidence = label_evidence(given, widened, 1.0)
    assert math.isinf(thresholds([evidence])[3])
    assert confident_joint(evidence, thresholds([evidence]))[:, 3].sum() == 0
