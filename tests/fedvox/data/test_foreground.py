import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedvox.data.bricks import CaseHeader, CaseReader, write_case
from fedvox.data.foreground import PER_STRUCTURE, decode_foreground, draw_foreground, encode_foreground
from fedvox.storage import locate


def ct(shape, seed=0):
    """Air, water and bone with noise: values about 0 HU flip the sign."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    inside = ((y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2) < (min(shape[1:]) / 2.5) ** 2
    image = np.where(inside, 10 + 0.2 * z, -1000.0) + rng.normal(0, 15, shape)
    label = np.where(inside & (z > 5), 1, 0).astype(np.uint8)
    label[: shape[0] // 4, : shape[1] // 4, : shape[2] // 4] = 2
    return np.round(image).astype(np.int16)[None], label


@pytest.fixture
def foreground_of(tmp_path):
    """The sample that a written case gives back."""

    def write_and_read(image, label):
        write_case(tmp_path / "case.arrow", image, label, header=CaseHeader("case_1", (1.5, 0.8, 0.8)))
        return CaseReader.open(locate(tmp_path / "case.arrow")).foreground

    return write_and_read


class TestForeground:
    def test_points_lie_in_their_structure_and_are_bounded(self, foreground_of):
        image, label = ct((60, 80, 80))
        foreground = foreground_of(image, label)
        assert sorted(foreground) == [1, 2]
        for structure, points in foreground.items():
            assert points.shape == (min(PER_STRUCTURE, int((label == structure).sum())), 3)
            assert (label[tuple(points.T)] == structure).all()
            assert len({tuple(p) for p in points.tolist()}) == len(points)

    def test_small_structures_are_kept_whole(self):
        label = np.zeros((10, 10, 10), np.uint8)
        label[1, 2, 3], label[4:6, 5, 6] = 1, 7
        sample = draw_foreground(label, key="x")
        assert sample[1].tolist() == [[1, 2, 3]]
        assert sample[7].tolist() == [[4, 5, 6], [5, 5, 6]]

    def test_the_draw_is_spread_over_the_structure(self):
        label = np.ones((64, 64, 64), np.uint8)
        points = draw_foreground(label, key="x")[1]
        counts = np.histogramdd(points, bins=2, range=[(0, 64)] * 3)[0].ravel()
        expected = PER_STRUCTURE / 8
        assert (
            (counts - expected) ** 2 / expected
        ).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001

    def test_the_draw_depends_on_the_case_and_on_nothing_else(self):
        label = ct((60, 80, 80))[1]
        first, again, other = (draw_foreground(label, key=key) for key in ("a", "a", "b"))
        assert all(np.array_equal(first[s], again[s]) for s in first)
        assert not np.array_equal(first[1], other[1])

    def test_a_case_without_label_has_none(self, foreground_of):
        assert foreground_of(ct((40, 40, 40))[0], None) == {}

    def test_a_background_only_case_has_none(self, foreground_of):
        image, label = ct((40, 40, 40))
        assert foreground_of(image, np.zeros_like(label)) == {}

    @settings(max_examples=40, deadline=None)
    @given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 12)] * 3), elements=st.integers(0, 5)))
    def test_the_stored_sample_is_the_drawn_one(self, label):
        sample = draw_foreground(label, key="k", limit=20)
        back = decode_foreground(encode_foreground(sample, label.shape), label.shape)
        assert back.keys() == sample.keys()
        assert all(np.array_equal(back[s], sample[s]) for s in sample)

    def test_117_structures_take_little(self):
        rng = np.random.default_rng(0)
        label = np.zeros((120, 128, 128), np.uint8)
        for structure in range(1, 118):
            z, y, x = (int(rng.integers(0, n - 24)) for n in label.shape)
            label[z : z + 24, y : y + 24, x : x + 24] = structure
        assert (
            len(encode_foreground(draw_foreground(label, key="x"), label.shape)) < 117 * PER_STRUCTURE * 2.5
        )
