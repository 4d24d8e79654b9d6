"""From a clinic's standing to its noise: pure functions, with no patient data anywhere in them.

    policy = build_policy("tiers")
    noise = site_noise(policy, standing_of(attestation), Promise(8.0, 1e-5), Workload(sample_rate=0.05, steps=400))
    noise.noise_multiplier, noise.epsilon, noise.verdict

The study promises (ε, δ) to the patients of *every* clinic. The least noise that keeps the promise, for this
clinic's own sample rate and steps, is the floor. A clinic's standing may only add noise above it:

    tiers           floor × factor of the clinic's tier; the best tier's factor is 1 (the default)
    continuous      floor × (1 + (m - 1)(1 - score))
    epsilon         the tier gives the clinic's own, smaller ε, and that its noise
    uniform         floor × one factor for all
    none            no noise; must be asked for in words
    published-2025  1 - score + 1e-10, the first published mapping: no noise at all at full score
    linear-2026     0.4 at full score to 1.0 at none, the authors' later mapping

The last three know no promise. They are there to be compared with; outside a simulation `site_noise` refuses
whatever does not keep it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fedvox_compliance.attestation import VerifiedAttestation
from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy.accountant import epsilon, noise_multiplier

TIERS = 5
VACUOUS_EPSILON = 50.0
"""From here on nobody should speak of a guarantee: an attacker's odds may change by e^50."""
LEAST_NOISE = 0.3
"""A mapping of one's own may not go below; at 0.3 a thousand steps already spend an ε of tens."""
NO_PRIVACY = "I know that this protects nobody"


@dataclass(frozen=True)
class Standing:
    """What a verified attestation says about a clinic.

    Attributes:
        score: in [0, 1].
        tier: 0 to 4.
        eligible: whether the clinic may take part at all.
        attested: whether there is a valid attestation.
    """

    score: float
    tier: int
    eligible: bool
    attested: bool

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise PrivacyError(f"a score is in [0, 1], not {self.score}")
        if self.tier not in range(TIERS):
            raise PrivacyError(f"a tier is 0 to {TIERS - 1}, not {self.tier}")


UNATTESTED = Standing(score=0.0, tier=0, eligible=False, attested=False)
"""No attestation, or one that was refused: score 0, and nothing is known of the gates."""


def standing_of(attestation: VerifiedAttestation | None) -> Standing:
    """The standing behind a verified attestation, or behind none."""
    if attestation is None:
        return UNATTESTED
    return Standing(attestation.score, attestation.tier, attestation.eligible, attested=True)


@dataclass(frozen=True)
class Promise:
    """What the study promises to every patient, whatever the clinic's standing.

    Attributes:
        epsilon: ε after all rounds.
        delta: δ.
    """

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Workload:
    """What one clinic will train, in all rounds together.

    Attributes:
        sample_rate: probability with which each of its patients takes part in a step.
        steps: empty ones included.
    """

    sample_rate: float
    steps: int

    def floor(self, promise: Promise) -> float:
        """The least noise multiplier that keeps the promise."""
        return noise_multiplier(promise.epsilon, promise.delta, self.sample_rate, self.steps)


@dataclass(frozen=True)
class SiteNoise:
    """One clinic's noise and what it is worth.

    Attributes:
        noise_multiplier: in units of the clipping norm.
        epsilon: what the clinic's patients will have spent after all rounds; infinite without noise.
        promise: what was promised to them.
    """

    noise_multiplier: float
    epsilon: float
    promise: Promise

    @property
    def keeps_promise(self) -> bool:
        """Whether ε is at most what was promised."""
        return self.epsilon <= self.promise.epsilon

    @property
    def verdict(self) -> str:
        """In words: for tables and logs."""
        if self.epsilon >= VACUOUS_EPSILON:  # even where no more was promised
            return "no guarantee"
        if self.keeps_promise:
            return "promise kept"
        return f"ε {self.epsilon:.3g} exceeds the promised {self.promise.epsilon:g}"


@dataclass(frozen=True)
class Excluded:
    """A clinic that takes no part, and why."""

    reason: str


class NoisePolicy(Protocol):
    """Maps a standing to a noise multiplier."""

    name: ClassVar[str]

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:
        """The clinic's noise, in units of the clipping norm."""
        ...


@dataclass(frozen=True)
class TierPolicy:
    """The floor times a factor per tier: one answer more or less hardly ever moves the noise.

    Args:
        factors: of tiers 0 to 4, never rising, the last 1.
    """

    name: ClassVar[str] = "tiers"
    factors: tuple[float, ...] = (2.5, 2.0, 1.5, 1.2, 1.0)

    def __post_init__(self) -> None:
        _check_steps("factors", self.factors, falling=True)

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:
        """See `NoisePolicy`."""
        return workload.floor(promise) * self.factors[standing.tier]


@dataclass(frozen=True)
class ContinuousPolicy:
    """The floor times a factor that falls linearly with the score, to 1 at full score.

    Args:
        factor_at_zero: at least 1.
    """

    name: ClassVar[str] = "continuous"
    factor_at_zero: float = 2.5

    def __post_init__(self) -> None:
        _check_factor("factor_at_zero", self.factor_at_zero)

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:
        """See `NoisePolicy`."""
        return workload.floor(promise) * (1 + (self.factor_at_zero - 1) * (1 - standing.score))


@dataclass(frozen=True)
class EpsilonPolicy:
    """A smaller ε for lower tiers; the noise follows from the clinic's own sample rate and steps.

    Args:
        shares: of the promised ε, for tiers 0 to 4; never falling, the last 1.
    """

    name: ClassVar[str] = "epsilon"
    shares: tuple[float, ...] = (0.25, 0.4, 0.6, 0.8, 1.0)

    def __post_init__(self) -> None:
        _check_steps("shares", self.shares, falling=False)

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:
        """See `NoisePolicy`."""
        own = Promise(promise.epsilon * self.shares[standing.tier], promise.delta)
        return max(workload.floor(own), workload.floor(promise))


