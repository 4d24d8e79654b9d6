"""The rounds of a federation: who is asked, who counts, what becomes of the model, and what is left to go on from.

    Federation(config, grid, aggregator, checker, journal, start, base_sha256=…).run()

Around Flower's strategies, which have none of it: a quorum counted *after* refusals and failures, a deadline, an end to
waiting, checks of every reply, a table, and a state after each round from which a killed server goes on. A clinic that
is asked the same again answers from its disk, so that a repeated round costs its patients nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from flwr.app import Message, MessageType, RecordDict

from fedvox.errors import RunError
from fedvox_federation.config import FederationConfig
from fedvox_federation.privacy.federation import aggregation_weights
from fedvox_federation.protocol import (
    Arrays,
    BadMessage,
    ClinicReply,
    Refusal,
    RoundOrder,
    decode_reply,
    encode_order,
    with_correction,
)
from fedvox_federation.server.checks import BAD_UPDATES, Checked, Fault, ReplyChecker, Verdict
from fedvox_federation.server.exchange import Grid, Time, exchange
from fedvox_federation.server.journal import (
    Journal,
    RoundLine,
    clinic_row,
    mean_by_weight,
    spent_by,
    worst_off,
)
from fedvox_federation.server.scaffold import ControlVariates
from fedvox_federation.server.snapshot import Snapshot, save_snapshot
from fedvox_federation.server.strategies import Aggregator, Update
from fedvox_federation.server.table import round_table

log = logging.getLogger(__name__)

SLACK_S = 30.0
"""How much longer than the deadline Flower keeps a message for a node that has not fetched it."""
_TELL_EVERY_S = 10.0
_FINAL = (Refusal.BUDGET_EXHAUSTED, Refusal.NOT_ADMITTED, Refusal.NO_PROMISE, Refusal.UNSAFE_MODEL)
"""Codes that asking again does not change."""

Judge = Callable[[Arrays], float]
"""Global model -> its score on data of the study's own."""


class TooFewClinics(RunError):
    """Not enough clinics are connected, or not enough of their updates can be used."""


