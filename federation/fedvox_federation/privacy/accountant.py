"""What differentially private training costs: (noise, sampling, steps) -> ε at δ, and back.

    epsilon(noise_multiplier=1.0, sample_rate=0.02, steps=500, delta=1e-5)         -> 2.78
    noise_multiplier(epsilon=2.8, delta=1e-5, sample_rate=0.02, steps=500)          -> 1.00
    compose([Phase(1.0, 0.02, 500), Phase(2.0, 0.1, 200)], delta=1e-5)              -> both, one after the other

Every number is an *upper* bound for the Poisson-subsampled Gaussian mechanism, between data sets that differ
by one patient being there or not (add/remove). The sampling must be Poisson with exactly `sample_rate`, and
every step counts, also one whose batch came out empty.

The bound is that of numerical composition of privacy loss random variables (Gopi, Lee and Wutschitz 2021,
arXiv 2106.02848), computed by Opacus on a grid that is chosen here. Rényi accounting (Mironov, Talwar and Zhang
2019, arXiv 1908.10530) is valid as well but looser; it checks the first, and stands in for it where the grid
would not fit or its numbers are not to be trusted. The central limit approximation known as the GDP accountant
is refused: it is no bound.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fedvox_federation.errors import PrivacyError

log = logging.getLogger(__name__)

Accountant = Literal["prv", "rdp"]

RENYI_ORDERS = (
    *(1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5),
    *range(4, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)
"""Orders tried by Rényi accounting: close to 1 for large ε, up to 1024 for small ε; few broken ones, which are slow."""

_RELATIVE_GRID_ERROR = 0.002
_RELATIVE_DELTA_ERROR = 1e-3
_GRID_ERROR_RANGE = (1e-3, 0.5)  # in ε; the theory behind the grid needs less than 1
_MAX_GRID_POINTS = 2**21
_SMALLEST_NOISE, _LARGEST_NOISE = 1 / 16, 1e5  # where the search for a noise multiplier looks
_MOST_NOISE_COUNTED = (
    1e9  # whose square float64 holds with room; less noise than there is, so still an upper bound
)
_SEARCH_TOLERANCE = 1e-3


@dataclass(frozen=True, order=True)
class Phase:
    """Steps of one kind.

    Attributes:
        noise_multiplier: standard deviation of the noise, in units of the clipping norm.
        sample_rate: probability with which each patient takes part in a step (Poisson sampling).
        steps: how many; empty ones included.

    Raises:
        PrivacyError: a value that means nothing.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise PrivacyError(f"noise_multiplier is {self.noise_multiplier}, not a finite number from 0")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(
                f"sample_rate is {self.sample_rate}, not in (0, 1]",
                "It is the expected number of patients in a step, divided by their number.",
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise PrivacyError(f"steps is {self.steps!r}, not a whole number from 0")


def epsilon(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    *,
    accountant: Accountant = "prv",
) -> float:
    """ε after `steps` equal steps, as an upper bound.

    Args:
        noise_multiplier: standard deviation of the noise, in units of the clipping norm.
        sample_rate: probability with which each patient takes part in a step.
        steps: number of steps, empty ones included.
        delta: δ, see `check_delta`.
        accountant: `prv` (tight), or `rdp` (looser, and valid also if later noise was chosen after seeing
            earlier results).

    Returns:
        ε; infinity where there is no guarantee.

    Raises:
        PrivacyError: a parameter means nothing, or the accountant is none of the two.
    """
    return compose([Phase(noise_multiplier, sample_rate, steps)], delta, accountant=accountant)


def compose(phases: Iterable[Phase], delta: float, *, accountant: Accountant = "prv") -> float:
    """ε of several phases one after the other: rounds, restarts and experiments on the same patients.

    Args:
        phases: in any order, with different noise and sample rates.
        delta: δ of all of it together.
        accountant: see `epsilon`.

    Returns:
        ε; infinity where there is no guarantee.

    Raises:
        PrivacyError: see `epsilon`.
    """
    check_accountant(accountant)
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, not between 0 and 1", "Take 1 / (10 × number of patients).")
    joined = _joined(phases)
    if not joined:
        return 0.0
    if any(phase.noise_multiplier == 0 for phase in joined):
        return math.inf
    _require_opacus()
    return _tightest(joined, delta, accountant)


def noise_multiplier(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    accountant: Accountant = "prv",
) -> float:
    """The least noise that keeps a promise: the inverse of `epsilon`, rounded to the safe side by 0.1 %.

    Args:
        epsilon: the promised ε.
        delta: its δ.
        sample_rate: probability with which each patient takes part in a step.
        steps: number of steps, empty ones included.
        accountant: see the function `epsilon`.

    Returns:
        The noise multiplier, with which `epsilon(...)` is at most the promise; at least 1/32.

    Raises:
        PrivacyError: a parameter means nothing, or no noise is enough.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise PrivacyError(f"epsilon is {epsilon}, not a finite number above 0")
    if Phase(1.0, sample_rate, steps).steps == 0:
        raise PrivacyError("no steps need no noise", "Say how many steps will be trained in all rounds.")

    def spent(noise: float) -> float:
        return compose([Phase(noise, sample_rate, steps)], delta, accountant=accountant)

    return _least(spent, epsilon)


def check_accountant(name: str) -> None:
    """Refuses accountants that bound nothing.

    Raises:
        PrivacyError: with the reason.
    """
    if name == "gdp":
        raise PrivacyError(
            "the GDP accountant is refused: it is the limit for infinitely many steps and not a bound; it "
            "reports 3.48 where 4.62 is spent (noise 0.7, sample rate 0.01, 1000 steps, δ = 1e-5)",
            "Use prv, or rdp.",
        )
    if name not in ("prv", "rdp"):
        raise PrivacyError(f"there is no accountant {name!r}", "Use prv, or rdp.")


def _joined(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """Equal kinds of steps as one phase: faster, and the order makes no difference."""
    steps: dict[tuple[float, float], int] = {}
    for phase in phases:
        kind = (min(phase.noise_multiplier, _MOST_NOISE_COUNTED), phase.sample_rate)
        steps[kind] = steps.get(kind, 0) + phase.steps
    return tuple(sorted(Phase(*kind, count) for kind, count in steps.items() if count))


@lru_cache(maxsize=4096)
def _tightest(phases: tuple[Phase, ...], delta: float, accountant: Accountant) -> float:
    renyi = _renyi(phases, delta)
    if accountant == "rdp" or not math.isfinite(renyi):
        return renyi
    numerical = _numerical(phases, delta, renyi)
    return renyi if numerical is None else min(numerical, renyi)


def _renyi(phases: tuple[Phase, ...], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    spent = sum(phase.steps * _renyi_of_step(phase.noise_multiplier, phase.sample_rate) for phase in phases)
    with _quiet():
        found, _ = get_privacy_spent(orders=RENYI_ORDERS, rdp=spent, delta=delta)
    return max(0.0, float(found)) if not math.isnan(found) else math.inf


@lru_cache(maxsize=4096)
def _renyi_of_step(noise_multiplier: float, sample_rate: float) -> Any:
    """Rényi divergence of one step at each of the orders, as an array."""
    from opacus.accountants.analysis.rdp import compute_rdp

    with _quiet():
        return compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=RENYI_ORDERS)


def _numerical(phases: tuple[Phase, ...], delta: float, renyi: float) -> float | None:
    """The bound of numerical composition, or None where its grid is too large or its numbers are unsound."""
    low, high = _GRID_ERROR_RANGE
    grid_error = min(high, max(low, _RELATIVE_GRID_ERROR * renyi))
    reach, mesh = _grid(phases, delta, grid_error)
    coarser = max(1.0, 2 * reach / mesh / _MAX_GRID_POINTS)
    grid_error, mesh = grid_error * coarser, mesh * coarser
    if grid_error > high:
        return None
    try:
        with _quiet():
            found = _read_off(phases, delta, grid_error, reach, mesh)
    except (ArithmeticError, ValueError, RuntimeError, MemoryError) as reason:
        log.debug("numerical composition of %s at %g failed (%s); Rényi bound used", phases, delta, reason)
        return None
    # Both are upper bounds: one far above the other, or no number at all, means that the grid failed.
    return found if 0 < found <= renyi + 2 * grid_error else None


def _grid(phases: tuple[Phase, ...], delta: float, grid_error: float) -> tuple[float, float]:
    """How far the grid must reach to each side, and its mesh (Gopi et al., theorem 5.5 and remark 5.6)."""
    delta_error = delta * _RELATIVE_DELTA_ERROR
    steps = sum(phase.steps for phase in phases)
    singles = (Phase(phase.noise_multiplier, phase.sample_rate, 1) for phase in phases)
    widest = max(
        _renyi(phases, delta_error / 4), *(_renyi((one,), delta_error / (8 * steps)) for one in singles)
    )
    return max(widest, grid_error) + 3, grid_error / math.sqrt(steps * math.log(12 / delta_error) / 2)


def _read_off(phases: tuple[Phase, ...], delta: float, grid_error: float, reach: float, mesh: float) -> float:
    from opacus.accountants.analysis import prv
    from scipy.fft import next_fast_len

    half = next_fast_len(math.ceil(reach / mesh) + 1, real=True)  # a length that Fourier transforms like
    domain = prv.Domain(-(half - 1) * mesh, half * mesh, 2 * half)
    losses = [
        prv.discretize(
            prv.TruncatedPrivacyRandomVariable(
                prv.PoissonSubsampledGaussianPRV(phase.sample_rate, phase.noise_multiplier),
                domain.t_min,
                domain.t_max,
            ),
            domain,
        )
        for phase in phases
    ]
    composed = prv.compose_heterogeneous(losses, [phase.steps for phase in phases])
    _, _, upper = composed.compute_epsilon(delta, delta * _RELATIVE_DELTA_ERROR, grid_error)
    return float(upper)


def _least(spent: Callable[[float], float], target: float) -> float:
    """The smallest noise with spent(noise) <= target: ε is close to a power of the noise, so by false position."""
    low, high = _bracket(spent, target)
    while high / low > 1 + _SEARCH_TOLERANCE:
        cost_low, cost_high = math.log(spent(low) / target), math.log(spent(high) / target)
        share = cost_low / (cost_low - cost_high) if math.isfinite(cost_low) else 0.5
        middle = low * (high / low) ** min(0.9, max(0.1, share))
        # A guess on both sides of the middle: either of them closes most of the bracket.
        for guess in (middle * (1 + _SEARCH_TOLERANCE / 3), middle * (1 - _SEARCH_TOLERANCE / 3)):
            if not low < guess < high:
                continue
            if spent(guess) <= target:
                high = guess
            else:
                low = guess
    return high


def _bracket(spent: Callable[[float], float], target: float) -> tuple[float, float]:
    """Noise multipliers (too little, enough), at most a factor of two apart."""
    high = 1.0
    while spent(high) > target:
        high *= 2
        if high > _LARGEST_NOISE:
            raise PrivacyError(
                f"no noise keeps ε at {target:g}", "Raise ε or δ, or train fewer steps on smaller batches."
            )
    while high > _SMALLEST_NOISE and spent(high / 2) <= target:
        high /= 2
    return high / 2, high


@lru_cache(maxsize=1)
def _require_opacus() -> None:
    try:
        import opacus  # noqa: F401
    except ImportError as missing:
        raise PrivacyError(
            f"privacy accounting needs {missing.name}", "pip install 'fedvox[federation]'"
        ) from missing


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logarithms of zero and the hints on orders, both of which are handled here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
