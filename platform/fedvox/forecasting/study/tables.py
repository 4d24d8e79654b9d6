"""The tables of the study's report, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedvox.forecasting.baselines import BASELINES
from fedvox.forecasting.study.cells import METHODS, SETS, Cell
from fedvox.forecasting.study.summary import estimate, seeds_of, verdicts

Cells = Mapping[Cell, dict[str, Any]]

_SHOWN = (
    ("between", "mse"), ("after", "mse"), ("beyond", "mse"), ("any", "region_mse"), ("any", "volume_error"),
    ("any", "still_mse"), ("any", "ssim"),
)  # fmt: skip


def error_table(cells: Cells) -> Iterator[str]:
    """Errors relative to LCI; SSIM as it is."""
    yield (
        "| data | method | seeds | all targets [over patients] | over seeds | between | after | beyond "
        "| changing region | volume | still | SSIM |"
    )
    yield "|---" * 12 + "|"
    for data in SETS:
        for method in (*BASELINES, *METHODS):
            every = estimate(cells, data, method, "any", "mse")
            if every is None:
                continue
            reach = "" if every.seeds < 2 else f"{every.seed_low:.3f} to {every.seed_high:.3f}"
            shown = [f"{every.value:.3f} [{every.low:.3f}, {every.high:.3f}]", reach]
            for condition, metric in _SHOWN:
                shown.append(_told(cells, data, method, condition, metric))
            yield f"| {data} | {method} | {every.seeds if method in METHODS else ''} | {' | '.join(shown)} |"


def _told(cells: Cells, data: str, method: str, condition: str, metric: str) -> str:
    mine = seeds_of(cells, data, method)
    if condition not in mine[0]["conditions"]:
        return ""
    if metric == "ssim":
        return f"{np.mean([value['conditions'][condition][metric] for value in mine]):.3f}"
    found = estimate(cells, data, method, condition, metric)
    return "" if found is None else f"{found.value:.3f}"


def trust_table(cells: Cells) -> Iterator[str]:
    """Errors relative to LCI with trust and in full trust: all patients, and patients who never change."""
    yield (
        "| data | method | seeds | all targets | in full trust | never change, by seed | in full trust, by seed "
        "| median patient | worst patient |"
    )
    yield "|---" * 9 + "|"
    for data in SETS:
        for method in METHODS:
            mine = [value for value in seeds_of(cells, data, method) if "untrusting" in value]
            if not mine:
                continue
            name = next(iter(mine[0]["conditions"]))
            trusting = [_ratios(value, name, value["untrusting"][name]) for value in mine]
            every = [_ratios(value, name, value["conditions"][name]["mse"]) for value in mine]
            static = [_ratios(value, "static", value["conditions"]["static"]["mse"]) for value in mine]
            before = [_ratios(value, "static", value["untrusting"]["static"]) for value in mine]
            each = np.concatenate([
                np.divide(value["conditions"]["static"]["mse"], value["conditions"]["static"]["mse_lci"])
                for value in mine
            ])  # fmt: skip
            yield (
                f"| {data} | {method} | {len(mine)} | {np.mean(every):.3f} | {np.mean(trusting):.3f} "
                f"| {_listed(static)} | {_listed(before)} | {np.median(each):.2f} | {each.max():.1f} |"
            )


def _ratios(value: dict[str, Any], condition: str, errors: Sequence[float]) -> float:
    return float(np.sum(errors) / np.sum(value["conditions"][condition]["mse_lci"]))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def futures_table(cells: Cells) -> Iterator[str]:
    """Draws where two futures are possible; see `fedvox.forecasting.study.futures`."""
    yield "| method | seeds | at A | at B | patients with both | distance to the nearer | energy score | spread |"
    yield "|---" * 8 + "|"
    for method in (*BASELINES, *METHODS):
        mine = [value["futures"] for value in seeds_of(cells, "response", method)]
        if mine:
            means = [
                f"{np.mean([value[name] for value in mine]):.2f}" if name in mine[0] else ""
                for name in ("a", "b", "both", "distance", "energy", "spread")
            ]
            yield f"| {method} | {len(mine) if method in METHODS else ''} | {' | '.join(means)} |"


def claim_table(cells: Cells) -> Iterator[str]:
    """What must hold, and whether it does."""
    yield "| must hold | limit | measured | |"
    yield "|---|---|---|---|"
    for claim, value, told in verdicts(cells):
        yield f"| {claim.text} | {claim.limit:.2f} | {'' if value is None else f'{value:.3f}'} | {told} |"
