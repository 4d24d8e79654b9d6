import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox.data.brick_index import Grid, hilbert_key
from fedvox.data.patch_plan import as_rows, overlaps
from fedvox.data.ranges import ByteRange, merge_ranges


class TestGeometry:
    @given(st.integers(1, 4))
    def test_the_hilbert_curve_visits_every_cell_and_only_neighbours(self, bits):
        cells = sorted(itertools.product(range(2**bits), repeat=3), key=lambda c: hilbert_key(c, bits))
        steps = np.abs(np.diff(np.array(cells), axis=0)).sum(axis=1)
        assert (steps == 1).all()
        keys = {hilbert_key(c, bits) for c in cells}
        assert keys == set(range(8**bits))

    @pytest.mark.parametrize("shape", [(300, 512, 512), (1, 1, 1), (65, 64, 700), (33, 1, 129)])
    def test_bricks_hold_each_block_once(self, shape):
        grid = Grid(shape)
        runs = grid.brick_runs()
        assert len(runs) == np.prod(grid.bricks)
        assert all(len({grid.brick_of(block) for block in run}) == 1 for run in runs)
        assert sorted(block for run in runs for block in run) == list(
            itertools.product(*map(range, grid.blocks))
        )

    def test_patches_of_ct_take_few_ranges(self):
        """The figures that the module states, from geometry alone."""
        shape, side = (300, 512, 512), 128
        grid = Grid(shape)
        offsets, position = {}, 0
        for block in itertools.chain.from_iterable(grid.brick_runs()):
            voxels = np.prod([s.stop - s.start for s in grid.box_of(block)])
            offsets[block] = ByteRange(position, int(voxels * 59.2e6 / np.prod(shape)))
            position = offsets[block].end
        rng = np.random.default_rng(0)
        counts, sizes = [], []
        for _ in range(150):
            start = [int(rng.integers(0, n - side + 1)) for n in shape]
            axes = [[o.block for o in overlaps(s, side, n, 32)] for s, n in zip(start, shape, strict=True)]
            merged = merge_ranges([offsets[b] for b in itertools.product(*axes)])
            counts.append(len(merged))
            sizes.append(sum(one.size for one in merged))
        assert np.mean(counts) == pytest.approx(7.7, abs=0.8)
        assert np.mean(sizes) == pytest.approx(4.4e6, rel=0.08)

    @given(st.integers(-100, 200), st.integers(1, 150), st.integers(1, 130))
    def test_overlaps_tile_the_part_of_the_patch_that_lies_inside(self, first, extent, edge):
        covered = []
        for one in overlaps(first, extent, edge, 32):
            inside = range(one.inside.start, one.inside.stop)
            assert 0 <= one.inside.start < one.inside.stop <= one.length <= 32
            voxels = [one.block * 32 + v for v in inside]
            assert [v - first for v in voxels] == list(range(one.target.start, one.target.stop))
            covered += voxels
        assert covered == list(range(max(first, 0), min(first + extent, edge)))

    @given(
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 500)), max_size=40),
        st.integers(0, 1000),
        st.integers(1, 5000),
    )
    def test_merged_ranges_cover_all_and_bridge_no_more_than_allowed(self, pairs, gap, limit):
        ranges = [ByteRange(*pair) for pair in pairs]
        merged = merge_ranges(ranges, gap=gap, limit=limit)
        for one in ranges:
            assert any(m.offset <= one.offset and one.end <= m.end for m in merged)
        wanted = np.zeros(11_000, bool)
        for one in ranges:
            wanted[one.offset : one.end] = True
        for m in merged:
            idle = np.flatnonzero(np.diff(np.concatenate([[0], ~wanted[m.offset : m.end], [0]]).astype(int)))
            assert all(end - begin <= gap for begin, end in idle.reshape(-1, 2))
            assert m.size <= max(limit, max(one.size for one in ranges))

    def test_rows_are_views(self):
        array = np.zeros((2, 4, 5, 6), np.int16)
        rows = as_rows(array[..., 1:3, 2:5])
        assert rows.shape == (2, 4, 2)
        rows[...] = as_rows(np.ones((2, 4, 2, 3), np.int16))
        assert array[..., 1:3, 2:5].all()
        assert array.sum() == 2 * 4 * 2 * 3
