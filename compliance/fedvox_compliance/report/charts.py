"""Radar and bars as inline SVG: no script, no library, a text alternative in each, readable in print and in the dark.

Colours are CSS custom properties with fallbacks, so the page's light and dark themes reach into the chart, and a
copied chart still has colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _RADAR_HEIGHT, _RADIUS = 720, 480, 190
_RINGS = (0.2, 0.4, 0.55, 0.8, 1.0)
"""The tiers' bounds, and the whole."""
_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH, _BAR_WIDTH = 22, 18, 150, 480


@dataclass(frozen=True)
class Spoke:
    """One value of a chart.

    Args:
        label: shown beside it.
        score: in [0, 1]; None when nothing applies.
        high: what it could become, if open questions leave that undecided.
        text: the score as it is written.
    """

    label: str
    score: float | None
    high: float | None = None
    text: str = ""


def radar(spokes: Sequence[Spoke], *, title: str, description: str, ident: str, labels: bool = True) -> str:
    """A radar chart of at least three values; fewer are drawn as bars, which a radar cannot show.

    Args:
        spokes: clockwise from the top. Values of None are left out.
        title: accessible name.
        description: what the chart shows, in a sentence.
        ident: makes the ids of this chart unique in its page.
        labels: write the names around it; without them it is small, for a side column.
    """
    shown = [s for s in spokes if s.score is not None]
    if len(shown) < 3:
        return bars(spokes, title=title, description=description, ident=ident)
    angles = [2 * math.pi * i / len(shown) - math.pi / 2 for i in range(len(shown))]
    scores = [s.score or 0.0 for s in shown]
    width, height = (_WIDTH, _RADAR_HEIGHT) if labels else (2 * _RADIUS + 20, 2 * _RADIUS + 20)
    centre = f'<g transform="translate({width // 2} {height // 2})">'
    parts = [_open_svg(width, height, title, description, ident), centre]
    parts += [_polygon([ring] * len(shown), angles, "ring") for ring in _RINGS]
    parts += [_line(angle) for angle in angles]
    if any(s.high is not None and s.high > (s.score or 0) for s in shown):
        parts.append(_polygon([max(s.high or 0, s.score or 0) for s in shown], angles, "possible"))
    parts.append(_polygon(scores, angles, "reached"))
    parts += [_dot(score, angle) for score, angle in zip(scores, angles, strict=True)]
    if labels:
        parts += [_spoke_label(s, angle) for s, angle in zip(shown, angles, strict=True)]
    return "".join([*parts, "</g></svg>"])


def bars(spokes: Sequence[Spoke], *, title: str, description: str, ident: str) -> str:
    """Horizontal bars, one a value, with a lighter continuation to what is still possible."""
    height = len(spokes) * (_BAR_HEIGHT + _BAR_GAP) + 12
    parts = [_open_svg(_WIDTH, height, title, description, ident)]
    for row, spoke in enumerate(spokes):
        parts.append(_bar(spoke, 10 + row * (_BAR_HEIGHT + _BAR_GAP)))
    return "".join([*parts, "</svg>"])


def _open_svg(width: int, height: int, title: str, description: str, ident: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(description)}</desc>'
    )


def _point(value: float, angle: float) -> str:
    return f"{value * _RADIUS * math.cos(angle):.1f},{value * _RADIUS * math.sin(angle):.1f}"


def _polygon(values: Sequence[float], angles: Sequence[float], kind: str) -> str:
    points = " ".join(_point(v, a) for v, a in zip(values, angles, strict=True))
    return f'<polygon class="{kind}" points="{points}"/>'


def _line(angle: float) -> str:
    x, y = _point(1.0, angle).split(",")
    return f'<line class="spoke" x1="0" y1="0" x2="{x}" y2="{y}"/>'


def _dot(score: float, angle: float) -> str:
    x, y = _point(score, angle).split(",")
    return f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>'


def _spoke_label(spoke: Spoke, angle: float) -> str:
    x, y = (float(c) for c in _point(1.0 + 16 / _RADIUS, angle).split(","))
    anchor = "middle" if abs(x) < 24 else "start" if x > 0 else "end"
    shift = 4.0 if abs(y) <= _RADIUS else 6.0 + math.copysign(8.0, y)
    if anchor == "middle":  # a line farther out than its neighbours, whose words would touch it
        shift += math.copysign(14.0, y)
    return _text("label", x, y + shift, anchor, spoke.label)


def _bar(spoke: Spoke, top: int) -> str:
    middle = top + _BAR_HEIGHT * 0.7
    score = spoke.score or 0.0
    high = max(score, spoke.high or 0.0)
    parts = [
        _text("label", _LABEL_WIDTH - 12, middle, "end", spoke.label),
        _rect("track", 1.0, top),
        _rect("possible", high, top) if high > score else "",
        _rect("reached", score, top) if score > 0 else "",
        _text("number", _LABEL_WIDTH + _BAR_WIDTH + 12, middle, "start", spoke.text),
    ]
    return "".join(parts)


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rect(kind: str, share: float, top: int) -> str:
    width = max(2.0, share * _BAR_WIDTH)
    return f'<rect class="{kind}" x="{_LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="4"/>'
