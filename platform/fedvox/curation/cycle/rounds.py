"""One round after the other.

    models   the first models, or those that the gate of the round before let pass
    propose  every model on every case; consensus, attention, measures
    check    findings, pictures, scores
    queue    the items of the round
    ....     people: until no item is open
    retrain  the models, warm-started, on the labels as they are now
    gate     retrained against old models on the frozen gold set
    report   what the round found, and whether there is another

Each step is written down in the store when it is done; a cycle that was killed goes on with the step it was in, and
within `propose` and `retrain` with the case or training step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox.curation.cycle import steps
from fedvox.curation.cycle.config import CurateConfig
from fedvox.curation.cycle.datasets import gold_store, training_store
from fedvox.curation.cycle.gate import gold_dice, judge
from fedvox.curation.cycle.models import Models, Train, first_models, retrained_models
from fedvox.curation.cycle.report import write_report
from fedvox.curation.cycle.steps import OnCase
from fedvox.curation.store import LabelStore
from fedvox.errors import ConfigError
from fedvox.inference.device import choose_device

ACTOR = "curate"


@dataclass(frozen=True)
class Progress:
    """Where the cycle stands.

    Args:
        round: number of the round.
        state: `waiting` for people, `closed` (another round may begin), `stopped` (the stop rule says so).
        waiting_for: items that are open or leased.
        reason: of a stop.
    """

    round: int
    state: str
    waiting_for: int = 0
    reason: str = ""


class Cycle:
    """Runs rounds on a label store.

    Args:
        config: of the cycle.
        store: the label store.
        train: runs or resumes a training (`fedvox.training.ray_shell.run`).
        tell: told each step as it begins.
        on_case: told of the cases of `propose`.
    """

    def __init__(
        self,
        config: CurateConfig,
        store: LabelStore,
        train: Train,
        *,
        tell: Callable[[str], None] = lambda _: None,
        on_case: OnCase | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self._train = train
        self._tell = tell
        self._on_case = on_case

    def advance(self) -> Progress:
        """Does all that can be done until people are needed, the round is closed, or the cycle has stopped."""
        stopped = self._stopped()
        if stopped is not None:
            return stopped
        store = self.store
        number, models = self.prepare()
        self._step(number, "queue", lambda: steps.queue(self.config, store, number, actor=ACTOR))
        waiting = sum(store.queue.counts(round=number).get(state, 0) for state in ("open", "leased"))
        if waiting:
            return Progress(number, "waiting", waiting)
        retrained = self._step(number, "retrain", lambda: self._retrain(number, models).to_json())
        self._step(number, "gate", lambda: self._gate(models, Models.from_json(retrained)))
        report = self._step(number, "report", lambda: write_report(self.config, store, number))
        store.rounds.close(number, actor=ACTOR)
        stop = report.get("stop", "")
        return Progress(number, "stopped" if stop else "closed", reason=stop)

    def prepare(self) -> tuple[int, Models]:
        """The first steps of a round: its models, proposals and checks, without a queue."""
        store = self.store
        number = store.rounds.open(self.config.model_dump(mode="json"), actor=ACTOR)
        models = Models.from_json(self._step(number, "models", lambda: self._models(number).to_json()))
        self._require_two(models)
        self._step(number, "propose", lambda: steps.propose(
            self.config, store, number, models, actor=ACTOR, on_case=self._on_case
        ))  # fmt: skip
        self._step(number, "check", lambda: steps.check(self.config, store, number, actor=ACTOR))
        return number, models

    def _step(self, number: int, name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        done = self.store.rounds.step(number, name)
        if done is not None:
            return done
        self._tell(f"round {number}: {name}")
        self.store.rounds.finish_step(number, name, do(), actor=ACTOR)
        return self.store.rounds.step(number, name) or {}

    def _stopped(self) -> Progress | None:
        """The newest round, where it was the last."""
        rounds = self.store.rounds.all()
        if not rounds or not rounds[-1].closed:
            return None
        number = rounds[-1].number
        report = self.store.rounds.step(number, "report") or {}
        if number >= self.config.stop.max_rounds:
            return Progress(number, "stopped", reason=f"{number} rounds are done (stop.max_rounds)")
        return Progress(number, "stopped", reason=report["stop"]) if report.get("stop") else None

    def _models(self, number: int) -> Models:
        before = self.store.rounds.step(number - 1, "gate") if number > 1 else None
        if before is not None:
            return Models.from_json(before["models"])
        if not self.config.propose.models and not self.config.propose.imported:
            training_store(self.store)
        return first_models(self.config, self.store, self._train)

    def _require_two(self, models: Models) -> None:
        count = len(models.uris) + len(self.config.propose.imported)
        if count < 2:
            raise ConfigError(
                f"propose: {count} proposer is named; one alone agrees with itself",
                "Name two models, or imported masks beside a model, or none to train folds.",
            )

    def _retrain(self, number: int, models: Models) -> Models:
        if not models.uris:
            return models  # masks of other tools alone: nothing of ours to train
        training_store(self.store)
        return retrained_models(self.config, self.store, number, models, self._train)

    def _gate(self, before: Models, after: Models) -> dict[str, Any]:
        gold = gold_store(self.store)
        if gold is None or not before.uris:
            return {"models": after.to_json(), "passed": None, "structures": [], "dice": None}
        folds, device = self.config.propose.folds, choose_device(self.config.propose.device)
        tables = []
        for models in (before, after):
            proposers = models.proposers(self.store, folds)
            for proposer in proposers:
                proposer.member.network.to(device)
            tables.append(gold_dice(proposers, gold, self.config.propose.overlap, device))
        structures = self.store.structures
        changes = judge(tables[0], tables[1], structures, self.config.gate, self.config.seed)
        passed = all(change.passes for change in changes)
        return {
            "models": (after if passed else before).to_json(),
            "passed": passed,
            "structures": [change.to_json() for change in changes],
            "dice": {
                name: float(np.nanmean(np.nanmean(table[:, 1:], axis=0)))
                for name, table in zip(("before", "after"), tables, strict=True)
            },
        }
