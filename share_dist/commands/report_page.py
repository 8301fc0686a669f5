"""The report as one self-contained page: tables and figures, no script, nothing fetched."""

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from share_dist.commands.report import BYTE_COLUMNS, COLUMNS, cell, columns_of, points
from share_dist.commands.report_figures import draw


def render_page(report: Mapping[str, Any]) -> str:
    """Render a report, as ``share_dist.commands.report.make_report`` makes it, to HTML."""
    import jinja2

    template = files("share_dist.commands").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        report=report,
        columns=columns_of(report, COLUMNS),
        byte_columns=columns_of(report, BYTE_COLUMNS),
        cell=cell,
        points=points,
        figure=partial(draw, report=report),
    )
