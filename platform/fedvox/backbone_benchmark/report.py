"""A comparison for machines and people: JSON, CSV, Markdown, one HTML page, and figures."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jinja2

from fedvox import storage
from fedvox.backbone_benchmark import figures
from fedvox.backbone_benchmark.benchmark import Comparison
from fedvox.backbone_benchmark.config import Budget
from fedvox.backbone_benchmark.trials import root_of
from fedvox.storage import Location

SCHEMA = "fedvox.backbones/1"

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}: backbones compared</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;
background:#fff}table{border-collapse:collapse;margin:1rem 0}caption{text-align:left;font-weight:600}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:left}img{max-width:100%}</style></head><body>
<h1>{{ name }}: backbones compared</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}{% for caption, header, rows in tables %}<table><caption>{{ caption }}</caption>
<tr>{% for h in header %}<th scope="col">{{ h }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}{% for title, data in images %}<img alt="{{ title }}" src="data:image/png;base64,{{ data }}">
{% endfor %}</body></html>
"""


def write_report(found: Comparison) -> Location:
    """Writes everything below the comparison's folder; results.json last.

    Returns:
        The folder.
    """
    root = root_of(found.config)
    images = figures.draw(found)
    for name, (_, data) in images.items():
        storage.write_atomic(root.child("figures", f"{name}.png"), data)
    storage.write_atomic(root.child("report.md"), markdown(found).encode())
    storage.write_atomic(root.child("report.html"), _html(found, images).encode())
    storage.write_atomic(root.child("backbones.csv"), _csv(list(rows(found))).encode())
    storage.write_atomic(root.child("cases.csv"), _csv(list(cases(found))).encode())
    storage.write_atomic(root.child("results.json"), (json.dumps(to_dict(found), indent=1) + "\n").encode())
    return root


def rows(found: Comparison) -> Iterator[dict[str, Any]]:
    """One flat row a backbone, best first: what backbones.csv holds."""
    gained = {gain.label: gain for gain in found.gains}
    for standing in found.standings:
        cost, runs = found.profiles[standing.label], found.results["scratch"][standing.label]
        row = {
            "backbone": standing.label, "parameters": cost.parameters, "tflop_per_step": cost.tflop_per_step,
            "seconds_per_step": cost.seconds_per_step, "peak_gib": cost.peak_gib, "device": cost.device,
            "steps": runs[0]["steps"], "tflop": runs[0]["tflop"], "dice": standing.dice,
            "dice_low_cases": standing.cases[0], "dice_high_cases": standing.cases[1],
            "dice_low": standing.both[0], "dice_high": standing.both[1],
            "seed_deviation": standing.seed_deviation, "rank": standing.rank,
            "rank_low": standing.rank_interval[0], "rank_high": standing.rank_interval[1],
            "probability_first": standing.probability_first,
        }  # fmt: skip
        gain = gained.get(standing.label)
        row |= {
            "finetuned_dice": gain and gain.finetuned, "gain": gain and gain.gain,
            "gain_low": gain and gain.interval[0], "gain_high": gain and gain.interval[1],
        }  # fmt: skip
        yield row


def cases(found: Comparison) -> Iterator[dict[str, Any]]:
    """One row per trial, held-out case and structure: what cases.csv holds."""
    for phase, of_phase in found.results.items():
        for label, runs in of_phase.items():
            for run in runs:
                table = run["dice"] or {"cases": [], "structures": [], "values": []}
                for case, values in zip(table["cases"], table["values"], strict=True):
                    for structure, dice in zip(table["structures"], values, strict=True):
                        yield {
                            "phase": phase, "backbone": label, "seed": run["seed"], "case": case,
                            "structure": structure, "dice": dice,
                        }  # fmt: skip


def to_dict(found: Comparison) -> dict[str, Any]:
    """All of it as JSON types."""
    return {
        "schema": SCHEMA,
        "name": found.config.name,
        "config": found.config.model_dump(mode="json"),
        "held_out": list(found.facts.held_out),
        "structures": list(found.facts.structures),
        "profiles": {label: asdict(cost) for label, cost in found.profiles.items()},
        "standings": [asdict(standing) for standing in found.standings],
        "gains": [asdict(gain) for gain in found.gains],
        "correlation": found.correlation and asdict(found.correlation),
        "failures": {name: error.message for name, error in found.failures.items()},
        "trials": [run for of_phase in found.results.values() for runs in of_phase.values() for run in runs],
    }


