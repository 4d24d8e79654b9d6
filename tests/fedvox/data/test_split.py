import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox.data.split import split_cases
from fedvox.errors import ConfigError


def names(count):
    return [f"case_{i:05d}" for i in range(count)]


def sources(count, kinds=4):
    return np.arange(count) % kinds


def test_a_drawn_split_takes_about_the_asked_share_of_every_source():
    found = split_cases(names(8000), sources(8000), named=None, fraction=0.05)
    shares = np.bincount(sources(8000)[found.validation]) / 2000
    assert (np.abs(shares - 0.05) < 0.02).all()  # four standard deviations of a binomial of 2,000


@given(st.integers(2, 300), st.floats(0, 0.9))
def test_training_and_validation_are_disjoint_and_complete(count, fraction):
    found = split_cases(names(count), sources(count), named=None, fraction=fraction)
    assert sorted([*found.training, *found.validation]) == list(range(count))


def test_adding_cases_moves_none_of_the_old_ones():
    small = split_cases(names(500), sources(500), named=None, fraction=0.2)
    large = split_cases(names(900), sources(900), named=None, fraction=0.2)
    assert set(small.validation) == {row for row in large.validation if row < 500}


def test_no_source_loses_all_its_cases_to_validation():
    found = split_cases(names(12), np.arange(12), named=None, fraction=0.9)
    assert len(found.training) == 12


def test_a_bound_on_validation_cases_returns_none_of_them_to_training():
    free = split_cases(names(1000), sources(1000), named=None, fraction=0.3)
    bounded = split_cases(names(1000), sources(1000), named=None, fraction=0.3, at_most=10)
    assert len(bounded.validation) == 10
    assert set(bounded.validation) < set(free.validation)
    assert (bounded.training == free.training).all()


def test_named_cases_are_held_out():
    found = split_cases(names(5), sources(5), named=["case_00003"], fraction=0.5)
    assert list(found.validation) == [3]
    assert list(found.training) == [0, 1, 2, 4]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="case_00001"):
        split_cases(names(5), sources(5), named=["case_0001"], fraction=0.0)


def test_holding_out_everything_is_refused():
    with pytest.raises(ConfigError, match="none is left to train on"):
        split_cases(names(2), sources(2), named=names(2), fraction=0.0)