@dataclass(frozen=True)
class UniformPolicy:
    """The same factor on every clinic's floor, whatever its standing.

    Args:
        factor: at least 1.
    """

    name: ClassVar[str] = "uniform"
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor("factor", self.factor)

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:  # noqa: ARG002
        """See `NoisePolicy`."""
        return workload.floor(promise) * self.factor


@dataclass(frozen=True)
class NoNoisePolicy:
    """No noise, hence no privacy: the upper bound of a comparison.

    Args:
        acknowledge: must be the text of `NO_PRIVACY`.
    """

    name: ClassVar[str] = "none"
    acknowledge: str = ""

    def __post_init__(self) -> None:
        if self.acknowledge != NO_PRIVACY:
            raise PrivacyError(
                "the noise policy `none` switches privacy off", f"If it must be: acknowledge={NO_PRIVACY!r}."
            )

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:  # noqa: ARG002
        """See `NoisePolicy`."""
        return 0.0


@dataclass(frozen=True)
class Published2025Policy:
    """σ = 1 - score + 1e-10 (arXiv 2505.22108 v2): full compliance switches the noise off."""

    name: ClassVar[str] = "published-2025"

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:  # noqa: ARG002
        """See `NoisePolicy`."""
        return 1 - standing.score + 1e-10


@dataclass(frozen=True)
class Linear2026Policy:
    """σ falls linearly with the score between two fixed values, whatever ε that means.

    Args:
        at_full_score: at least 0.3.
        at_zero: not below `at_full_score`.
    """

    name: ClassVar[str] = "linear-2026"
    at_full_score: float = 0.4
    at_zero: float = 1.0

    def __post_init__(self) -> None:
        if not LEAST_NOISE <= self.at_full_score <= self.at_zero < math.inf:
            raise PrivacyError(
                f"noise from {self.at_full_score} at full score to {self.at_zero} at none",
                f"Both must be finite and at least {LEAST_NOISE}, and the second not below the first.",
            )

    def noise_multiplier(self, standing: Standing, promise: Promise, workload: Workload) -> float:  # noqa: ARG002
        """See `NoisePolicy`."""
        return self.at_full_score + (1 - standing.score) * (self.at_zero - self.at_full_score)


_POLICIES: tuple[type[NoisePolicy], ...] = (
    TierPolicy,
    ContinuousPolicy,
    EpsilonPolicy,
    UniformPolicy,
    NoNoisePolicy,
    Published2025Policy,
    Linear2026Policy,
)
POLICIES: Mapping[str, type[NoisePolicy]] = {policy.name: policy for policy in _POLICIES}
"""Name -> class."""


def build_policy(name: str, **options: Any) -> NoisePolicy:
    """A policy by name.

    Raises:
        PrivacyError: there is none of that name, it has no such option, or a guard refuses the value.
    """
    if name not in POLICIES:
        raise PrivacyError(f"there is no noise policy {name!r}", f"There are {', '.join(POLICIES)}.")
    kind: Any = POLICIES[name]
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(options) - known):
        raise PrivacyError(
            f"the noise policy {name} has no option {unknown[0]!r}",
            f"It has {', '.join(sorted(known)) or 'none'}.",
        )
    try:
        policy: NoisePolicy = kind(**options)
    except (TypeError, ValueError) as wrong:  # texts or lists where numbers belong
        raise PrivacyError(
            f"the noise policy {name} cannot take {options}: {wrong}", "Give numbers."
        ) from wrong
    return policy


def site_noise(
    policy: NoisePolicy,
    standing: Standing,
    promise: Promise,
    workload: Workload,
    *,
    admit_unattested: bool = False,
    simulation: bool = False,
) -> SiteNoise | Excluded:
    """One clinic's noise, or why it takes no part.

    Args:
        policy: see `build_policy`.
        standing: see `standing_of`.
        promise: the study's (ε, δ).
        workload: the clinic's planned training, all rounds.
        admit_unattested: let clinics without a valid attestation take part, as score 0.
        simulation: no patient is behind the data; policies that do not keep the promise may run.

    Raises:
        PrivacyError: the policy does not keep the promise, outside a simulation.
    """
    if standing.attested and not standing.eligible:
        return Excluded("an eligibility gate is not passed")
    if not standing.attested and not admit_unattested:
        return Excluded("no valid attestation")
    noise = policy.noise_multiplier(standing, promise, workload)
    spent = epsilon(noise, workload.sample_rate, workload.steps, promise.delta)
    result = SiteNoise(noise, spent, promise)
    if not simulation and not result.keeps_promise:
        raise PrivacyError(
            f"noise policy {policy.name}: {result.verdict} (noise {noise:.3g}, δ {promise.delta:g})",
            "Use tiers, continuous, epsilon or uniform; the others are for simulations.",
        )
    return result


def _check_steps(name: str, values: tuple[float, ...], *, falling: bool) -> None:
    ordered = tuple(sorted(values, reverse=falling))
    if len(values) != TIERS or tuple(values) != ordered or values[-1] != 1 or not 0 < values[0] < math.inf:
        way = "never rise" if falling else "be above 0 and never fall"
        raise PrivacyError(
            f"{name} are {tuple(values)}",
            f"Give {TIERS}, for tiers 0 to {TIERS - 1}; they must {way}, and the last is 1.",
        )


def _check_factor(name: str, value: float) -> None:
    if not 1 <= value < math.inf:
        raise PrivacyError(f"{name} is {value}", "It must be finite and at least 1, the floor.")
