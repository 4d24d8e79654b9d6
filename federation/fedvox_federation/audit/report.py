"""What audits say together: a table, a figure, and whether anything is wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from fedvox_federation.audit.run import AuditResult
from fedvox_federation.errors import AuditFailed

_MUST_BE_FOUND = ("no-noise", "no-clipping")
_COLORS = {"none": "#0072B2", "no-noise": "#D55E00", "no-clipping": "#E69F00", "placebo": "#999999"}
_MARKERS = {"none": "o", "no-noise": "^", "no-clipping": "s", "placebo": "x"}
_NAMES = {"none": "as it is"}


def as_text(results: Sequence[AuditResult]) -> str:
    """One line a training."""
    head = f"{'training':<12} {'ledger ε':>8} {'proven ε':>8} {'right guesses':>15}  verdict"
    return "\n".join([head, *map(_line, results)])


def _line(result: AuditResult) -> str:
    guesses = result.bound.guesses
    return (
        f"{_name(result):<12} {result.ledger_epsilon:>8.3g} {result.bound.epsilon:>8.3g} "
        f"{guesses.right:>7} of {guesses.made:<4}  {verdict(result)}"
    )


def _name(result: AuditResult) -> str:
    return _NAMES.get(result.plan.control, result.plan.control)


def verdict(result: AuditResult) -> str:
    """In words."""
    control = result.plan.control
    if control in _MUST_BE_FOUND:
        return "caught, as it must be" if result.refuted else "NOT caught: this audit is too weak"
    return "LEAKS MORE THAN THE LEDGER SAYS" if result.refuted else "within the ledger"


def require_sound(results: Sequence[AuditResult]) -> None:
    """Refuse results that contradict the ledger, or an audit that is blind.

    Raises:
        AuditFailed: see above.
    """
    for result in results:
        caught, control = result.refuted, result.plan.control
        if caught and control not in _MUST_BE_FOUND:
            raise AuditFailed(
                f"{_name(result)}: at least ε = {result.bound.epsilon:.3g} was spent at "
                f"{result.plan.confidence:.0%} confidence; the ledger says {result.ledger_epsilon:.3g}",
                "Do not train on patients. Repeat it with another --seed: by chance it happens once in twenty.",
            )
        if not caught and control in _MUST_BE_FOUND:
            raise AuditFailed(
                f"the control {control} was not caught: proven ε {result.bound.epsilon:.3g}, ledger "
                f"{result.ledger_epsilon:.3g}",
                "Take more canaries: without noise, at most about ln(canaries / 3) can be proven.",
            )


def draw(results: Sequence[AuditResult], path: Path) -> None:
    """Proven against believed ε, as a PNG.

    Raises:
        StorageError: it cannot be written there.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from fedvox import storage

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        widest = 1.1 * max(max(r.ledger_epsilon, r.bound.epsilon) for r in results)
        axes.plot([0, widest], [0, widest], color="black", linewidth=0.8)
        axes.fill_between([0, widest], [0, widest], widest, color="#D55E00", alpha=0.08, linewidth=0)
        for control in dict.fromkeys(result.plan.control for result in results):
            mine = [result for result in results if result.plan.control == control]
            axes.scatter(
                [r.ledger_epsilon for r in mine],
                [r.bound.epsilon for r in mine],
                color=_COLORS[control],
                marker=_MARKERS[control],
                label=_name(mine[0]),
                zorder=3,
            )
        axes.set(xlim=(0, widest), ylim=(-0.02 * widest, widest), xlabel="ε by the ledger", ylabel="ε proven")
        axes.text(0.03 * widest, 0.93 * widest, "the ledger is refuted", color="#A04000")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
    storage.write_atomic(storage.locate(path), content.getvalue())
