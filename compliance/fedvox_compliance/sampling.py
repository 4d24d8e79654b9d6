"""Which answers an assessor looks at: all gates, and a random share that neither side can steer.

    1. the assessor draws a secret nonce and publishes its SHA-256 (the commitment)
    2. the clinic, knowing only the commitment, submits its answers; their SHA-256 is fixed
    3. seed = SHA-256(domain, nonce, answers' SHA-256)           neither alone determines it
    4. controls are ranked by HMAC-SHA-256(seed, id); the first ceil(share x population) are drawn
    5. the nonce is revealed with the result, so that anybody can draw again and compare

The clinic cannot polish just the answers that will be looked at, the assessor cannot pick kindly, and
nothing depends on a library's random numbers. A larger share contains every smaller one, so a sample can be
extended.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedvox_compliance.errors import IntegrityError, UsageError

NONCE_BYTES = 32
DEFAULT_SHARE = 0.10
"""Of the answers beside gates. What it detects: `detection_probability`."""
MIN_DRAWN = 10
"""In a small questionnaire a tenth is too few to mean anything."""
_DOMAIN = b"fedvox-compliance/sample/1"


@dataclass(frozen=True)
class Sample:
    """What is to be looked at.

    Attributes:
        seed: 64 hexadecimal digits.
        share: the share asked for, of the population beside gates.
        gates: all gates with an answer that claims something, in catalogue order.
        drawn: the random part, in the order in which it was drawn.
        population: how many answers beside gates could have been drawn.
    """

    seed: str
    share: float
    gates: tuple[str, ...]
    drawn: tuple[str, ...]
    population: int

    @property
    def controls(self) -> tuple[str, ...]:
        """Everything to be looked at."""
        return self.gates + self.drawn


def new_nonce() -> str:
    """256 random bits in hexadecimal."""
    return secrets.token_hex(NONCE_BYTES)


def commitment_of(nonce: str) -> str:
    """What the assessor publishes before any answers are submitted.

    Raises:
        UsageError: not a nonce as `new_nonce` makes it.
    """
    return hashlib.sha256(_DOMAIN + b"/commit/" + _nonce_bytes(nonce)).hexdigest()


def seed_of(nonce: str, answers_sha256: str) -> str:
    """The seed for one submission.

    Raises:
        UsageError: not a nonce as `new_nonce` makes it.
    """
    message = _DOMAIN + b"/seed/" + _nonce_bytes(nonce) + b"/" + answers_sha256.encode("ascii")
    return hashlib.sha256(message).hexdigest()


def draw(
    gates: Sequence[str],
    others: Iterable[str],
    *,
    seed: str,
    share: float = DEFAULT_SHARE,
    at_least: int = MIN_DRAWN,
) -> Sample:
    """Draw a sample.

    Args:
        gates: control ids that are always looked at.
        others: control ids of which a share is drawn; their order does not matter.
        seed: from `seed_of`.
        share: in (0, 1].
        at_least: the least number drawn, as far as there are so many.

    Raises:
        UsageError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UsageError(f"the sampled share is {share}", "Give a share above 0 and at most 1, such as 0.1.")
    pool = sorted(set(others) - set(gates))
    wanted = min(len(pool), max(at_least, math.ceil(share * len(pool))))
    ranked = sorted(pool, key=lambda control: (_rank(seed, control), control))
    return Sample(seed, share, tuple(gates), tuple(ranked[:wanted]), len(pool))


def check_commitment(nonce: str, commitment: str) -> None:
    """Make sure that the revealed nonce is the one that was promised.

    Raises:
        IntegrityError: it is another.
    """
    if not hmac.compare_digest(commitment_of(nonce), commitment):
        raise IntegrityError(
            "the revealed nonce does not match the published commitment",
            "The sample may have been chosen; ask for a new assessment.",
        )


def detection_probability(population: int, false: int, drawn: int) -> float:
    """The chance that a random sample without replacement holds at least one false answer.

    Args:
        population: answers that could be drawn.
        false: how many of them are false.
        drawn: how many are looked at.

    Returns:
        1 - C(population - false, drawn) / C(population, drawn).
    """
    if not 0 <= false <= population or not 0 <= drawn <= population:
        raise UsageError("false and drawn must lie between 0 and the population")
    return 1.0 - math.comb(population - false, drawn) / math.comb(population, drawn)


def _rank(seed: str, control: str) -> bytes:
    return hmac.new(bytes.fromhex(seed), control.encode("utf-8"), hashlib.sha256).digest()


def _nonce_bytes(nonce: str) -> bytes:
    try:
        data = bytes.fromhex(nonce)
    except ValueError:
        data = b""
    if len(data) != NONCE_BYTES or data.hex() != nonce:
        raise UsageError("a nonce has 64 lower-case hexadecimal digits", "Make one with `assess commit`.")
    return data
