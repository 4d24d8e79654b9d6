"""Flower's own strategies by name, and SCAFFOLD on Flower's FedAvg, with what a study needs around them.

Nothing of them is written again.

    aggregator = build_aggregator("FedAdam", {"eta": 0.01}, weighting="size")
    extras = aggregator.begin_round(3, arrays)                    # such as proximal-mu, for the clinics
    arrays = aggregator.aggregate(3, arrays, {"Nord": update, "Süd": update})

Around them: weights by size, score or inverse noise variance; the accepted updates in the order of the clinics'
names, so that a repeated round gives the same bits; the global model's own number types (FedAdam would
turn float32 into float64); distances of Krum and Bulyan between *updates*, not between parameters, where
float32 loses them; the numbers below which Krum and Bulyan prove nothing; and the state that a resumed
federation needs.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import AggregationError

from fedvox.errors import ConfigError, RunError
from fedvox_federation.config import FederationConfig
from fedvox_federation.privacy.federation import Contribution, Weighting, aggregation_weights
from fedvox_federation.protocol import Array, Arrays

OFFERED = (
    "FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedAdagrad", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum",
    "MultiKrum", "Bulyan", "SCAFFOLD",
)  # fmt: skip
"""Names in `flwr.serverapp.strategy`, and SCAFFOLD: Flower's FedAvg combines its models; beyond that, it has
corrections in the orders (`fedvox_federation.server.scaffold`)."""

_COMBINED_BY: Mapping[str, str] = {"SCAFFOLD": "FedAvg"}

NOT_OFFERED: Mapping[str, str] = {
    "SecAgg+": (
        "Flower's secure aggregation runs only in its legacy workflow (a `LegacyContext`), not with the Message API "
        "that this federation uses. It would also hide each update from the checks, and fits no median and no Krum"
    ),
    "QFedAvg": (
        "it scales every update by the clinic's training loss, which no noise covers: the model would then tell "
        "about patients what no ledger has counted"
    ),
    "DifferentialPrivacy": (
        "Flower's wrappers protect a whole clinic from the others, not its patients, and account for nothing. Noise "
        "is added in the clinic, per patient"
    ),
    "FedXgb": "it combines decision trees, not networks",
}
"""What is asked for by name and refused -> why."""

_ALIASES = {"secaggplus": "SecAgg+", "secagg": "SecAgg+", "secagg+": "SecAgg+"}
_ROBUST = ("FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan")
_BY_DISTANCE = ("Krum", "MultiKrum", "Bulyan")
_WITHOUT_WEIGHTS = ("FedMedian", "FedTrimmedAvg", "Krum", "Bulyan")
_OURS = ("selection_rule", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn")
_WEIGHT = "weight"
_STATE_TREES = ("m_t", "v_t")


@dataclass(frozen=True)
class Update:
    """One accepted update.

    Attributes:
        arrays: the clinic's parameters after training, by name.
        contribution: what its weight follows from.
    """

    arrays: Mapping[str, Array]
    contribution: Contribution


class Aggregator:
    """One of Flower's strategies, and the state it has between rounds.

    Args:
        name: one of `OFFERED`.
        strategy: Flower's.
        weighting: see `aggregation_weights`.
    """

    def __init__(self, name: str, strategy: Any, weighting: Weighting) -> None:
        self.name = name
        self.weighting = weighting
        self._strategy = strategy

    @property
    def least_updates(self) -> int:
        """Fewer accepted updates than this give no result that the strategy's proof covers."""
        malicious = int(getattr(self._strategy, "num_malicious_nodes", 0))
        if self.name == "Bulyan":
            return 4 * malicious + 3
        if self.name in _BY_DISTANCE:
            selected = int(getattr(self._strategy, "num_nodes_to_select", 1))
            return max(2 * malicious + 3, malicious + selected)
        return 1

    @property
    def uses_weights(self) -> bool:
        """Whether the weights reach the result at all."""
        return self.name not in _WITHOUT_WEIGHTS

    def notes(self, *, private: bool) -> tuple[str, ...]:
        """What a study should know of this choice, in sentences.

        Args:
            private: clinics add noise.
        """
        told = []
        if not self.uses_weights and self.weighting != "equal":
            told.append(f"{self.name} knows no weights: weighting by {self.weighting} changes nothing.")
        if self.name == "SCAFFOLD" and self.weighting != "equal":
            told.append(
                f"SCAFFOLD leads to where every clinic counts alike; weighting by {self.weighting} only decides how "
                "much of each update is taken on the way."
            )
        if private and self.name == "SCAFFOLD":
            told.append(
                "SCAFFOLD's corrections carry the noise of earlier rounds, which cancels only in the equal mean over "
                "all clinics: compare with FedAvg."
            )
        if private and self.name in _BY_DISTANCE:
            told.append(
                f"{self.name} selects the updates that lie closest together. Under noise these are the least noised "
                "ones: clinics of lower tiers are left out round after round, and what is left averages less noise."
            )
        elif private and self.name in _ROBUST:
            told.append(
                f"{self.name} averages noise away less well than a mean: of a median's noise variance, 1.57 times as "
                "much is left."
            )
        elif private and self._strategy_is_adaptive():
            told.append(
                f"{self.name} divides by the size of past updates, of which noise is a large part: expect to tune "
                "eta, and compare with FedAvg."
            )
        return tuple(told)

    def _strategy_is_adaptive(self) -> bool:
        return hasattr(self._strategy, "v_t")

    def begin_round(self, round_number: int, arrays: Mapping[str, Array]) -> dict[str, float]:
        """Tell the strategy which model goes out.

        Returns:
            What the strategy wants the clinics to know, such as `proximal-mu`.
        """
        config = ConfigRecord()
        self._strategy.configure_train(round_number, _record(arrays), config, None)
        return {str(key): float(str(value)) for key, value in config.items() if key != "server-round"}

    def aggregate(
        self,
        round_number: int,
        arrays: Mapping[str, Array],
        updates: Mapping[str, Update],
    ) -> Arrays:
        """The next global model.

        Args:
            round_number: as in `begin_round`, which must have come before.
            arrays: the model that the clinics started from.
            updates: clinic -> its accepted update, of the same names, shapes and types.

        Raises:
            RunError: fewer updates than `least_updates`, or Flower cannot combine them.
            PrivacyError: the weighting gives no weights.
        """
        if len(updates) < self.least_updates:
            raise RunError(
                f"{self.name} needs {self.least_updates} updates, and has {len(updates)}",
                "Lower num_malicious_nodes, or wait for more clinics.",
            )
        weights = aggregation_weights(
            self.weighting, {name: one.contribution for name, one in updates.items()}
        )
        origin = arrays if self.name in _BY_DISTANCE else None
        messages = [_message(updates[name].arrays, weights[name], origin) for name in sorted(updates)]
        try:
            combined, _ = self._strategy.aggregate_train(round_number, messages)
        except AggregationError as error:
            raise RunError(f"{self.name}: {error}", "Change the strategy's options.") from error
        return {
            name: _add(value.numpy(), None if origin is None else origin[name])
            .astype(arrays[name].dtype)
            .reshape(arrays[name].shape)
            for name, value in combined.items()
        }

    # Between rounds

    def state(self) -> Arrays:
        """What the strategy remembers (FedAdam's m and v, FedAvgM's momentum), by `KIND/NAME`."""
        held: Arrays = {}
        for kind in _STATE_TREES:
            for name, value in (getattr(self._strategy, kind, None) or {}).items():
                held[f"{kind}/{name}"] = value
        momentum = getattr(self._strategy, "momentum_vector", None)
        for position, value in enumerate(momentum or ()):
            held[f"momentum/{position:06d}"] = value
        return held

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from `state()` of another process."""
        for kind in _STATE_TREES:
            tree = {key.split("/", 1)[1]: state[key] for key in state if key.startswith(f"{kind}/")}
            if tree:
                setattr(self._strategy, kind, tree)
        momentum = [state[key] for key in sorted(state) if key.startswith("momentum/")]
        if momentum:
            self._strategy.momentum_vector = momentum


def build_aggregator(
    name: str, options: Mapping[str, Any] | None = None, *, weighting: Weighting = "size"
) -> Aggregator:
    """One of the strategies by name.

    Args:
        name: one of `OFFERED`, in any case.
        options: of that strategy, by Flower's names.
        weighting: see `aggregation_weights`.

    Raises:
        ConfigError: there is none of that name, it is not offered (with the reason), or it has no such option.
    """
    known_as = _known_name(name)
    kind = _flowers(known_as)
    given = dict(options or {})
    known = strategy_options(known_as)
    for option in given:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            remedy = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known) or 'none'}."
            raise ConfigError(f"strategy.options: {known_as} has no option {option!r}", remedy)
    missing = [option for option, needed in known.items() if needed and option not in given]
    if missing:
        raise ConfigError(f"strategy.options: {known_as} needs {missing[0]!r}", "Give it a value.")
    for option, value in given.items():
        _check_option(known_as, option, value)
    try:
        made = kind(**given, fraction_evaluate=1.0, weighted_by_key=_WEIGHT)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy.options: {known_as}: {error}", "Change the option's value.") from error
    # With a fraction of zero, Flower's `configure_train` does what the strategy adds (keep the model, name mu)
    # and then neither samples nor addresses nodes: its sampler would wait for them without end.
    made.fraction_train = 0.0
    return Aggregator(known_as, made, weighting)


def aggregator_of(config: FederationConfig) -> Aggregator:
    """The strategy that a federation is configured with.

    Raises:
        ConfigError: see `build_aggregator`; or a weighting by noise where there is none.
    """
    strategy = config.strategy
    if strategy.weighting == "inverse-noise" and config.privacy.policy.name == "none":
        raise ConfigError(
            "strategy.weighting inverse-noise has no weights where nobody adds noise", "Use size or equal."
        )
    return build_aggregator(strategy.name, strategy.options, weighting=strategy.weighting)


def _flowers(name: str) -> Any:
    """Flower's strategy that combines the models under a name of `OFFERED`."""
    return getattr(flower, _COMBINED_BY.get(name, name))


