"""Partitions into hospitals: nobody lost, nobody twice, alike or unalike as asked."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.errors import ConfigError
from fedvox_federation.hospitals import Cases, PartitionPlan, partition, read_cases

KINDS = ["iid", "sizes", "labels", "acquisition"]


def made_up(patients, visits=1, seed=0):
    rng = np.random.default_rng(seed)
    rows = [p for p in range(patients) for _ in range(visits)]
    return Cases(
        patients=tuple(f"p{p}" for p in rows),
        sources=tuple("abc"[p % 3] for p in rows),
        volumes=tuple(int(v) for v in rng.integers(1, 10_000, len(rows))),
        dominant=tuple(1 + p % 5 for p in rows),
    )


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    patients=st.integers(1, 60),
    visits=st.integers(1, 3),
    hospitals=st.integers(1, 12),
    alpha=st.floats(0.01, 100),
    seed=st.integers(0, 2**32),
    group_by=st.sampled_from(["volume", "dominant"]),
)
def test_every_case_is_in_one_hospital_with_its_patients_others(
    kind, patients, visits, hospitals, alpha, seed, group_by
):
    cases = made_up(patients, visits)
    plan = PartitionPlan(kind, hospitals, seed, alpha, group_by)
    if patients < hospitals:
        with pytest.raises(ConfigError, match="fewer hospitals"):
            partition(cases, plan)
        return
    dealt = partition(cases, plan)
    assert len(dealt) == hospitals
    assert sorted(row for rows in dealt.values() for row in rows) == list(range(len(cases)))
    homes = {(cases.patients[row], name) for name, rows in dealt.items() for row in rows}
    assert len(homes) == patients
    assert all(rows for rows in dealt.values())
    assert partition(cases, plan) == dealt


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_partition(kind):
    cases = made_up(60)
    assert partition(cases, PartitionPlan(kind, 4, seed=1)) != partition(
        cases, PartitionPlan(kind, 4, seed=2)
    )


def sizes_of(kind, alpha, seed=0):
    dealt = partition(made_up(400), PartitionPlan(kind, 8, seed, alpha))
    return sorted(len(rows) for rows in dealt.values())


def test_iid_hospitals_are_equally_large():
    assert sizes_of("iid", 0.1) == [50] * 8


def test_a_small_alpha_makes_sizes_unequal_and_a_large_one_does_not():
    spread = {
        alpha: np.mean([np.ptp(sizes_of("sizes", alpha, seed)) for seed in range(10)])
        for alpha in (0.1, 1000)
    }
    assert spread[0.1] > 150
    assert spread[1000] < 15


def test_a_small_alpha_makes_labels_unequal_and_a_large_one_does_not():
    cases = made_up(500)

    def concentration(alpha):
        """Mean share of a hospital's commonest structure."""
        plan = PartitionPlan("labels", 5, 3, alpha, "dominant")
        counts = [Counter(cases.dominant[row] for row in rows) for rows in partition(cases, plan).values()]
        return np.mean([max(count.values()) / count.total() for count in counts])

    assert concentration(0.05) > 0.55
    assert concentration(1000) < 0.25


@pytest.mark.parametrize("hospitals", [3, 6, 7])
def test_hospitals_by_acquisition_have_one_source_each(hospitals):
    cases = made_up(90)
    dealt = partition(cases, PartitionPlan("acquisition", hospitals))
    assert all(len({cases.sources[row] for row in rows}) == 1 for rows in dealt.values())


def test_fewer_hospitals_than_sources_share_them_out():
    dealt = partition(made_up(90), PartitionPlan("acquisition", 2))
    assert sorted(len(rows) for rows in dealt.values()) == [30, 60]


def test_a_least_number_of_patients_is_kept():
    dealt = partition(made_up(60), PartitionPlan("sizes", 6, 0, 0.05, least_patients=5))
    assert min(len(rows) for rows in dealt.values()) >= 5


@pytest.mark.parametrize(
    "fields", [{"kind": "luck"}, {"hospitals": 0}, {"alpha": 0}, {"group_by": "age"}, {"least_patients": 0}]
)
def test_plans_that_mean_nothing_are_refused(fields):
    with pytest.raises(ConfigError):
        PartitionPlan(**{"kind": "iid", "hospitals": 2, **fields})


def test_a_real_store_is_read(tmp_path):
    from fedvox.data.records import StoreMeta
    from fedvox.data.store import BrickStore
    from fedvox.data.store_writer import StoreWriter

    meta = StoreMeta("toy", ("T1",), "MR", ("background", "a", "b"), {"all": (0, 1, 2)}, "zscore")
    writer = StoreWriter.create(str(tmp_path / "store"), meta)
    rng = np.random.default_rng(0)
    for number in range(4):
        label = np.zeros((8, 8, 8), np.uint8)
        label[: number + 1] = 1 + number % 2
        writer.add_case(
            f"p{number // 2}_v{number % 2}", rng.normal(size=(1, 8, 8, 8)).astype(np.float32), label,
            source=f"site{number % 2}", label_set="all", spacing_mm=(1.0, 1.0, 1.0),
        )  # fmt: skip
    writer.finish(meta)
    cases = read_cases(BrickStore.open(str(tmp_path / "store")), patient_of=lambda name: name.split("_")[0])
    assert sorted(set(cases.patients)) == ["p0", "p1"]
    assert sorted(cases.volumes) == [64, 128, 192, 256]
    assert set(cases.dominant) == {1, 2}
    assert set(cases.sources) == {"site0", "site1"}
