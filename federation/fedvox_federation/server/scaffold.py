"""SCAFFOLD's control variates (Karimireddy et al. 2020, arXiv 1910.06378, option II), all of them on the server.

    controls = ControlVariates(lr=0.01, steps=20)
    correction = controls.correction("Nord")            # c - c_i, goes out with Nord's order
    controls.learn(arrays, {"Nord": update, …})          # after the round
    controls.restore(controls.state())                   # in another process

A clinic that moved from x to y in K steps of plain SGD followed, on average, the gradient (x - y) / (K · lr); without
the correction that it was sent, this is c_i+ = c_i - c + (x - y) / (K · lr). The server has x, y and the correction, so
clinics need no memory. All of it is a function of updates that carried their noise: it costs no privacy.

c is the mean of c_i over the clinics of which an update was ever accepted. With all of them known from the start it is
what the paper's c += (1/N) Σ (c_i+ - c_i) comes to; with a clinic that joins later, that sum would forget to give the
others less weight, and c would stay off for good. A clinic that misses a round, or is refused, keeps its c_i. One that
is not known yet gets no correction (its c_i is taken for c): it trains as under FedAvg once.

c is a plain mean, whatever weights the updates have in the model: where nothing moves any more c is 0, which is the
optimum of the mean over clinics. Weights decide how it is reached, not where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

import numpy as np

from fedvox_federation.config import FederationConfig
from fedvox_federation.protocol import Array, Arrays
from fedvox_federation.server.norms import length

_STATE = "control/"


class ControlVariates:
    """c and the c_i.

    Args:
        lr: of the clinics' plain SGD.
        steps: K, that every clinic makes. What a reply says of itself is not used.
        longest_update: see `ServerSection.largest_update_norm`; what a clinic's own gradients moved counts up to this
            length, as the update itself does in the model.
    """

    def __init__(self, lr: float, steps: int, longest_update: float | None = None) -> None:
        self._way = lr * steps
        self._longest = longest_update
        self._own: dict[str, Arrays] = {}
        self._common: Arrays = {}

    @classmethod
    def of(cls, config: FederationConfig) -> ControlVariates | None:
        """Those of a federation; None where its strategy has none."""
        if config.strategy.name != "scaffold":
            return None
        return cls(config.training.lr, config.training.steps, config.server.largest_update_norm)

    @property
    def clinics(self) -> tuple[str, ...]:
        """Of which something is known, in the order of names."""
        return tuple(sorted(self._own))

    def correction(self, clinic: str) -> Arrays:
        """What a clinic adds, c - c_i in float32 by the parameters' names; empty for one that is not known."""
        own = self._own.get(clinic)
        if own is None:
            return {}
        return {name: np.asarray(self._common[name] - own[name], np.float32) for name in sorted(own)}

    def learn(self, arrays: Mapping[str, Array], updates: Mapping[str, Mapping[str, Array]]) -> None:
        """Take in a round.

        Args:
            arrays: x, the model that went out.
            updates: clinic -> its accepted update y as it was sent, not cut.
        """
        self._own |= {clinic: self._gradient(arrays, update, clinic) for clinic, update in updates.items()}
        self._average()

    def _gradient(self, arrays: Mapping[str, Array], update: Mapping[str, Array], clinic: str) -> Arrays:
        """c_i+, in float64."""
        sent = self.correction(clinic)
        found = {
            name: np.asarray(
                (arrays[name].astype(np.float64) - update[name]) / self._way - sent.get(name, 0.0)
            )
            for name in sorted(arrays)
        }
        moved = self._way * length(found)
        if self._longest is None or moved <= self._longest:
            return found
        return {name: value * (self._longest / moved) for name, value in found.items()}

    def _average(self) -> None:
        first = next(iter(self._own.values()), {})
        self._common = {
            name: np.asarray(np.mean([self._own[clinic][name] for clinic in self.clinics], axis=0))
            for name in first
        }

    # Between rounds

    def state(self) -> Arrays:
        """The c_i, from which c follows, as `control/CLINIC/NAME`."""
        return {
            f"{_STATE}{quote(clinic, safe='')}/{name}": value
            for clinic, own in self._own.items()
            for name, value in own.items()
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from `state()` of another process; other keys are left alone."""
        self._own = {}
        for key, value in state.items():
            if key.startswith(_STATE):
                clinic, name = key.removeprefix(_STATE).split("/", 1)
                self._own.setdefault(unquote(clinic), {})[name] = value
        self._average()
