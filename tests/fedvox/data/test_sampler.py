"""The sampler's promises: a pure function of (seed, i), exactly once an epoch, exact shares, fair places."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedvox.data.sampler import CounterSampler, SamplerConfig, allot, worker_indices
from fedvox.errors import ConfigError

PATCH = (8, 8, 8)
GOLDEN_CASES = [6, 16, 10, 6, 13, 1, 14, 11, 2, 2, 9, 5]
GOLDEN_FOREGROUND = [1, 4, 7, 11, 12, 15, 18, 23]
GOLDEN_STARTS = [(6, 10, 1), (12, 0, 22), (3, 9, 16), (11, 10, 3), (0, 0, 1), (8, 12, 11)]
GOLDEN_SUBSTITUTES = [6, 7, 11, 2]
relaxed = settings(deadline=None, max_examples=60)


@dataclass
class Manifest:
    """Rows of a manifest without voxels."""

    sources: np.ndarray
    shapes: np.ndarray
    voxels: dict[int, np.ndarray] = field(default_factory=dict)
    annotates: np.ndarray = field(default_factory=lambda: np.ones(8, bool))

    def __len__(self):
        return len(self.sources)

    def annotated(self, i):
        return self.annotates

    def foreground(self, i):
        return self.voxels


def manifest(cases_per_source=(7,), shape=(20, 24, 30), **fields) -> Manifest:
    codes = np.repeat(np.arange(len(cases_per_source)), cases_per_source)
    codes = np.random.default_rng(0).permutation(codes)  # sources are interleaved in a real manifest
    return Manifest(codes.astype(np.int32), np.tile(np.array(shape), (len(codes), 1)), **fields)


def sampler(store: Manifest, seed=0, rows=None, **config) -> CounterSampler:
    return CounterSampler(store, SamplerConfig(seed, config.pop("patch_size", PATCH), **config), rows)


COMPOSITIONS = st.lists(st.integers(1, 40), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**63 - 1)


# Which case


@relaxed
@given(cases=COMPOSITIONS, seed=SEEDS, epoch=st.integers(0, 10**6))
def test_every_case_is_drawn_exactly_once_in_every_epoch(cases, seed, epoch):
    drawn = sampler(manifest(cases), seed)
    size = sum(cases)
    assert sorted(drawn.case(epoch * size + i) for i in range(size)) == list(range(size))


@relaxed
@given(cases=COMPOSITIONS, seed=SEEDS, temperature=st.floats(1, 50), epochs=st.integers(1, 4))
def test_sources_get_their_quota_in_every_epoch_and_their_cases_take_turns(cases, seed, temperature, epochs):
    store = manifest(cases)
    drawn = sampler(store, seed, source_temperature=temperature)
    counts = np.zeros(len(store), int)
    for epoch in range(epochs):
        indices = range(epoch * len(store), (epoch + 1) * len(store))
        rows = [drawn.case(i) for i in indices]
        assert np.bincount(store.sources[rows], minlength=len(cases)).tolist() == drawn.quota.tolist()
        assert [drawn.source(i) for i in indices] == store.sources[rows].tolist()
        counts += np.bincount(rows, minlength=len(store))
        for source in range(len(cases)):
            turns = counts[store.sources == source]
            assert turns.max() - turns.min() <= 1


@relaxed
@given(cases=COMPOSITIONS, seed=SEEDS, data=st.data())
def test_a_split_s_rows_alone_are_drawn_from(cases, seed, data):
    store = manifest(cases)
    rows = data.draw(st.lists(st.integers(0, len(store) - 1), min_size=1, unique=True))
    drawn = sampler(store, seed, rows=rows)
    assert sorted(drawn.case(i) for i in range(len(rows))) == sorted(rows)


def test_epochs_and_seeds_differ_in_their_order():
    drawn = sampler(manifest((50,)))
    first, second = ([drawn.case(e * 50 + i) for i in range(50)] for e in range(2))
    other = [sampler(manifest((50,)), seed=1).case(i) for i in range(50)]
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


def test_each_case_is_equally_likely_at_each_place_of_an_epoch():
    counts = np.zeros((6, 6))
    for seed in range(1000):
        drawn = sampler(manifest((6,)), seed)
        for place in range(6):
            counts[place, drawn.case(place)] += 1
    statistic = ((counts - 1000 / 6) ** 2 / (1000 / 6)).sum() * 5 / 6  # rows and columns both sum to 1000
    assert stats.chi2.sf(statistic, 25) > 1e-3


def test_the_sequence_of_a_known_seed_never_changes():
    """A run that is resumed under a newer version must go on with its own samples."""
    store = manifest((5, 3, 9), voxels={1: np.array([[10, 12, 15], [3, 4, 5]]), 4: np.array([[19, 0, 29]])})
    drawn = sampler(store, seed=2024, source_temperature=2.0)
    assert [drawn.case(i) for i in range(12)] == GOLDEN_CASES
    assert [i for i in range(24) if drawn.force_foreground(i)] == GOLDEN_FOREGROUND
    assert [drawn.start(i) for i in range(6)] == GOLDEN_STARTS
    assert [drawn.case(0, attempt=a) for a in range(4)] == GOLDEN_SUBSTITUTES


# Shares of sources


def test_shares_by_hand():
    assert allot([900, 90, 10], 1).tolist() == [900, 90, 10]
    # Square roots 30 : 9.487 : 3.162 of 1000 are 703.4, 222.4(4), 74.1: the one slot left goes to the second.
    assert allot([900, 90, 10], 2).tolist() == [703, 223, 74]
    assert allot([900, 90, 10], float("inf")).tolist() == [334, 333, 333]
    assert allot([1], 3).tolist() == [1]


@relaxed
@given(cases=st.lists(st.integers(1, 10**6), min_size=1, max_size=30), temperature=st.floats(1, 1e6))
def test_shares_are_whole_complete_and_within_one_of_exact(cases, temperature):
    slots = allot(cases, temperature)
    weight = np.array(cases, float) ** (1 / temperature)
    assert slots.sum() == sum(cases)
    assert np.all(np.abs(slots - sum(cases) * weight / weight.sum()) < 1 + 1e-6)
    order = np.argsort(cases, kind="stable")
    assert np.all(np.diff(slots[order]) >= -1)  # a larger source has no smaller share, but for rounding


def test_a_small_source_is_oversampled_by_temperature():
    store = manifest((990, 10))
    samplers = [sampler(store, source_temperature=t) for t in (1, 2, 4)]
    rare = [np.mean([drawn.source(i) == 1 for i in range(1000)]) for drawn in samplers]
    expected = [10 ** (1 / t) / (10 ** (1 / t) + 990 ** (1 / t)) for t in (1, 2, 4)]
    assert rare == pytest.approx(expected, abs=1e-3)


# Workers, resuming, replay


@relaxed
@given(batch=st.integers(1, 24), step=st.integers(0, 10**9), data=st.data())
def test_workers_share_a_global_batch_without_gap_or_overlap(batch, step, data):
    world = data.draw(st.integers(1, batch))
    shares = [worker_indices(step, global_batch_size=batch, rank=r, world_size=world) for r in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(step * batch, (step + 1) * batch))
    assert all((i - step * batch) % world == rank for rank, share in enumerate(shares) for i in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@relaxed
@given(cases=COMPOSITIONS, seed=SEEDS, indices=st.lists(st.integers(0, 10**12), min_size=1, max_size=15))
def test_a_sample_drawn_alone_is_the_sample_drawn_in_a_run(cases, seed, indices):
    store = manifest(cases, voxels={2: np.array([[10, 12, 15], [3, 4, 5]])})
    config = {"source_temperature": 1.7}

    def all_of(drawn, i):
        return drawn.case(i), drawn.force_foreground(i), drawn.start(i), drawn.case(i, attempt=1)

    in_a_run = sampler(store, seed, **config)
    together = [all_of(in_a_run, i) for i in indices]
    alone = {i: all_of(sampler(store, seed, **config), i) for i in reversed(indices)}
    assert together == [alone[i] for i in indices]


@pytest.mark.parametrize(("rank", "world", "batch"), [(0, 3, 2), (2, 2, 4), (-1, 2, 4)])
def test_a_worker_without_samples_is_refused(rank, world, batch):
    with pytest.raises(ConfigError, match="worker"):
        worker_indices(0, global_batch_size=batch, rank=rank, world_size=world)


# Foreground


@relaxed
@given(seed=SEEDS, block=st.integers(0, 10**12))
def test_one_of_each_three_samples_is_forced_to_foreground(seed, block):
    drawn = sampler(manifest(), seed)
    assert sum(drawn.force_foreground(3 * block + place) for place in range(3)) == 1


@relaxed
@given(seed=SEEDS, fraction=st.floats(0, 1), samples=st.integers(1, 400))
def test_any_fraction_is_kept_at_every_moment(seed, fraction, samples):
    drawn = sampler(manifest(), seed, foreground_fraction=fraction)
    exact = Fraction(fraction).limit_denominator(1000)
    assert abs(sum(drawn.force_foreground(i) for i in range(samples)) - float(samples * exact)) < 2


def test_every_worker_gets_its_share_of_foreground():
    """Of three workers at batch three, a fixed pattern would give one worker all of it."""
    drawn = sampler(manifest())
    shares = [np.mean([drawn.force_foreground(3 * step + rank) for step in range(1500)]) for rank in range(3)]
    assert all(stats.binomtest(round(share * 1500), 1500, 1 / 3).pvalue > 1e-3 for share in shares)


def test_structures_are_drawn_evenly_however_many_voxels_they_have():
    """Voxels differ in number and place by structure, so that the patch tells which one was drawn."""
    voxels = {1: np.full((500, 3), 4), 2: np.array([[10, 10, 10]]), 5: np.array([[16, 20, 26]] * 7)}
    drawn = sampler(manifest(voxels=voxels), foreground_fraction=1.0)
    starts = Counter(drawn.start(i) for i in range(3000))
    assert set(starts) == {(0, 0, 0), (6, 6, 6), (12, 16, 22)}
    assert stats.chisquare(list(starts.values())).pvalue > 1e-3


def test_voxels_of_a_structure_are_drawn_evenly():
    voxels = {3: np.stack([np.arange(4, 16)] * 3, axis=1)}
    starts = Counter(
        sampler(manifest(voxels=voxels), foreground_fraction=1.0).start(i)[0] for i in range(6000)
    )
    assert sorted(starts) == list(range(12))
    assert stats.chisquare(list(starts.values())).pvalue > 1e-3


@relaxed
@given(seed=SEEDS, voxel=st.tuples(st.integers(0, 19), st.integers(0, 23), st.integers(0, 29)))
def test_a_forced_patch_holds_its_voxel_in_the_centre_or_as_near_as_the_border_allows(seed, voxel):
    drawn = sampler(manifest(voxels={1: np.array([voxel])}), seed, foreground_fraction=1.0)
    for edge, size, at, start in zip((20, 24, 30), PATCH, voxel, drawn.start(0), strict=True):
        assert start <= at < start + size
        assert start == min(max(at - size // 2, 0), edge - size)


def test_structures_that_the_source_does_not_annotate_are_never_centred_on():
    voxels = {1: np.array([[4, 4, 4]]), 2: np.array([[10, 10, 10]])}
    annotates = np.array([True, True, False])
    drawn = sampler(manifest(voxels=voxels, annotates=annotates), foreground_fraction=1.0)
    assert {drawn.start(i) for i in range(200)} == {(0, 0, 0)}


@pytest.mark.parametrize("voxels", [{}, {0: np.array([[4, 4, 4]])}, {1: np.zeros((0, 3), int)}])
def test_a_case_without_foreground_is_cut_anywhere(voxels):
    drawn = sampler(manifest(voxels=voxels), foreground_fraction=1.0)
    assert len({drawn.start(i) for i in range(200)}) > 150


# Where


def test_corners_are_uniform_over_all_places_where_the_patch_fits():
    drawn = sampler(manifest(shape=(11, 10, 8)), foreground_fraction=0.0)
    starts = Counter(drawn.start(i) for i in range(6000))
    assert set(starts) == {(z, y, 0) for z in range(4) for y in range(3)}
    assert stats.chisquare(list(starts.values())).pvalue > 1e-3


def test_a_volume_smaller_than_the_patch_is_centred_in_it():
    drawn = sampler(manifest(shape=(5, 20, 2), voxels={1: np.array([[4, 19, 0]])}))
    for i in range(12):
        z, y, x = drawn.start(i)
        assert (z, x) == (-1, -3)  # 1 + 5 + 2 = 8 voxels, 3 + 2 + 3 = 8 voxels
        assert 0 <= y <= 12


@relaxed
@given(seed=SEEDS, index=st.integers(0, 10**6), half=st.tuples(*[st.integers(-3, 9)] * 3))
def test_a_box_to_read_has_the_patch_s_centre(seed, index, half):
    drawn = sampler(manifest(voxels={1: np.array([[10, 12, 15]])}), seed)
    box = tuple(p + 2 * h for p, h in zip(PATCH, half, strict=True))
    moved = [a - b for a, b in zip(drawn.start(index), drawn.start(index, box), strict=True)]
    assert moved == list(half)


# Damaged cases


def test_substitutes_are_all_other_cases_of_the_source_before_any_other_case():
    store = manifest((4, 6))
    drawn = sampler(store)
    for index in range(10):
        mine = store.sources == drawn.source(index)
        rows = [drawn.case(index, attempt=a) for a in range(int(mine.sum()))]
        assert sorted(rows) == np.flatnonzero(mine).tolist()
        assert drawn.case(index, attempt=int(mine.sum())) not in (rows[0],)


def test_substitutes_of_one_damaged_case_are_spread_over_its_source():
    """One neighbour taking over for every sample of a damaged case would be seen twice as often as others."""
    drawn = sampler(manifest((8,)))
    index = [i for i in range(8 * 1500) if drawn.case(i) == 2]
    counts = Counter(drawn.case(i, attempt=1) for i in index)
    assert set(counts) == set(range(8)) - {2}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_another_attempt_cuts_its_patch_elsewhere():
    drawn = sampler(manifest((3,)), foreground_fraction=0.0)
    assert len({drawn.start(5, attempt=a) for a in range(5)}) == 5


def test_the_only_case_of_a_store_has_no_substitute():
    assert sampler(manifest((1,))).case(0, attempt=3) == 0


# Refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("patch_size", (8, 8)),
        ("patch_size", (8, 0, 8)),
        ("patch_size", (8, 8.5, 8)),
        ("foreground_fraction", 1.1),
        ("foreground_fraction", float("nan")),
        ("source_temperature", 0.5),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        SamplerConfig(**{"seed": 0, "patch_size": PATCH, field: value})
    assert caught.value.remedy


def test_a_store_without_cases_is_refused():
    with pytest.raises(ConfigError, match="no cases"):
        sampler(manifest(), rows=[])
