"""What a federation leaves behind, on any place that `fedvox.storage` knows.

    NAME/
        config.resolved.yaml     every value, defaults included
        environment.json         versions, git commit, host
        status.json              where the run is; rewritten at every turn
        clinics.jsonl            a line per clinic and round: what it sent, what it has spent, what became of it
        clinics.csv              the same, for a spreadsheet
        rounds.jsonl             a line per round
        figures/curves.png       loss, Dice, ε and participation
        state/round-….           see `fedvox_federation.server.snapshot`
        final/                   released weights, once all rounds are done

S3 has no append, so the tables are rewritten whole after each round. A round that is repeated after a crash
replaces its lines.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedvox import storage
from fedvox.config import parse_scalar, to_yaml, validate
from fedvox.errors import ConfigError, DataError, StorageError
from fedvox.storage import Location
from fedvox.training.run_directory import RunDirectory, environment, without_nan
from fedvox_federation.config import FederationConfig
from fedvox_federation.privacy.federation import federation_epsilon
from fedvox_federation.server.checks import Checked, Verdict

log = logging.getLogger(__name__)

Row = dict[str, Any]

COLUMNS = ("round", "clinic", "verdict", "reason", "note", "weight", "patients", "steps", "tier", "score", "attested",
           "noise_multiplier", "sample_rate", "epsilon", "delta", "loss", "dice_before", "dice_after", "seconds",
           "update_norm", "update_sha256", "replayed", "node_id", "bundle_sha256")  # fmt: skip
"""Of the table of clinics."""


def clinic_row(round_number: int, one: Checked, weight: float) -> Row:
    """A clinic's line in the table of a round."""
    reply = one.reply
    known = {} if reply is None else {
        "patients": reply.patients, "steps": reply.steps, "noise_multiplier": reply.noise_multiplier,
        "sample_rate": reply.sample_rate, "epsilon": reply.epsilon_spent, "delta": reply.delta, "loss": reply.loss,
        "dice_before": reply.dice_before, "dice_after": reply.dice_after, "seconds": reply.seconds,
        "update_sha256": reply.update_sha256, "replayed": reply.replayed, "bundle_sha256": reply.bundle_sha256,
        "tier": one.standing.tier, "score": one.standing.score, "attested": one.standing.attested,
    }  # fmt: skip
    return {
        "round": round_number,
        "clinic": one.clinic,
        "verdict": one.verdict.value,
        "reason": one.reason,
        "note": one.note,
        "weight": weight,
        "update_norm": one.norm,
        "node_id": str(one.node_id),  # 64 bits, which JSON readers cut to 53
        **known,
    }


@dataclass(frozen=True)
class RoundLine:
    """A round as a whole.

    Attributes:
        round: its number.
        outcome: `aggregated` or `skipped`.
        accepted: updates that went into the model.
        asked: clinics.
        epsilon: of the federation so far: the clinic worst off.
        worst_clinic: which that is.
        loss: mean over clinics that share it, by weight; likewise the Dice.
        dice_before: with the model that went out.
        dice_after: with the clinics' own.
        dice_global: of the new model on the study's own validation data.
        seconds: in all.
        waited_s: of these, for replies.
    """

    round: int
    outcome: str
    accepted: int
    asked: int
    epsilon: float
    worst_clinic: str
    loss: float
    dice_before: float
    dice_after: float
    dice_global: float
    seconds: float
    waited_s: float


