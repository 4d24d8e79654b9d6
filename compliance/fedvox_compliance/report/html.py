"""The HTML report: one file, nothing fetched, no script; for the screen in light or dark, and for paper."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedvox_compliance.report.charts import bars, radar
from fedvox_compliance.report.view import ReportView, summarise


def render_html(view: ReportView) -> str:
    """Render a report.

    Every value is escaped by the template engine; only the charts, whose text is escaped where they are drawn,
    are passed as markup.
    """
    return environment().get_template("report.html.j2").render(v=view, t=view.messages, **charts(view))


def charts(view: ReportView) -> dict[str, Markup]:
    """The radar by theme and the bars by law and standard."""
    say = view.messages
    themes, frameworks = [r.spoke for r in view.themes], [r.spoke for r in view.frameworks]
    best, worst = summarise(themes)
    count = sum(s.score is not None for s in themes)
    parts = "; ".join(say("report.bar_part", name=s.label, score=s.text) for s in frameworks)
    radar_svg = radar(
        themes,
        title=say("report.radar_title"),
        description=say("report.radar_text", count=count, best=best, worst=worst),
        ident="radar",
    )
    bars_svg = bars(
        frameworks,
        title=say("report.bars_title"),
        description=say("report.bars_text", parts=parts),
        ident="bars",
    )
    return {"radar": Markup(radar_svg), "bars": Markup(bars_svg)}  # escaped in charts.py


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The template engine: escaping always on, undefined names an error."""
    return Environment(
        loader=PackageLoader("fedvox_compliance.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
