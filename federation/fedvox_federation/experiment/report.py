"""Tables, comparisons and curves of the runs that there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedvox.storage import locate, write_atomic
from fedvox_federation.experiment.arms import ARMS
from fedvox_federation.experiment.runs import RunResult
from fedvox_federation.experiment.statistics import Comparison, Estimate, compare, estimate
from fedvox_federation.privacy.noise_policy import VACUOUS_EPSILON

DECLARED = (
    ("tiers", "compliant-only"),  # does it help to let the others in?
    ("tiers", "matched"),  # does it matter who has the noise?
    ("tiers", "uniform"),  # what does the added noise cost?
    ("tiers-weighted", "tiers"),  # do weights make up for it?
)
"""The comparisons that are tested, on the mean over all clinics' test patients."""

MEASURES: Mapping[str, Callable[[RunResult], float]] = {
    "all": lambda result: result.score,
    "compliant": lambda result: result.of_group(compliant=True),
    "others": lambda result: result.of_group(compliant=False),
    "worst clinic": lambda result: result.worst,
    "gap": lambda result: result.gap,
}
"""What is reported of a run: mean scores of test patients, and differences between clinics."""


@dataclass(frozen=True)
class Row:
    """One arm at one ε.

    Attributes:
        arm: its name.
        promised: ε, 0 for none.
        seeds: how many there are.
        spent: the federation's ε, the largest of the clinics'; None where there is no finite one.
        measures: see `MEASURES`.
    """

    arm: str
    promised: float
    seeds: int
    spent: float | None
    measures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Section:
    """One task in one scenario.

    Attributes:
        task: see `runs.TASKS`.
        scenario: likewise.
        rows: arms by ε.
        comparisons: the declared ones.
        inclusion: ε -> what `tiers` gains on `compliant-only`, by measure.
    """

    task: str
    scenario: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    inclusion: Mapping[float, Mapping[str, Estimate]]


Cells = dict[tuple[str, float], dict[int, RunResult]]
"""(arm, ε) -> seed -> result."""


def summarise(results: Iterable[RunResult]) -> list[Section]:
    """One section for each task and scenario."""
    grouped: dict[tuple[str, str], Cells] = {}
    for result in results:
        run = result.run
        cells = grouped.setdefault((run.task, run.scenario), {})
        cells.setdefault((run.arm, run.epsilon), {})[run.seed] = result
    return [_section(task, scenario, cells) for (task, scenario), cells in grouped.items()]


def _section(task: str, scenario: str, cells: Cells) -> Section:
    epsilons = sorted({epsilon for _, epsilon in cells if epsilon})
    pairs = {
        (a, b, epsilon): _paired(cells, (a, epsilon), (b, epsilon), MEASURES["all"])
        for a, b in DECLARED
        for epsilon in epsilons
        if (a, epsilon) in cells and (b, epsilon) in cells
    }
    order = list(ARMS)
    keys = sorted(cells, key=lambda key: (order.index(key[0]), key[1]))
    return Section(
        task,
        scenario,
        tuple(_row(arm, epsilon, list(cells[arm, epsilon].values())) for arm, epsilon in keys),
        tuple(compare(pairs)),
        {
            epsilon: {
                name: estimate(np.subtract(*_paired(cells, ("tiers", epsilon), (other, epsilon), of)))
                for name, of in MEASURES.items()
            }
            for epsilon in epsilons
            if ("tiers", epsilon) in cells and ((other := "compliant-only"), epsilon) in cells
        },
    )


def _paired(
    cells: Cells, first: tuple[str, float], second: tuple[str, float], of: Callable[[RunResult], float]
) -> tuple[Any, Any]:
    """The seeds that both have, in the same order."""
    seeds = sorted(cells[first].keys() & cells[second].keys())
    a, b = ([of(cells[key][seed]) for seed in seeds] for key in (first, second))
    return np.array(a), np.array(b)


def _row(arm: str, epsilon: float, results: Sequence[RunResult]) -> Row:
    spent = [result.epsilon for result in results]
    finite = [value for value in spent if value is not None]
    return Row(
        arm,
        epsilon,
        len(results),
        max(finite) if len(finite) == len(spent) else None,
        {name: estimate([of(result) for result in results]) for name, of in MEASURES.items()},
    )


def as_markdown(section: Section) -> str:
    """The tables of a section."""
    names = list(MEASURES)
    lines = [
        f"### {section.task}, {section.scenario}",
        "",
        f"| arm | promised ε | spent ε | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for row in section.rows:
        cells = " | ".join(_interval(row.measures[name]) for name in names)
        lines.append(f"| {row.arm} | {_promise(row.promised)} | {_spent(row.spent)} | {cells} |")
    lines += [
        "",
        _seeds(section),
        "",
        "| comparison | ε | difference | p | p (Holm) | seeds won |",
        "|---|---|---|---|---|---|",
    ]
    for c in section.comparisons:
        mark = "**" if c.significant else ""
        lines.append(
            f"| {c.a} - {c.b} | {c.epsilon:g} | {mark}{_interval(c.difference, signed=True)}{mark} | {_p(c.p)} | "
            f"{_p(c.p_holm)} | {c.wins:.0%} |"
        )
    lines += ["", f"| tiers - compliant-only, ε | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for epsilon, gains in section.inclusion.items():
        cells = " | ".join(_interval(gains[name], signed=True) for name in names)
        lines.append(f"| {epsilon:g} | {cells} |")
    return "\n".join(lines) + "\n"


def _seeds(section: Section) -> str:
    counts = sorted({row.seeds for row in section.rows})
    return (
        f"Means over {' to '.join(map(str, counts))} seeds with 95 % intervals; bold: significant after Holm."
    )


def _interval(value: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _promise(epsilon: float) -> str:
    return f"{epsilon:g}" if epsilon else "none"


def _spent(epsilon: float | None) -> str:
    if epsilon is None or epsilon >= VACUOUS_EPSILON:
        return "no guarantee"
    return f"{epsilon:.3g}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """Everything, as plain data."""
    return {"sections": [_plain(asdict(section)) for section in sections]}


def _plain(value: Any) -> Any:
    """NaN (an interval of one seed) is `null` in JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write(sections: Sequence[Section], results: Sequence[RunResult], folder: Path) -> list[Path]:
    """`report.json`, `report.md`, and a PNG for each section.

    Returns:
        The files.
    """
    from fedvox_federation.experiment.figures import draw

    text = "\n".join(as_markdown(section) for section in sections)
    files = [folder / "report.json", folder / "report.md"]
    document = json.dumps(as_json(sections), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(locate(files[0]), document.encode())
    write_atomic(locate(files[1]), text.encode())
    for section in sections:
        mine = [r for r in results if (r.run.task, r.run.scenario) == (section.task, section.scenario)]
        files.append(folder / f"{section.task}-{section.scenario}.png")
        draw(section, mine, files[-1])
    return files
