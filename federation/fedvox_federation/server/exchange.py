"""Messages out, and replies in one by one as they come: Flower's own `send_and_receive` is silent until the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Message

_PULL_S = (0.1, 1.0)
"""Shortest and longest pause between two looks; in between, a fiftieth of the time waited so far."""


class Grid(Protocol):
    """What the rounds need of Flower's grid."""

    def get_nodes(self) -> Iterable[Any]:
        """The connected nodes, with `node_id` and `public_key`."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends; gives the messages' ids."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that have come since the last look."""


@dataclass(frozen=True)
class Time:
    """The clock and the pause, so that tests need not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def exchange(grid: Grid, messages: Iterable[Message], limit_s: float, clock: Time) -> Iterator[Message]:
    """Send, and give the replies until all have come or the time is over.

    Args:
        grid: Flower's.
        messages: one a node.
        limit_s: how long to wait.
        clock: see `Time`.
    """
    waiting, began = set(grid.push_messages(messages)), clock.now()
    shortest, longest = _PULL_S
    while waiting and (waited := clock.now() - began) < limit_s:
        for reply in list(grid.pull_messages(set(waiting))):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting:
            clock.sleep(min(longest, max(shortest, waited / 50)))