def strategy_options(name: str) -> dict[str, bool]:
    """A strategy's options -> whether they must be given. Those of sampling and of record keys are the server's own."""
    general = inspect.signature(flower.FedAvg).parameters
    return {
        option: parameter.default is inspect.Parameter.empty
        for option, parameter in inspect.signature(_flowers(name)).parameters.items()
        if option not in general and option not in _OURS
    }


def _known_name(name: str) -> str:
    by_key = {known.lower(): known for known in OFFERED}
    key = name.replace("_", "").replace("-", "").lower()
    if key in by_key:
        return by_key[key]
    for refused, reason in NOT_OFFERED.items():
        if _ALIASES.get(key, key).lower().startswith(refused.lower()):
            raise ConfigError(
                f"strategy.name: {name} is not offered: {reason}.", f"Use {', '.join(OFFERED)}."
            )
    near = difflib.get_close_matches(key, by_key, n=1, cutoff=0.5)
    remedy = f"Did you mean {by_key[near[0]]!r}?" if near else f"There are {', '.join(OFFERED)}."
    raise ConfigError(f"strategy.name: there is no strategy {name!r}", remedy)


_COUNTS = ("num_malicious_nodes", "num_nodes_to_select")
_BELOW_ONE = ("beta_1", "beta_2", "server_momentum")
_ABOVE_ZERO = ("eta", "eta_l", "tau", "server_learning_rate")