class Federation:
    """One federated run on the server.

    Args:
        config: of the federation.
        grid: Flower's.
        aggregator: see `build_aggregator`.
        checker: see `ReplyChecker`.
        journal: of the run directory, begun.
        start: from where to go on; round 0 for a new run.
        base_sha256: of what is not sent.
        judge: of the global model; None judges nothing.
        may_write: raises where another server has taken the run over; see `only_server`.
        clock: see `Time`.
    """

    def __init__(
        self,
        config: FederationConfig,
        grid: Grid,
        aggregator: Aggregator,
        checker: ReplyChecker,
        journal: Journal,
        start: Snapshot,
        *,
        base_sha256: str,
        judge: Judge | None = None,
        may_write: Callable[[], None] | None = None,
        clock: Time | None = None,
    ) -> None:
        self.config = config
        self.arrays = start.arrays
        self._grid = grid
        self._aggregator = aggregator
        self._checker = checker
        self._journal = journal
        self._done = start.round_number
        self._base_sha256 = base_sha256
        self._judge = judge
        self._may_write = may_write or (lambda: None)
        self._clock = clock or Time()
        aggregator.restore(start.strategy)
        self._controls = ControlVariates.of(config)
        if self._controls is not None:
            self._controls.restore(start.strategy)

    @property
    def quorum(self) -> int:
        """Accepted updates without which there is no next model."""
        return max(self.config.server.min_clinics, self._aggregator.least_updates)

    def run(self) -> Arrays:
        """All rounds that are left.

        Returns:
            The global model's trained parameters.

        Raises:
            TooFewClinics: see `ServerSection.on_too_few`; running again goes on with the same round.
            RunError: a bad update where `server.on_bad_update` is `stop`.
            StorageError: a round's state cannot be written.
        """
        for number in range(self._done + 1, self.config.rounds + 1):
            if not self._round(number):
                log.warning("round %d: every clinic's budget is spent; the run ends here", number)
                break
        return self.arrays

    def _round(self, number: int) -> bool:
        """False where all clinics' budgets are spent: nothing was done."""
        started = self._clock.now()
        self._tell("waiting for clinics", number)
        extras = self._aggregator.begin_round(number, self.arrays)
        order = RoundOrder(
            run=self.config.name,
            round_number=number,
            rounds=self.config.rounds,
            config_sha256=self.config.sha256,
            base_sha256=self._base_sha256,
            proximal_mu=extras.get("proximal-mu", 0.0),
        )
        replies = self._collect(order)
        waited = self._clock.now() - started
        if replies and all(one.reason == Refusal.BUDGET_EXHAUSTED for one in replies):
            return False
        accepted = {one.clinic: one for one in replies if one.verdict is Verdict.ACCEPTED}
        weights: dict[str, float] = {}
        if len(accepted) >= self.quorum:
            weights = self._aggregate(number, accepted)
        elif self.config.server.on_too_few != "skip":
            raise self._too_few(number, replies)
        self._finish(number, replies, weights, waited, started)
        return True

    # Asking

    def _collect(self, order: RoundOrder) -> list[Checked]:
        """Everybody's part in a round, in the order of the clinics' names."""
        server, began = self.config.server, self._clock.now()
        settled: dict[int, Checked] = {}
        while True:
            nodes = self._connected(order.round_number)
            self._checker.keep_nodes(nodes)
            missing = {node: key for node, key in nodes.items() if _may_ask(settled.get(node))}
            settled |= {one.node_id: one for one in self._ask(order, missing)}
            replies = self._checker.compare(
                sorted(settled.values(), key=lambda one: (one.clinic, not one.standing.attested, one.node_id))
            )
            self._stop_at_bad_update(order.round_number, replies)
            enough = sum(one.verdict is Verdict.ACCEPTED for one in replies) >= self.quorum
            waited = self._clock.now() - began
            if enough or server.on_too_few != "wait" or not any(_may_ask(one) for one in replies):
                return replies
            if waited + server.ask_again_s > server.give_up_s:
                return replies
            log.warning("%s", self._too_few(order.round_number, replies).message)
            self._clock.sleep(server.ask_again_s)

    def _connected(self, number: int) -> dict[int, bytes]:
        """Node -> its key, once there are enough nodes.

        Raises:
            TooFewClinics: there are not, in `server.connect_timeout_s`.
        """
        needed, limit = self.quorum, self.config.server.connect_timeout_s
        began, told = self._clock.now(), -math.inf
        while (
            len(nodes := {node.node_id: bytes(node.public_key) for node in self._grid.get_nodes()}) < needed
        ):
            waited = self._clock.now() - began
            found = f"round {number} needs {needed} clinics; {len(nodes)} are connected"
            if waited >= limit:
                raise TooFewClinics(
                    f"{found}, after {waited:.0f} s",
                    "Start more SuperNodes (--num-supernodes in a simulation), or lower server.min_clinics"
                    + (f" ({self._aggregator.name} itself needs {needed})." if self._needs_more else "."),
                )
            if waited - told >= _TELL_EVERY_S:
                log.warning("%s; waiting for %.0f s more", found, limit - waited)
                told = waited
            self._clock.sleep(min(0.5, limit))
        return nodes

    @property
    def _needs_more(self) -> bool:
        return self._aggregator.least_updates > self.config.server.min_clinics

    def _ask(self, order: RoundOrder, nodes: dict[int, bytes]) -> list[Checked]:
        """What each node answers before the deadline, judged by itself."""
        answered = self._introduced(order, nodes)
        told = [node for node in nodes if node not in answered]
        deadline = self.config.server.deadline_s
        common = encode_order(order, self.arrays)
        messages = []
        for node in told:
            correction = self._correction(node)
            content = encode_order(order, with_correction(self.arrays, correction)) if correction else common
            messages.append(_message(MessageType.TRAIN, content, node, deadline))
        progress = self._progress(order.round_number, len(told))
        for message in exchange(self._grid, messages, deadline, self._clock):
            node = message.metadata.src_node_id
            if node in nodes:
                answered[node] = self._read(message, order, nodes[node])
                progress()
        return [answered.get(node) or self._checker.nobody(node, Verdict.LATE) for node in nodes]

    def _progress(self, number: int, clinics: int) -> Callable[[], None]:
        """What to call at each answer: tells how many there are, at most every ten seconds."""
        began = told = self._clock.now()
        answered = 0
        self._tell("training", number, clinics=clinics, answered=0)

        def one_more() -> None:
            nonlocal answered, told
            answered, now = answered + 1, self._clock.now()
            if now - told >= _TELL_EVERY_S:
                told = now
                log.info("round %d: %d of %d have answered, %.0f s", number, answered, clinics, now - began)
                self._tell("training", number, clinics=clinics, answered=answered)

        return one_more

    def _introduced(self, order: RoundOrder, nodes: dict[int, bytes]) -> dict[int, Checked]:
        """Those that are not asked for an update, since they did not say which clinic they are.

        Only SCAFFOLD must know it beforehand, and only once it has corrections: a resumed server meets nodes that
        have not spoken to it yet.
        """
        if self._controls is None or not self._controls.clinics:
            return {}
        strangers = [node for node in nodes if not self._checker.name_of(node)]
        limit = self.config.server.connect_timeout_s
        content = encode_order(order, {})
        messages = [_message(MessageType.QUERY, content, node, limit) for node in strangers]
        silent = {node: self._checker.nobody(node, Verdict.LATE) for node in strangers}
        for message in exchange(self._grid, messages, limit, self._clock):
            node = message.metadata.src_node_id
            if node in silent and (wrong := self._hear(message, order, nodes[node])) is None:
                del silent[node]
            elif node in silent and wrong is not None:
                silent[node] = wrong
        return silent

    def _hear(self, message: Message, order: RoundOrder, node_key: bytes) -> Checked | None:
        reply = self._decode(message)
        if isinstance(reply, Checked):
            return reply
        return self._checker.introduce(reply, order, message.metadata.src_node_id, node_key)

    def _correction(self, node: int) -> Arrays:
        """That of the clinic behind a node; empty where there is none."""
        return {} if self._controls is None else self._controls.correction(self._checker.name_of(node))

    def _read(self, message: Message, order: RoundOrder, node_key: bytes) -> Checked:
        node, reply = message.metadata.src_node_id, self._decode(message)
        if isinstance(reply, Checked):
            return reply
        return self._checker.check(
            reply, order, self.arrays, node_id=node, node_key=node_key, correction=self._correction(node)
        )

    def _decode(self, message: Message) -> ClinicReply | Checked:
        """The reply, or why there is none."""
        node = message.metadata.src_node_id
        if message.has_error():
            # The error's text stays unread: it may hold what a clinic's exception said.
            return self._checker.nobody(node, Verdict.FAILED, f"flower-{message.error.code}")
        try:
            return decode_reply(message.content)
        except BadMessage as bad:
            return self._checker.nobody(node, Verdict.REJECTED, Fault.UNREADABLE.value, bad.message)

    def _stop_at_bad_update(self, number: int, replies: list[Checked]) -> None:
        bad = [one for one in replies if one.reason in BAD_UPDATES]
        if bad and self.config.server.on_bad_update == "stop":
            raise RunError(
                f"round {number}: {_named(bad)}",
                "Look at the clinic, and run again to go on with this round; or set server.on_bad_update=drop.",
            )

    def _too_few(self, number: int, replies: list[Checked]) -> TooFewClinics:
        accepted = sum(one.verdict is Verdict.ACCEPTED for one in replies)
        others = [one for one in replies if one.verdict is not Verdict.ACCEPTED]
        return TooFewClinics(
            f"round {number}: {accepted} updates can be used, and {self.quorum} are needed"
            + (f"; {_named(others)}" if others else ""),
            "Run again to go on with this round, or set server.on_too_few or server.min_clinics.",
        )

    # The next model

    def _aggregate(self, number: int, accepted: dict[str, Checked]) -> dict[str, float]:
        """Replaces the model; the clinics' weights, where the strategy has any."""
        updates = {clinic: Update(one.arrays, one.contribution) for clinic, one in accepted.items()}
        replies = {clinic: one.reply for clinic, one in accepted.items() if one.reply is not None}
        before, self.arrays = self.arrays, self._aggregator.aggregate(number, self.arrays, updates)
        if self._controls is not None:
            self._controls.learn(before, {clinic: reply.arrays for clinic, reply in replies.items()})
        for reply in replies.values():
            self._checker.remembered.accept(reply)
        by = self._aggregator.weighting if self._aggregator.uses_weights else "equal"
        return aggregation_weights(by, {clinic: one.contribution for clinic, one in accepted.items()})

    def _finish(
        self, number: int, replies: list[Checked], weights: dict[str, float], waited: float, started: float
    ) -> None:
        dice = self._judge(self.arrays) if self._judge is not None else math.nan
        worst, epsilon = worst_off(spent_by(self._journal.clinics, replies))
        line = RoundLine(
            round=number,
            outcome="aggregated" if weights else "skipped",
            accepted=len(weights),
            asked=len(replies),
            epsilon=epsilon,
            worst_clinic=worst,
            loss=mean_by_weight(replies, weights, "loss"),
            dice_before=mean_by_weight(replies, weights, "dice_before"),
            dice_after=mean_by_weight(replies, weights, "dice_after"),
            dice_global=dice,
            seconds=self._clock.now() - started,
            waited_s=waited,
        )
        rows = [
            clinic_row(number, one, weights.get(one.clinic, 0.0) if one.verdict is Verdict.ACCEPTED else 0.0)
            for one in replies
        ]
        log.info("%s", round_table(rows, vars(line)))
        self._may_write()
        # The state comes last: without it the round is done again, and its lines are replaced.
        self._journal.end_round(line, rows)
        memory = self._aggregator.state() | (self._controls.state() if self._controls is not None else {})
        save_snapshot(
            self._journal.state,
            Snapshot(number, self.arrays, memory, self._checker.remembered.to_plain()),
        )
        self._done = number
        self._tell("between rounds", number, epsilon=epsilon, worst_clinic=worst, accepted=len(weights))

    def _tell(self, phase: str, number: int, **facts: Any) -> None:
        self._journal.tell(
            phase, self.config, round=number, rounds_done=self._done, needed=self.quorum, **facts
        )


def _message(kind: str, content: RecordDict, node: int, limit: float) -> Message:
    return Message(content=content, message_type=kind, dst_node_id=node, ttl=limit + SLACK_S)


def _may_ask(one: Checked | None) -> bool:
    """Whether asking (again) may bring an update."""
    if one is None or one.verdict in (Verdict.FAILED, Verdict.LATE):
        return True
    return one.verdict is Verdict.DECLINED and one.reason not in _FINAL


def _named(replies: list[Checked]) -> str:
    """Who, and why; at most ten of them."""
    told = [
        f"{one.clinic} {one.verdict.value}" + (f" ({one.reason})" if one.reason else "")
        for one in replies[:10]
    ]
    more = len(replies) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")
