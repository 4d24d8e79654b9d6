"""Every reply is doubted: what it is, whose it is, whether it was seen before, and whether its noise is enough.

    checker = ReplyChecker(config, registry, simulation=True)
    checked = checker.check(reply, order, arrays, node_id=7, node_key=b"")
    checked.verdict, checked.reason                      # a `Fault` where the server refuses it

A refused reply is named in the round's table with its reason and takes no further part in the round. Nothing of it
was unpickled: replies are numbers, short texts and plain arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from fedvox_federation.config import FederationConfig
from fedvox_federation.privacy.federation import Contribution
from fedvox_federation.privacy.noise_policy import (
    UNATTESTED,
    Excluded,
    Promise,
    Standing,
    Workload,
    build_policy,
    site_noise,
)
from fedvox_federation.protocol import Array, ClinicReply, RoundOrder, arrays_sha256
from fedvox_federation.server.norms import reachable_norm, update_norm
from fedvox_federation.server.standings import Judged, Registry

ROUNDING = 1e-6
"""Relative; clinic and server compute noise and rates from the same numbers on different machines."""

LONGEST_NAME = 200
"""As `ClinicConfig.name` allows."""


class Verdict(StrEnum):
    """What became of a clinic's part in a round."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    """The clinic sent a code instead of an update."""
    REJECTED = "rejected"
    """The server refuses the update."""
    FAILED = "failed"
    """The node answered with an error of Flower's, or died."""
    LATE = "late"
    """No answer before the deadline."""


class Fault(StrEnum):
    """Why the server refuses an update."""

    UNREADABLE = "unreadable"
    OTHER_RUN = "other-run"
    OTHER_ROUND = "other-round"
    OTHER_NAME = "other-name"
    """The node spoke for another clinic before, or another node speaks for this clinic."""
    ANSWERED_TWICE = "answered-twice"
    NAMES = "names"
    SHAPE = "shape"
    DTYPE = "dtype"
    NOT_FINITE = "not-finite"
    TOO_LONG = "too-long"
    """Longer than this training can move a model, or than `norm_over_median` times the round's median."""
    UNCHANGED = "unchanged"
    """The server's own model sent back, although noise was claimed."""
    HASH = "hash"
    REPLAYED = "replayed"
    """The update was accepted before, in another round or from another clinic."""
    PATIENTS = "patients"
    STEPS = "steps"
    SAMPLE_RATE = "sample-rate"
    NUMBERS = "numbers"
    """A number that cannot be: NaN noise, a negative ε, a δ of 1 or above the study's."""
    EPSILON_FELL = "epsilon-fell"
    NOT_ELIGIBLE = "not-eligible"
    NOISE = "noise"
    """Less noise than the verified standing demands."""


BAD_UPDATES = (Fault.NAMES, Fault.SHAPE, Fault.DTYPE, Fault.NOT_FINITE, Fault.TOO_LONG)
"""What `server.on_bad_update` is about."""


@dataclass(frozen=True)
class Checked:
    """A reply and what the server thinks of it.

    Attributes:
        node_id: Flower's.
        verdict: see `Verdict`.
        reason: a `Fault`, a `Refusal`, or empty.
        note: more, in words of the server's own.
        reply: None where there is none that can be read.
        arrays: of an accepted update, cut to the allowed length.
        norm: L2 length of the update before it was cut.
        standing: as the server knows it.
        known_as: clinic for which the node spoke before, where there is no reply.
    """

    node_id: int
    verdict: Verdict
    reason: str = ""
    note: str = ""
    reply: ClinicReply | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    norm: float = math.nan
    standing: Standing = UNATTESTED
    known_as: str = ""

    @property
    def clinic(self) -> str:
        """The clinic's name, or the node's number."""
        told = self.reply.clinic if self.reply is not None else self.known_as
        return told or f"node {self.node_id}"

    @property
    def contribution(self) -> Contribution:
        """What an accepted update's weight follows from."""
        assert self.reply is not None
        one = self.reply
        return Contribution(one.patients, one.expected_batch_size, one.noise_multiplier, self.standing.score)