def _check_option(strategy: str, option: str, value: Any) -> None:
    """Values that Flower takes and that then fail, or do nonsense, in the first round."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    least = 1 if option == "num_nodes_to_select" else 0
    if option in _COUNTS:
        sound, needed = number and value == int(value) and value >= least, f"a whole number from {least}"
    elif option in _BELOW_ONE:
        sound, needed = number and 0 <= value < 1, "a number from 0 to below 1"
    elif option in _ABOVE_ZERO:
        sound, needed = number and value > 0, "a number above 0"
    else:
        sound, needed = number and value >= 0, "a number, not below 0"
    if not sound:
        raise ConfigError(f"strategy.options.{option} of {strategy} is {value!r}", f"It must be {needed}.")


@dataclass(frozen=True)
class _Reply:
    """What Flower's strategies ask of a reply. A real `Message` exists only while a Flower run does."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """In the order of names: FedAvgM matches models by position, and a saved model comes back in another order."""
    return ArrayRecord({name: FlowerArray(np.asarray(arrays[name])) for name in sorted(arrays)})


def _message(
    arrays: Mapping[str, Array],
    weight: float,
    origin: Mapping[str, Array] | None,
) -> _Reply:
    moved = arrays if origin is None else {name: value - origin[name] for name, value in arrays.items()}
    content = RecordDict({"arrays": _record(moved), "metrics": MetricRecord({_WEIGHT: weight})})
    return _Reply(content)


def _add(value: Array, origin: Array | None) -> Array:
    return value if origin is None else value + origin
