"""Our log on the terminal, in programs that Flower starts: it configures its own log and nobody else's."""

from __future__ import annotations

import logging
import sys


def show_log() -> None:
    """Write what this package has to say to stderr, unless the program has taken care of its log already."""
    ours = logging.getLogger("fedvox_federation")
    ours.setLevel(logging.INFO)
    if not ours.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.propagate = False  # Ray gives the root logger a handler of its own, later
