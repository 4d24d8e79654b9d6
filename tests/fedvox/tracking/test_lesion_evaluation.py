"""Scores of tracking against cases that can be counted by hand."""

import numpy as np
import pytest

from fedvox.errors import DataError
from fedvox.tracking.evaluation import dice_over_rounds, evaluate_tracking
from fedvox.tracking.segmenters import build_segmenter

SPACING = (2.0, 1.0, 1.0)


def boxes(**places):
    labels = np.zeros((8, 16, 60), np.uint16)
    for name, (start, stop) in places.items():
        labels[2:6, 4:12, start:stop] = int(name[1:])
    return labels


def test_a_perfect_track_scores_perfectly():
    truth = [boxes(_1=(5, 15), _2=(30, 40)), boxes(_1=(6, 18), _2=(30, 38)), boxes(_1=(6, 20))]
    found = evaluate_tracking(truth, truth, [SPACING] * 3).summary()
    expected = dict.fromkeys(found, 1.0) | {"centroid_distance_mm": 0.0, "identity_switches": 0.0}
    assert found == expected


def test_lost_moved_and_renamed_lesions_cost_what_they_should():
    truth = [boxes(_1=(5, 15), _2=(30, 40), _3=(45, 55))] * 3
    predicted = [
        truth[0],
        boxes(_1=(5, 15), _2=(35, 45)),  # 2 is half off by 5 mm, 3 is lost
        boxes(_7=(5, 15), _2=(30, 40), _3=(45, 55)),  # 1 is called 7
    ]
    scores = evaluate_tracking(truth, predicted, [SPACING] * 3, tolerance_mm=4.0)
    found = scores.summary()
    assert found["dice"] == pytest.approx((1 + 0.5 + 0 + 0 + 1 + 1) / 6)
    assert found["retrieved"] == pytest.approx(4 / 6)
    assert found["centroid_matched"] == pytest.approx(3 / 6)
    assert found["centroid_distance_mm"] == pytest.approx(5 / 4)
    assert found["identity_kept"] == pytest.approx(4 / 6)
    assert found["identity_switches"] == 1
    assert found["lesion_recall"] == pytest.approx((2 / 3 + 1) / 2)


def test_series_of_other_lengths_are_refused():
    with pytest.raises(DataError):
        evaluate_tracking([boxes()], [], [SPACING])


@pytest.mark.parametrize("name", ["region-growing", "random-walker"])
def test_corrections_of_a_simulated_reader_are_counted_from_the_first_prompt(phantom, name):
    scan, labels = phantom().scan({1: ((0.0, 9.0, -8.0), 8, 1.9)})
    rng = np.random.default_rng(0)
    scores = dice_over_rounds(
        build_segmenter(name), scan.data[0], labels == 1, scan.geometry.spacing_mm, rng, rounds=3
    )
    assert len(scores) == 4
    assert scores[0] > 0.6
    exact = dice_over_rounds(lambda _: labels == 1, scan.data[0], labels == 1, (1, 1, 1), rng, rounds=2)
    assert exact == [1.0, 1.0, 1.0]
