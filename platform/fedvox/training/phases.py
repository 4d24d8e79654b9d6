"""Stretches of a run in which the same parts of the network are trained.

    pretraining      |———————————————— everything ————————————————|
    unfreezing       |— decoder, heads —|——————— everything ——————|

Each phase has its own learning rate, warm-up and decay. Which phase a step belongs to is a pure function of the
configuration, so a run that is resumed in the middle of one goes on exactly. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PARTS = ("stem", "encoder", "decoder", "heads")
"""What every backbone consists of, in the order of the data."""


@dataclass(frozen=True)
class Phase:
    """One stretch of a run.

    Attributes:
        start: its first step, 0-based.
        steps: how many it has.
        parts: what is trained; the other parts get no gradient, no update and no weight decay.
        lr: peak learning rate.
        warmup_steps: linear warm-up at its beginning.
        power: of the polynomial decay to zero at its end; 0 keeps the rate.
    """

    start: int
    steps: int
    parts: tuple[str, ...]
    lr: float
    warmup_steps: int
    power: float

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts that are not trained."""
        return tuple(part for part in PARTS if part not in self.parts)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of a 0-based step; the last one for all steps after its end."""
    return next((phase for phase in phases if step < phase.start + phase.steps), phases[-1])


def describe_phases(phases: Sequence[Phase]) -> list[str]:
    """A line per phase, for people."""
    return [
        f"steps {phase.start:,} to {phase.start + phase.steps:,}: {', '.join(phase.parts)}; "
        f"warm-up of {phase.warmup_steps:,} to lr {phase.lr:g}, "
        + (f"then (1 - progress)^{phase.power:g}" if phase.power else "then constant")
        for phase in phases
    ]