class Journal:
    """Reads and writes a federation's run directory.

    Args:
        location: the directory.
    """

    def __init__(self, location: Location) -> None:
        self.run = RunDirectory(location)
        self.clinics: list[Row] = self._read("clinics.jsonl", {"round", "clinic", "verdict"})
        self.rounds: list[Row] = self._read(
            "rounds.jsonl", {one.name for one in dataclasses.fields(RoundLine)}
        )

    @property
    def state(self) -> Location:
        """Where the rounds' states lie."""
        return self.run.child("state")

    def begin(self, config: FederationConfig, *, after_round: int) -> None:
        """Write what the run is, and forget lines of rounds that will be done again.

        Raises:
            ConfigError: the directory holds a run of another configuration.
        """
        resolved = self.run.child("config.resolved.yaml")
        if storage.exists(resolved):
            _check_same(resolved, config)
        storage.write_atomic(resolved, to_yaml(config).encode())
        self.run.write_json(environment("cpu"), "environment.json")
        self.clinics = [row for row in self.clinics if row["round"] <= after_round]
        self.rounds = [row for row in self.rounds if row["round"] <= after_round]

    def tell(self, phase: str, config: FederationConfig, **facts: Any) -> None:
        """Where the run is now, for whoever asks. A store that is out of reach does not stop it."""
        value = {
            "phase": phase,
            "name": config.name,
            "rounds": config.rounds,
            "updated": time.time(),
            **facts,
        }
        try:
            self.run.write_json(value, "status.json")
        except StorageError as error:
            log.warning("status not written: %s", error.message)

    def end_round(self, line: RoundLine, clinics: Iterable[Row]) -> None:
        """Add a round to the tables."""
        self.clinics += clinics
        self.rounds.append(dict(vars(line)))
        storage.write_atomic(self.run.child("clinics.jsonl"), _lines(self.clinics))
        storage.write_atomic(self.run.child("clinics.csv"), _csv(self.clinics).encode())
        storage.write_atomic(self.run.child("rounds.jsonl"), _lines(self.rounds))

    def last_round(self) -> list[Row]:
        """The clinics' lines of the last round in the table."""
        number = self.clinics[-1]["round"] if self.clinics else 0
        return [row for row in self.clinics if row["round"] == number]

    def _read(self, name: str, columns: set[str]) -> list[Row]:
        location = self.run.child(name)
        if not storage.exists(location):
            return []
        try:
            rows = [json.loads(line) for line in storage.read_bytes(location).splitlines()]
            if not all(isinstance(row, dict) and row.keys() >= columns for row in rows):
                raise ValueError("a line lacks columns")
            return rows
        except ValueError as error:
            raise DataError(
                f"{location.uri}: is damaged ({error})",
                "Move this file away; the run goes on without the lines of earlier rounds.",
                file=location.uri,
            ) from error


def spent_by(rows: Iterable[Mapping[str, Any]], replies: Iterable[Checked] = ()) -> dict[str, float]:
    """Clinic -> the most that it said it has spent; infinite where it trained without noise.

    Args:
        rows: of the table of clinics, as read from disk too (where null stands for infinity).
        replies: of a round that is not in the table yet.
    """
    spent: dict[str, float] = {}
    told = [(row["clinic"], row.get("epsilon"), row.get("steps")) for row in rows]
    told += [
        (one.clinic, one.reply.epsilon_spent, one.reply.steps) for one in replies if one.reply is not None
    ]
    for clinic, epsilon, steps in told:
        value = math.inf if epsilon is None and steps else epsilon or 0.0
        spent[clinic] = max(spent.get(clinic, 0.0), value if value >= 0 else 0.0)
    return spent


def worst_off(spent: Mapping[str, float]) -> tuple[str, float]:
    """The clinic whose patients have spent most, which is the federation's ε."""
    epsilon = federation_epsilon(spent)
    return next((clinic for clinic, value in spent.items() if value == epsilon), ""), epsilon


def mean_by_weight(replies: Iterable[Checked], weights: Mapping[str, float], name: str) -> float:
    """A number of the accepted replies, over those that share it; NaN where nobody does."""
    pairs = [
        (float(getattr(one.reply, name)), weights[one.clinic])
        for one in replies
        if one.verdict is Verdict.ACCEPTED and one.clinic in weights
    ]
    known = [(value, weight) for value, weight in pairs if math.isfinite(value)]
    total = math.fsum(weight for _, weight in known)
    return math.fsum(value * weight for value, weight in known) / total if total else math.nan


def _check_same(resolved: Location, config: FederationConfig) -> None:
    values = parse_scalar(storage.read_bytes(resolved).decode())
    before = validate(FederationConfig, values, source=resolved.uri)
    if before.sha256 != config.sha256:
        now, then = config.model_dump(mode="json"), before.model_dump(mode="json")
        different = [
            key
            for key in now
            if now[key] != then[key] and key not in ("output", "pretrained", "clinics", "server")
        ]
        raise ConfigError(
            f"run {config.name!r} in {resolved.parent.uri} began with other settings: {', '.join(different)}",
            "Resume with the old settings, or give the run another name (name=…).",
        )


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(without_nan(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Iterable[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet runs text that begins like a formula; a clinic chooses its name."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None or value != value else value
