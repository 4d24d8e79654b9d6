"""From patients to the accountant's numbers: sample rate and δ, with what they must not be.

The unit of privacy is the *patient*: all images, visits and patches of a patient come and go together.
"""

from __future__ import annotations

import logging
import math

from fedvox_federation.errors import PrivacyError

log = logging.getLogger(__name__)


def sample_rate(expected_batch_size: float, patients: int) -> float:
    """The probability with which each patient takes part in a step.

    Libraries derive it from the number of batches, which a small clinic's rounding makes wrong (10 patients
    in batches of 4 are 3 batches, hence 1/3, where the batch says 4/10).

    Args:
        expected_batch_size: how many patients a step has on average; need not be whole.
        patients: how many there are.

    Raises:
        PrivacyError: not above 0, or more than there are.
    """
    if patients < 1:
        raise PrivacyError(f"there are {patients} patients", "Training needs at least one.")
    rate = expected_batch_size / patients
    if not 0 < rate <= 1:
        raise PrivacyError(
            f"a batch of {expected_batch_size:g} of {patients} patients is no sample rate",
            f"Take an expected batch size above 0 and up to {patients}.",
        )
    return rate


def recommended_delta(patients: int) -> float:
    """1 / (10 N), cut to a power of ten below 1e-3 so that δ does not tell the number of patients.

    Raises:
        PrivacyError: no patients.
    """
    if patients < 1:
        raise PrivacyError(f"there are {patients} patients", "Training needs at least one.")
    exponent = math.ceil(math.log10(10 * patients) - 1e-12)
    return float(f"1e-{max(exponent, 3)}")


def check_delta(delta: float, patients: int) -> None:
    """Refuses a δ that permits publishing a patient's record outright.

    With δ = 1/N, handing out one random patient is "private". Up to 1/N is therefore refused, and above
    1/(10 N) is warned about.

    Raises:
        PrivacyError: δ is not in (0, 1/N).
    """
    remedy = f"Take at most {recommended_delta(patients):g} (one tenth of 1 / number of patients)."
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, not between 0 and 1", remedy)
    if delta >= 1 / patients:
        raise PrivacyError(f"delta {delta:g} is not below 1 / {patients} patients: no promise to any", remedy)
    if delta > 1 / (10 * patients):
        log.warning("delta %g is above 1 / (10 × patients). %s", delta, remedy)
