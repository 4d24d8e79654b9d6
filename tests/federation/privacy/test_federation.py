"""Clinics together: the largest ε, never a mean; and weights."""

import pytest

from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy.federation import Contribution, aggregation_weights, federation_epsilon

SPENT = {"nord": 2.0, "sued": 7.5, "west": 0.5}
CLINICS = {
    "large and noisy": Contribution(100, 10, 2.0, 0.2),
    "small and quiet": Contribution(20, 5, 0.5, 0.8),
}


def test_the_federations_epsilon_is_that_of_the_clinic_worst_off():
    assert federation_epsilon(SPENT) == 7.5
    assert federation_epsilon({}) == 0


def test_patients_in_several_clinics_spend_in_each():
    assert federation_epsilon(SPENT, patients_overlap=True) == 10


@pytest.mark.parametrize(
    ("by", "small"), [("equal", 0.5), ("size", 20 / 120), ("score", 0.8), ("inverse-noise", 100 / 125)]
)
def test_weights_by_hand(by, small):
    weights = aggregation_weights(by, CLINICS)
    assert weights["small and quiet"] == pytest.approx(small)
    assert sum(weights.values()) == pytest.approx(1)


def test_inverse_noise_weights_minimise_the_variance_of_the_weighted_mean():
    variances = {n: (c.noise_multiplier / c.expected_batch_size) ** 2 for n, c in CLINICS.items()}

    def variance(weights):
        return sum(weights[n] ** 2 * v for n, v in variances.items())

    best = aggregation_weights("inverse-noise", CLINICS)
    first, second = CLINICS
    for shift in (-0.05, 0.05):
        assert variance({first: best[first] + shift, second: best[second] - shift}) > variance(best)


def test_weights_that_do_not_exist_are_refused():
    for by, clinics in [
        ("inverse-noise", {"a": Contribution(1, 1, 0.0, 1)}),
        ("score", {"a": Contribution(1, 1, 1.0, 0)}),
        ("size", {}),
        ("luck", CLINICS),
    ]:
        with pytest.raises(PrivacyError):
            aggregation_weights(by, clinics)
