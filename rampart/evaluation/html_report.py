"""A report as one HTML file that needs nothing else to be read."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CAPTIONS = {
    "curve": "Accuracy over eps; bars are 95% intervals",
    "radii": "How many images fall at which eps",
    "confusion": "What the worst images are taken for",
    "easiest": "The images that fell first: to the first attacks, at the smallest eps",
    "hardest": "Of the images that fell, the last: to the last attacks, at the largest eps",
}


def render_html(report: dict[str, Any], pictures: Mapping[str, bytes], title: str = "") -> str:
    """The report with its figures inside, for any browser, offline.

    Args:
        report: As :func:`rampart.evaluation.report.build_report` makes it.
        pictures: PNG files by the names of :func:`rampart.evaluation.figures.worst_case_figures`.
        title: What was evaluated.
    """
    from jinja2 import Environment, FileSystemLoader  # torch brings it; slow to import

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=title,
        rates=[("clean", report["clean"]), *((f"robust at eps {rate['eps']:g}", rate) for rate in report["robust"])],
        figures=[(CAPTIONS[name], base64.b64encode(png).decode()) for name, png in pictures.items()],
        provenance=json.dumps({key: report[key] for key in ("search", "made_on", "timings")}, indent=2),
        percent=lambda share: f"{100 * share:.2f}%",
    )
