"""Reports: HTML that reads well on paper, PDF, JSON, and OSCAL assessment results.

view = build_view(space.assessment, catalogue, score_report, language="en", folder=space.folder)
html = render_html(view)
"""

from fedvox_compliance.report.html import render_html
from fedvox_compliance.report.json_report import render_json
from fedvox_compliance.report.oscal import render_oscal
from fedvox_compliance.report.view import ReportView, build_view

__all__ = ["ReportView", "build_view", "render_html", "render_json", "render_oscal"]
