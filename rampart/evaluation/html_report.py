"""A report as one self-contained HTML file."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rampart.attacks import format_eps

CAPTIONS = {
    "curve": "Accuracy over eps; bars are 95% intervals",
    "radii": "Number of images by the smallest eps that fooled them",
    "confusion": "Predictions for the adversarial images, and for the clean images that no attack fooled",
    "easiest": "The first fooled images: at the smallest eps, by the first attacks",
    "hardest": "The last fooled images: at the largest eps, by the last attacks",
}


def render_html(report: dict[str, Any], pictures: Mapping[str, bytes], title: str = "") -> str:
    """Render a report as one HTML page with embedded figures, which a browser shows offline.

    Args:
        report: From :func:`rampart.evaluation.report.build_report`.
        pictures: PNG files by the names of :func:`rampart.evaluation.figures.worst_case_figures`.
        title: Name of the evaluated weights or network.
    """
    from jinja2 import Environment, FileSystemLoader  # torch brings it; slow to import

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=title,
        rates=[
            ("clean", report["clean"]),
            *((f"robust at eps {format_eps(rate['eps'])}", rate) for rate in report["robust"]),
        ],
        figures=[(CAPTIONS[name], base64.b64encode(png).decode()) for name, png in pictures.items()],
        provenance=json.dumps({key: report[key] for key in ("search", "made_on", "timings")}, indent=2),
        percent=lambda share: f"{100 * share:.2f}%",
    )
