"""Sample rates and δ of clinics of every size."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy import check_delta, recommended_delta, sample_rate


def test_a_small_clinics_rate_is_not_the_loaders():
    assert sample_rate(4, 10) == 0.4


@pytest.mark.parametrize(("batch", "patients"), [(0, 10), (-1, 10), (11, 10), (1, 0)])
def test_impossible_batches_are_refused(batch, patients):
    with pytest.raises(PrivacyError):
        sample_rate(batch, patients)


@given(st.integers(1, 10**7))
def test_the_recommended_delta_is_a_power_of_ten_below_a_tenth_of_one_in_n(patients):
    delta = recommended_delta(patients)
    assert delta <= 1 / (10 * patients)
    assert f"{delta:e}".startswith("1.0")
    check_delta(delta, patients)


@pytest.mark.parametrize("delta", [0.0, 1.0, 0.01, 0.011])
def test_a_delta_that_lets_a_whole_record_out_is_refused(delta):
    with pytest.raises(PrivacyError):
        check_delta(delta, 100)


def test_a_weak_delta_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        check_delta(0.005, 100)
    assert "0.001" in caplog.text