def markdown(found: Comparison) -> str:
    """The report in Markdown."""
    parts = [f"# {found.config.name}: backbones compared", *lines(found)]
    for caption, (header, body) in _tables(found):
        rule = "|" + "---|" * len(header)
        table = [f"| {' | '.join(cells)} |" for cells in body]
        parts.append("\n".join([f"**{caption}**", "", f"| {' | '.join(header)} |", rule, *table]))
    return "\n\n".join(parts) + "\n"


def lines(found: Comparison) -> list[str]:
    """What was compared, and what follows, in sentences."""
    config, facts = found.config, found.facts
    percent = f"{config.statistics.confidence:.0%}"
    told = [
        f"{len(found.standings)} backbones, {len(config.seeds)} seeds each, {said(config.budget)} per training; "
        f"{len(facts.held_out)} held-out cases, {len(facts.structures) - 1} structures. Intervals are {percent}: Dice "
        "over cases at these seeds, then over cases and seeds; ranks over cases and seeds."
    ]
    if found.correlation is not None:
        c = found.correlation
        told.append(
            f"Scratch strength and pretrained strength of {c.backbones} backbones: Spearman {c.spearman:.2f} "
            f"({_interval(c.spearman_interval, 2)}), Kendall {c.kendall:.2f} ({_interval(c.kendall_interval, 2)}); "
            f"one-sided permutation p = {c.p:.3g}, of which {c.least_p:.2g} is the least that {c.backbones} "
            "backbones can give."
        )
    told += [f"Failed: {name}: {error.message}" for name, error in found.failures.items()]
    return told


def said(budget: Budget) -> str:
    """A budget in words."""
    unit = {"tflop": "TFLOP", "seconds": "seconds", "steps": "steps"}[budget.unit]
    return f"{budget.amount:g} {unit}"


def _tables(found: Comparison) -> Iterator[tuple[str, Table]]:
    yield "Cost", (
        ("backbone", "parameters", "GFLOP a step", "step (s)", "peak memory (GiB)", "steps"),
        [
            (
                row["backbone"], f"{row['parameters'] / 1e6:.2f} M", f"{row['tflop_per_step'] * 1e3:,.1f}",
                f"{row['seconds_per_step']:.3f}", f"{row['peak_gib']:.2f}", f"{row['steps']:,}",
            )
            for row in rows(found)
        ],
    )  # fmt: skip
    yield "From scratch", (
        ("rank", "backbone", "Dice", "over cases", "over cases and seeds", "SD of seeds", "ranks", "first in"),
        [
            (
                str(s.rank), s.label, f"{s.dice:.4f}", _interval(s.cases), _interval(s.both), f"{s.seed_deviation:.4f}",
                f"{s.rank_interval[0]}–{s.rank_interval[1]}", f"{s.probability_first:.0%}",
            )
            for s in found.standings
        ],
    )  # fmt: skip
    if found.gains:
        yield (
            "What pretraining adds",
            (
                ("backbone", "scratch", "pretrained, fine-tuned", "gain", "interval"),
                [
                    (
                        g.label,
                        f"{g.scratch:.4f}",
                        f"{g.finetuned:.4f}",
                        f"{g.gain:+.4f}",
                        _interval(g.interval),
                    )
                    for g in found.gains
                ],
            ),
        )


def _interval(bounds: Sequence[float], digits: int = 4) -> str:
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def _csv(values: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(values[0]) if values else ["backbone"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return buffer.getvalue()


def _html(found: Comparison, images: dict[str, tuple[str, bytes]]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        name=found.config.name,
        lines=lines(found),
        tables=[(caption, header, body) for caption, (header, body) in _tables(found)],
        images=[(title, base64.b64encode(data).decode()) for title, data in images.values()],
    )