@dataclass
class Remembered:
    """What earlier rounds tell about later replies; survives a restart of the server.

    Attributes:
        updates: hash of every accepted update -> clinic and round.
        patients: clinic -> how many it has.
        epsilon: clinic -> what it said it had spent.
    """

    updates: dict[str, tuple[str, int]] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)

    def accept(self, reply: ClinicReply) -> None:
        """Remember an update that went into the model."""
        self.updates[reply.update_sha256] = (reply.clinic, reply.round_number)
        self.patients[reply.clinic] = reply.patients
        if math.isfinite(reply.epsilon_spent):
            self.epsilon[reply.clinic] = reply.epsilon_spent

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        updates = {sha256: list(whose) for sha256, whose in self.updates.items()}
        return {"updates": updates, "patients": dict(self.patients), "epsilon": dict(self.epsilon)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Remembered:
        """The inverse of `to_plain`."""
        updates = {
            sha256: (str(clinic), int(number)) for sha256, (clinic, number) in plain["updates"].items()
        }
        return cls(updates, dict(plain["patients"]), dict(plain["epsilon"]))


class ReplyChecker:
    """The server's doubts, and what it remembers to have them.

    Args:
        config: of the federation.
        registry: see `fedvox_federation.server.standings`.
        simulation: no patient is behind the data; see `site_noise`.
        remembered: of an earlier process.
    """

    def __init__(
        self,
        config: FederationConfig,
        registry: Registry,
        *,
        simulation: bool,
        remembered: Remembered | None = None,
    ) -> None:
        self.remembered = remembered or Remembered()
        self._config = config
        self._registry = registry
        self._simulation = simulation
        self._policy = build_policy(config.privacy.policy.name, **config.privacy.policy.options)
        self._names: dict[int, str] = {}
        self._proven: set[int] = set()  # nodes whose attestation is for the name that they speak for

    def check(
        self,
        reply: ClinicReply,
        order: RoundOrder,
        arrays: Mapping[str, Array],
        *,
        node_id: int = 0,
        node_key: bytes = b"",
        correction: Mapping[str, Array] | None = None,
    ) -> Checked:
        """Judge one reply by itself.

        Args:
            reply: decoded.
            order: that it answers.
            arrays: the model that went out with the order.
            node_id: Flower's, of who replies.
            node_key: with which that node authenticated.
            correction: of its gradients, if one went out with the order.
        """
        judged = self._registry.judge(reply, node_key)
        result = Checked(node_id, Verdict.ACCEPTED, "", judged.note, reply, standing=judged.standing)
        if reply.refusal is not None and _identity(reply, order) is None:
            return self._declined(replace(result, verdict=Verdict.DECLINED, reason=reply.refusal.value))
        if (stranger := self._stranger(reply, order, node_id, judged)) is not None:
            return stranger
        fault = _shape_of_update(reply.arrays, arrays) or self._numbers(reply) or self._workload(reply)
        fault = fault or self._origin(reply)
        fault = fault or self._noise(reply, judged)
        if fault is not None:
            return replace(result, verdict=Verdict.REJECTED, reason=fault.value)
        norm = update_norm(reply.arrays, arrays)
        if norm == 0 and reply.noise_multiplier > 0:
            return replace(result, verdict=Verdict.REJECTED, reason=Fault.UNCHANGED.value, norm=norm)
        believed = replace(reply, noise_multiplier=min(reply.noise_multiplier, self._most_noise(reply)))
        if not norm <= reachable_norm(self._config, believed, arrays, correction):
            return replace(result, verdict=Verdict.REJECTED, reason=Fault.TOO_LONG.value, norm=norm)
        return replace(result, norm=norm, arrays=self._cut(reply.arrays, arrays, norm))

    def name_of(self, node_id: int) -> str:
        """The clinic for which a node spoke; empty before it has."""
        return self._names.get(node_id, "")

    def introduce(
        self, reply: ClinicReply, order: RoundOrder, node_id: int, node_key: bytes = b""
    ) -> Checked | None:
        """Hear which clinic a node speaks for; what is wrong with that, if anything is."""
        if reply.refusal is not None:
            return self.nobody(node_id, Verdict.DECLINED, reply.refusal.value)
        return self._stranger(reply, order, node_id, self._registry.judge(reply, node_key))

    def nobody(self, node_id: int, verdict: Verdict, reason: str = "", note: str = "") -> Checked:
        """A part in the round without a reply that could be read."""
        return Checked(node_id, verdict, reason, note, known_as=self._names.get(node_id, ""))

    def keep_nodes(self, connected: Iterable[int]) -> None:
        """Forget which clinic a node spoke for that is gone: it may come back as another node."""
        there = set(connected)
        self._names = {node: name for node, name in self._names.items() if node in there}
        self._proven &= there

    def _declined(self, one: Checked) -> Checked:
        """A clinic in trouble may not know its own name; whoever uses another's is called by the node's number."""
        holders = {node for node, name in self._names.items() if name == one.clinic}
        is_its_own = self._names.get(one.node_id, one.clinic) == one.clinic and holders <= {one.node_id}
        return one if is_its_own else self.nobody(one.node_id, one.verdict, one.reason)

    def _stranger(
        self, reply: ClinicReply, order: RoundOrder, node_id: int, judged: Judged
    ) -> Checked | None:
        """A reply to another order, or under a name that is not the node's; it stands under no clinic's name."""
        fault = _identity(reply, order) or self._speaker(reply, node_id, attested=judged.standing.attested)
        return None if fault is None else self.nobody(node_id, Verdict.REJECTED, fault.value)

    def _speaker(self, reply: ClinicReply, node_id: int, *, attested: bool) -> Fault | None:
        """Names are kept by who says them first, and go to who can prove them."""
        if self._names.get(node_id, reply.clinic) != reply.clinic:
            return Fault.OTHER_NAME
        owners = [node for node, name in self._names.items() if name == reply.clinic and node != node_id]
        if owners and (not attested or self._proven.issuperset(owners)):
            return Fault.OTHER_NAME
        for node in owners:
            del self._names[node]
        self._names[node_id] = reply.clinic
        if attested:
            self._proven.add(node_id)
        return None

    def _numbers(self, reply: ClinicReply) -> Fault | None:
        told = (reply.noise_multiplier, reply.sample_rate, reply.delta, reply.seconds)
        if not all(math.isfinite(value) and value >= 0 for value in told):
            return Fault.NUMBERS
        if reply.delta > self._config.privacy.delta * (1 + ROUNDING):
            return Fault.NUMBERS
        if not reply.epsilon_spent >= 0:  # NaN too; infinite is the truth where there is no noise
            return Fault.NUMBERS
        if reply.noise_multiplier > 0 and not 0 < reply.delta < 1:
            return Fault.NUMBERS
        if reply.epsilon_spent < self.remembered.epsilon.get(reply.clinic, 0.0) * (1 - ROUNDING):
            return Fault.EPSILON_FELL
        return None

    def _workload(self, reply: ClinicReply) -> Fault | None:
        """Patients, steps and rate, which also decide the clinic's weight."""
        privacy = self._config.privacy
        if reply.patients < 1 or self.remembered.patients.get(reply.clinic, reply.patients) != reply.patients:
            return Fault.PATIENTS
        if not self._simulation and reply.patients * privacy.delta >= 1:
            return Fault.PATIENTS  # to so many, δ promises nothing: no clinic of ours would have trained
        if not 1 <= reply.steps <= self._config.training.steps:
            return Fault.STEPS
        expected = min(privacy.expected_batch / reply.patients, privacy.largest_sample_rate)
        return None if math.isclose(reply.sample_rate, expected, rel_tol=ROUNDING) else Fault.SAMPLE_RATE

    def _origin(self, reply: ClinicReply) -> Fault | None:
        if arrays_sha256(reply.arrays) != reply.update_sha256:
            return Fault.HASH
        whose = (reply.clinic, reply.round_number)
        return None if self.remembered.updates.get(reply.update_sha256, whose) == whose else Fault.REPLAYED

    def _planned(self, reply: ClinicReply) -> tuple[Promise, Workload]:
        privacy = self._config.privacy
        workload = Workload(reply.sample_rate, self._config.rounds * self._config.training.steps)
        return Promise(privacy.epsilon, privacy.delta), workload

    def _most_noise(self, reply: ClinicReply) -> float:
        """What the policy gives the lowest standing: who claims more claims it to send a longer update."""
        return self._policy.noise_multiplier(Standing(0.0, 0, True, True), *self._planned(reply))

    def _noise(self, reply: ClinicReply, judged: Judged) -> Fault | None:
        privacy = self._config.privacy
        demanded = site_noise(
            self._policy,
            judged.standing,
            *self._planned(reply),
            admit_unattested=privacy.admit_unattested,
            simulation=self._simulation,
        )
        if isinstance(demanded, Excluded):
            return Fault.NOT_ELIGIBLE
        enough = demanded.noise_multiplier * (1 - ROUNDING)
        return None if reply.noise_multiplier >= enough else Fault.NOISE

    def _cut(
        self, update: Mapping[str, Array], arrays: Mapping[str, Array], norm: float
    ) -> Mapping[str, Array]:
        longest = self._config.server.largest_update_norm
        if longest is None or norm <= longest:
            return update
        share = np.float32(longest / norm)
        return {name: arrays[name] + (value - arrays[name]) * share for name, value in update.items()}

    def compare(self, round_of_replies: list[Checked]) -> list[Checked]:
        """Judge a round's replies beside each other: one clinic twice, one update twice, one far too long.

        Args:
            round_of_replies: of two of one clinic, the first counts.
        """
        result, clinics, hashes = [], set(), set()
        for one in round_of_replies:
            fault = None
            if one.verdict is Verdict.ACCEPTED and one.reply is not None:
                if one.reply.clinic in clinics:
                    fault = Fault.ANSWERED_TWICE
                elif one.reply.update_sha256 in hashes:
                    fault = Fault.REPLAYED
                else:
                    clinics.add(one.reply.clinic)
                    hashes.add(one.reply.update_sha256)
            result.append(one if fault is None else _rejected(one, fault))
        return self._against_median(result)

    def _against_median(self, replies: list[Checked]) -> list[Checked]:
        factor = self._config.server.norm_over_median
        norms = [one.norm for one in replies if one.verdict is Verdict.ACCEPTED]
        if factor is None or len(norms) < 3:
            return replies
        longest = factor * float(np.median(norms))
        return [
            _rejected(one, Fault.TOO_LONG) if one.verdict is Verdict.ACCEPTED and one.norm > longest else one
            for one in replies
        ]


def _rejected(one: Checked, fault: Fault) -> Checked:
    return replace(one, verdict=Verdict.REJECTED, reason=fault.value, arrays={})


def _identity(reply: ClinicReply, order: RoundOrder) -> Fault | None:
    if not reply.clinic or not reply.clinic.isprintable() or len(reply.clinic) > LONGEST_NAME:
        return Fault.UNREADABLE
    if reply.run != order.run:
        return Fault.OTHER_RUN
    return Fault.OTHER_ROUND if reply.round_number != order.round_number else None


def _shape_of_update(update: Mapping[str, Array], arrays: Mapping[str, Array]) -> Fault | None:
    if update.keys() != arrays.keys():
        return Fault.NAMES
    if any(update[name].shape != arrays[name].shape for name in arrays):
        return Fault.SHAPE
    if any(update[name].dtype != arrays[name].dtype for name in arrays):
        return Fault.DTYPE
    return None if all(np.isfinite(value).all() for value in update.values()) else Fault.NOT_FINITE
